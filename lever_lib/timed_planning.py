"""Exact planning where moves can lead back: dynamic programming over (cell, which golds are left, lever, steps left).

With such moves a count of golds is no longer enough, because a cell may be entered twice, and steps left matter,
because an agent may wander. There are S * 2^G * 2 * horizon states, so this is for small grids with few golds; beyond
`MOST_STATES` nothing is planned, and `certificate.upper_bound` says how much no policy exceeds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit

from lever_lib.envs.gridworld import (
    BUMP,
    ENTER_EMPTY,
    ENTER_EXIT,
    ENTER_GOLD,
    ENTER_HAZARD,
    ENTER_LEVER,
    UNKNOWN,
    Layout,
    RewardTables,
    States,
    Transitions,
    enter,
)
from lever_lib.errors import LeverError
from lever_lib.rollout import END_STUCK, GOES_ON, Paths, empty_paths, move

MOST_STATES = 2**27
_STAY = -1  # nothing known can be done: stay until the horizon


@dataclass(frozen=True)
class TimedPlan:
    """Best actions on (steps left, cell, golds left, lever taken).

    Attributes:
        actions: int8 (horizon + 1, S, 2^G, 2); bit g of the third index for `Layout.golds[g]`; -1 where no action is
            known.
    """

    actions: np.ndarray

    def paths(self, layout: Layout, starts: States) -> Paths:
        """Follow the plan from each start state, a full horizon ahead."""
        paths = empty_paths(layout, len(starts.cells))
        _timed_paths(layout.transitions, layout.gold_index, self.actions, starts, paths)
        return paths


def states_to_plan(layout: Layout) -> int:
    """How many states there are to plan for."""
    return layout.horizon**2 * 2 ** (len(layout.golds) + 1)


def plannable(layout: Layout) -> bool:
    """Whether the exact optimum can be had: always, unless moves lead back and there are too many states."""
    return not layout.cyclic or states_to_plan(layout) <= MOST_STATES


def check_plannable(layout: Layout) -> None:
    """Refuse a layout whose exact optimum cannot be had.

    Raises:
        LeverError: naming the numbers.
    """
    if not plannable(layout):
        raise LeverError(
            f"layout {layout.name!r}: with {layout.moves} moves, {len(layout.golds)} golds on {layout.size} x "
            f"{layout.size} cells make {states_to_plan(layout):.1e} states to plan for, at most {MOST_STATES:.1e} can "
            "be: take fewer golds, or moves: forward"
        )


def timed_plan(
    transitions: Transitions, rewards: RewardTables, gold_index: np.ndarray, keep: np.ndarray | None = None
) -> TimedPlan:
    """Best policy on known transitions, for as many steps as there are cells.

    Args:
        transitions: `UNKNOWN` ones are never taken; in a state with no other, the agent stays for -1 a step.
        rewards: of the same transitions.
        gold_index: which gold a cell holds, int32 (S,); -1 for none.
        keep: moves that may be planned with, uint8 (horizon + 1, S, 2^G, 2): bit a for action a. None: all.

    Source: backward induction, Puterman (1994), section 4.5.
    """
    cells, golds = len(transitions.next_cell), rewards.pay.exit.shape[0] - 1
    actions = np.full((cells + 1, cells, 2**golds, 2), _STAY, np.int8)
    keep = np.empty((0, 0, 0, 0), np.uint8) if keep is None else keep
    _backward(transitions, rewards, gold_index, _counts(golds), keep, actions)
    return TimedPlan(actions)


def timed_bounds(
    transitions: Transitions, rewards: RewardTables, gold_index: np.ndarray, once: float, most: np.ndarray
) -> tuple[np.ndarray, float]:
    """Moves that survive the bounds of ExNonZeroDiscount, by steps left; see `composition.bounds`.

    Args:
        transitions: known ones.
        rewards: of the same transitions.
        gold_index: which gold a cell holds, int32 (S,).
        once: share of its target that a value has after one update.
        most: the same after all updates that were made, float64 (S, 4).

    Returns:
        Bit a of uint8 (horizon + 1, S, 2^G, 2) for action a, and the share of moves dropped among the states that can
        be reached from the start.
    """
    cells, golds = len(transitions.next_cell), rewards.pay.exit.shape[0] - 1
    keep = np.full((cells + 1, cells, 2**golds, 2), 15, np.uint8)
    _bound(transitions, rewards, gold_index, _counts(golds), once, most, keep)
    dropped, moves = _count_dropped(transitions, gold_index, keep)
    return keep, dropped / max(moves, 1)


def _counts(golds: int) -> np.ndarray:
    """Golds left by which golds are left, int32 (2^G,)."""
    return np.bitwise_count(np.arange(2**golds)).astype(np.int32)


@njit(cache=True, nogil=True)
def _collected(event: int, s_after: int, mask: int, gold_index: np.ndarray) -> tuple[int, int]:
    """The event, empty if the gold is gone, and which golds are left after it."""
    if event != ENTER_GOLD:
        return event, mask
    bit = 1 << gold_index[s_after]
    return (event, mask ^ bit) if mask & bit else (ENTER_EMPTY, mask)


@njit(cache=True, nogil=True)
def _backward(
    transitions: Transitions,
    rewards: RewardTables,
    gold_index: np.ndarray,
    counts: np.ndarray,
    keep: np.ndarray,
    actions: np.ndarray,
) -> None:
    next_cell, event, _ = transitions
    fixed, pay = rewards
    horizon, cells, masks, _ = actions.shape
    later, value = np.zeros((cells, masks, 2)), np.empty((cells, masks, 2))
    pruned = keep.size > 0
    for left_steps in range(1, horizon):
        changed = False
        for s in range(cells):
            for mask in range(masks):
                for taken in range(2):
                    best, choice = -np.inf, _STAY
                    for a in range(4):
                        e = event[s, a]
                        if e == UNKNOWN or (pruned and not (keep[left_steps, s, mask, taken] >> a) & 1):
                            continue
                        s_after = next_cell[s, a]
                        e, mask_after = _collected(e, s_after, mask, gold_index)
                        extra, _, taken_after = enter(e, counts[mask], taken, pay)
                        reward = fixed[s, a] + extra
                        if e not in (ENTER_HAZARD, ENTER_EXIT):
                            reward += later[s_after, mask_after, taken_after]
                        if reward > best:
                            best, choice = reward, a
                    if choice == _STAY:
                        best = pay.bump * left_steps
                    changed |= best != later[s, mask, taken]
                    value[s, mask, taken] = best
                    actions[left_steps, s, mask, taken] = choice
        if not (changed or pruned):  # more time makes no difference any more
            for more in range(left_steps + 1, horizon):
                actions[more] = actions[left_steps]
            return
        later, value = value, later


@njit(cache=True, nogil=True)
def _bound(
    transitions: Transitions,
    rewards: RewardTables,
    gold_index: np.ndarray,
    counts: np.ndarray,
    once: float,
    most: np.ndarray,
    keep: np.ndarray,
) -> None:
    next_cell, event, _ = transitions
    fixed, pay = rewards
    horizon, cells, masks, _ = keep.shape
    upper, lower = np.zeros((cells, masks, 2)), np.zeros((cells, masks, 2))
    new_upper, new_lower = np.empty((cells, masks, 2)), np.empty((cells, masks, 2))
    highs, lows = np.empty(4), np.empty(4)
    for left_steps in range(1, horizon):
        for s in range(cells):
            for mask in range(masks):
                for taken in range(2):
                    best_high, best_low, best = -np.inf, -np.inf, -1
                    for a in range(4):
                        e = event[s, a]
                        if e == UNKNOWN:
                            continue
                        s_after = next_cell[s, a]
                        e, mask_after = _collected(e, s_after, mask, gold_index)
                        extra, _, taken_after = enter(e, counts[mask], taken, pay)
                        high = low = fixed[s, a] + extra
                        if e not in (ENTER_HAZARD, ENTER_EXIT):
                            high += upper[s_after, mask_after, taken_after]
                            low += lower[s_after, mask_after, taken_after]
                        highs[a] = max(once * high, most[s, a] * high)
                        lows[a] = min(once * low, most[s, a] * low)
                        best_high = max(best_high, highs[a])
                        if lows[a] > best_low:
                            best_low, best = lows[a], a
                    if best == -1:
                        best_high, best_low = 0.0, pay.bump * left_steps
                    new_upper[s, mask, taken], new_lower[s, mask, taken] = best_high, best_low
                    for a in range(4):
                        if best != -1 and event[s, a] != UNKNOWN and a != best and highs[a] <= best_low:
                            keep[left_steps, s, mask, taken] &= ~(1 << a)
        upper, new_upper = new_upper, upper
        lower, new_lower = new_lower, lower


@njit(cache=True, nogil=True)
def _count_dropped(transitions: Transitions, gold_index: np.ndarray, keep: np.ndarray) -> tuple[int, int]:
    next_cell, event, _ = transitions
    horizon, cells, masks, _ = keep.shape
    reached, after = np.zeros((cells, masks, 2), np.bool_), np.zeros((cells, masks, 2), np.bool_)
    reached[0, masks - 1, 0] = True
    dropped, moves = 0, 0
    for left_steps in range(horizon - 1, 0, -1):
        after[:] = False
        for s in range(cells):
            for mask in range(masks):
                for taken in range(2):
                    if not reached[s, mask, taken]:
                        continue
                    for a in range(4):
                        e, s_after = event[s, a], next_cell[s, a]
                        if e == UNKNOWN:
                            continue
                        moves += 1
                        dropped += not (keep[left_steps, s, mask, taken] >> a) & 1
                        if e not in (ENTER_HAZARD, ENTER_EXIT):
                            pulled = 1 if e == ENTER_LEVER else taken
                            _, mask_after = _collected(e, s_after, mask, gold_index)
                            after[s_after, mask_after, pulled] = True
        reached, after = after, reached
    return dropped, moves


@njit(cache=True, nogil=True)
def _timed_paths(
    transitions: Transitions, gold_index: np.ndarray, plan: np.ndarray, starts: States, paths: Paths
) -> None:
    cells, actions, steps, end = paths
    horizon = len(transitions.event)
    for k in range(len(steps)):
        golds = starts.golds[k].copy()
        s, left, taken, n = starts.cells[k], golds.sum(), int(starts.lever[k]), 0
        while True:
            mask = 0
            for g in range(len(golds)):
                mask |= golds[g] << g
            a = plan[horizon - n, s, mask, taken]
            cells[k, n], actions[k, n] = s, a
            if n == horizon or a == _STAY:
                end[k] = END_STUCK
                break
            end[k] = GOES_ON
            if transitions.event[s, a] != BUMP:
                s, left, taken, end[k] = move(transitions, gold_index, golds, s, a, left, taken)
            n += 1
            if end[k] != GOES_ON:
                cells[k, n] = s
                break
        steps[k] = n
