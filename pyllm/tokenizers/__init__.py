"""Text to token ids and back: llama2.c's, SentencePiece's, GGUF's and Hugging Face's vocabularies behind one class."""

from pyllm.tokenizers.base import Tokenizer
from pyllm.tokenizers.decoder import Decoder

__all__ = ["Decoder", "Tokenizer"]
