"""Errors that a person can act on. The command line prints them as one line and exits with code 2."""

from __future__ import annotations


class LeverError(ValueError):
    """Something the caller can mend: a bad argument, a missing artefact, an impossible request."""


class ParamsError(LeverError):
    """A params file that cannot be used; the message names file, key, value and rule."""


class MissingArtifactError(LeverError):
    """A file that a stage should have written is absent, damaged or out of date."""
