"""Hugging Face's `tokenizer.json`, through the `tokenizers` library, and what the files beside it change in it."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from pyllm.errors import TokenizerError
from pyllm.tokenizers.base import Stretch, Tokenizer, Traits
from pyllm.tokenizers.bytebpe import BYTE_OF
from pyllm.tokenizers.endings import is_ending
from pyllm.tokenizers.folder import FolderFacts
from pyllm.tokenizers.json_limits import check_growth
from pyllm.tokenizers.library import library_errors
from pyllm.tokenizers.scored import byte_value

if TYPE_CHECKING:
    import tokenizers

SPACE = "\u2581"
#: What the library strips: Unicode's white space, which is not all that Python strips.
WHITE_SPACE = "\t\n\v\f\r \x85\xa0\u1680" + "".join(map(chr, range(0x2000, 0x200B))) + "\u2028\u2029\u202f\u205f\u3000"


#: Ids that tokens may have behind a vocabulary's end, and as many again as it has pieces.
MOST_ADDED = 1024

#: What is put before a text, and behind it.
Frame = tuple[tuple[int, ...], tuple[int, ...]]

NO_FACTS = FolderFacts()


class JsonVocabulary(Tokenizer):
    """What any reader of a `tokenizer.json` has in common: pieces by id, and tokens that were added to the model's."""

    def __init__(self, added: Iterable[Mapping[str, Any]], kinds: Set[str], pieces: Mapping[int, str], traits: Traits):
        """`kinds`: the names of the decoder's steps, which say how pieces write text."""
        super().__init__(traits)
        cut_out = {*traits.control, *traits.user_defined}  # other added tokens are the library's to find
        known = [token for token in added if token["id"] in cut_out]
        self._added: dict[int, str] = {token["id"]: token["content"] for token in added}
        self._eats_left = {token["id"] for token in known if token.get("lstrip") is True}
        self._eats_right = {token["id"] for token in known if token.get("rstrip") is True}
        self._kinds = kinds
        self._pieces = pieces

    def _arranged(self, parts: Iterable[str | int]) -> list[int | Stretch]:
        """As everywhere, but that white space beside some added tokens falls away."""
        return super()._arranged(self._eat_spaces(list(parts)))

    @property
    def eats_spaces(self) -> bool:
        """Whether some added tokens swallow the white space beside them."""
        return bool(self._eats_left or self._eats_right)

    def _eat_spaces(self, parts: list[str | int]) -> list[str | int]:
        """Some added tokens swallow the white space beside them."""
        for at, part in enumerate(parts):
            before, after = at - 1, at + 1
            if part in self._eats_left and before >= 0 and isinstance(text := parts[before], str):
                parts[before] = text.rstrip(WHITE_SPACE)
            if part in self._eats_right and after < len(parts) and isinstance(text := parts[after], str):
                parts[after] = text.lstrip(WHITE_SPACE)
        return parts

    def _bytes_of(self, token: int) -> bytes:
        if token in self._added:
            return self._added[token].encode()
        piece: str = self._pieces.get(token, "")  # a hole in the ids
        if "ByteLevel" in self._kinds:
            return bytes([BYTE_OF[c] for c in piece]) if all(c in BYTE_OF for c in piece) else piece.encode()
        byte = byte_value(piece) if "ByteFallback" in self._kinds else None
        return piece.replace(SPACE, " ").encode() if byte is None else bytes([byte])

    def _piece(self, token: int) -> str:
        return self._pieces.get(token, "")


