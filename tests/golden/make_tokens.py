"""Golden token ids: hard strings through the reference tokenizers.

Needs ``pip install numpy gguf tokenizers sentencepiece``. Run it as

    python make_tokens.py --gguf SmolLM2-135M-Instruct.Q4_1.gguf --spm llama2-tokenizer.model

It writes beside itself:

``smollm2_tokens.json``
    SmolLM2's byte-level BPE, built with the ``tokenizers`` library as the model's own tokenizer.json has it (every
    digit apart, then the GPT-2 pattern), from the vocabulary and merges in the GGUF. Per case ``text``; ``ids``, where
    control words in the text are plain text; ``ids_special``, only where it differs: control words become control
    tokens; and ``decoded``, only where decoding ``ids`` does not give the text back. ``missing_bytes``: the bytes that
    have no piece of their own; the reference drops them silently, and merges across the hole.
``llama2_tokens.json``
    Llama 2's 32,000 pieces through ``sentencepiece``, without BOS. Per case ``text``, ``ids`` and, only where it
    differs from the text, ``decoded``. ``llama2c`` holds the prompts and ids (BOS included) of test.c in
    karpathy/llama2.c (MIT), which has no other tokens for these cases but where the text holds a NUL (it ends there)
    or U+2581 (it is spelt byte by byte, not as a space).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from gguf import GGUFReader
from sentencepiece import SentencePieceProcessor
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

HERE = Path(__file__).parent
CONTROL = 3  # the token type of control tokens in GGUF

HARD: tuple[str, ...] = (
    # nothing, spaces, tabs, line ends
    "",
    " ",
    "  ",
    "   ",
    "        ",
    " " * 33,
    " leading",
    "   three leading",
    "trailing ",
    "trailing   ",
    "in  the   middle    of     words",
    "\t",
    "\t\tindented\twith\ttabs\t",
    " \t \t mixed",
    "\n",
    "\n\n\n",
    "line\nline\n\nline\n",
    "line\r\nline\r\n\r\nline\r\n",
    "\r",
    "a \n b \n  c",
    "no-break\u00a0space and\u2003em space and\u3000wide space",
    "zero\u200bwidth\u200dand\ufeffmarks",
    "form\x0cfeed and\x0bvertical tab and\x85next line\u2028line separator",
    # numbers
    "0",
    "7 42 365 1024 31415 271828 1234567 12345678901234567890",
    "3.14159, -2.5e-10, 1/2, 0x7fff, 1,000,000 and 50%",
    "2024-02-29T23:59:59.999Z v1.2.3-rc4",
    "\u0661\u0662\u0663 \u0967\u0968\u0969 \u00b2\u00b3\u00bd \u2167 \uff11\uff12",
    "abc123def456",
    # punctuation, contractions, case
    "I'm, you're, he'll, we've, she'd, it's, don't",
    "I'M YOU'RE HE'LL",
    "\u2018curly\u2019 \u201cquotes\u201d it\u2019s \u2014 dash \u2026",
    "!!!???...,,,;;;:::---___",
    "C'est-\u00e0-dire: \u00ab non \u00bb !",
    "hello Hello HELLO hELLO",
    "$100 \u20ac50 \u00a320 \u20b9999 \u00a5",
    # emoji
    "\U0001f999",
    "smile \U0001f642 and \U0001f600\U0001f600\U0001f600",
    "family \U0001f468\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466 done",
    "wave \U0001f44b\U0001f3fd flag \U0001f1eb\U0001f1f7 heart \u2764\ufe0f key 1\ufe0f\u20e3",
    # scripts
    "Gr\u00fc\u00dfe aus K\u00f6ln, \u00c5ngstr\u00f6m, \u0141\u00f3d\u017a, \u0130stanbul",
    "\u039a\u03b1\u03bb\u03b7\u03bc\u03ad\u03c1\u03b1 \u03ba\u03cc\u03c3\u03bc\u03b5",
    "\u041f\u0440\u0438\u0432\u0435\u0442, \u043c\u0438\u0440! \u0401\u043b\u043a\u0430",
    "\u05e9\u05dc\u05d5\u05dd \u05e2\u05d5\u05dc\u05dd",
    "\u0645\u0631\u062d\u0628\u0627 \u0628\u0627\u0644\u0639\u0627\u0644\u0645",
    "\u0928\u092e\u0938\u094d\u0924\u0947 \u0926\u0941\u0928\u093f\u092f\u093e",
    "\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35\u0e0a\u0e32\u0e27\u0e42\u0e25\u0e01",
    "\u4f60\u597d\uff0c\u4e16\u754c\uff01\u7e41\u9ad4\u5b57",
    "\u3053\u3093\u306b\u3061\u306f\u4e16\u754c \u30ab\u30bf\u30ab\u30ca",
    "\uc548\ub155\ud558\uc138\uc694 \uc138\uacc4",
    "\u10d2\u10d0\u10db\u10d0\u10e0\u10ef\u10dd\u10d1\u10d0 \u0540\u0561\u0575 \u1230\u120b\u121d",
    "\U00010348\U0001d54f\U0001d7d8\U00020000",
    # combining marks: the same word composed and not, and a stack of marks
    "caf\u00e9 \u00f1",
    "cafe\u0301 n\u0303",
    "Z\u0351\u036b\u0343a\u0327\u0321l\u0336g\u0316o\u0355",
    # control words, whole and broken
    "<|im_end|>",
    "<|im_start|>user\nhello<|im_end|>\n",
    "before<|endoftext|>after",
    "  <|im_start|>  <|im_end|>  ",
    "<|im_end|",
    "<|im_<|im_end|>end|>",
    "<|IM_END|> <| im_end |>",
    "<repo_name><file_sep><jupyter_start>",
    "<s>[INST] <<SYS>> hi <</SYS>> [/INST]</s>",
    "<unk><0x0A><0xFF>",
    "\u2581under\u2581score",
    "\u0120\u010a\u0109",
    # NUL and other controls
    "a\x00b",
    "\x00",
    "\x01\x02\x1b[31mred\x1b[0m\x7f",
    "end\x04-\x06-\x13=\x14=\x16a\x1db \U00050000 bytes that SmolLM2 has no piece for",
    "\ufffd replacement \uffff noncharacter \U0010ffff",
    # code
    "def f(x: int) -> int:\n    return x ** 2  # square\n",
    "for (int i = 0; i < n; ++i) { a[i] += b[i]->c; }\r\n",
    '{"key": [1, 2.5, null, true], "\\u00e9": "\\n"}',
    "https://example.org/a/b?c=d&e=%20f#g user@example.org C:\\Users\\x",
    "SELECT * FROM t WHERE a != 'b' -- comment\n\n\n\n",
    "#include <stdio.h>\n\n\tint main(void)\n\t{\n\t\treturn 0;\n\t}\n",
    "x=y===z!==w<=>v&&u||t??s::r..=q",
    # long words
    "Donaudampfschifffahrtselektrizit\u00e4tenhauptbetriebswerkbauunterbeamtengesellschaft",
    "a" * 100,
    "pneumono" * 12,
    "ab" * 64 + " " + "-" * 70,
    "=" * 80 + "\n" + "*" * 17,
)

LLAMA2C: tuple[tuple[str, str], ...] = (
    ("", "1"),
    ("I believe the meaning of life is", "1 306 4658 278 6593 310 2834 338"),
    (
        "Simply put, the theory of relativity states that ",
        "1 3439 17632 1925 29892 278 6368 310 14215 537 5922 393 29871",
    ),
    (
        "A brief message congratulating the team on the launch:\n\n        Hi everyone,\n\n        I just ",
        "1 319 11473 2643 378 629 271 18099 278 3815 373 278 6826 29901 13 13 4706 6324 14332 29892 13 13 4706 306 925 "
        "29871",
    ),
    (
        "Translate English to French:\n\n        sea otter => loutre de mer\n        peppermint => menthe "
        "poivr\u00e9e\n        plush girafe => girafe peluche\n        cheese =>",
        "1 4103 9632 4223 304 5176 29901 13 13 4706 7205 4932 357 1149 301 449 276 316 2778 13 4706 1236 407 837 524 "
        "1149 6042 354 772 440 29878 1318 13 4706 715 1878 330 3055 1725 1149 330 3055 1725 4639 28754 13 4706 923 968 "
        "1149",
    ),
)


def smollm2_tokenizer(path: Path) -> Tokenizer:
    """SmolLM2's tokenizer, from the vocabulary, merges and control tokens of its GGUF."""
    fields = GGUFReader(path).fields
    pieces: list[str] = fields["tokenizer.ggml.tokens"].contents()
    merges: list[str] = fields["tokenizer.ggml.merges"].contents()
    types: list[int] = fields["tokenizer.ggml.token_type"].contents()
    vocab = {piece: i for i, piece in enumerate(pieces)}
    pairs: list[tuple[str, str]] = []
    for merge in merges:
        left, right = merge.split(" ")
        pairs.append((left, right))
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=pairs))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    control = [piece for piece, kind in zip(pieces, types, strict=True) if kind == CONTROL]
    tokenizer.add_special_tokens([AddedToken(piece, special=True, normalized=False) for piece in control])
    return tokenizer


