"""LEVER: reuse reinforcement-learning policies at inference time: retrieve, score, compose."""

from __future__ import annotations

import hashlib
import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lever_lib.errors import leave_if_interrupted

leave_if_interrupted()

import gymnasium  # noqa: E402  what takes long to import comes after

if TYPE_CHECKING:
    from lever_lib.api import open_library
    from lever_lib.recipe import load_policy

__all__ = ["load_policy", "open_library"]


def _keep_kernels_true() -> None:
    """Give compiled kernels a cache of their own for each state of the sources.

    Numba recompiles a kernel when its own file changes, but not when a function or constant that it uses from another
    file does: results would come from old code. It reads the folder's name when it is first imported. Where the sources
    must not be written to, the cache is the user's own.
    """
    package = Path(__file__).resolve().parent
    sources = hashlib.sha256(
        b"".join(path.read_bytes() for path in sorted(package.rglob("*.py")) if path.is_file())
    ).hexdigest()
    place = package / "__pycache__"
    if not os.access(package, os.W_OK):
        place = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "lever_lib"
    folder = place / f"kernels-{sources[:16]}"
    if os.environ.get("NUMBA_CACHE_DIR", "").endswith(folder.name):
        return  # inherited from a process that runs the same sources
    with suppress(OSError):  # a home that must not be entered
        if not folder.exists():
            for old in folder.parent.glob("kernels-*"):
                shutil.rmtree(old, ignore_errors=True)
    os.environ["NUMBA_CACHE_DIR"] = str(folder)


_keep_kernels_true()
gymnasium.register("lever/GridWorld-v0", entry_point="lever_lib.envs.environment:GridWorldEnv")


def __getattr__(name: str) -> Any:
    """Import the API on first use: a command that needs no library then starts in a fraction of a second."""
    if name == "open_library":
        from lever_lib.api import open_library

        return open_library
    if name == "load_policy":
        from lever_lib.recipe import load_policy

        return load_policy
    raise AttributeError(f"module 'lever_lib' has no attribute {name!r}")
