"""What `run_all.sh` starts: `python -m lever_lib.start notebooks|study ...`.

It can be interrupted before anything that takes seconds to import is imported.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module

from lever_lib.errors import LeverError, exit_code

_WHAT = ("notebooks", "study")


def main(arguments: list[str]) -> int:
    """Do what the first word says with the others; returns the exit code."""
    what, *rest = arguments or [""]
    _open_streams()

    def run() -> int:
        """Import what does it, and start it."""
        if what not in _WHAT:
            raise LeverError(f"start {what!r}: must be one of {', '.join(_WHAT)}")
        return import_module(f"lever_lib.{what}").main(rest)

    return exit_code(run, interrupted="interrupted before anything was done")


def _open_streams() -> None:
    """Where an output was closed by who started this, nobody listens: no other file may come in its place."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            file = os.open(os.devnull, os.O_RDWR)  # the lowest that is free; kernels write to it, too
            os.set_inheritable(file, True)
            setattr(sys, name, open(file, "w" if number else "r", closefd=False))  # noqa: SIM115


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