def byte_character(byte: int) -> str:
    """Give the character that stands for a byte in a byte-level vocabulary, as GPT-2 chose it."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    if byte in printable:
        return chr(byte)
    return chr(256 + [b for b in range(256) if b not in printable].index(byte))


def encode(tokenizer: Tokenizer, text: str, *, special: bool) -> list[int]:
    """Token ids of a text; without ``special``, control words in it are plain text."""
    tokenizer.encode_special_tokens = not special
    return tokenizer.encode(text, add_special_tokens=False).ids


def smollm2_cases(path: Path) -> dict[str, Any]:
    """Every hard string through SmolLM2's tokenizer."""
    tokenizer = smollm2_tokenizer(path)
    cases: list[dict[str, Any]] = []
    for text in HARD:
        ids = encode(tokenizer, text, special=False)
        ids_special = encode(tokenizer, text, special=True)
        decoded = tokenizer.decode(ids, skip_special_tokens=False)
        case: dict[str, Any] = {"text": text, "ids": ids}
        if ids_special != ids:
            case["ids_special"] = ids_special
        if decoded != text:
            case["decoded"] = decoded
        cases.append(case)
    vocabulary = tokenizer.get_vocab(with_added_tokens=False)
    missing = [byte for byte in range(256) if byte_character(byte) not in vocabulary]
    return {"model": path.name, "missing_bytes": missing, "cases": cases}


