"""SentencePiece's `tokenizer.model`, through the `sentencepiece` library."""

from __future__ import annotations

from typing import Any

from pyllm.errors import TokenizerError
from pyllm.tokenizers.base import Tokenizer, Traits
from pyllm.tokenizers.endings import is_ending
from pyllm.tokenizers.scored import byte_value

SPACE = "\u2581"  # how SentencePiece writes a space inside pieces


class SentencePieceTokenizer(Tokenizer):
    """A vocabulary that the library itself reads, with its own normalisation."""

    def __init__(self, data: bytes, source: str) -> None:
        self._library = library = _load(data, source)
        size: int = library.vocab_size()
        unknown = library.unk_id()
        control = {i: library.id_to_piece(i) for i in range(size) if library.is_control(i)}
        bos, eos = (i if i >= 0 else None for i in (library.bos_id(), library.eos_id()))
        prefix = " " if library.normalize("a").startswith(SPACE) else ""
        ends = {i for i, text in control.items() if is_ending(text)} | ({eos} if eos is not None else set())
        super().__init__(
            Traits(
                source,
                vocab_size=size,
                bos_id=bos,
                eos_id=eos,
                eos_ids=frozenset(ends),
                add_bos=bos is not None,
                prefix=prefix,
                text_starts=frozenset(control) if prefix else frozenset(),
                control=control | ({unknown: ""} if unknown >= 0 else {}),
            )
        )

    def _encode_stretch(self, text: str, at_start: bool) -> list[int]:
        """The library begins every stretch with the prefix; so it must, for each follows a control token."""
        ids: list[int] = self._library.encode(text)
        return ids

    def _bytes_of(self, token: int) -> bytes:
        piece: str = self._library.id_to_piece(token)
        byte = byte_value(piece) if self._library.is_byte(token) else None
        return piece.replace(SPACE, " ").encode() if byte is None else bytes([byte])

    def _piece(self, token: int) -> str:
        piece: str = self._library.id_to_piece(token)
        return piece


def _load(data: bytes, source: str) -> Any:
    import sentencepiece  # here: half a second that users of other vocabularies need not wait

    try:
        return sentencepiece.SentencePieceProcessor(model_proto=data)
    except (RuntimeError, OSError, ValueError) as error:
        raise TokenizerError(f"{source}: damaged tokenizer.model: {error}") from error
