"""The exceptions of pyllm. Every one is a `PyllmError` and also the builtin a caller would expect."""

from __future__ import annotations


class PyllmError(Exception):
    """Root of everything pyllm raises on purpose."""


class ModelFormatError(PyllmError, ValueError):
    """A file is damaged, cut short, or not what it claims to be."""


class UnsupportedModelError(PyllmError, NotImplementedError):
    """A file is well-formed but needs something pyllm does not have; the message names it."""


class ContextLengthError(PyllmError, ValueError):
    """A prompt or a session is longer than the context; the message gives both numbers."""


class TokenizerError(PyllmError, ValueError):
    """A vocabulary is unusable, or a model without one was asked to read text."""


class SessionBusyError(PyllmError, RuntimeError):
    """A second thread entered a session that is in use."""


class OutOfMemoryError(PyllmError, MemoryError):
    """An allocation failed; the message says what it was for and how large."""


class ClosedError(PyllmError, ValueError):
    """A model, session or generation was used after `close()`."""


class ModelUnavailableError(PyllmError, OSError):
    """A catalogue model is not on this machine and could not be fetched."""


class GrammarError(PyllmError, ValueError):
    """A schema, regular expression or grammar for structured output is wrong or too complex; the message says how."""


class MissingLibraryError(PyllmError, ImportError):
    """Something needs a library that is an extra; the message names it."""
