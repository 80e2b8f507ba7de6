"""Errors of the `tokenizers` library, which are of no particular class, as ours."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from pyllm.errors import OutOfMemoryError, TokenizerError


@contextmanager
def library_errors(source: str, what: str) -> Iterator[None]:
    """Around a call of the library: what it raises becomes a `TokenizerError` that says that `what` is damaged.

    A failed check in Rust arrives as a `PanicException`, which is no `Exception` and can only be told by its name.
    """
    try:
        yield
    except (TokenizerError, ImportError):
        raise
    except MemoryError as error:
        raise OutOfMemoryError(f"{source}: no memory to read its {what}") from error
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise TokenizerError(f"{source}: damaged {what}: {error}") from error
