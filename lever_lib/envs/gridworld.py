"""The deterministic gridworld, compiled to arrays that every kernel reads.

An N x N grid is numbered row by row: cell s = row * N + column, S = N * N cells, start at 0, exit at S - 1. A layout
becomes three (S, 4) arrays: the next cell, the event on entering it, the hazards around it. One episode lasts at most
S steps. A step pays

* -1 for a bump (off the grid or into a block): the agent stays;
* -100 for entering a hazard: the episode ends and nothing else is paid;
* else the sum of the active components; entering the exit ends the episode.

Training, roll-out, exact planning and successor features all take their steps through `Transitions` and
`RewardTables`, so the rules stand here and nowhere else.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numba import njit

from lever_lib.envs.layouts import BLOCK, EMPTY, EXIT, GOLD, HAZARD, LEVER, START, sample_layout
from lever_lib.envs.rewards import EVENTS, RewardSystem
from lever_lib.errors import LeverError
from lever_lib.params import Grid

# (row, column) steps of actions 0..3. A double step jumps over whatever lies between.
MOVE_SETS: dict[str, tuple[tuple[int, int], ...]] = {
    "forward": ((0, 1), (1, 0), (0, 2), (2, 0)),
    "cardinal": ((0, 1), (1, 0), (0, -1), (-1, 0)),
}
ACTION_NAMES: dict[str, tuple[str, ...]] = {
    "forward": ("right", "down", "right x2", "down x2"),
    "cardinal": ("right", "down", "left", "up"),
}
ACTIONS = 4

# What happens on taking an action: codes in Transitions.event.
ENTER_EMPTY, ENTER_GOLD, ENTER_LEVER, ENTER_EXIT, ENTER_HAZARD, BUMP, UNKNOWN = range(7)
_EVENT_OF_CELL = {GOLD: ENTER_GOLD, LEVER: ENTER_LEVER, EXIT: ENTER_EXIT, HAZARD: ENTER_HAZARD}

_SYMBOLS = {START: "S", EXIT: "E", GOLD: "G", LEVER: "L", BLOCK: "#", HAZARD: "x", EMPTY: "."}
_W = {name: index for index, name in enumerate(EVENTS)}


class Transitions(NamedTuple):
    """What each action does in each cell; `UNKNOWN` where nobody has recorded it.

    Attributes:
        next_cell: int32 (S, 4); the cell itself on a bump, -1 where unknown.
        event: int8 (S, 4); one of the codes `ENTER_*`, `BUMP`, `UNKNOWN`.
        hazard_neighbours: int8 (S, 4); hazards among the 4 neighbours of the cell entered.
    """

    next_cell: np.ndarray
    event: np.ndarray
    hazard_neighbours: np.ndarray


class States(NamedTuple):
    """A batch of world states, horizon not included.

    Attributes:
        cells: int32 (K,).
        golds: bool (K, G); which golds are left, in the order of `Layout.golds`.
        lever: bool (K,); whether the lever was taken.
    """

    cells: np.ndarray
    golds: np.ndarray
    lever: np.ndarray


class StatePay(NamedTuple):
    """What a reward system pays depending on what was collected.

    Attributes:
        gold: for a gold.
        lever: for the lever, once.
        exit: float64 (G + 1, 2); at the exit, by golds left and lever taken.
        bump: for every further step of an agent that is stuck.
    """

    gold: float
    lever: float
    exit: np.ndarray
    bump: float


class RewardTables(NamedTuple):
    """A reward system on given transitions, split by what it depends on.

    Attributes:
        fixed: float64 (S, 4); what a step pays whatever was collected before.
        pay: the rest.
    """

    fixed: np.ndarray
    pay: StatePay


@dataclass(frozen=True, eq=False)
class Layout:
    """One world: cell codes and everything compiled from them.

    Attributes:
        cells: cell codes, int8 (N, N), read-only.
        name: how files and tables call it: the seed with four digits, or a name of your own.
        moves: key of `MOVE_SETS`.
    """

    cells: np.ndarray
    name: str
    moves: str = "forward"
    _cache: dict = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        cells = np.asarray(self.cells)
        if cells.ndim != 2 or cells.shape[0] != cells.shape[1] or not cells.size:
            raise LeverError(f"cells of layout {self.name!r}: must be square, are {cells.shape}")
        if self.moves not in MOVE_SETS:
            raise LeverError(f"moves = {self.moves!r}: must be one of {', '.join(MOVE_SETS)}")
        if not np.isin(cells, list(_SYMBOLS)).all():
            raise LeverError(f"layout {self.name!r}: cell codes must be among {sorted(_SYMBOLS)}")
        cells = cells.astype(np.int8)
        corners = cells.flat[0] == START and cells.flat[-1] == EXIT
        if not corners or (cells == EXIT).sum() != 1 or (cells == START).sum() != 1:
            raise LeverError(f"layout {self.name!r}: the only start must be the first cell and the only exit the last")
        if (cells == LEVER).sum() > 1:
            raise LeverError(f"layout {self.name!r}: at most one lever, has {(cells == LEVER).sum()}")
        cells.setflags(write=False)
        object.__setattr__(self, "cells", cells)

    @property
    def size(self) -> int:
        """N, cells per side."""
        return len(self.cells)

    @property
    def horizon(self) -> int:
        """Steps per episode at most, N * N."""
        return self.cells.size

    @property
    def cyclic(self) -> bool:
        """Whether moves can lead back to a cell: then history is more than a count, and time has to be planned with."""
        return any(min(step) < 0 for step in MOVE_SETS[self.moves])

    @property
    def longest_path(self) -> int:
        """Moves of an episode at most, bumps not counted: forward moves go right or down, at least one cell."""
        return self.horizon if self.cyclic else 2 * (self.size - 1)

    @cached_property
    def golds(self) -> np.ndarray:
        """Cells that hold gold, int32 (G,), in row-major order: bit g of a gold mask is `golds[g]`."""
        return np.flatnonzero(self.cells == GOLD).astype(np.int32)

    @cached_property
    def gold_index(self) -> np.ndarray:
        """Which gold a cell holds, int32 (S,); -1 for none."""
        index = np.full(self.cells.size, -1, dtype=np.int32)
        index[self.golds] = np.arange(len(self.golds))
        return index

    @cached_property
    def fewest_golds(self) -> np.ndarray:
        """Golds left at the least in each cell of an episode, int32 (S,); G + 1 in cells that no episode reaches.

        Where moves lead back, 0: nobody asks.
        """
        if self.cyclic:
            return np.zeros(self.horizon, np.int32)
        return _fewest_golds(self.transitions, len(self.golds))

    @cached_property
    def targets(self) -> np.ndarray:
        """Cell that each action aims at, whatever lies there, int32 (S, 4); -1 outside the grid."""
        rows, columns = np.divmod(np.arange(self.horizon), self.size)
        targets = np.full((self.horizon, ACTIONS), -1, dtype=np.int32)
        for action, (down, right) in enumerate(MOVE_SETS[self.moves]):
            r, c = rows + down, columns + right
            inside = (r >= 0) & (r < self.size) & (c >= 0) & (c < self.size)
            targets[inside, action] = (r * self.size + c)[inside]
        return targets

    @cached_property
    def transitions(self) -> Transitions:
        """The full move graph."""
        size = self.size
        flat = self.cells.ravel()
        moves = (self.targets >= 0) & (flat[self.targets] != BLOCK)
        next_cell = np.where(moves, self.targets, np.arange(size * size, dtype=np.int32)[:, None])
        code = np.zeros(256, dtype=np.int8)
        for cell_code, entered in _EVENT_OF_CELL.items():
            code[np.uint8(cell_code % 256)] = entered
        event = code[flat.view(np.uint8)[next_cell]]
        bumps = next_cell == np.arange(size * size)[:, None]
        event[bumps] = BUMP
        around = self.hazard_neighbours[next_cell]
        around[bumps] = 0
        return Transitions(next_cell, event, around)

    @cached_property
    def hazard_neighbours(self) -> np.ndarray:
        """Hazards among the 4 neighbours of each cell, int8 (S,)."""
        hazard = np.pad(self.cells == HAZARD, 1).astype(np.int8)
        around = hazard[:-2, 1:-1] + hazard[2:, 1:-1] + hazard[1:-1, :-2] + hazard[1:-1, 2:]
        return around.ravel()

    def rewards(self, system: RewardSystem) -> RewardTables:
        """`system` on this layout's transitions; computed once per system.

        Raises:
            LeverError: if bumps pay and no move leads back.
        """
        key = (system.name, system.legacy_gold_exit)
        if key not in self._cache:
            check_bump(system, self.moves)
            self._cache[key] = reward_tables(self.transitions, len(self.golds), system)
        return self._cache[key]

    def drawn(self, cells: np.ndarray | None = None) -> str:
        """The layout as text, one character per cell; the cells of a path in brackets.

        S start, E exit, G gold, L lever, # block, x hazard, . empty.
        """
        return drawn(self.cells, [] if cells is None else cells)

    @cached_property
    def lever_then_exit(self) -> bool:
        """Whether the move set can pull the lever and then reach the exit (sampling only checks walks)."""
        lever = np.flatnonzero(self.cells.ravel() == LEVER)
        if len(lever) == 0:
            return False
        exit_ = self.cells.size - 1
        return bool(self._reachable(0)[lever[0]] and self._reachable(int(lever[0]))[exit_])

    def _reachable(self, start: int) -> np.ndarray:
        reached = np.zeros(self.cells.size, dtype=bool)
        reached[start] = True
        while True:
            alive = self.transitions.next_cell[reached]
            alive = alive[self.transitions.event[reached] != ENTER_HAZARD]
            grown = reached.copy()
            grown[alive] = True
            if (grown == reached).all():
                return reached
            reached = grown


def drawn(codes: np.ndarray, marked: np.ndarray | list[int]) -> str:
    """A world as text, one character per cell code; the cells in `marked` in brackets."""
    marks = np.isin(np.arange(codes.size), marked).reshape(codes.shape)
    lines = []
    for row, on_path in zip(codes, marks, strict=True):
        symbols = [_SYMBOLS[int(code)] for code in row]
        lines.append("".join(f"[{s}]" if mark else f" {s} " for s, mark in zip(symbols, on_path, strict=True)))
    return "\n".join(lines)


def check_bump(system: RewardSystem, moves: str) -> None:
    """Refuse a system that pays for bumps where no move leads back: planning counts on nobody being paid to wait.

    Raises:
        LeverError: naming the system and what a bump pays.
    """
    bump = float(system.weights[_W["bump"]])
    if moves == "forward" and bump > 0:
        raise LeverError(
            f"reward system {system.name!r}: a bump pays {bump:g} in all; with forward moves it must pay 0 or less, as "
            "planning counts on nobody being paid to wait"
        )


def reward_tables(transitions: Transitions, golds: int, system: RewardSystem) -> RewardTables:
    """`system` on given transitions, where `golds` lie in the world at the start.

    Where transitions are unknown the tables hold 0; kernels never take such a step.
    """
    weights = system.weights
    fixed = weights[_W["step"]] + weights[_W["hazard_neighbour"]] * transitions.hazard_neighbours
    fixed[transitions.event == BUMP] = weights[_W["bump"]]
    fixed[transitions.event == ENTER_HAZARD] = weights[_W["hazard"]]
    fixed[transitions.event == UNKNOWN] = 0.0
    return RewardTables(fixed, state_pay(golds, system))


def state_pay(golds: int, system: RewardSystem) -> StatePay:
    """What `system` pays by golds left and lever, where `golds` lie in the world at the start."""
    weights = system.weights
    left = np.arange(golds + 1)
    without_lever = (
        weights[_W["exit"]]
        + weights[_W["exit_all_gold"]] * (left == 0)
        + weights[_W["exit_some_gold"]] * (left > 0)
        + weights[_W["exit_gold_share"]] * left / max(golds, 1)
    )
    exit_ = np.stack([without_lever, without_lever + weights[_W["exit_with_lever"]]], axis=1)
    return StatePay(float(weights[_W["gold"]]), float(weights[_W["lever"]]), exit_, float(weights[_W["bump"]]))


@njit(cache=True, nogil=True)
def enter(event: int, left: int, taken: int, pay: StatePay) -> tuple[float, int, int]:
    """What entering a cell for the first time adds to the fixed reward of the step; for kernels.

    Args:
        event: code of the step; a gold or lever that was entered before is `ENTER_EMPTY`.
        left: golds left.
        taken: 1 if the lever was taken.
        pay: of the reward system.

    Returns:
        Extra reward, golds left and lever taken afterwards.
    """
    if event == ENTER_GOLD and left > 0:
        return pay.gold, left - 1, taken
    if event == ENTER_LEVER and taken == 0:
        return pay.lever, left, 1
    if event == ENTER_EXIT:
        return pay.exit[left, taken], left, taken
    return 0.0, left, taken


@njit(cache=True, nogil=True)
def _fewest_golds(transitions: Transitions, golds: int) -> np.ndarray:
    next_cell, event, _ = transitions
    fewest = np.full(len(next_cell), golds + 1, np.int32)
    fewest[0] = golds
    for s in range(len(next_cell)):
        for a in range(4):
            if fewest[s] <= golds and event[s, a] != BUMP:
                s_after = next_cell[s, a]
                fewest[s_after] = min(fewest[s_after], fewest[s] - (event[s, a] == ENTER_GOLD))
    return fewest


@njit(cache=True, nogil=True)
def state_row(s: int, left: int, taken: int, golds: int, memories: int) -> int:
    """Row of a table that is indexed by the cell (`memories` = 1), or by (cell, golds left, lever taken); for kernels.

    Args:
        s: cell.
        left: golds left.
        taken: 1 if the lever was taken.
        golds: in the layout.
        memories: rows per cell, 1 or `memory_count(golds)`.
    """
    return s if memories == 1 else (s * (golds + 1) + left) * 2 + taken


def memory_count(golds: int) -> int:
    """How many combinations there are of golds left and lever taken."""
    return 2 * (golds + 1)


def restrict(transitions: Transitions, support: np.ndarray) -> Transitions:
    """The same transitions with everything outside a support unknown.

    Args:
        transitions: of a layout.
        support: bool (S, 4), True where a transition is known.
    """
    return Transitions(
        np.where(support, transitions.next_cell, np.int32(-1)),
        np.where(support, transitions.event, np.int8(UNKNOWN)),
        np.where(support, transitions.hazard_neighbours, np.int8(0)),
    )


def layout_from_text(text: str, name: str, moves: str = "forward") -> Layout:
    """A layout drawn by hand, one line per row.

    Args:
        text: S start (first cell), E exit (last cell), G gold, L lever, # block, x hazard, . empty; spaces between
            cells are skipped.
        name: how files and tables call it.
        moves: key of `MOVE_SETS`.

    Raises:
        LeverError: if the rows do not form a square, or a symbol is unknown.
    """
    if not isinstance(text, str):
        raise LeverError(f"layout {name!r}: must be drawn as text, is {type(text).__name__}")
    codes = {symbol: code for code, symbol in _SYMBOLS.items()}
    rows = ["".join(line.split()) for line in text.strip().splitlines()]
    unknown = sorted(set("".join(rows)) - set(codes))
    if unknown:
        raise LeverError(f"layout {name!r}: unknown symbol {unknown[0]!r}; known: {' '.join(codes)}")
    if any(len(row) != len(rows) for row in rows):
        raise LeverError(f"layout {name!r}: {len(rows)} rows must have {len(rows)} cells each")
    return Layout(np.array([[codes[symbol] for symbol in row] for row in rows], dtype=np.int8), name, moves)


def seed_name(seed: int | str) -> str:
    """How tables and files call a layout seed: four digits. `3`, `"3"` and `"0003"` are the same."""
    try:
        text = str(seed)
    except ValueError:  # more digits than Python writes out
        text = "of thousands of digits"
    if isinstance(seed, bool) or not re.fullmatch("0*[0-9]{1,4}", text, re.ASCII):
        raise LeverError(f"seed {text[:40]!r}: must be a whole number from 0 to 9999")
    return f"{int(text[-4:]):04d}"


def make_layout(grid: Grid, seed: int | str) -> Layout:
    """The published layout of `seed` under the counts of `grid`."""
    name = seed_name(seed)
    cells = sample_layout(grid.size, grid.golds, grid.blocks, grid.hazards, int(name))
    return Layout(cells, name, grid.moves)
