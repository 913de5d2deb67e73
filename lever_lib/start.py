"""What `run_all.sh` starts: `python -m lever_lib.start notebooks|study ...`.

It can be interrupted before anything that takes seconds to import is imported.
"""

from __future__ import annotations

import sys
from importlib import import_module

from lever_lib.errors import exit_code


def main(arguments: list[str]) -> int:
    """Do what the first word says with the others; returns the exit code."""
    what, *rest = arguments
    return exit_code(
        lambda: import_module(f"lever_lib.{what}").main(rest), interrupted="interrupted before anything was done"
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
