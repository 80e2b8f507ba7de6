"""WordPiece, BERT's vocabulary: for embedding models. It forgets case and spaces, so nothing is generated with it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from operator import index
from typing import Any, SupportsIndex

from pyllm.errors import TokenizerError
from pyllm.tokenizers.base import Traits
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

    def _read_traits(self, control: dict[int, str], spec: Mapping[str, Any], source: str) -> Traits:
        """As everywhere, but that a text ends with what the file puts there."""
        traits = super()._read_traits(control, spec, source)
        last = self._library.encode("a").ids[-1]
        return replace(traits, eos_id=last, add_eos=True) if last in control else traits

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


def tokenizer_json(pieces: Iterable[str], control: dict[int, str], settings: dict[str, Any]) -> dict[str, Any]:
    """The `tokenizer.json` of a GGUF file's vocabulary.

    `settings`: "lowercase" and "strip_accents" (truth values), "unknown", "first" and "last" (texts of control
    tokens: what stands for the unknown, and what a text is put between).
    """
    vocabulary = {control.get(token, _written_with_marks(piece)): token for token, piece in enumerate(pieces)}
    first, last = settings["first"], settings["last"]
    return {
        "added_tokens": [{"id": token, "content": text, "special": True, **_PLAIN} for token, text in control.items()],
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": True,
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
            "vocab": vocabulary,
        },
    }


_PLAIN = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}


def _written_with_marks(piece: str) -> str:
    return piece[1:] if piece.startswith(WORD_START) else CONTINUES + piece
