"""Where things stand: published layout sampling, and what can be reached in a layout."""

from __future__ import annotations

import random
from collections import deque

import numpy as np

from lever_lib.errors import LeverError

EMPTY, GOLD, LEVER, START, AGENT, EXIT, BLOCK, HAZARD = 0, 1, 2, 5, 7, 10, -1, -2
MAX_TRIES = 200


def sample_layout(size: int, golds: int, blocks: int, hazards: int, seed: int) -> np.ndarray:
    """The layout of `seed`, drawn exactly as the published code draws it.

    Every cell but start and exit, listed in row-major order, is shuffled by `random.Random(seed)`; hazards, golds,
    blocks and the lever take the first cells in that order. A draw counts if 4-neighbour walks around hazards and
    blocks lead from start to exit, from start to lever and from lever to exit; else the same generator draws again.

    Args:
        size: N, cells per side.
        golds: how many, likewise `blocks` and `hazards`.
        blocks: see `golds`.
        hazards: see `golds`.
        seed: of the layout, not of the root stream: seed k here is seed k in the published tables.

    Returns:
        Cell codes, int8 (N, N).

    Raises:
        LeverError: if the objects do not fit, or no draw out of 200 can be solved.
    """
    free = size * size - 2
    if golds + blocks + hazards + 1 > free:
        raise LeverError(
            f"golds + blocks + hazards + lever = {golds + blocks + hazards + 1} must fit in {free} free cells"
        )
    generator = random.Random(seed)
    for _ in range(MAX_TRIES):
        order = list(range(1, size * size - 1))
        generator.shuffle(order)
        cells = np.zeros(size * size, dtype=np.int8)
        cells[order[:hazards]] = HAZARD
        cells[order[hazards : hazards + golds]] = GOLD
        cells[order[hazards + golds : hazards + golds + blocks]] = BLOCK
        cells[order[hazards + golds + blocks]] = LEVER
        cells[0], cells[-1] = START, EXIT
        cells = cells.reshape(size, size)
        if _walkable(cells):
            return cells
    raise LeverError(
        f"seed {seed}: none of {MAX_TRIES} draws of {golds} golds, {blocks} blocks and {hazards} hazards "
        f"on {size}x{size} can be walked from start to lever to exit; ask for fewer blocks or hazards"
    )


def _walkable(cells: np.ndarray) -> bool:
    """Whether 4-neighbour walks join start to exit, start to lever and lever to exit."""
    size = len(cells)
    start, exit_, lever = (int(np.flatnonzero(cells == code)[0]) for code in (START, EXIT, LEVER))
    reached = np.zeros(size * size, dtype=bool)
    reached[start] = True
    queue = deque([start])
    while queue:
        row, column = divmod(queue.popleft(), size)
        for r, c in ((row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)):
            inside = 0 <= r < size and 0 <= c < size
            if inside and not reached[r * size + c] and cells[r, c] not in (BLOCK, HAZARD):
                reached[r * size + c] = True
                queue.append(r * size + c)
    # Walks can be walked backwards, so lever to exit follows from the other two.
    return bool(reached[exit_] and reached[lever])
