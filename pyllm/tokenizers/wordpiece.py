"""WordPiece, BERT's vocabulary: for embedding models. It forgets case and spaces, so nothing is generated with it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from operator import index
from typing import Any, SupportsIndex

from pyllm.errors import TokenizerError
from pyllm.tokenizers.decoder import Decoder
from pyllm.tokenizers.huggingface import JsonTokenizer

CONTINUES = "##"  # begins a piece that stands inside a word
WORD_START = (
    "\u2581"  # begins a piece that stands at a word's beginning, in GGUF files, which drop the ## of the others
)
LONGEST_WORD = 100  # characters; longer ones are unknown


class WordPieceTokenizer(JsonTokenizer):
    """A `tokenizer.json` with a WordPiece model: words are cut from the left into the longest pieces."""

    kinds = frozenset({"WordPiece"})

    def decode(self, ids: Iterable[SupportsIndex]) -> str:
        """Words as the pieces have them, with single spaces between: not the text that was encoded."""
        text: str = self._library.decode([self._check_id(index(token)) for token in ids], skip_special_tokens=True)
        return text

    def decoder(self) -> Decoder:
        """Raises `TokenizerError`: what such ids add to a text cannot be said."""
        raise TokenizerError(
            f"{self._traits.source}: a WordPiece vocabulary, which forgets case and spaces, belongs to models that "
            "embed text and do not generate it"
        )

    def _bytes_of(self, token: int) -> bytes:
        return self._piece(token).removeprefix(CONTINUES).encode()


def vocabulary_of_gguf(pieces: Iterable[str], control: Mapping[int, str]) -> dict[str, int]:
    """A GGUF file's pieces as a `tokenizer.json` writes them, with the ## that the file drops."""
    return {control.get(token, _written_with_marks(piece)): token for token, piece in enumerate(pieces)}


def tokenizer_json(
    vocabulary: Mapping[str, int], control: Mapping[int, str], settings: Mapping[str, Any]
) -> dict[str, Any]:
    """The `tokenizer.json` of a vocabulary that came without one.

    `settings`: "lowercase", "strip_accents" and "split_chinese" (truth values), "unknown", "first" and "last" (texts
    of control tokens: what stands for the unknown, and what a text is put between).
    """
    first, last = settings["first"], settings["last"]
    return {
        "added_tokens": [{"id": token, "content": text, "special": True, **_PLAIN} for token, text in control.items()],
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": settings["split_chinese"],
            "lowercase": settings["lowercase"],
            "strip_accents": settings["strip_accents"],
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {
            "type": "BertProcessing",
            "cls": [first, vocabulary[first]],
            "sep": [last, vocabulary[last]],
        },
        "decoder": {"type": "WordPiece", "prefix": CONTINUES, "cleanup": True},
        "model": {
            "type": "WordPiece",
            "unk_token": settings["unknown"],
            "continuing_subword_prefix": CONTINUES,
            "max_input_chars_per_word": LONGEST_WORD,
            "vocab": dict(vocabulary),
        },
    }


_PLAIN = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}


def _written_with_marks(piece: str) -> str:
    return piece[1:] if piece.startswith(WORD_START) else CONTINUES + piece
