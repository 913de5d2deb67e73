"""Reading files that a person names: only what is a file, and only as much of it as fits."""

from __future__ import annotations

import stat
from pathlib import Path

from lever_lib.errors import LeverError

LONGEST = 10_000  # letters of a question, and of a policy's description
_MOST = 2**28  # bytes of a text: params, questions, recordings, what is in a manifest


def check_file(path: Path, most: int | None = None) -> None:
    """Refuse what is no file: a pipe would be waited for, a device has no end.

    Args:
        path: that somebody names.
        most: bytes it may have; by default any number.

    Raises:
        LeverError: naming the path.
        OSError: if there is nothing, or it must not be looked at.
    """
    about = path.stat()
    if not stat.S_ISREG(about.st_mode):
        raise LeverError(f"{path}: is no file that can be read")
    if most is not None and about.st_size > most:
        raise LeverError(f"{path}: has {about.st_size:,} bytes, at most {most:,} are read")


def read_bytes(path: Path, most: int = _MOST) -> bytes:
    """All of a file.

    Raises:
        LeverError: if it is none, or larger than `most`.
        OSError: if it is not there or must not be read.
    """
    check_file(path, most)
    return path.read_bytes()
