"""Errors that a person can act on. The command line prints them as one line and exits with code 2."""

from __future__ import annotations

import argparse
import errno
import gc
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn

_LONGEST = 2000  # letters of a message


class LeverError(ValueError):
    """Something the caller can mend: a bad argument, a missing artefact, an impossible request. One line says it."""

    def __init__(self, message: str) -> None:
        line = one_line(message)
        if len(line) > _LONGEST:  # it shows a value of the caller's; the rule comes behind it
            line = f"{line[: _LONGEST // 2]} ... {line[-_LONGEST // 2 :]}"
        super().__init__(line)


class ParamsError(LeverError):
    """A params file that cannot be used; the message names file, key, value and rule."""


class MissingArtifactError(LeverError):
    """A file that a stage should have written is absent, damaged or out of date."""


@contextmanager
def writing_to(what: str) -> Iterator[None]:
    """Say of which file or folder it is that the system will not let it be written.

    Raises:
        LeverError: naming `what` and the system's reason, for any `OSError` of the block.
    """
    try:
        yield
    except OSError as error:
        # What NumPy says of a full disk is how many bytes it got rid of.
        reason = _system_reason(error) if error.strerror else f"{error}; is the disk full?"
        raise LeverError(f"{what}: cannot be written: {reason}") from error


def _system_reason(error: OSError) -> str:
    name = "" if error.filename is None else f"{error.filename}: "
    if error.errno == errno.ENOSPC and not name:  # of a library that does not say what it writes
        cache = os.environ.get("NUMBA_CACHE_DIR")
        return f"{error.strerror} (where the output goes, or for compiled kernels in {cache})"
    return f"{name}{error.strerror or error}"


def one_line(text: str) -> str:
    """A text without line ends, and without what would steer a terminal."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())


def leave_if_interrupted() -> None:
    """Let Ctrl-C end the programs of this package without a traceback while they are being loaded."""
    programs = [["-m", "lever_lib"], ["-m", "lever_lib.start"]]
    if sys.orig_argv[1:3] in programs and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _leave)


def _leave(*_: object) -> None:
    with suppress(OSError):
        os.write(2, b"lever: interrupted before anything was done\n")
    os._exit(130)


class OneLineParser(argparse.ArgumentParser):
    """Argument parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong, and exit with code 2."""
        message = one_line(message)  # what somebody typed may hold anything
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


_AGAIN = 0.5  # seconds


class _Interrupted:
    """Whether Ctrl-C came. A library on the way may make another error of what says so, or nothing at all.

    So it is said again, until somebody is about to end what went on.
    """

    heard = False

    def __call__(self, number: int, _: FrameType | None) -> None:
        self.heard = True
        signal.signal(signal.SIGALRM, self)
        signal.setitimer(signal.ITIMER_REAL, _AGAIN)
        error = sys.exception() if number == signal.SIGALRM else None
        while error is not None:
            if isinstance(error, KeyboardInterrupt):
                return  # things are put in order on its way up
            error = error.__context__
        raise KeyboardInterrupt

    def over(self) -> None:
        """Do not say it again."""
        signal.setitimer(signal.ITIMER_REAL, 0)


_CTRL_C = _Interrupted()


def exit_code(run: Callable[[], int | None], interrupted: str) -> int:
    """Do something for a person at a terminal: what they can mend is one line on stderr.

    Args:
        run: what to do; may return an exit code of its own.
        interrupted: what to say after Ctrl-C.

    Returns:
        What `run` returned, or 0, if it went well; 2 after an error of the caller's or of the system's, 130 after
        Ctrl-C.
    """
    outermost = signal.getsignal(signal.SIGINT) in (_leave, signal.default_int_handler)
    say_unraisable = sys.unraisablehook
    if outermost:
        _CTRL_C.heard = False
        signal.signal(signal.SIGINT, _CTRL_C)
        # In a callback of a C library it cannot be raised: it is said again, and there is nothing to tell.
        sys.unraisablehook = lambda problem: problem.exc_type is KeyboardInterrupt or say_unraisable(problem)
    try:
        return run() or 0
    except (Exception, KeyboardInterrupt) as error:
        _CTRL_C.over()
        if _CTRL_C.heard or isinstance(error, KeyboardInterrupt):
            reason, code = interrupted, 130
            gc.freeze()  # what is in memory goes with the process: looking for garbage in it first takes seconds
        elif isinstance(error, LeverError):
            reason, code = str(error), 2
        elif isinstance(error, OSError):
            reason, code = _system_reason(error), 2
        elif isinstance(error, MemoryError):
            reason, code = "this takes more memory than there is", 2
        else:
            raise
    finally:
        _CTRL_C.over()
        if outermost:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            sys.unraisablehook = say_unraisable
    with suppress(OSError, AttributeError):  # where nothing can be said, the exit code still tells
        sys.stderr.write(f"lever: {one_line(reason)}\n")
    return code
