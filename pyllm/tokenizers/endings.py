"""Control tokens that end a text or a turn. Files name one of them; models use several."""

from __future__ import annotations

_ENDINGS = frozenset(
    {
        "</s>",
        "<eos>",
        "<EOT>",
        "<|EOT|>",
        "<|call|>",
        "<|end|>",
        "<|endoftext|>",
        "<|end_of_text|>",
        "<|end_of_turn|>",
        "<|end_of_sentence|>",
        "<|eom_id|>",
        "<|eot_id|>",
        "<|im_end|>",
        "<|observation|>",
        "<|return|>",
        "<end_of_turn>",
        "<end_of_utterance>",
        "<\uff5cend\u2581of\u2581sentence\uff5c>",
    }
)


def is_ending(text: str) -> bool:
    """Whether a control token of this name ends a text or a turn in the model families that have one."""
    return text in _ENDINGS
