"""SentencePiece's `tokenizer.model`, through the `sentencepiece` library, and what the files beside it add to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from pyllm.errors import TokenizerError
from pyllm.tokenizers.base import Stretch, Tokenizer, Traits
from pyllm.tokenizers.endings import is_ending
from pyllm.tokenizers.folder import FolderFacts
from pyllm.tokenizers.huggingface import NO_FACTS, check_id
from pyllm.tokenizers.model_proto import BYTE, NORMAL, plain_merges
from pyllm.tokenizers.scored import byte_value, in_one_buffer
from pyllm.tokenizers.unigram import encode_with

if TYPE_CHECKING:
    from pyllm._core import NativeBPE

SPACE = "\u2581"  # how SentencePiece writes a space inside pieces
WITHOUT_PREFIX = b"\x1a\x02\x18\x00"  # behind a model, a second NormalizerSpec, which only says: add_dummy_prefix = 0


class SentencePieceTokenizer(Tokenizer):
    """A vocabulary that the library itself reads, with its own normalisation. Where that does nothing, and pieces are
    merged by their scores, as in Llama 2's, C merges them: to the same ids, many times as fast.
    """

    def __init__(self, data: bytes, source: str, facts: FolderFacts = NO_FACTS) -> None:
        self._library, self._pieces = _load(data, source)
        self._n_own = len(self._pieces)
        self._data = data
        prefix = " " if self._library.normalize("a").startswith(SPACE) else ""
        first_only = bool(prefix) and not facts.flag("legacy", True)
        self._later = _load(data + WITHOUT_PREFIX, source)[0] if first_only else self._library
        control = {i: piece for i, piece in enumerate(self._pieces) if self._library.is_control(i)}
        user_defined = self._add(facts, control, source)
        super().__init__(self._read_traits(facts, control, user_defined, prefix, first_only, source))
        # The library itself makes no control tokens of text; but a neighbour may call any piece special.
        own = (i for i in control if i < self._n_own and i != self._library.unk_id())
        self._never_from_text = frozenset(i for i in own if not self._library.is_control(i))

    @property
    def library(self) -> Any:
        """The library's processor; it knows nothing of tokens that were added."""
        return self._library

    def _add(self, facts: FolderFacts, control: dict[int, str], source: str) -> dict[int, str]:
        """Takes in the tokens that were added to the model's. Gives those that are no control tokens."""
        user_defined: dict[int, str] = {}
        for token in facts.added:
            token_id, text = token["id"], token["content"]
            check_id(token_id, text, self._n_own, source)
            self._pieces += [""] * (token_id + 1 - len(self._pieces))
            if token_id >= self._n_own or token_id in control:  # control tokens may be renamed
                self._pieces[token_id] = text
            if token["special"]:
                control[token_id] = text
            elif token_id >= self._n_own:
                user_defined[token_id] = text
        return user_defined

    def _read_traits(
        self,
        facts: FolderFacts,
        control: Mapping[int, str],
        user_defined: Mapping[int, str],
        prefix: str,
        first_only: bool,
        source: str,
    ) -> Traits:
        unknown, ids = self._library.unk_id(), {text: token for token, text in control.items()}
        bos, eos = (
            ids.get(facts.named.get(name, ""), own if own >= 0 else None)
            for name, own in (("bos_token", self._library.bos_id()), ("eos_token", self._library.eos_id()))
        )
        add_bos, add_eos = (bos is not None, False) if facts.frame is None else facts.frame
        ends = {i for i, text in control.items() if is_ending(text)} | ({eos} if eos is not None else set())
        return Traits(
            source,
            vocab_size=len(self._pieces),
            bos_id=bos,
            eos_id=eos,
            eos_ids=frozenset(ends | {token for token in facts.ending_ids if token < len(self._pieces)}),
            add_bos=add_bos and bos is not None,
            add_eos=add_eos and eos is not None,
            prefix=prefix,
            text_starts=frozenset({*control, *user_defined}) if prefix and not first_only else frozenset(),
            control={**control, **({unknown: ""} if unknown >= 0 else {})},
            user_defined=user_defined,
            chat_templates=facts.chat_templates,
        )

    def _encode_stretches(self, stretches: Sequence[Stretch], threads: int) -> Sequence[Sequence[int]]:
        """The library begins every stretch with the prefix; so it must, unless only a text's first one has it."""
        merges = self._merges
        if merges:
            return merges.encode_batch([self._to_pieces(text, at_start) for text, at_start in stretches], threads)
        if self._later is self._library or all(stretch.at_start for stretch in stretches):
            ids = encode_with(self._library, [stretch.text for stretch in stretches], threads)
        else:
            ids = [(self._library if at_start else self._later).encode(text) for text, at_start in stretches]
        return [self._checked(one) for one in ids] if self._never_from_text else ids

    def _encode_text(self, text: str) -> list[int]:
        if self._merges:
            return self._merges.encode(self._to_pieces(text, True))
        ids: list[int] = self._library.encode(text)
        return self._checked(ids) if self._never_from_text else ids

    def _to_pieces(self, text: str, at_start: bool) -> bytes:
        """A stretch in the alphabet of the pieces, as the library has it before it merges."""
        prefix = self._traits.prefix if at_start or self._later is self._library else ""
        return (prefix + text).replace(" ", SPACE).encode()

    @cached_property
    def _merges(self) -> NativeBPE | None:
        """None where the library is needed."""
        from pyllm._core import NativeBPE  # here: decoding works without the extension

        pieces = None if self._never_from_text else plain_merges(self._data)
        if pieces is None:
            return None
        byte_ids = np.full(256, -1, np.int32)
        for token, kind in enumerate(pieces.types):
            byte = byte_value(pieces.texts[token].decode("utf-8", "replace")) if kind == BYTE else None
            if byte is not None:
                byte_ids[byte] = token
        mergeable = np.array([kind == NORMAL for kind in pieces.types], np.uint8)
        scores = np.array(pieces.scores, np.float32)
        if (byte_ids < 0).any():
            return None
        return NativeBPE(in_one_buffer(pieces.texts), mergeable, scores=scores, byte_ids=byte_ids)

    def _checked(self, ids: list[int]) -> list[int]:
        if not self._never_from_text.isdisjoint(ids):
            raise TokenizerError(f"{self._traits.source}: the vocabulary makes control tokens of plain text")
        return ids

    def _bytes_of(self, token: int) -> bytes:
        piece = self._pieces[token]
        if token >= self._n_own:
            return piece.encode()
        byte = byte_value(piece) if self._library.is_byte(token) else None
        return piece.replace(SPACE, " ").encode() if byte is None else bytes([byte])

    def _piece(self, token: int) -> str:
        return self._pieces[token]


def _load(data: bytes, source: str) -> tuple[Any, list[str]]:
    """The library's processor, and its pieces."""
    import sentencepiece  # here: half a second that users of other vocabularies need not wait

    try:
        library = sentencepiece.SentencePieceProcessor(model_proto=data)
        return library, [library.id_to_piece(i) for i in range(library.vocab_size())]
    except (RuntimeError, OSError, ValueError) as error:
        raise TokenizerError(f"{source}: damaged tokenizer.model: {error}") from error
