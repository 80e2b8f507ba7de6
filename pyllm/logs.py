"""Where the library's warnings go: to whoever listens to the logger "pyllm", and nowhere if nobody does.

Only modules that warn import this: `logging` alone would be a twentieth of the time from a process's start to its first
token.
"""

from __future__ import annotations

import logging


def logger(name: str) -> logging.Logger:
    """The logger of a module of ours."""
    root = logging.getLogger("pyllm")
    if not root.handlers:
        root.addHandler(logging.NullHandler())  # else Python would print to stderr
    return logging.getLogger(name)