def llama2_cases(path: Path) -> dict[str, Any]:
    """Every hard string through Llama 2's SentencePiece model, and llama2.c's own golden ids."""
    processor = SentencePieceProcessor(model_file=str(path))
    cases: list[dict[str, Any]] = []
    for text in HARD:
        ids: list[int] = processor.encode(text)
        decoded: str = processor.decode(ids)
        case: dict[str, Any] = {"text": text, "ids": ids}
        if decoded != text:
            case["decoded"] = decoded
        cases.append(case)
    llama2c: list[dict[str, Any]] = []
    for text, golden in LLAMA2C:
        ids = [int(number) for number in golden.split()]
        if [1, *processor.encode(text)] != ids:
            raise ValueError(f"sentencepiece does not give llama2.c's ids for {text!r}")
        llama2c.append({"text": text, "ids": ids})
    return {"model": path.name, "cases": cases, "llama2c": llama2c}


def write(path: Path, data: dict[str, Any]) -> None:
    """Write one JSON file in ASCII, one case a line, so that a diff shows the case that changed."""
    parts: list[str] = []
    for key, value in data.items():
        if isinstance(value, list) and isinstance(value[0], dict):
            body = "[\n" + ",\n".join("  " + json.dumps(item) for item in value) + "\n ]"
        else:
            body = json.dumps(value)
        parts.append(f" {json.dumps(key)}: {body}")
    path.write_text("{\n" + ",\n".join(parts) + "\n}\n")


def main() -> None:
    """Read the two tokenizers and write the two files."""
    parser = argparse.ArgumentParser(description="make the golden token ids")
    parser.add_argument("--gguf", type=Path, required=True, help="SmolLM2-135M-Instruct.Q4_1.gguf")
    parser.add_argument("--spm", type=Path, required=True, help="llama2-tokenizer.model")
    arguments = parser.parse_args()
    write(HERE / "smollm2_tokens.json", smollm2_cases(arguments.gguf))
    write(HERE / "llama2_tokens.json", llama2_cases(arguments.spm))


if __name__ == "__main__":
    main()
