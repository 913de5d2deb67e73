"""Smaller PNG files: a palette of 256 colours says what a chart has to say in a third of the bytes."""

from __future__ import annotations

import base64
import io
import sys
from pathlib import Path

import nbformat
from nbformat import NotebookNode
from PIL import Image

from lever_lib.errors import LeverError, exit_code

_COLOURS = 256


def smaller(png: bytes) -> bytes:
    """The picture with at most 256 colours and without transparency; one that has a palette already stays as it is."""
    picture = Image.open(io.BytesIO(png))
    if picture.mode == "P":
        return png
    out = io.BytesIO()
    reduced = picture.convert("RGB").quantize(_COLOURS, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    reduced.save(out, "PNG", optimize=True)
    return out.getvalue()


def shrink_outputs(notebook: NotebookNode) -> None:
    """Make the pictures among a notebook's outputs smaller, in place."""
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if "image/png" in data:
                data["image/png"] = base64.b64encode(smaller(base64.b64decode(data["image/png"]))).decode()


def main(paths: list[str]) -> None:
    """`python -m lever_lib.pictures NOTEBOOK...`: shrink the pictures of notebook files.

    Raises:
        LeverError: if one is no notebook.
    """
    for path in map(Path, paths):
        try:
            notebook = nbformat.read(path, as_version=4)
        except ValueError as error:
            raise LeverError(f"{path}: is no notebook ({error})") from None
        shrink_outputs(notebook)
        nbformat.write(notebook, path)


if __name__ == "__main__":
    sys.exit(exit_code(lambda: main(sys.argv[1:]), interrupted="interrupted"))
