"""LEVER: reuse reinforcement-learning policies at inference time: retrieve, score, compose."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from contextlib import suppress
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lever_lib.errors import leave_if_interrupted

leave_if_interrupted()

import gymnasium  # noqa: E402  what takes long to import comes after

if TYPE_CHECKING:
    from lever_lib.api import open_library
    from lever_lib.recipe import load_policy

__all__ = ["load_policy", "open_library"]


_KERNELS = f"kernels-{'[0-9a-f]' * 16}"


def _keep_kernels_true() -> None:
    """Give compiled kernels a cache of their own for each state of the sources.

    Numba recompiles a kernel when its own file changes, but not when a function or constant that it uses from another
    file does: results would come from old code. It reads the folder's name when it is first imported. The cache is
    where NUMBA_CACHE_DIR says, else beside the sources, else with the user's other caches, else in a temporary folder.
    """
    package = Path(__file__).resolve().parent
    sources = hashlib.sha256(
        b"".join(path.read_bytes() for path in sorted(package.rglob("*.py")) if path.is_file())
    ).hexdigest()
    name = f"kernels-{sources[:16]}"
    given = os.environ.get("NUMBA_CACHE_DIR", "")
    if given.endswith(name):
        return  # inherited from a process that runs the same sources
    caches = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
    places = [package / "__pycache__", caches / "lever_lib"]
    if given and not fnmatchcase(Path(given).name, _KERNELS):  # else inherited from other sources
        places.insert(0, Path(given).absolute())
    place = next(filter(_is_own, places), None) or _own_temporary() or places[0]
    folder = place / name
    if not folder.exists():
        for old in folder.parent.glob(_KERNELS):
            shutil.rmtree(old, ignore_errors=True)
    os.environ["NUMBA_CACHE_DIR"] = str(folder)


def _is_own(place: Path) -> bool:
    """Whether compiled kernels, which are loaded as code, can be kept in a folder; makes it if need be."""
    with suppress(OSError):
        place.mkdir(parents=True, exist_ok=True)
        return os.access(place, os.W_OK)
    return False


def _own_temporary() -> Path | None:
    """A folder of the user's own where others may write beside it; None if there is none."""
    with suppress(OSError):  # as where no temporary file can be written
        place = Path(tempfile.gettempdir()) / f"lever_lib-{os.getuid()}"
        place.mkdir(mode=0o700, exist_ok=True)
        mine = not place.is_symlink() and place.stat().st_uid == os.getuid()
        return place if mine and os.access(place, os.W_OK) else None
    return None


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
