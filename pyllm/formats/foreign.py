"""Says what a file that is no model file of ours seems to be, so that its owner knows what to do next."""

from __future__ import annotations

from pathlib import Path

from pyllm.errors import ModelFormatError, PyllmError, UnsupportedModelError

READS = "pyllm reads GGUF files, Hugging Face folders and llama2.c .bin files"
SNIFF_BYTES = 512  # enough for every test below

# First bytes -> what it is. These hold models, only not in a form that pyllm reads.
OTHER_MODELS = (
    (b"FUGG", "a big-endian GGUF file: convert it again for little-endian machines"),
    (b"ak42", "a big-endian llama2.c file: export it again on a little-endian machine"),
    (b"lmgg", "a GGML file from before GGUF: convert it to GGUF"),
    (b"fmgg", "a GGML file from before GGUF: convert it to GGUF"),
    (b"tjgg", "a GGML file from before GGUF: convert it to GGUF"),
    (b"algg", "a GGML LoRA adapter, not a whole model"),
    (b"PK\x03\x04", "a zip archive or a PyTorch checkpoint: unpack it, or convert the model to GGUF"),
    (b"\x89HDF", "an HDF5 file: convert the model to GGUF"),
    (b"\x80\x02", "a Python pickle (an old PyTorch checkpoint): convert the model to GGUF"),
    (b"\x80\x03", "a Python pickle: convert the model to GGUF"),
    (b"\x80\x04", "a Python pickle: convert the model to GGUF"),
)

# These hold no model at all.
NOT_MODELS = (
    (b"version https://git-lfs", "a git-lfs pointer, not the file it points to: run `git lfs pull`"),
    (b"\x1f\x8b", "a gzip archive: unpack it first"),
    (b"\x28\xb5\x2f\xfd", "a zstd archive: unpack it first"),
    (b"\xfd7zXZ\x00", "an xz archive: unpack it first"),
    (b"BZh", "a bzip2 archive: unpack it first"),
    (b"\x0a\x0e\x0a\x05<unk>", "a SentencePiece tokenizer: give the model here and this file as tokenizer="),
    (b"%PDF", "a PDF document"),
    (b"\x7fELF", "a program"),
    (b"MZ", "a Windows program"),
)


def refusal(path: Path, head: bytes, size: int, v0_flaw: str | None) -> PyllmError:
    """The error for a file of `size` bytes that begins with `head` and has none of our formats.

    `v0_flaw` is why it is not a llama2.c v0 file, which has no magic to tell by.
    """
    if head[8:9] == b"{" and 2 <= int.from_bytes(head[:8], "little") <= size:
        return UnsupportedModelError(
            f"{path}: a safetensors file: weights alone; give the folder that holds it beside its config.json"
        )
    for magic, what in OTHER_MODELS:
        if head.startswith(magic):
            return UnsupportedModelError(f"{path}: this looks like {what}; {READS}")
    return ModelFormatError(f"{path}: this looks like {_nature(head, v0_flaw)}; {READS}")


def _nature(head: bytes, v0_flaw: str | None) -> str:
    """What a file that holds no model seems to be."""
    for magic, what in NOT_MODELS:
        if head.startswith(magic):
            return what
    if head.lstrip()[:15].lower().startswith((b"<!doctype html", b"<html", b"<?xml")):
        return "a web page: the download went wrong, or the address led to a page about the file"
    if head[12:17] == b"<unk>":
        return "a llama2.c tokenizer: give the model here and this file as tokenizer="
    if head.lstrip().startswith(b"{"):
        return "a JSON document"
    if not any(head):
        return "nothing but zeros: a download that never arrived"
    if _is_text(head):
        return f"a text file, {head[:24]!r}..."
    return f"no model file: it begins with {head[:8]!r} (and is no llama2.c v0 file: {v0_flaw})"


def _is_text(head: bytes) -> bool:
    try:
        text = head[: max(1, len(head) - 3)].decode()  # the cut may fall inside a character
    except UnicodeDecodeError:
        return False
    return all(c.isprintable() or c in "\r\n\t" for c in text)
