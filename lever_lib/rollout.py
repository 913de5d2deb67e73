"""Following a policy through the world: paths, events, returns.

A policy is deterministic, so a start state has one path. It ends at the exit, in a hazard, or where the policy bumps:
nothing changes by bumping, so an agent that bumps is stuck there until the horizon (-1 for every step left), unless it
goes by the time that is left, as plans may. Running out of time is being stuck as well, even without a bump.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np
from numba import njit

from lever_lib.envs.gridworld import (
    BUMP,
    ENTER_EXIT,
    ENTER_GOLD,
    ENTER_HAZARD,
    ENTER_LEVER,
    Layout,
    States,
    Transitions,
)
from lever_lib.envs.rewards import EVENTS, RewardSystem
from lever_lib.errors import LeverError

END_EXIT, END_HAZARD, END_STUCK = range(3)
GOES_ON = -1
_DECIMALS = 9  # of returns: sums of the same rewards in another order must compare equal

_BUMP, _HAZARD, _STEP, _GOLD, _LEVER, _NEIGHBOUR, _EXIT, _ALL, _SOME, _SHARE, _WITH_LEVER = range(len(EVENTS))


class Paths(NamedTuple):
    """Where a policy leads from each of K start states.

    Attributes:
        cells: int32 (K, T + 1); cells visited, first the start; valid up to `steps`.
        actions: int8 (K, T + 1); action taken in each cell; the last valid one, at `steps`, is the bump of a
            stuck policy, unless time ran out.
        steps: int32 (K,); steps before the end; as many as the horizon where time ran out. A bump before the end, as
            only a plan that waits would do it, is a step to the same cell.
        end: int8 (K,); `END_EXIT`, `END_HAZARD` or `END_STUCK`.
    """

    cells: np.ndarray
    actions: np.ndarray
    steps: np.ndarray
    end: np.ndarray


class Policy(Protocol):
    """Anything that can act in a layout."""

    def paths(self, layout: Layout, starts: States) -> Paths:
        """Follow the policy from each start state, a full horizon ahead."""
        ...


class Outcome(NamedTuple):
    """One episode of a policy from the start of a layout.

    Attributes:
        return_: undiscounted sum of rewards over the horizon.
        stuck: whether it ended neither at the exit nor in a hazard.
        cells: cells visited, int32 (T + 1,).
        actions: actions taken, int8 (T,); a stuck policy's last is its bump, once, or -1 if it stays for want of any
            known action.
    """

    return_: float
    stuck: bool
    cells: np.ndarray
    actions: np.ndarray


def start_state(layout: Layout) -> States:
    """The state every episode starts in, as a batch of one."""
    return States(np.zeros(1, np.int32), np.ones((1, len(layout.golds)), bool), np.zeros(1, bool))


def empty_paths(layout: Layout, count: int, steps: int | None = None) -> Paths:
    """Uninitialised room for `count` paths of so many steps; None: of as many as there are without bumps on the way."""
    length = (layout.longest_path if steps is None else steps) + 1
    return Paths(
        np.empty((count, length), np.int32),
        np.empty((count, length), np.int8),
        np.empty(count, np.int32),
        np.empty(count, np.int8),
    )


def event_counts(layout: Layout, starts: States, paths: Paths) -> np.ndarray:
    """How often each event happens along each path, float64 (K, E), in the order of `EVENTS`.

    A stuck path bumps for the rest of the horizon. The share of golds left counts as a fraction.
    """
    counts = np.zeros((len(paths.steps), len(EVENTS)))
    _count_events(layout.transitions, layout.gold_index, layout.horizon, starts, paths, counts)
    return counts


def returns(counts: np.ndarray, systems: list[RewardSystem]) -> np.ndarray:
    """Undiscounted return of each counted path under each reward system, float64 (K, R)."""
    weights = np.stack([system.weights for system in systems])
    return np.round(np.einsum("ke,re->kr", counts, weights), _DECIMALS)


def follow(policy: Policy, layout: Layout, starts: States) -> Paths:
    """Where `policy` leads from each start state.

    Raises:
        LeverError: if it claims to walk where the layout does not let it.
    """
    # Of its own, to do with as it likes: what it is judged by stays as it is.
    paths = policy.paths(layout, States(*(part.copy() for part in starts)))
    name = f"{type(policy).__name__}.paths"
    if not isinstance(paths, Paths) or not all(isinstance(part, np.ndarray) for part in paths):
        raise LeverError(f"{name}: must return Paths of arrays, returned {type(paths).__name__}")
    shapes, count = [part.shape for part in paths], len(starts.cells)
    shaped = shapes == [(count, *shapes[0][1:2])] * 2 + [(count,)] * 2 and paths.cells.ndim == 2
    if not shaped or any(part.dtype.kind not in "iu" for part in paths):
        raise LeverError(f"{name}: must be whole numbers in the shapes of Paths, with {count} paths, are {shapes}")
    paths = Paths(*(part.astype(part.dtype.newbyteorder("="), copy=False) for part in paths))  # as kernels know them
    wrong = _first_wrong(layout.transitions, layout.gold_index, starts, paths)
    if wrong >= 0:
        raise LeverError(
            f"{name}: path {wrong} is none in layout {layout.name!r}: a move leads elsewhere, or never ends"
        )
    return paths


def evaluate(policy: Policy, layout: Layout, system: RewardSystem) -> Outcome:
    """Follow `policy` from the start of `layout`, exactly, and pay it under `system`."""
    starts = start_state(layout)
    return outcome(layout, system, starts, follow(policy, layout, starts))


def outcome(layout: Layout, system: RewardSystem, starts: States, paths: Paths) -> Outcome:
    """What the first of `paths` earns under `system`."""
    steps = int(paths.steps[0])
    stuck = bool(paths.end[0] == END_STUCK)
    value = returns(event_counts(layout, starts, paths), [system])[0, 0]
    acted = steps + (stuck and steps < layout.horizon)
    return Outcome(float(value), stuck, paths.cells[0, : steps + 1].copy(), paths.actions[0, :acted].copy())


@njit(cache=True, nogil=True)
def move(
    transitions: Transitions, gold_index: np.ndarray, golds: np.ndarray, s: int, a: int, left: int, taken: int
) -> tuple[int, int, int, int]:
    """One move; for kernels.

    Args:
        transitions: of the layout.
        gold_index: of the layout.
        golds: which golds are left, bool (G,); changed in place.
        s: cell.
        a: action; not a bump.
        left: golds left.
        taken: 1 if the lever was taken.

    Returns:
        Cell, golds left and lever taken afterwards, and `END_EXIT`, `END_HAZARD` or `GOES_ON`.
    """
    e = transitions.event[s, a]
    s = transitions.next_cell[s, a]
    if e == ENTER_EXIT:
        return s, left, taken, END_EXIT
    if e == ENTER_HAZARD:
        return s, left, taken, END_HAZARD
    if e == ENTER_GOLD and golds[gold_index[s]]:
        golds[gold_index[s]] = False
        return s, left - 1, taken, GOES_ON
    return s, left, 1 if e == ENTER_LEVER else taken, GOES_ON


@njit(cache=True, nogil=True)
def count_move(
    transitions: Transitions,
    gold_index: np.ndarray,
    golds: np.ndarray,
    s: int,
    a: int,
    left: int,
    taken: int,
    counts: np.ndarray,
) -> tuple[int, int, int, int]:
    """As `move`, and count what happens, in the order of `EVENTS`; for kernels."""
    if transitions.event[s, a] == BUMP:
        counts[_BUMP] += 1
        return s, left, taken, GOES_ON
    after, left_after, taken_after, end = move(transitions, gold_index, golds, s, a, left, taken)
    if end == END_HAZARD:
        counts[_HAZARD] += 1
        return after, left_after, taken_after, end
    counts[_STEP] += 1
    counts[_NEIGHBOUR] += transitions.hazard_neighbours[s, a]
    counts[_GOLD] += left - left_after
    counts[_LEVER] += taken_after - taken
    if end == END_EXIT:
        counts[_EXIT] += 1
        counts[_ALL] += left == 0
        counts[_SOME] += left > 0
        counts[_SHARE] += left / max(len(golds), 1)
        counts[_WITH_LEVER] += taken
    return after, left_after, taken_after, end


@njit(cache=True, nogil=True)
def _first_wrong(transitions: Transitions, gold_index: np.ndarray, starts: States, paths: Paths) -> int:
    """The first of some paths that does not follow the moves of the layout, or -1."""
    cells, actions, steps, ends = paths
    event, counts = transitions.event, np.zeros(len(EVENTS))
    horizon = len(event)
    for k in range(len(steps)):
        golds = starts.golds[k].copy()
        s, left, taken, end = starts.cells[k], golds.sum(), int(starts.lever[k]), GOES_ON
        if not 0 <= steps[k] <= min(horizon, cells.shape[1] - 1) or cells[k, 0] != s:
            return k
        for t in range(steps[k]):
            a = actions[k, t]
            if end != GOES_ON or not 0 <= a < event.shape[1]:
                return k
            s, left, taken, end = count_move(transitions, gold_index, golds, s, a, left, taken, counts)
            if cells[k, t + 1] != s:
                return k
        if end == GOES_ON:
            a = actions[k, steps[k]]
            halts = steps[k] == horizon or a == -1 or (0 <= a < event.shape[1] and event[s, a] == BUMP)
            end = END_STUCK if halts else GOES_ON
        if ends[k] != end:
            return k
    return -1


@njit(cache=True, nogil=True)
def _count_events(
    transitions: Transitions,
    gold_index: np.ndarray,
    horizon: int,
    starts: States,
    paths: Paths,
    out: np.ndarray,
) -> None:
    cells, actions, steps, end = paths
    for k in range(len(steps)):
        golds = starts.golds[k].copy()
        left, taken = golds.sum(), int(starts.lever[k])
        for t in range(steps[k]):
            s, a = cells[k, t], actions[k, t]
            _, left, taken, _ = count_move(transitions, gold_index, golds, s, a, left, taken, out[k])
        if end[k] == END_STUCK:
            out[k, _BUMP] += horizon - steps[k]
