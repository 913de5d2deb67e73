"""Kinds of policies that can be followed, and the record a library keeps of each policy."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numba import njit

from lever_lib.envs.gridworld import (
    BUMP,
    ENTER_EXIT,
    ENTER_GOLD,
    ENTER_HAZARD,
    ENTER_LEVER,
    Layout,
    StatePay,
    States,
    Transitions,
    state_row,
)
from lever_lib.envs.rewards import EVENTS, RewardSystem
from lever_lib.rollout import END_EXIT, END_HAZARD, END_STUCK, GOES_ON, Paths, count_move, empty_paths, move


class Episode(NamedTuple):
    """One recorded episode of T steps: T + 1 states and the actions between them.

    Attributes:
        cells: int32 (T + 1,).
        actions: int8 (T,).
        golds: bool (T + 1, G); golds left.
        lever: bool (T + 1,); lever taken.
        hazard_steps: int32 (T + 1,); hazards entered so far.
    """

    cells: np.ndarray
    actions: np.ndarray
    golds: np.ndarray
    lever: np.ndarray
    hazard_steps: np.ndarray


_BUMP = EVENTS.index("bump")


@dataclass(frozen=True)
class PolicyRecord:
    """One policy of a library, whatever trained it.

    Attributes:
        policy_id: unique in its spec.
        source: what produced it, e.g. `sarsa`.
        setup: name of the reward system it was trained under.
        library: training budget, e.g. `X10`.
        seed: name of its layout; it is valid nowhere else.
        snapshot: share of the budget it was taken at.
        episodes: episodes trained so far.
        description: sentence it is found by.
        q_table: action values, float64 (S, 4); or (S * 2 (G + 1), 4), where golds left and lever count as state.
        visits: times each action was taken so far, int64 of the same shape.
        episode: the training episode at the snapshot.
        train_seconds: CPU seconds of training so far; nan if nobody knows.
    """

    policy_id: str
    source: str
    setup: str
    library: str
    seed: str
    snapshot: float
    episodes: int
    description: str
    q_table: np.ndarray
    visits: np.ndarray
    episode: Episode
    train_seconds: float


def greedy_actions(q_tables: np.ndarray) -> np.ndarray:
    """Highest-valued action in each cell, int8 (..., S); ties go to the lowest action.

    Args:
        q_tables: float (..., S, 4).
    """
    return np.argmax(q_tables, axis=-1).astype(np.int8)


@dataclass(frozen=True)
class CellPolicy:
    """Acts by the cell alone, or by (cell, golds left, lever taken) where its table is longer.

    Attributes:
        actions: int8 (S,), or (S * 2 (G + 1),) with rows as `state_row` numbers them.
    """

    actions: np.ndarray

    def paths(self, layout: Layout, starts: States) -> Paths:
        """Follow the policy from each start state."""
        paths = empty_paths(layout, len(starts.cells))
        _cell_paths(layout.transitions, layout.gold_index, self.actions, starts, paths)
        return paths


@njit(cache=True, nogil=True)
def _cell_paths(
    transitions: Transitions, gold_index: np.ndarray, policy: np.ndarray, starts: States, paths: Paths
) -> None:
    event = transitions.event
    cells, actions, steps, end = paths
    horizon, total = len(event), starts.golds.shape[1]
    memories = len(policy) // horizon
    for k in range(len(steps)):
        golds = starts.golds[k].copy()
        s, left, taken, n = starts.cells[k], golds.sum(), int(starts.lever[k]), 0
        while True:
            a = policy[state_row(s, left, taken, total, memories)]
            cells[k, n], actions[k, n] = s, a
            if n == horizon or event[s, a] == BUMP:
                end[k] = END_STUCK
                break
            s, left, taken, end[k] = move(transitions, gold_index, golds, s, a, left, taken)
            n += 1
            if end[k] != GOES_ON:
                cells[k, n] = s
                break
        steps[k] = n


class SuccessorTable(NamedTuple):
    """Successor features psi(s, a) of M policies that act by the cell, undiscounted, by what happens on the way.

    Taking action a in cell s and following policy m afterwards, on (cell, golds left, lever taken): what is fixed is
    stored summed, what depends on golds left and lever is stored as what to add to them. Nothing here tells which
    cell an action leads to.

    Attributes:
        counts: int32 (M, S, 4, 4); bumps, hazards entered, steps, hazard neighbours passed.
        golds: int32 (M, S, 4); golds on the way.
        lever: bool (M, S, 4); lever on the way.
        steps: int32 (M, S, 4); steps until the end or until stuck.
        end: int8 (M, S, 4); `END_EXIT`, `END_HAZARD` or `END_STUCK`.
    """

    counts: np.ndarray
    golds: np.ndarray
    lever: np.ndarray
    steps: np.ndarray
    end: np.ndarray


def successor_table(layout: Layout, policies: np.ndarray) -> SuccessorTable:
    """Exact psi(s, a) of policies that act by the cell, by one backward sweep over the acyclic move graph.

    Args:
        layout: with a move set that never returns to a cell.
        policies: actions, int8 (M, S).

    Source: Barreto et al. (2017), equation 3, with reward events as features and no discount.
    """
    shape = (*policies.shape, 4)
    table = SuccessorTable(
        np.zeros((*shape, 4), np.int32),
        np.zeros(shape, np.int32),
        np.zeros(shape, bool),
        np.zeros(shape, np.int32),
        np.full(shape, END_STUCK, np.int8),
    )
    _sweep_back(layout.transitions, policies, table)
    return table


@njit(cache=True, nogil=True)
def _sweep_back(transitions: Transitions, policies: np.ndarray, table: SuccessorTable) -> None:
    next_cell, event, hazard_neighbours = transitions
    counts, golds, lever, steps, end = table
    for m in range(policies.shape[0]):
        for s in range(policies.shape[1] - 1, -1, -1):
            own = policies[m, s]
            own_bumps = event[s, own] == BUMP
            # The policy's own action first: a bump aside leads back to it.
            for i in range(-1, 4):
                a = own if i == -1 else i
                if i == own:
                    continue
                e = event[s, a]
                if e == BUMP:
                    if own_bumps:
                        continue  # stuck at once: zero counts, zero steps
                    after_s, after_a = s, own
                    counts[m, s, a, 0] = 1
                else:
                    after_s = next_cell[s, a]
                    after_a = policies[m, after_s]
                    if e == ENTER_HAZARD:
                        counts[m, s, a, 1] = 1
                    else:
                        counts[m, s, a, 2] = 1
                        counts[m, s, a, 3] = hazard_neighbours[s, a]
                steps[m, s, a] = 1
                if e in (ENTER_HAZARD, ENTER_EXIT):
                    end[m, s, a] = END_HAZARD if e == ENTER_HAZARD else END_EXIT
                    continue
                for c in range(4):
                    counts[m, s, a, c] += counts[m, after_s, after_a, c]
                golds[m, s, a] = golds[m, after_s, after_a] + (e == ENTER_GOLD)
                lever[m, s, a] = lever[m, after_s, after_a] or e == ENTER_LEVER
                steps[m, s, a] += steps[m, after_s, after_a]
                end[m, s, a] = end[m, after_s, after_a]


@dataclass(frozen=True)
class SuccessorPolicy:
    """Generalised policy improvement: in each state, the action whose best continuation among M policies pays most.

    pi(s) = argmax_a max_m Q^m(s, a), with Q^m(s, a) = psi^m(s, a) . w under the NEW reward, on (cell, golds left,
    lever taken) and the steps left. Ties go to the lowest action; a bump that is followed by moving on does not take
    part, because all it could gain is to run out of time, and it can be put off for ever. Never worse than any of M.

    Attributes:
        psi: of M policies.
        fixed: float64 (M, S, 4); what the counts of psi pay.
        pay: what golds, lever, exit and being stuck pay.

    Source: Barreto et al. (2017), theorem 1.
    """

    psi: SuccessorTable
    fixed: np.ndarray
    pay: StatePay

    def paths(self, layout: Layout, starts: States) -> Paths:
        """Follow the policy from each start state, a full horizon ahead."""
        paths = empty_paths(layout, len(starts.cells))
        values = _Values(self.fixed, self.psi, self.pay)
        _successor_paths(layout.transitions, layout.gold_index, layout.horizon, values, starts, paths)
        return paths


class _Values(NamedTuple):
    """A successor policy as kernels take it."""

    fixed: np.ndarray
    psi: SuccessorTable
    pay: StatePay


@njit(cache=True, nogil=True)
def _best_action(s: int, left: int, taken: int, steps_left: int, values: _Values) -> int:
    fixed, psi, pay = values
    best, best_value = 0, -np.inf
    for a in range(4):
        for m in range(len(fixed)):
            if psi.counts[m, s, a, 0] > 0:
                continue  # bump, then move on
            value = fixed[m, s, a] + pay.gold * psi.golds[m, s, a]
            pulled = psi.lever[m, s, a]
            if pulled and not taken:
                value += pay.lever
            if psi.end[m, s, a] == END_EXIT:
                value += pay.exit[max(left - psi.golds[m, s, a], 0), int(taken or pulled)]
            elif psi.end[m, s, a] == END_STUCK:
                value += pay.bump * (steps_left - psi.steps[m, s, a])
            if value > best_value + 1e-9:  # rounding must not break ties
                best, best_value = a, value
    return best


@njit(cache=True, nogil=True)
def _successor_paths(
    transitions: Transitions,
    gold_index: np.ndarray,
    horizon: int,
    values: _Values,
    starts: States,
    paths: Paths,
) -> None:
    event = transitions.event
    start_cells, _, lever = starts
    cells, actions, steps, end = paths
    for k in range(len(start_cells)):
        golds = starts.golds[k].copy()
        s, taken, n, left = start_cells[k], int(lever[k]), 0, golds.sum()
        while True:
            a = _best_action(s, left, taken, horizon - n, values)
            cells[k, n], actions[k, n] = s, a
            if event[s, a] == BUMP:
                end[k] = END_STUCK
                break
            s, left, taken, end[k] = move(transitions, gold_index, golds, s, a, left, taken)
            n += 1
            if end[k] != GOES_ON:
                cells[k, n] = s
                break
        steps[k] = n


@dataclass(frozen=True)
class FollowedSuccessors:
    """Successor features of M policies whose future is more than a matter of the cell: followed when asked for.

    So it is where moves lead back (golds and steps left count) and where policies act by golds left and lever. Who
    holds this can ask what happens after an action, and learns nothing else about the world.

    Attributes:
        policies: actions, int8 (M, S) or (M, S * 2 (G + 1)).
    """

    policies: np.ndarray
    _layout: Layout = field(repr=False)

    def events(self, cell: int, golds: np.ndarray, lever: bool, steps_left: int) -> np.ndarray:
        """What happens in the steps left after each action and each policy from then on, float64 (M, 4, E).

        Args:
            cell: where the agent is.
            golds: which golds are left, bool (G,).
            lever: whether the lever was taken.
            steps_left: of the horizon.
        """
        out = np.zeros((len(self.policies), 4, len(EVENTS)))
        world = (self._layout.transitions, self._layout.gold_index)
        for m, policy in enumerate(self.policies):
            for a in range(4):
                _follow(*world, policy, (cell, a, steps_left), golds.copy(), int(lever), out[m, a])
        return out

    def promised(self, system: RewardSystem) -> float:
        """The best that following one of the policies after any first action returns from the start."""
        golds, horizon, bumps = len(self._layout.golds), self._layout.horizon, self._layout.transitions.event[0] == BUMP
        values = self.events(0, np.ones(golds, bool), False, horizon) @ system.weights
        own = self.policies[:, state_row(0, golds, 0, golds, self.policies.shape[1] // horizon)]
        values[:, bumps] = np.where(bumps[own][:, None], values[:, bumps], -np.inf)  # no bump, then moving on
        return float(values.max())


@dataclass(frozen=True)
class FollowedPolicy:
    """Generalised policy improvement on (cell, golds left, lever taken, steps left); as `SuccessorPolicy`.

    Attributes:
        psi: of M policies.
        system: the reward it is wanted for.

    Source: Barreto et al. (2017), theorem 1; with a horizon, the proof is an induction over the steps left.
    """

    psi: FollowedSuccessors
    system: RewardSystem

    def paths(self, layout: Layout, starts: States) -> Paths:
        """Follow the policy from each start state, a full horizon ahead."""
        paths = empty_paths(layout, len(starts.cells))
        _followed_paths(layout.transitions, layout.gold_index, self.psi.policies, self.system.weights, starts, paths)
        return paths


@njit(cache=True, nogil=True)
def _follow(
    transitions: Transitions,
    gold_index: np.ndarray,
    policy: np.ndarray,
    first: tuple[int, int, int],
    golds: np.ndarray,
    taken: int,
    counts: np.ndarray,
) -> None:
    """Count the events after (cell, action, steps left); `golds` is used up."""
    s, a, steps_left = first
    left, total, horizon = golds.sum(), len(golds), len(transitions.event)
    memories = len(policy) // horizon
    while steps_left > 0:
        s, left, taken, end = count_move(transitions, gold_index, golds, s, a, left, taken, counts)
        steps_left -= 1
        if end != GOES_ON:
            return
        a = policy[state_row(s, left, taken, total, memories)]
        if transitions.event[s, a] == BUMP:
            counts[_BUMP] += steps_left
            return


@njit(cache=True, nogil=True)
def _followed_paths(
    transitions: Transitions,
    gold_index: np.ndarray,
    policies: np.ndarray,
    weights: np.ndarray,
    starts: States,
    paths: Paths,
) -> None:
    cells, actions, steps, end = paths
    horizon = len(transitions.event)
    counts = np.empty(len(weights))
    for k in range(len(steps)):
        golds = starts.golds[k].copy()
        s, left, taken, n = starts.cells[k], golds.sum(), int(starts.lever[k]), 0
        while True:
            best, best_value = 0, -np.inf
            row = state_row(s, left, taken, len(golds), policies.shape[1] // horizon)
            for a in range(4):
                for m in range(len(policies)):
                    if transitions.event[s, a] == BUMP and transitions.event[s, policies[m, row]] != BUMP:
                        continue  # bump, then move on
                    counts[:] = 0
                    _follow(transitions, gold_index, policies[m], (s, a, horizon - n), golds.copy(), taken, counts)
                    value = np.dot(counts, weights)
                    if value > best_value + 1e-9:  # rounding must not break ties
                        best, best_value = a, value
            cells[k, n], actions[k, n] = s, best
            if n == horizon or transitions.event[s, best] == BUMP:
                end[k] = END_STUCK
                break
            s, left, taken, end[k] = move(transitions, gold_index, golds, s, best, left, taken)
            n += 1
            if end[k] != GOES_ON:
                cells[k, n] = s
                break
        steps[k] = n
