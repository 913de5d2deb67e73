"""Errors that a person can act on. The command line prints them as one line and exits with code 2."""

from __future__ import annotations

import sys
from collections.abc import Callable


class LeverError(ValueError):
    """Something the caller can mend: a bad argument, a missing artefact, an impossible request."""


class ParamsError(LeverError):
    """A params file that cannot be used; the message names file, key, value and rule."""


class MissingArtifactError(LeverError):
    """A file that a stage should have written is absent, damaged or out of date."""


def exit_code(run: Callable[[], int | None], interrupted: str) -> int:
    """Do something for a person at a terminal: what they can mend is one line on stderr.

    Args:
        run: what to do; may return an exit code of its own.
        interrupted: what to say after Ctrl-C.

    Returns:
        What `run` returned, or 0, if it went well; 2 after an error of the caller's or of the file system's, 130
        after Ctrl-C.
    """
    try:
        return run() or 0
    except LeverError as error:
        reason, code = " ".join(str(error).split()), 2
    except OSError as error:
        reason, code = f"{error.filename}: {error.strerror}" if error.filename else " ".join(str(error).split()), 2
    except KeyboardInterrupt:
        reason, code = interrupted, 130
    sys.stderr.write(f"lever: {reason}\n")
    return code
