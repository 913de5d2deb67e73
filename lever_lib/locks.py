"""Who may write into a spec's folder: one run at a time, one builder of stages, one hand on the manifest.

A lock belongs to a process and ends with it, however it ends: what a killed run held is free at once. Lock files lie
beside the specs' folders, in `.locks/`, and say whose they are. Locks are taken in the order of the constants below, so
nobody waits in a circle; readers take the last one only, for the moment that it takes to open files that belong
together.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from lever_lib.bounded import read_bytes
from lever_lib.errors import LeverError

RUN = "run"  # of all notebooks, of a study, of a reset
BUILD = "build"  # of one stage, by a run or by a notebook that somebody has open
PUBLISH = "publish"  # the moment in which files and manifest change together
_PATIENCE = 1.0  # seconds before somebody who waits is told for whom
_MOST = 10_000  # bytes of a lock file
_GLANCE = 0.2  # seconds: as long as somebody may hold a lock who only looks whether it is free
_mine = threading.local()  # a thread that holds a lock may take it again; another one waits like another process


@contextmanager
def hold(folder: Path, what: str, wait: bool = True) -> Iterator[None]:
    """Keep others from a spec's folder for the length of a block. What this thread holds it may take again.

    Args:
        folder: of the spec.
        what: `RUN`, `BUILD` or `PUBLISH`.
        wait: until it is free; a word about it appears on stderr.

    Raises:
        LeverError: if it is taken and not waited for; says by whom and since when.
    """
    path = _path(folder, what)
    path.parent.mkdir(parents=True, exist_ok=True)
    known = vars(_mine).setdefault("locks", {})
    place = os.getpid(), path  # a forked process holds nothing of what its parent holds
    if place not in known:
        known[place] = FileLock(path, mode=0o666)
    lock = known[place]
    if not lock.is_locked:
        _acquire(lock, folder, what, wait)
    else:
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _acquire(lock: FileLock, folder: Path, what: str, wait: bool) -> None:
    try:
        lock.acquire(timeout=_PATIENCE if wait else _GLANCE, poll_interval=0.02)
    except Timeout:
        if not wait:
            raise LeverError(
                f"spec {folder.name}: a run is going on already ({owner(folder, what)}); wait for it, or stop it"
            ) from None
        sys.stderr.write(f"spec {folder.name}: waiting until {owner(folder, what)} is ready\n")
        lock.acquire(poll_interval=0.1)
    about = {"process": os.getpid(), "host": socket.gethostname(), "since": int(time.time())}
    with suppress(OSError):  # a full disk must not keep anybody from reading
        Path(lock.lock_file).write_text(json.dumps(about) + "\n")


def run_beside(folder: Path) -> str | None:
    """Who runs a spec at this moment, if it is not this process or the one that started it."""
    path = _path(folder, RUN)
    mine = vars(_mine).get("locks", {}).get((os.getpid(), path))
    if not path.exists() or (mine is not None and mine.is_locked):
        return None
    with suppress(OSError, ValueError, LookupError, TypeError, RecursionError):
        if json.loads(read_bytes(path, _MOST))["process"] == os.getppid():
            return None
    try:
        with FileLock(path).acquire(timeout=0):
            return None
    except (Timeout, OSError):
        return owner(folder, RUN)


def owner(folder: Path, what: str) -> str:
    """Who holds a lock, and for how long: `process 4711 on this machine, for 3 min`."""
    try:
        about = json.loads(read_bytes(_path(folder, what), _MOST))
        seconds = max(0, int(time.time()) - about["since"])
        where = "this machine" if about["host"] == socket.gethostname() else about["host"]
        age = f"{seconds} s" if seconds < 120 else f"{seconds // 60} min"
        return f"process {about['process']} on {where}, for {age}"
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return "an unknown process"


def _path(folder: Path, what: str) -> Path:
    try:
        place = folder.resolve()  # whichever way somebody got there
    except RuntimeError:
        raise LeverError(f"{folder}: is a link that leads back to itself") from None
    for path in (folder.parent, folder):
        if path.is_symlink() and not path.exists():
            raise LeverError(f"{path}: is a link to {path.readlink()}, and nothing is there")
    return place.parent / ".locks" / f"{place.name}.{what}"
