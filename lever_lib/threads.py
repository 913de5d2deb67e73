"""One thread for torch, for as long as it takes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

_LOCK = Lock()
_USERS: list[int] = []  # how many threads torch had before, once per block that is under way


@contextmanager
def one_torch_thread() -> Iterator[None]:
    """Let torch compute on one thread in this block, in whatever threads blocks are under way.

    Another number of threads adds in another order, and on a busy machine several wait for each other. The number is
    one of the whole process, which each thread takes over when it first computes: so it is set back by who is last.
    """
    import torch

    with _LOCK:
        _USERS.append(_USERS[0] if _USERS else torch.get_num_threads())
        torch.set_num_threads(1)
    try:
        yield
    finally:
        with _LOCK:
            before = _USERS.pop()
            if not _USERS:
                torch.set_num_threads(before)
