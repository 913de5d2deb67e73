"""What can be promised of a composed policy without one more step in the environment.

The lower bound follows the policy through transitions that somebody recorded; where it leaves them, the worst is
assumed. The upper bound holds for every policy: transitions that the rung does not show are assumed to pay the most
that anything could, so the optimum cannot lie above it. Between the two is what nobody knows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit

from lever_lib.composition import Method, Pool, QTables, Successors
from lever_lib.envs.gridworld import (
    ACTIONS,
    BUMP,
    ENTER_EMPTY,
    ENTER_EXIT,
    ENTER_GOLD,
    ENTER_HAZARD,
    ENTER_LEVER,
    UNKNOWN,
    Layout,
    RewardTables,
    Transitions,
    enter,
    restrict,
    reward_tables,
    state_row,
)
from lever_lib.envs.rewards import EVENTS, RewardSystem
from lever_lib.planning import optimum
from lever_lib.policies.base import FollowedSuccessors
from lever_lib.rollout import END_EXIT, END_STUCK, Outcome, Paths, Policy, evaluate, event_counts, returns, start_state
from lever_lib.timed_planning import MOST_STATES

_ENOUGH = 0.95  # of the upper bound
_NOT_STUCK = np.array([END_EXIT], np.int8)
_BUMP, _HAZARD, _NEIGHBOUR = (EVENTS.index(name) for name in ("bump", "hazard", "hazard_neighbour"))


@dataclass(frozen=True)
class Certificate:
    """What is known of a composed policy before it is run.

    Attributes:
        estimate: what the method's own rung makes of it; a promise from rung 1 on, at rung 0 the sum of Q-values.
        lower: it returns no less.
        upper: no policy returns more, as far as the method's rung tells.
    """

    estimate: float
    lower: float
    upper: float


def certify(pool: Pool, method: Method, members: tuple[int, ...], policy: Policy) -> Certificate:
    """The certificate of a policy that a method made of some of a pool's policies."""
    found = evaluate(policy, pool.layout, pool.system)
    view = pool.view(method, members)
    return Certificate(
        _estimate(pool, view, found),
        recorded_return(pool, members, found),
        upper_bound(pool.layout, pool.system, _known(pool, method, members)),
    )


@dataclass(frozen=True)
class Outlook:
    """What all recordings of a library's layout tell of a question, whatever a method was shown.

    Attributes:
        planned: the best return on recorded transitions: what planning on them promises.
        upper: no policy returns more, as far as these transitions tell.
    """

    planned: float
    upper: float

    def advice(self, certificate: Certificate) -> str:
        """`use` if what is sure is nearly all that can be had, `plan` if recordings promise more, else `train`."""
        enough = self.upper - (1 - _ENOUGH) * abs(self.upper)
        if certificate.lower >= enough:
            return "use"
        return "plan" if self.planned >= enough else "train"


def outlook(pool: Pool) -> Outlook:
    """What the recordings of all policies of a pool tell of its question."""
    known = pool.cell_visits.any(axis=0)
    planned = optimum(pool.layout, pool.system, known).return_
    return Outlook(planned, upper_bound(pool.layout, pool.system, known))


