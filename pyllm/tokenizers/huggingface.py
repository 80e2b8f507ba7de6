"""Hugging Face's `tokenizer.json`, through the `tokenizers` library, and the two files that may lie beside it."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyllm.errors import TokenizerError
from pyllm.tokenizers.base import Stretch, Tokenizer, Traits
from pyllm.tokenizers.bytebpe import BYTE_OF
from pyllm.tokenizers.endings import is_ending
from pyllm.tokenizers.library import library_errors
from pyllm.tokenizers.scored import byte_value

if TYPE_CHECKING:
    import tokenizers

SPACE = "\u2581"


class JsonTokenizer(Tokenizer):
    """A vocabulary that the library itself reads: its normalisation, words and merges are the model's own."""

    kinds = frozenset({"ByteLevel", "ByteFallback", "Metaspace", "Replace"})  # decoders that say what an id's text is

    def __init__(self, spec: dict[str, Any], source: str) -> None:
        """`spec`: what the file holds; `source` names the file, beside which others may lie."""
        added = _added_tokens(spec, source)
        special = [token for token in added if token.get("special") is True]
        self._added: dict[int, str] = {token["id"]: token["content"] for token in added}
        self._eats_left = {token["id"] for token in special if token.get("lstrip") is True}
        self._eats_right = {token["id"] for token in special if token.get("rstrip") is True}
        self._kinds = self._checked_kinds(spec, source)
        with library_errors(source, "tokenizer.json"):
            self._library = _build(spec)
            self._later = _build(_without_first_prefix(spec))
            vocabulary = self._library.get_vocab(with_added_tokens=True)
            self._pieces: dict[int, str] = {token: piece for piece, token in vocabulary.items()}
            unknown = _unknown_text(spec)  # text may become that token, but no text names it
            control = {t["id"]: "" if t["content"] == unknown else t["content"] for t in special}
            traits = self._read_traits(control, spec, source)
        self._never_from_text = frozenset(token for token, text in control.items() if text)
        super().__init__(traits)

    def _read_traits(self, control: dict[int, str], spec: Mapping[str, Any], source: str) -> Traits:
        config = read_neighbours(source)
        ids = {piece: token for token, piece in self._pieces.items()}
        begin = self._first_id()
        bos, eos = begin, ids.get(config.get("eos_token", ""))
        ends = {i for i, text in control.items() if is_ending(text)} | ({eos} if eos is not None else set())
        prefix = " " if self._library.decode(_ids(self._library, "a")) == "a" and self._adds_space() else ""
        every = prefix and not _has_first_prefix(spec)
        return Traits(
            source,
            vocab_size=max(self._pieces, default=-1) + 1,
            bos_id=ids.get(config.get("bos_token", "")) if bos is None else bos,
            eos_id=eos if eos is not None or len(ends) != 1 else next(iter(ends)),
            eos_ids=frozenset(ends),
            add_bos=begin is not None,
            prefix=prefix,
            text_starts=frozenset(control) if every else frozenset(),
            control=control,
            chat_template=config.get("chat_template"),
        )

    def _checked_kinds(self, spec: Mapping[str, Any], source: str) -> set[str]:
        kinds = set(_types_in(spec.get("decoder")))
        if not kinds & self.kinds:
            raise TokenizerError(f"{source}: its decoder ({', '.join(sorted(kinds)) or 'none'}) is not known here")
        for key in ("continuing_subword_prefix", "end_of_word_suffix"):
            if isinstance(spec["model"], dict) and spec["model"].get(key) and "WordPiece" not in self.kinds:
                raise TokenizerError(f"{source}: pieces with a {key} are not known here")
        return kinds

    def _first_id(self) -> int | None:
        """The id that the file's post-processor puts before a text."""
        plain, full = _ids(self._library, "a"), list(self._library.encode("a").ids)
        return full[0] if plain and full != plain and full[0] != plain[0] else None

    def _adds_space(self) -> bool:
        first = _ids(self._library, "a")[:1]
        return bool(first) and self._pieces[first[0]].startswith(SPACE)

    def _arranged(self, parts: Iterable[str | int]) -> list[int | Stretch]:
        """As everywhere, but that white space beside some special tokens falls away."""
        return super()._arranged(self._eat_spaces(list(parts)))

    def _eat_spaces(self, parts: list[str | int]) -> list[str | int]:
        """Some special tokens swallow the white space beside them."""
        for at, part in enumerate(parts):
            before, after = at - 1, at + 1
            if part in self._eats_left and before >= 0 and isinstance(text := parts[before], str):
                parts[before] = text.rstrip()
            if part in self._eats_right and after < len(parts) and isinstance(text := parts[after], str):
                parts[after] = text.lstrip()
        return parts

    def _encode_stretches(self, stretches: Sequence[Stretch], threads: int) -> Sequence[Sequence[int]]:
        with library_errors(self._traits.source, "tokenizer.json"):
            every = [_ids(self._library if at_start else self._later, text) for text, at_start in stretches]
        if not all(self._never_from_text.isdisjoint(ids) for ids in every):
            raise TokenizerError(f"{self._traits.source}: the vocabulary makes control tokens of plain text")
        return every

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

    library = Tokenizer.from_str(json.dumps({**spec, "padding": None, "truncation": None}))
    library.encode_special_tokens = True  # control tokens in text are text; `Tokenizer.encode` cuts out the others
    return library


def _added_tokens(spec: Mapping[str, Any], source: str) -> list[dict[str, Any]]:
    added = spec.get("added_tokens") or []
    for token in added if isinstance(added, list) else [added]:
        if not (isinstance(token, dict) and type(token.get("id")) is int and isinstance(token.get("content"), str)):
            raise TokenizerError(f"{source}: damaged tokenizer.json: {token!r:.80} is no added token")
    return list(added)


def _unknown_text(spec: Mapping[str, Any]) -> str | None:
    model = spec["model"]
    unknown = model.get("unk_token") if isinstance(model, dict) else None
    return unknown if isinstance(unknown, str) else None


def _types_in(step: Any) -> Iterator[str]:
    """Names of a pipeline's steps, those inside sequences too."""
    if isinstance(step, dict):
        yield str(step.get("type"))
        for inner in step.get("decoders") or step.get("pretokenizers") or []:
            yield from _types_in(inner)


def _metaspaces(step: Any) -> Iterator[dict[str, Any]]:
    if isinstance(step, dict):
        if step.get("type") == "Metaspace":
            yield step
        for inner in step.get("pretokenizers") or []:
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


# ---- its neighbours ------------------------------------------------------------------------------------------------


def read_neighbours(source: str) -> dict[str, str]:
    """BOS, EOS and chat template from `tokenizer_config.json` and `chat_template.jinja`, as far as they are there."""
    folder = Path(source).parent
    found: dict[str, str] = {}
    config = folder / "tokenizer_config.json"
    if config.is_file():
        try:
            fields = json.loads(config.read_bytes())
        except (ValueError, RecursionError) as error:
            raise TokenizerError(f"{config}: damaged: {error}") from error
        for key in ("bos_token", "eos_token", "chat_template"):
            value = fields.get(key) if isinstance(fields, dict) else None
            value = value.get("content") if isinstance(value, dict) else value
            found |= {key: value} if isinstance(value, str) else {}
    template = folder / "chat_template.jinja"
    if template.is_file():
        found["chat_template"] = template.read_text("utf-8")
    return found
