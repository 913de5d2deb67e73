"""LEVER: reuse reinforcement-learning policies at inference time: retrieve, score, compose."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lever_lib.api import open_library

__all__ = ["open_library"]


def __getattr__(name: str) -> Any:
    """Import the API on first use: a command that needs no library then starts in a fraction of a second."""
    if name == "open_library":
        from lever_lib.api import open_library

        return open_library
    raise AttributeError(f"module 'lever_lib' has no attribute {name!r}")