class JsonTokenizer(JsonVocabulary):
    """A vocabulary that the library itself reads: its normalisation, words and merges are the model's own."""

    kinds = frozenset({"ByteLevel", "ByteFallback", "Metaspace", "Replace"})  # decoders that say what an id's text is

    def __init__(self, spec: dict[str, Any], source: str, facts: FolderFacts = NO_FACTS) -> None:
        """`spec`: what the file holds, `completed` by the facts; `source` names the file in messages."""
        self._facts = facts
        kinds = self._checked_kinds(spec, source)
        check_growth(spec, source)
        with library_errors(source, "tokenizer.json"):
            self._library = _build(spec)
            self._later = _build(_without_first_prefix(spec))
            added = _as_numbered(self._library, added_tokens(spec, source))
            vocabulary = self._library.get_vocab(with_added_tokens=True)
            pieces: dict[int, str] = {token: piece for piece, token in vocabulary.items()}
            traits = self._read_traits(control_texts(added, spec), pieces, spec, source)
        super().__init__(added, kinds, pieces, traits)
        self._never_from_text = frozenset(token for token, text in traits.control.items() if text)

    def _read_traits(
        self, control: dict[int, str], pieces: Mapping[int, str], spec: Mapping[str, Any], source: str
    ) -> Traits:
        prefix = " " if self._library.decode(_ids(self._library, "a")) == "a" and self._adds_space(pieces) else ""
        every = prefix and not _has_first_prefix(spec)
        starts = frozenset(control) if every else frozenset()
        frame = self._frame(source)
        return json_traits(source, self._facts, pieces, control, frame=frame, prefix=prefix, text_starts=starts)

    def _checked_kinds(self, spec: Mapping[str, Any], source: str) -> set[str]:
        kinds = set(step_types(spec.get("decoder")))
        if not kinds & self.kinds:
            raise TokenizerError(f"{source}: its decoder ({', '.join(sorted(kinds)) or 'none'}) is not known here")
        for key in ("continuing_subword_prefix", "end_of_word_suffix"):
            if isinstance(spec["model"], dict) and spec["model"].get(key) and "WordPiece" not in self.kinds:
                raise TokenizerError(f"{source}: pieces with a {key} are not known here")
        return kinds

    def _frame(self, source: str) -> Frame:
        """The ids that the file's post-processor puts around a text."""
        plain, full = _ids(self._library, "a"), list(self._library.encode("a").ids)
        starts = (at for at in range(len(full)) if plain and full[at : at + len(plain)] == plain)
        at = next(starts, None) if plain else 0
        if at is None:
            raise TokenizerError(f"{source}: its post-processor changes the ids of texts, which is not known here")
        return (tuple(full[:at]), tuple(full[at + len(plain) :])) if plain else ((), ())

    def _adds_space(self, pieces: Mapping[int, str]) -> bool:
        first = _ids(self._library, "a")[:1]
        return bool(first) and pieces[first[0]].startswith(SPACE)

    def _encode_stretches(self, stretches: Sequence[Stretch], threads: int) -> Sequence[Sequence[int]]:
        with library_errors(self._traits.source, "tokenizer.json"):
            every = [_ids(self._library if at_start else self._later, text) for text, at_start in stretches]
        if not all(self._never_from_text.isdisjoint(ids) for ids in every):
            raise TokenizerError(f"{self._traits.source}: the vocabulary makes control tokens of plain text")
        return every


def json_traits(
    source: str,
    facts: FolderFacts,
    pieces: Mapping[int, str],
    control: Mapping[int, str],
    *,
    frame: Frame,
    prefix: str,
    text_starts: frozenset[int],
    user_defined: Mapping[int, str] = MappingProxyType({}),
) -> Traits:
    """What a `tokenizer.json` and its neighbours say. `frame`: the ids that its post-processor puts around texts."""
    before, after = frame
    if len(after) > 1:
        raise TokenizerError(f"{source}: texts end with {len(after)} tokens, of which one at most is known here")
    last = max(pieces, default=-1)
    check_id(last, pieces.get(last, ""), len(pieces), source)
    named = set(facts.named.values())
    ids = {piece: token for token, piece in pieces.items() if piece in named}
    eos = after[0] if after else ids.get(facts.named.get("eos_token", ""))
    ends = {i for i, text in control.items() if is_ending(text)} | ({eos} if eos is not None else set())
    return Traits(
        source,
        vocab_size=last + 1,
        bos_id=before[0] if before else ids.get(facts.named.get("bos_token", "")),
        eos_id=eos if eos is not None or len(ends) != 1 else next(iter(ends)),
        eos_ids=frozenset(ends | {token for token in facts.ending_ids if token in pieces}),
        add_bos=bool(before),
        add_eos=bool(after),
        also_before=before[1:],
        prefix=prefix,
        text_starts=text_starts,
        control=control,
        user_defined=user_defined,
        chat_templates=facts.chat_templates,
    )


# ---- the file ------------------------------------------------------------------------------------------------------


def parse_object(data: bytes, source: str) -> dict[str, Any]:
    """The object in a `tokenizer.json`. Raises `TokenizerError` where there is none."""
    try:
        spec = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise TokenizerError(f"{source}: damaged tokenizer.json: {error}") from error
    if not isinstance(spec, dict) or "model" not in spec:
        raise TokenizerError(f"{source}: no tokenizer.json: it holds no model")
    return spec


def _build(spec: Mapping[str, Any]) -> tokenizers.Tokenizer:
    from tokenizers import Tokenizer

    unused: dict[str, Any] = {"padding": None, "truncation": None}
    if isinstance(spec["model"], dict) and spec["model"].get("dropout"):  # of merges, at random: for training only
        unused["model"] = {**spec["model"], "dropout": None}
    library = Tokenizer.from_str(json.dumps({**spec, **unused}))
    library.encode_special_tokens = True  # control tokens in text are text; `Tokenizer.encode` cuts out the others
    return library


