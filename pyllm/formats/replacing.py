"""Files that appear whole or not at all.

They are written beside their place and moved into it, since someone may have the old one mapped.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file that takes the place of `path` when the block ends well, and vanishes when it does not.

    A link is followed. Raises `OSError` before anything is written where no file can be put: in a folder that is not
    there, or in place of a folder, a device or a pipe.
    """
    path = Path(os.path.realpath(path))
    _refuse_place(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())  # the new name must not reach the disk before what it stands for
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _refuse_place(path: Path) -> None:
    """Moving a file onto it would fail at the end of all work, or destroy what is no file."""
    code = 0
    if path.is_dir():
        code = errno.EISDIR
    elif path.exists() and not path.is_file():
        code = errno.EINVAL
    elif not path.parent.is_dir():
        code = errno.ENOENT
    if code:
        raise OSError(code, os.strerror(code), str(path))
