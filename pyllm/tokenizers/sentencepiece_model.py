"""SentencePiece's `tokenizer.model`, through the `sentencepiece` library."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pyllm.errors import TokenizerError
from pyllm.tokenizers.base import Stretch, Tokenizer, Traits
from pyllm.tokenizers.endings import is_ending
from pyllm.tokenizers.scored import byte_value

SPACE = "\u2581"  # how SentencePiece writes a space inside pieces


class SentencePieceTokenizer(Tokenizer):
    """A vocabulary that the library itself reads, with its own normalisation."""

    def __init__(self, data: bytes, source: str) -> None:
        self._library, self._pieces = library, pieces = _load(data, source)
        unknown = library.unk_id()
        control = {i: piece for i, piece in enumerate(pieces) if library.is_control(i)}
        bos, eos = (i if i >= 0 else None for i in (library.bos_id(), library.eos_id()))
        prefix = " " if library.normalize("a").startswith(SPACE) else ""
        ends = {i for i, text in control.items() if is_ending(text)} | ({eos} if eos is not None else set())
        super().__init__(
            Traits(
                source,
                vocab_size=len(pieces),
                bos_id=bos,
                eos_id=eos,
                eos_ids=frozenset(ends),
                add_bos=bos is not None,
                prefix=prefix,
                text_starts=frozenset(control) if prefix else frozenset(),
                control=control | ({unknown: ""} if unknown >= 0 else {}),
            )
        )

    def _encode_stretches(self, stretches: Sequence[Stretch], threads: int) -> Sequence[Sequence[int]]:
        """The library begins every stretch with the prefix; so it must, for each follows a control token."""
        ids: list[list[int]] = self._library.encode([stretch.text for stretch in stretches], num_threads=threads)
        return ids

    def _bytes_of(self, token: int) -> bytes:
        piece = self._pieces[token]
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