def added_tokens(spec: Mapping[str, Any], source: str) -> list[dict[str, Any]]:
    """The tokens that were added to the model's, each with an id and its text. Raises `TokenizerError`."""
    added = spec.get("added_tokens") or []
    for token in added if isinstance(added, list) else [added]:
        if not (isinstance(token, dict) and type(token.get("id")) is int and isinstance(token.get("content"), str)):
            raise TokenizerError(f"{source}: damaged tokenizer.json: {token!r:.80} is no added token")
    return list(added)


def _as_numbered(library: tokenizers.Tokenizer, added: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The added tokens with the ids that the library gives them, which need not be the file's."""
    numbered = ((library.token_to_id(token["content"]), token) for token in added)
    return [{**token, "id": number} for number, token in numbered if number is not None]


def control_texts(added: Iterable[Mapping[str, Any]], spec: Mapping[str, Any]) -> dict[int, str]:
    """Texts of the special ones among the added tokens. Text may become the unknown one, but no text names it."""
    model = spec["model"]
    unknown = model.get("unk_token") if isinstance(model, dict) else None
    special = (token for token in added if token.get("special") is True)
    return {token["id"]: "" if token["content"] == unknown else token["content"] for token in special}


def step_types(step: Any) -> Iterator[str]:
    """Names of a pipeline's steps, those inside sequences too."""
    if isinstance(step, dict):
        yield str(step.get("type"))
        for inner in _inner_steps(step):
            yield from step_types(inner)


def _inner_steps(step: Mapping[str, Any]) -> list[Any]:
    inner = step.get("decoders") or step.get("pretokenizers")
    return inner if isinstance(inner, list) else []


def _metaspaces(step: Any) -> Iterator[dict[str, Any]]:
    if isinstance(step, dict):
        if step.get("type") == "Metaspace":
            yield step
        for inner in _inner_steps(step):
            yield from _metaspaces(inner)


def _has_first_prefix(spec: Mapping[str, Any]) -> bool:
    return any(step.get("prepend_scheme") == "first" for step in _metaspaces(spec.get("pre_tokenizer")))


def _without_first_prefix(spec: dict[str, Any]) -> dict[str, Any]:
    """The file for stretches that do not begin the text, where only the first stretch gets a space before it."""
    if not _has_first_prefix(spec):
        return spec
    spec = {**spec, "pre_tokenizer": copy.deepcopy(spec["pre_tokenizer"])}
    for step in _metaspaces(spec["pre_tokenizer"]):
        if step.get("prepend_scheme") == "first":
            step["prepend_scheme"] = "never"
    return spec


def _ids(library: tokenizers.Tokenizer, text: str) -> list[int]:
    return list(library.encode(text, add_special_tokens=False).ids)


# ---- what its neighbours change --------------------------------------------------------------------------------------


def completed(spec: dict[str, Any], facts: FolderFacts, source: str) -> dict[str, Any]:
    """The file with what transformers adds to it: tokens listed beside it, and control tokens named there.

    What is put around texts is the file's own say: there `add_bos_token` counts for nothing.
    """
    vocabulary = _ids_of_pieces(spec["model"])
    if not vocabulary:
        return spec
    added = {token["content"]: token for token in added_tokens(spec, source)}
    taken = {token["id"] for token in added.values()}
    for token in facts.added:
        text, token_id = token["content"], token["id"]
        check_id(token_id, text, len(vocabulary), source)
        if token_id not in taken and vocabulary.get(text, token_id) == token_id:
            added.setdefault(text, dict(token))
    for text in facts.special:
        if text in added:
            added[text] = {**added[text], "special": True}
        elif text in vocabulary:
            added[text] = {"id": vocabulary[text], "content": text, "special": True, **_PLAIN}
    return {**spec, "added_tokens": sorted(added.values(), key=lambda token: token["id"])}


_PLAIN = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}


def check_id(token: int, text: str, size: int, source: str) -> None:
    """Raises `TokenizerError` for an id that would make a vocabulary of `size` pieces a monster."""
    if token >= 2 * size + MOST_ADDED:
        raise TokenizerError(f"{source}: {text!r:.80} is token {token}, far behind the vocabulary's end")


def _ids_of_pieces(model: Any) -> dict[str, int]:
    """The model's own vocabulary, {} where it is none: the library says what is wrong."""
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(vocabulary, list):  # of pieces and scores
        firsts = [item[0] if isinstance(item, list) and item else None for item in vocabulary]
        return {piece: token for token, piece in enumerate(firsts) if isinstance(piece, str)}
    return vocabulary if isinstance(vocabulary, dict) and set(map(type, vocabulary.values())) <= {int} else {}
