"""How the things in a world look, in figures and in rendered frames alike.

Every kind has a shape of its own and a colour of the Okabe-Ito palette, whose colours people with any kind of colour
vision tell apart; in greyscale the shapes remain.
"""

from __future__ import annotations

from typing import NamedTuple


class Look(NamedTuple):
    """Appearance of a cell code.

    Attributes:
        name: as legends call it.
        colour: `#rrggbb`.
        shape: `diamond`, `triangle`, `cross`, `frame`, `full` or `ring`.
    """

    name: str
    colour: str
    shape: str


# By cell code; an empty cell and the start are plain ground.
LOOKS: dict[int, Look] = {
    1: Look("gold", "#e69f00", "diamond"),
    2: Look("lever", "#0072b2", "triangle"),
    -2: Look("hazard", "#d55e00", "cross"),
    -1: Look("block", "#4d4d4d", "full"),
    10: Look("exit", "#009e73", "frame"),
    7: Look("agent", "#000000", "ring"),
}
GROUND = "#ffffff"
GRID_LINE = "#d9d9d9"
