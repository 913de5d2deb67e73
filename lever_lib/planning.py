"""Exact planning by dynamic programming over (cell, golds left, lever taken).

Where no move leads back, one backward sweep is enough, and every gold and the lever are entered at most once per path:
counting golds replaces remembering which (for other moves see `timed_planning`). An episode ends at the exit or in a
hazard, or the agent gets stuck: it bumps somewhere (or has no known action) until time runs out, at -1 a step. Both are
planned, each with its own value, because only the second depends on the steps left. The better one at the start is the
optimum. Who is stuck may keep some moves for the last steps: worth it where they lead to something good that has
nothing to bump into, and only something bad beyond.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numba import njit

from lever_lib.envs.gridworld import (
    BUMP,
    ENTER_EXIT,
    ENTER_HAZARD,
    UNKNOWN,
    Layout,
    RewardTables,
    States,
    Transitions,
    enter,
    restrict,
    reward_tables,
)
from lever_lib.envs.rewards import RewardSystem
from lever_lib.rollout import END_STUCK, GOES_ON, Outcome, Paths, empty_paths, evaluate, move
from lever_lib.timed_planning import TimedPlan, check_plannable, timed_plan

STAY = -1  # action code of a plan: move no more; on the way there: bump (or do nothing known) while time passes


@dataclass(frozen=True)
class Plan:
    """Best actions on (cell, golds left, lever taken), for ending the episode and for getting stuck.

    Attributes:
        end_value: float64 (S, G + 1, 2); best return to a terminal cell; -inf where none is known.
        end_action: int8 (S, G + 1, 2).
        stuck_value: float64 (S, G + 1, 2); best return of moving and staying until time runs out, on top of
            `stay_cost` for every step left at this state; -inf where no place to stay is known.
        stuck_action: int8 (S, G + 1, 2); `STAY` where it stays.
        late_action: int8 (S, G + 1, 2); moves kept for the last steps; `STAY` where there are no more.
        stay_cost: reward of one step of staying.
        fewest_golds: int32 (S,); with fewer golds left in a cell nothing was planned.
    """

    end_value: np.ndarray
    end_action: np.ndarray
    stuck_value: np.ndarray
    stuck_action: np.ndarray
    late_action: np.ndarray
    stay_cost: float
    fewest_golds: np.ndarray

    def paths(self, layout: Layout, starts: States) -> Paths:
        """Follow the plan from each start state, a full horizon ahead.

        Raises:
            ValueError: if there was no planning for a start state, because no episode comes to it.
        """
        left = starts.golds.sum(axis=1)
        if (left < self.fewest_golds[starts.cells]).any():
            raise ValueError("starts: must be states that an episode from the start can come to")
        paths = empty_paths(layout, len(starts.cells), layout.horizon)
        tables = _Tables(self.end_value, self.end_action, self.stuck_value, self.stuck_action, self.late_action)
        _plan_paths(layout.transitions, layout.gold_index, tables, self.stay_cost * layout.horizon, starts, paths)
        return paths


class _Tables(NamedTuple):
    """The tables of a plan, as kernels take them."""

    end_value: np.ndarray
    end_action: np.ndarray
    stuck_value: np.ndarray
    stuck_action: np.ndarray
    late_action: np.ndarray


def plan(
    transitions: Transitions,
    rewards: RewardTables,
    keep: np.ndarray | None = None,
    fewest_golds: np.ndarray | None = None,
) -> Plan:
    """Best policy on known transitions.

    Args:
        transitions: acyclic: every move leads to a higher-numbered cell. `UNKNOWN` ones are never taken.
        rewards: of the same transitions; a bump pays 0 or less.
        keep: moves that may be planned with, by state, uint8 (S, G + 1, 2): bit a for action a. None: all.
        fewest_golds: int32 (S,); states with fewer golds left need no planning, because no episode comes to them; as
            in `Layout.fewest_golds`. None: all are planned.

    Source: backward induction, Puterman (1994), section 4.5; the gold count is the only history that pays.
    """
    shape = (len(transitions.next_cell), *rewards.pay.exit.shape)
    action = [np.empty(shape, np.int8) for _ in range(3)]
    tables = _Tables(np.empty(shape), action[0], np.empty(shape), action[1], action[2])
    keep = np.full(shape, 15, np.uint8) if keep is None else keep
    fewest_golds = np.zeros(shape[0], np.int32) if fewest_golds is None else fewest_golds
    _backward(transitions, rewards, keep, fewest_golds, tables)
    return Plan(*tables, rewards.pay.bump, fewest_golds)


def best_policy(
    transitions: Transitions,
    rewards: RewardTables,
    fewest_golds: np.ndarray,
    gold_index: np.ndarray,
    cyclic: bool,
    keep: np.ndarray | None = None,
) -> Plan | TimedPlan:
    """The best policy on known transitions, whether moves lead back or not.

    Args:
        transitions: known ones.
        rewards: of the same transitions.
        fewest_golds: as `plan` takes it.
        gold_index: which gold a cell holds, int32 (S,).
        cyclic: whether moves lead back.
        keep: moves that may be planned with, as `plan` or `timed_plan` takes them.
    """
    if cyclic:
        return timed_plan(transitions, rewards, gold_index, keep)
    return plan(transitions, rewards, keep, fewest_golds)


def optimum(layout: Layout, system: RewardSystem, support: np.ndarray | None = None) -> Outcome:
    """The best episode from the start, on the full move graph or on a support.

    Args:
        layout: the world.
        system: what pays.
        support: bool (S, 4); actions that may be taken. None: all.

    Raises:
        LeverError: if moves lead back and there are too many golds to remember.
    """
    check_plannable(layout)
    known, rewards = layout.transitions, layout.rewards(system)
    if support is not None:
        known = restrict(known, support)
        rewards = reward_tables(known, len(layout.golds), system)
    best = best_policy(known, rewards, layout.fewest_golds, layout.gold_index, layout.cyclic)
    return evaluate(best, layout, system)


@njit(cache=True, nogil=True)
def _backward(
    transitions: Transitions, rewards: RewardTables, keep: np.ndarray, fewest_golds: np.ndarray, tables: _Tables
) -> None:
    next_cell, event, _ = transitions
    fixed, pay = rewards
    end_value, end_action, stuck_value, stuck_action, late_action = tables
    late_value = np.empty_like(stuck_value)
    golds = pay.exit.shape[0]
    for s in range(len(next_cell) - 1, -1, -1):
        may_stay = True
        for a in range(4):
            if event[s, a] == BUMP:
                may_stay = True
                break
            if event[s, a] != UNKNOWN:
                may_stay = False
        for left in range(fewest_golds[s], golds):
            for taken in range(2):
                best_end, end_choice = -np.inf, 0
                best_stuck, stuck_choice = -np.inf, STAY
                best_late, late_choice = 0.0, STAY
                for a in range(4):
                    e = event[s, a]
                    if e in (BUMP, UNKNOWN) or not (keep[s, left, taken] >> a) & 1:
                        continue
                    extra, left_after, taken_after = enter(e, left, taken, pay)
                    reward, s_after = fixed[s, a] + extra, next_cell[s, a]
                    if e in (ENTER_HAZARD, ENTER_EXIT):
                        if reward > best_end:
                            best_end, end_choice = reward, a
                        continue
                    value = reward + end_value[s_after, left_after, taken_after]
                    if value > best_end:
                        best_end, end_choice = value, a
                    value = reward - pay.bump + stuck_value[s_after, left_after, taken_after]
                    if value > best_stuck:
                        best_stuck, stuck_choice = value, a
                    value = reward - pay.bump + late_value[s_after, left_after, taken_after]
                    if value > best_late:
                        best_late, late_choice = value, a
                # Who can move on and stay there does so: few have to know how much time is left.
                if may_stay and (best_late > best_stuck or late_choice == STAY):
                    best_stuck, stuck_choice = best_late, STAY
                end_value[s, left, taken], end_action[s, left, taken] = best_end, end_choice
                stuck_value[s, left, taken], stuck_action[s, left, taken] = best_stuck, stuck_choice
                late_value[s, left, taken], late_action[s, left, taken] = best_late, late_choice


@njit(cache=True, nogil=True)
def _late_moves(
    transitions: Transitions, gold_index: np.ndarray, golds: np.ndarray, late: np.ndarray, s: int, left: int, taken: int
) -> int:
    """How many moves a plan keeps for the last steps, from where it stays."""
    count = 0
    while late[s, left, taken] != STAY:
        s, left, taken, _ = move(transitions, gold_index, golds, s, late[s, left, taken], left, taken)
        count += 1
    return count


@njit(cache=True, nogil=True)
def _plan_paths(
    transitions: Transitions,
    gold_index: np.ndarray,
    tables: _Tables,
    stay_total: float,
    starts: States,
    paths: Paths,
) -> None:
    event = transitions.event
    start_cells, _, lever = starts
    cells, actions, steps, end = paths
    end_value, end_action, stuck_value, stuck_action, late_action = tables
    horizon = len(event)
    for k in range(len(start_cells)):
        golds = starts.golds[k].copy()
        s, taken, n, left = start_cells[k], int(lever[k]), 0, golds.sum()
        # Steps left change both sides alike along the way, so the choice at the start holds to the end.
        finish = end_value[s, left, taken] >= stuck_value[s, left, taken] + stay_total
        stayed = False
        while True:
            a = end_action[s, left, taken] if finish else stuck_action[s, left, taken]
            if stayed:
                a = late_action[s, left, taken]
            cells[k, n], actions[k, n] = s, a
            if a == STAY:
                end[k] = END_STUCK
                if stayed:
                    break  # time has run out
                for b in range(4):
                    if event[s, b] == BUMP:
                        actions[k, n] = b
                        break
                late = _late_moves(transitions, gold_index, golds.copy(), late_action, s, left, taken)
                if late == 0:
                    break
                for _ in range(horizon - n - late):
                    cells[k, n + 1], actions[k, n + 1] = s, actions[k, n]
                    n += 1
                stayed = True
                continue
            s, left, taken, end[k] = move(transitions, gold_index, golds, s, a, left, taken)
            n += 1
            if end[k] != GOES_ON:
                cells[k, n] = s
                break
        steps[k] = n
