"""State features phi(s): what a cell-by-cell picture of the world says in D = 20 + gold-slot numbers.

x is the column, y the row, dx = target x - agent x; of equally near objects the first in row-major order counts, and
absent objects give 0. A gold, the lever or a hazard that was entered is gone, whatever the reward system pays for.
The number of golds left is raw while everything else is of the order of 1: it dominates every norm and cosine, so
standardise over a library before comparing embeddings.
"""

from __future__ import annotations

from itertools import accumulate
from typing import NamedTuple

import numpy as np
from numba import njit

from lever_lib.envs.gridworld import Layout, States
from lever_lib.envs.layouts import BLOCK, HAZARD, LEVER
from lever_lib.params import gold_slots

# Width of each group, in order; the gold distances follow, as many as `gold_slots` says.
_WIDTHS = {
    "agent": 2,  # x, y / N
    "nearest_gold": 3,  # dx, dy / N, Euclidean distance / (sqrt 2 N)
    "golds_left": 1,  # raw count
    "exit": 3,  # dx, dy / N, Euclidean distance / (sqrt 2 N)
    "walls": 4,  # up, down, left, right: 1 for a block or the border
    "lever": 3,  # dx, dy / N, Euclidean distance / (sqrt 2 N); 0 once taken
    "lever_taken": 1,
    "hazard_density": 1,  # hazards / N^2
    "nearest_hazard": 1,  # Euclidean distance / (sqrt 2 N)
    "hazard_steps": 1,  # hazards entered so far / N^2
}
_STARTS = [0, *accumulate(_WIDTHS.values())]
HEAD = _STARTS[-1]
SLICES = {name: slice(start, start + _WIDTHS[name]) for name, start in zip(_WIDTHS, _STARTS[:-1], strict=True)}
SLICES["gold_distances"] = slice(HEAD, None)  # Manhattan / (2 N), ascending, padded with 0

_NEAREST_GOLD, _GOLDS_LEFT = SLICES["nearest_gold"].start, SLICES["golds_left"].start
_LEVER, _LEVER_TAKEN = SLICES["lever"].start, SLICES["lever_taken"].start


def feature_count(size: int) -> int:
    """D, the length of phi on a `size` x `size` grid."""
    return HEAD + gold_slots(size)


def feature_names(size: int) -> list[str]:
    """A name per entry of phi: the group's name, numbered where a group has several entries."""
    names = []
    for group, width in {**_WIDTHS, "gold_distances": gold_slots(size)}.items():
        names += [group] if width == 1 else [f"{group}_{index}" for index in range(width)]
    return names


class FeatureTables(NamedTuple):
    """Features of a layout looked up by cell, so that phi costs a copy and a walk over the golds.

    Attributes:
        head: float32 (S, HEAD); all features that do not depend on golds, with the lever still there.
        near: int32 (S, G); golds by Euclidean distance, ties in row-major order.
        near_features: float32 (S, G, 3); dx, dy, distance of the gold in `near`.
        walk: int32 (S, G); golds by Manhattan distance.
        walk_features: float32 (S, G); distance of the gold in `walk`.
        slots: gold distances that phi holds.
    """

    head: np.ndarray
    near: np.ndarray
    near_features: np.ndarray
    walk: np.ndarray
    walk_features: np.ndarray
    slots: int


def feature_tables(layout: Layout) -> FeatureTables:
    """Compile the features of a layout."""
    size = layout.size
    cells = layout.cells.size
    rows, columns = np.divmod(np.arange(cells), size)
    dx = columns[None, :] - columns[:, None]  # dx[s, target]
    dy = rows[None, :] - rows[:, None]
    squared = dx**2 + dy**2
    triple = np.stack([dx / size, dy / size, np.sqrt(squared) / (np.sqrt(2) * size)], axis=-1)
    flat = layout.cells.ravel()

    head = np.zeros((cells, HEAD))
    head[:, SLICES["agent"]] = np.stack([columns, rows], axis=1) / size
    head[:, SLICES["exit"]] = triple[:, cells - 1]
    blocked = np.pad(layout.cells == BLOCK, 1, constant_values=True)
    sides = [blocked[:-2, 1:-1], blocked[2:, 1:-1], blocked[1:-1, :-2], blocked[1:-1, 2:]]
    head[:, SLICES["walls"]] = np.stack([side.ravel() for side in sides], axis=1)
    for lever in np.flatnonzero(flat == LEVER):
        head[:, SLICES["lever"]] = triple[:, lever]
    # An agent that stands on a hazard has entered it: that one is gone.
    others = np.where((flat == HAZARD)[None, :] & ~np.eye(cells, dtype=bool), squared, np.inf)
    nearest = others.min(axis=1)
    head[:, SLICES["hazard_density"]] = np.isfinite(others).sum(axis=1, keepdims=True) / cells
    head[:, SLICES["nearest_hazard"]] = np.where(np.isfinite(nearest), np.sqrt(nearest), 0)[:, None] / (
        np.sqrt(2) * size
    )
    head[:, SLICES["hazard_steps"]] = (flat == HAZARD)[:, None] / cells

    golds = layout.golds
    near = np.argsort(squared[:, golds], axis=1, kind="stable")
    manhattan = np.abs(dx[:, golds]) + np.abs(dy[:, golds])
    walk = np.argsort(manhattan, axis=1, kind="stable")
    return FeatureTables(
        head.astype(np.float32),
        near.astype(np.int32),
        np.take_along_axis(triple[:, golds], near[:, :, None], axis=1).astype(np.float32),
        walk.astype(np.int32),
        (np.take_along_axis(manhattan, walk, axis=1) / (2 * size)).astype(np.float32),
        gold_slots(size),
    )


def features(tables: FeatureTables, states: States) -> np.ndarray:
    """Phi of each state, float32 (K, D)."""
    out = np.zeros((len(states.cells), HEAD + tables.slots))
    _features(tables, states, out)
    return out.astype(np.float32)


@njit(cache=True, nogil=True)
def add_features(tables: FeatureTables, s: int, golds: np.ndarray, lever: bool, weight: float, out: np.ndarray) -> None:
    """Add `weight` times phi of one state to `out`, float64 (D,); for kernels."""
    head, near, near_features, walk, walk_features, _ = tables
    for i in range(_LEVER):
        out[i] += weight * head[s, i]
    if lever:
        out[_LEVER_TAKEN] += weight
    else:
        for i in range(_LEVER, _LEVER_TAKEN):
            out[i] += weight * head[s, i]
    for i in range(_LEVER_TAKEN + 1, HEAD):
        out[i] += weight * head[s, i]
    for i in range(len(golds)):
        if golds[near[s, i]]:
            for j in range(3):
                out[_NEAREST_GOLD + j] += weight * near_features[s, i, j]
            break
    left = 0
    for i in range(len(golds)):
        if golds[walk[s, i]]:
            out[HEAD + left] += weight * walk_features[s, i]
            left += 1
    out[_GOLDS_LEFT] += weight * left


@njit(cache=True, nogil=True)
def _features(tables: FeatureTables, states: States, out: np.ndarray) -> None:
    for k in range(len(states.cells)):
        add_features(tables, states.cells[k], states.golds[k], states.lever[k], 1.0, out[k])