def _estimate(pool: Pool, view: QTables, found: Outcome) -> float:
    """What a rung promises at the start."""
    if not isinstance(view, Successors):
        golds = len(pool.layout.golds)
        start = state_row(0, golds, 0, golds, view.q_tables.shape[1] // pool.layout.horizon)
        return float(view.q_tables[:, start, found.actions[0]].sum()) if len(found.actions) else 0.0
    return _promised(view) if type(view) is Successors else found.return_


def _promised(view: Successors) -> float:
    """The best that following one of the policies from the start comes to; improving on it returns no less.

    Source: Barreto et al. (2017), theorem 1.
    """
    psi, pay = view.psi, view.pay
    if isinstance(psi, FollowedSuccessors):
        return psi.promised(view.system)
    golds, lever, end = (table[:, 0] for table in (psi.golds, psi.lever, psi.end))
    total = pay.exit.shape[0] - 1
    value = view.fixed[:, 0] + pay.gold * golds + pay.lever * lever
    value += np.where(end == END_EXIT, pay.exit[np.maximum(total - golds, 0), lever.astype(int)], 0.0)
    stays = psi.counts.shape[1] - psi.steps[:, 0]  # the horizon has as many steps as the grid has cells
    return float((value + np.where(end == END_STUCK, pay.bump * stays, 0.0)).max())


def _known(pool: Pool, method: Method, members: tuple[int, ...]) -> np.ndarray:
    """Transitions that a method is shown, bool (S, 4): none at rungs 0 and 1."""
    if method.rung < 2:
        return np.zeros((pool.layout.horizon, ACTIONS), bool)
    return pool.row_support(method, members)


def recorded_return(pool: Pool, members: tuple[int, ...], found: Outcome) -> float:
    """What an episode is sure to return, going by what was recorded in the training of some policies.

    Args:
        pool: policies and question.
        members: whose recordings count.
        found: the episode; from its first transition that nobody recorded on, it may end in a hazard or get stuck.
    """
    cells, actions = found.cells[: len(found.actions)], found.actions
    if (actions < 0).any():
        cells, actions = cells[actions >= 0], actions[actions >= 0]
    unseen = np.flatnonzero(pool.total_visits(members)[cells, actions] == 0)
    if not len(unseen):
        return found.return_
    first = int(unseen[0])
    so_far = Paths(cells[None, : first + 1], actions[None, :first], np.array([first], np.int32), _NOT_STUCK)
    earned = returns(event_counts(pool.layout, start_state(pool.layout), so_far), [pool.system])[0, 0]
    moved = int((cells[1 : first + 1] != cells[:first]).sum())
    return float(earned + _worst(pool.layout, pool.system, first, moved))


def _worst(layout: Layout, system: RewardSystem, steps: int, moved: int) -> float:
    """What the rest of an episode returns at the least, whatever happens, after some steps, some of them moves."""
    pays, pay = dict(zip(EVENTS, system.weights, strict=True)), layout.rewards(system).pay
    most_moves = min(layout.longest_path - moved, layout.horizon - steps)
    on_the_way = min(0.0, pays["step"] + 4 * min(0.0, pays["hazard_neighbour"])) * most_moves
    collected = min(0.0, pays["gold"]) * len(layout.golds) + min(0.0, pays["lever"])
    stuck = min(0.0, pays["bump"]) * (layout.horizon - steps)
    return on_the_way + collected + min(pays["hazard"], stuck, pay.exit.min())


def upper_bound(layout: Layout, system: RewardSystem, known: np.ndarray) -> float:
    """What no policy returns more than, going by some transitions only.

    Where a transition is not known, its cell may hold whatever pays most: a gold if one is left, the lever, no hazard
    beside it. What a known transition enters is known from every side. The size of the grid, its moves, the corners of
    start and exit and the number of golds are always known. Where moves lead back, a cell that is not known may hold a
    gold each time it is entered, and so may known golds beyond those that can be kept apart.

    Args:
        layout: the world, of which nothing else is read than the known part.
        system: what pays.
        known: bool (S, 4).
    """
    aims, weights = layout.targets, system.weights
    seen = restrict(layout.transitions, known)
    entered = known & (seen.event != BUMP)
    content = np.full(layout.cells.size, UNKNOWN, np.int8)
    beside = np.full(layout.cells.size, 4 if weights[_NEIGHBOUR] > 0 else 0, np.int8)
    content[seen.next_cell[entered]] = seen.event[entered]
    beside[seen.next_cell[entered]] = seen.hazard_neighbours[entered]
    content[-1] = ENTER_EXIT
    hidden = ~known & (aims >= 0)
    guessed = Transitions(
        np.where(hidden, aims, seen.next_cell),
        np.where(hidden, content[aims], np.where(known, seen.event, np.int8(BUMP))),
        np.where(hidden, beside[aims], seen.hazard_neighbours),
    )
    plain = guessed._replace(event=np.where(guessed.event == UNKNOWN, np.int8(ENTER_EMPTY), guessed.event))
    rewards = reward_tables(plain, len(layout.golds), system)
    if layout.cyclic:
        return float(_optimistic_timed(guessed, rewards, _kept_apart(layout, guessed), weights[_HAZARD]))
    stay = max(weights[_BUMP] * (layout.horizon - steps) for steps in (0, layout.longest_path))
    return float(_optimistic(guessed, rewards, stay, weights[_HAZARD]))


@njit(cache=True, nogil=True)
def _optimistic(transitions: Transitions, rewards: RewardTables, stay: float, hazard: float) -> float:
    """The best return from the start, where an unknown cell may be empty or hold a gold, the lever or a hazard."""
    next_cell, event, _ = transitions
    fixed, pay = rewards
    cells, golds = len(next_cell), pay.exit.shape[0]
    value = np.empty((cells, golds, 2))
    for s in range(cells - 1, -1, -1):
        for left in range(golds):
            for taken in range(2):
                best = stay
                for a in range(4):
                    e = event[s, a]
                    if e == BUMP:
                        continue
                    if e == UNKNOWN:
                        best = max(best, hazard)
                    for guess in (ENTER_EMPTY, ENTER_GOLD, ENTER_LEVER) if e == UNKNOWN else (e, e, e):
                        extra, left_after, taken_after = enter(guess, left, taken, pay)
                        reward = fixed[s, a] + extra
                        if guess not in (ENTER_EXIT, ENTER_HAZARD):
                            reward += value[next_cell[s, a], left_after, taken_after]
                        best = max(best, reward)
                value[s, left, taken] = best
    return value[0, golds - 1, 0]


def _kept_apart(layout: Layout, known: Transitions) -> np.ndarray:
    """Golds that are kept apart by a bit each, int32 (S,), -1 elsewhere: those seen, as many as there is room for."""
    seen = np.isin(layout.golds, known.next_cell[known.event == ENTER_GOLD])
    room = int(seen.sum())
    while room and layout.horizon**2 * 2 ** (room + 1) * (len(layout.golds) - room + 1) > MOST_STATES:
        room -= 1
    bits = np.full(layout.horizon, -1, np.int32)
    bits[layout.golds[seen][:room]] = np.arange(room)
    return bits


@njit(cache=True, nogil=True)
def _optimistic_timed(transitions: Transitions, rewards: RewardTables, bits: np.ndarray, hazard: float) -> float:
    """As `_optimistic`, by steps left, golds that are kept apart, further golds left, and the lever."""
    next_cell, event, _ = transitions
    fixed, pay = rewards
    cells, golds, apart = len(next_cell), pay.exit.shape[0] - 1, bits.max() + 1
    masks, further = 1 << apart, golds - apart + 1
    later, value = np.zeros((cells, masks, further, 2)), np.empty((cells, masks, further, 2))
    counts = np.zeros(masks, np.int32)
    for mask in range(1, masks):
        counts[mask] = counts[mask >> 1] + (mask & 1)
    for _ in range(cells):
        for s in range(cells):
            for mask in range(masks):
                for more in range(further):
                    for taken in range(2):
                        best = pay.bump + later[s, mask, more, taken]
                        for a in range(4):
                            e, s_after = event[s, a], next_cell[s, a]
                            if e == BUMP:
                                continue
                            if e == UNKNOWN:
                                best = max(best, hazard)
                            if e in (ENTER_EXIT, ENTER_HAZARD):
                                extra, _, _ = enter(e, counts[mask] + more, taken, pay)
                                best = max(best, fixed[s, a] + extra)
                                continue
                            if e == ENTER_GOLD and bits[s_after] >= 0:
                                mask_after = mask & ~(1 << bits[s_after])
                                gain = pay.gold if mask_after != mask else 0.0
                                best = max(best, fixed[s, a] + gain + later[s_after, mask_after, more, taken])
                                continue
                            pulled = 1 if e == ENTER_LEVER else taken
                            gain = pay.lever if pulled > taken else 0.0
                            best = max(best, fixed[s, a] + gain + later[s_after, mask, more, pulled])
                            if e in (ENTER_GOLD, UNKNOWN) and more > 0:
                                best = max(best, fixed[s, a] + pay.gold + later[s_after, mask, more - 1, taken])
                            if e == UNKNOWN and taken == 0:
                                best = max(best, fixed[s, a] + pay.lever + later[s_after, mask, more, 1])
                        value[s, mask, more, taken] = best
        later, value = value, later
    return later[0, masks - 1, further - 1, 0]
