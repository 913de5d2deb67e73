"""Making one policy out of several, without a step in the environment.

What may a composer read? The rungs are nested, and a method is handed an object that exposes its rung and no more:

0. the candidates' Q-tables;
1. + their successor features psi(s, a) by reward event;
2. + the transitions on the support S of the candidates;
3. + every transition seen in their training;
4. the true model.

The support S of some policies is, per cell, the greedy action of each of them, and every state-action that a method of
rung 0 or 1 takes from the start when it composes them. What is best on S bounds everything below rung 3, so the regret
to the optimum splits into what the support lacks and what the composer lost.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from numba import njit

from lever_lib.envs.gridworld import (
    ACTIONS,
    BUMP,
    ENTER_EXIT,
    ENTER_HAZARD,
    UNKNOWN,
    Layout,
    RewardTables,
    StatePay,
    Transitions,
    enter,
    memory_count,
    restrict,
    reward_tables,
    state_pay,
)
from lever_lib.envs.rewards import EVENTS, RewardSystem
from lever_lib.errors import LeverError
from lever_lib.planning import best_policy, optimum
from lever_lib.policies.base import (
    CellPolicy,
    FollowedPolicy,
    FollowedSuccessors,
    SuccessorPolicy,
    SuccessorTable,
    greedy_actions,
    successor_table,
)
from lever_lib.rollout import Policy, evaluate
from lever_lib.timed_planning import timed_bounds

_SHARPNESS = 3.0  # of `softmax`: of 0.3, 1 and 3 the best at 8x8 and 16x16, on layouts that no study uses
_COUNTED = [EVENTS.index(name) for name in ("bump", "hazard", "step", "hazard_neighbour")]  # SuccessorTable.counts


@dataclass(frozen=True)
class QTables:
    """Rung 0.

    Attributes:
        q_tables: of the candidates, float64 (M, S, 4).
    """

    q_tables: np.ndarray


@dataclass(frozen=True)
class Successors(QTables):
    """Rung 1.

    Attributes:
        psi: successor features of the candidates; a table where the cell says all about a policy's future.
        fixed: what the counts of such a table pay under the question's reward, float64 (M, S, 4); else nothing.
        pay: what golds, lever, exit and being stuck pay.
        system: the question's reward.
    """

    psi: SuccessorTable | FollowedSuccessors
    fixed: np.ndarray
    pay: StatePay
    system: RewardSystem


@dataclass(frozen=True)
class Support(Successors):
    """Rung 2.

    Attributes:
        transitions: on the support; the rest is unknown.
        rewards: of these transitions.
        fewest_golds: golds left at the least in each cell, int32 (S,); spares planners the states that no episode
            comes to.
        gold_index: which gold a cell of the support holds, int32 (S,); -1 for none.
        cyclic: whether moves lead back.
    """

    transitions: Transitions
    rewards: RewardTables
    fewest_golds: np.ndarray
    gold_index: np.ndarray
    cyclic: bool

    def plan(self, keep: np.ndarray | None = None) -> Policy:
        """The best policy on these transitions; with `keep`, on the moves that `prune` left."""
        world = (self.fewest_golds, self.gold_index, self.cyclic)
        return best_policy(self.transitions, self.rewards, *world, keep)


@dataclass(frozen=True)
class Experience(Support):
    """Rung 3: `transitions` hold the support and everything seen often enough in training.

    Attributes:
        visits: times each action was taken in the candidates' training, int64 (S, 4).
        alpha: step size of that training.
    """

    visits: np.ndarray
    alpha: float


@dataclass(frozen=True)
class Method:
    """A way to compose.

    Attributes:
        name: id in tables and on the command line.
        rung: what it may read.
        compose: from the rung's view to a policy.
        by_behaviour: whether the policy depends on nothing but how the candidates act, as a set: combinations that act
            alike are then composed once.
        least_visits: how often training must have taken a transition for rung 3 to believe in it.
    """

    name: str
    rung: int
    compose: Callable[[QTables], Policy]
    by_behaviour: bool = False
    least_visits: int = 1


METHODS: dict[str, Method] = {}


def register(
    name: str, rung: int, by_behaviour: bool = False, least_visits: int = 1
) -> Callable[[Callable[..., Policy]], Callable[..., Policy]]:
    """Make a function a composition method: it takes the view of its rung (0 to 3) and returns a policy.

    What a method of rung 0 or 1 does belongs to the support of every row, so it runs whatever method is asked for.

    Args:
        name: its id.
        rung: what it may read.
        by_behaviour: see `Method`.
        least_visits: see `Method`.
    """
    if not isinstance(name, str) or not name.isprintable() or not name.strip():
        raise LeverError(f"name = {name!r}: must be a line of text")
    if type(rung) is not int or rung not in range(4):
        raise LeverError(f"rung = {rung!r}: must be 0, 1, 2 or 3")
    if type(least_visits) is not int or least_visits < 1:
        raise LeverError(f"least_visits = {least_visits!r}: must be a whole number, at least 1")
    if not isinstance(by_behaviour, bool):
        raise LeverError(f"by_behaviour = {by_behaviour!r}: must be True or False")

    def add(compose: Callable[..., Policy]) -> Callable[..., Policy]:
        """Enter the function in `METHODS` and leave it as it is."""
        if not callable(compose):
            raise LeverError(f"method {name!r}: {compose!r} is no function")
        known = METHODS.get(name)
        if known and known.compose.__module__ == __name__ != compose.__module__:
            raise LeverError(f"method {name!r}: is built in; choose another name")
        METHODS[name] = Method(name, rung, compose, by_behaviour, least_visits)
        return compose

    return add


@register("qsum", rung=0)
def qsum(view: QTables) -> CellPolicy:
    """Act greedily on the sum of the Q-tables."""
    return CellPolicy(greedy_actions(view.q_tables.sum(axis=0)))


@register("softmax", rung=0)
def softmax(view: QTables) -> CellPolicy:
    """Mix what the policies would do, as softmax policies over advantages that are brought to one scale.

    What a Q-table counts in depends on its reward: the sum follows the one with the largest numbers. Here each table's
    advantages (Q minus its maximum in the cell) are divided by their standard deviation, and a policy that is nearly
    indifferent in a cell has no say there.
    """
    advantages = view.q_tables - view.q_tables.max(axis=2, keepdims=True)
    spread = advantages.std(axis=(1, 2), keepdims=True)
    weights = np.exp(_SHARPNESS * advantages / np.where(spread > 0, spread, 1))
    return CellPolicy(greedy_actions((weights / weights.sum(axis=2, keepdims=True)).sum(axis=0)))


@register("gpi", rung=1, by_behaviour=True)
def gpi(view: Successors) -> Policy:
    """One step of generalised policy improvement over the candidates, under the question's reward.

    Source: Barreto et al. (2017), theorem 1.
    """
    if isinstance(view.psi, FollowedSuccessors):
        return FollowedPolicy(view.psi, view.system)
    return SuccessorPolicy(view.psi, view.fixed, view.pay)


@register("switch", rung=2)
def switch(view: Support) -> Policy:
    """The best that can be had by switching between what rungs 0 and 1 do: the exact optimum on the support."""
    return view.plan()


@register("exnonzero-1000", rung=3, least_visits=1000)
@register("exnonzero-100", rung=3, least_visits=100)
@register("exnonzero-10", rung=3, least_visits=10)
@register("exnonzero", rung=3)
def exnonzero(view: Experience) -> Policy:
    """ExNonZeroDiscount: drop moves that training has shown to be worse than a sibling, plan on what is left."""
    keep, _ = prune(view)
    return view.plan(keep)


def method(name: str) -> Method:
    """The registered method called `name`, else a `LeverError` that lists them."""
    if not isinstance(name, str) or name not in METHODS:
        raise LeverError(f"method {name!r}: must be one of {', '.join(METHODS)}")
    return METHODS[name]


def everyday_methods() -> tuple[Method, ...]:
    """All methods but the stricter variants of another: how often to believe is a question of its own (`ladder`)."""
    return tuple(method for method in METHODS.values() if method.least_visits == 1)


def prune(view: Experience) -> tuple[np.ndarray, float]:
    """Moves that survive the bounds of ExNonZeroDiscount; see `bounds`.

    Returns:
        Bit a of uint8 (S, G + 1, 2) for action a in (cell, golds left, lever taken), and the share of moves dropped
        among the states that can be reached from the start. Where moves lead back: as from `timed_bounds`.
    """
    if view.cyclic:
        most = _after_all_updates(view)
        return timed_bounds(view.transitions, view.rewards, view.gold_index, view.alpha, most)
    keep, _, _ = bounds(view)
    reached = np.zeros(keep.shape, np.bool_)
    dropped, moves = _count_dropped(view.transitions, view.rewards.pay, keep, reached)
    return keep, dropped / max(moves, 1)


def bounds(view: Experience) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What is known of values from how often they were updated, and the moves that can still be best.

    n SARSA updates of size alpha move a value from 0 to (1 - (1 - alpha)^n) (r + Q'). With n from 1 to the visit count
    and Q' between the bounds of the next state this bounds each move's value, undiscounted like all planning here.
    A move whose upper bound is not above a sibling's lower bound goes. A supported move that training never took may
    have any number of updates.

    Args:
        view: of a world where no move leads back.

    Returns:
        Surviving moves, uint8 (S, G + 1, 2), and upper and lower bounds of the values, float64 (S, G + 1, 2).
    """
    shape = (len(view.visits), *view.rewards.pay.exit.shape)
    keep = np.full(shape, 15, np.uint8)
    most = _after_all_updates(view)
    upper, lower = np.empty(shape), np.empty(shape)
    _bound(view.transitions, view.rewards, view.fewest_golds, view.alpha, most, keep, upper, lower)
    return keep, upper, lower


def _after_all_updates(view: Experience) -> np.ndarray:
    """Share of its target that each action's value has after its updates, float64 (S, 4)."""
    return np.where(view.visits > 0, 1 - (1 - view.alpha) ** np.maximum(view.visits, 1), 1.0)


@dataclass(frozen=True)
class Pool:
    """Policies of one layout, and the question that is asked of them.

    The pool knows everything; methods see it through `view`.

    Attributes:
        layout: the world.
        system: the reward that the composed policy is wanted for.
        q_tables: float64 (P, S, 4); or (P, S * 2 (G + 1), 4), where golds left and lever count as state.
        visits: int32, as many.
        alpha: step size that trained them.
    """

    layout: Layout
    system: RewardSystem
    q_tables: np.ndarray
    visits: np.ndarray
    alpha: float
    _supports: dict[tuple[int, ...], np.ndarray] = field(default_factory=dict, repr=False)
    _successors: dict[int, tuple[SuccessorTable, np.ndarray]] = field(default_factory=dict, repr=False)

    def fresh(self) -> Pool:
        """The same pool with nothing computed yet."""
        return Pool(self.layout, self.system, self.q_tables, self.visits, self.alpha)

    @cached_property
    def actions(self) -> np.ndarray:
        """Greedy actions, int8 (P, S), or as many as the Q-tables have rows."""
        return greedy_actions(self.q_tables)

    @cached_property
    def by_cell(self) -> bool:
        """Whether the cell alone says what the policies do and what comes of it."""
        return self.q_tables.shape[1] == self.layout.horizon and not self.layout.cyclic

    @cached_property
    def cell_visits(self) -> np.ndarray:
        """Times each action was taken in each cell, int64 (P, S, 4)."""
        return self.visits.reshape(len(self.visits), self.layout.horizon, -1, ACTIONS).sum(axis=2, dtype=np.int64)

    @cached_property
    def behaviour(self) -> list[int]:
        """Per policy the first one that acts exactly like it."""
        first: dict[bytes, int] = {}
        return [first.setdefault(actions.tobytes(), row) for row, actions in enumerate(self.actions)]

    def successors(self, member: int) -> tuple[SuccessorTable, np.ndarray]:
        """Successor features of one greedy policy (M = 1), and what their counts pay; computed when first asked for."""
        row = self.behaviour[member]
        if row not in self._successors:
            psi = successor_table(self.layout, self.actions[row : row + 1])
            self._successors[row] = psi, psi.counts @ self.system.weights[_COUNTED]
        return self._successors[row]

    @cached_property
    def pay(self) -> StatePay:
        """What depends on golds left and lever."""
        return state_pay(len(self.layout.golds), self.system)

    def view(self, method: Method, members: tuple[int, ...]) -> QTables:
        """What a method may read of some of the policies."""
        rung, q_tables = method.rung, self.q_tables[list(members)]
        if rung == 0:
            return QTables(q_tables)
        successors = (q_tables, *self._psi(members), self.pay, self.system)
        if rung == 1:
            return Successors(*successors)
        known = restrict(self.layout.transitions, self.row_support(method, members))
        rewards = reward_tables(known, len(self.layout.golds), self.system)
        seen = np.isin(np.arange(self.layout.horizon), known.next_cell)
        gold_index = np.where(seen, self.layout.gold_index, np.int32(-1))
        support = (*successors, known, rewards, self.layout.fewest_golds, gold_index, self.layout.cyclic)
        if rung == 2:
            return Support(*support)
        return Experience(*support, self.total_visits(members), self.alpha)

    def _psi(self, members: tuple[int, ...]) -> tuple[SuccessorTable | FollowedSuccessors, np.ndarray]:
        """Successor features of some policies, and what their counts pay."""
        if not self.by_cell:
            distinct = sorted({self.behaviour[member] for member in members})
            return FollowedSuccessors(self.actions[distinct], self.layout), np.empty(0)
        tables, fixed = zip(*(self.successors(member) for member in members), strict=True)
        return SuccessorTable(*(np.concatenate(parts) for parts in zip(*tables, strict=True))), np.concatenate(fixed)

    def compose(self, method: Method, members: tuple[int, ...]) -> Policy:
        """The policy that a method makes of some of the policies.

        Raises:
            LeverError: if it makes something that cannot act.
        """
        policy = method.compose(self.view(method, members))
        if isinstance(policy, type) or not callable(getattr(policy, "paths", None)):
            found = type(policy).__name__ if not isinstance(policy, type) else f"the class {policy.__name__} itself"
            raise LeverError(
                f"method {method.name!r}: must return a policy, e.g. CellPolicy(actions), returned {found}"
            )
        if isinstance(policy, CellPolicy) and not self._can_act(policy.actions):
            cells, most = self.layout.horizon, ACTIONS - 1
            raise LeverError(
                f"method {method.name!r}: its actions must be an array of whole numbers from 0 to {most}, one for "
                f"each of {cells} cells, or for each state"
            )
        if isinstance(policy, CellPolicy) and policy.actions.dtype != np.int8:  # as kernels know it
            return replace(policy, actions=policy.actions.astype(np.int8))
        return policy

    def _can_act(self, actions: np.ndarray) -> bool:
        """Whether kernels may follow a table of actions: they do not look whether they read beside it."""
        cells = self.layout.horizon
        lengths = (cells, cells * memory_count(len(self.layout.golds)))
        whole = isinstance(actions, np.ndarray) and actions.ndim == 1 and actions.dtype.kind in "iu"
        return bool(whole and len(actions) in lengths and actions.min() >= 0 and actions.max() < ACTIONS)

    def total_visits(self, members: tuple[int, ...]) -> np.ndarray:
        """Times each action was taken in the training of any of the policies, int64 (S, 4)."""
        return self.cell_visits[list(members)].sum(axis=0)

    def support(self, members: tuple[int, ...]) -> np.ndarray:
        """S of some policies, bool (S, 4): their greedy actions, and what rungs 0 and 1 do with them from the start."""
        if members not in self._supports:
            support = np.zeros((self.layout.horizon, ACTIONS), dtype=bool)
            for member in members:
                support |= self._greedy(member)
            for each in [each for each in METHODS.values() if each.rung <= 1]:
                episode = evaluate(self.compose(each, members), self.layout, self.system)
                support[episode.cells[: len(episode.actions)], episode.actions] = True
            self._supports[members] = support
        return self._supports[members]

    def _greedy(self, member: int) -> np.ndarray:
        """What a policy does in each cell, bool (S, 4); by golds left and lever, as far as training came to them."""
        cells = np.arange(len(self.actions[member])) * self.layout.horizon // len(self.actions[member])
        come_to = np.ones(len(cells), bool)
        if len(cells) > self.layout.horizon:
            seen = self.visits[member].any(axis=1)
            come_to = seen if seen.any() else come_to
        greedy = np.zeros((self.layout.horizon, ACTIONS), dtype=bool)
        greedy[cells[come_to], self.actions[member][come_to]] = True
        return greedy

    def row_support(self, method: Method, members: tuple[int, ...]) -> np.ndarray:
        """What a method's regret is measured on, bool (S, 4): S, for rung 3 with everything visited often enough."""
        support = self.support(members)
        return support | (self.total_visits(members) >= method.least_visits) if method.rung == 3 else support

    def support_return(self, method: Method, members: tuple[int, ...]) -> float:
        """The best return on a row's support."""
        return optimum(self.layout, self.system, self.row_support(method, members)).return_


@njit(cache=True, nogil=True)
def _bound(
    transitions: Transitions,
    rewards: RewardTables,
    fewest_golds: np.ndarray,
    once: float,
    most: np.ndarray,
    keep: np.ndarray,
    upper: np.ndarray,
    lower: np.ndarray,
) -> None:
    next_cell, event, _ = transitions
    fixed, pay = rewards
    cells, golds = upper.shape[:2]
    highs, lows = np.empty(4), np.empty(4)
    for s in range(cells - 1, -1, -1):
        for left in range(fewest_golds[s], golds):
            for taken in range(2):
                best_low, best = -np.inf, -1
                best_high = -np.inf
                for a in range(4):
                    e = event[s, a]
                    if e in (BUMP, UNKNOWN):
                        continue
                    extra, left_after, taken_after = enter(e, left, taken, pay)
                    reward, next_high, next_low = fixed[s, a] + extra, 0.0, 0.0
                    if e not in (ENTER_EXIT, ENTER_HAZARD):
                        next_high = upper[next_cell[s, a], left_after, taken_after]
                        next_low = lower[next_cell[s, a], left_after, taken_after]
                    high, low = reward + next_high, reward + next_low
                    highs[a] = max(once * high, most[s, a] * high)
                    lows[a] = min(once * low, most[s, a] * low)
                    best_high = max(best_high, highs[a])
                    if lows[a] > best_low:
                        best_low, best = lows[a], a
                if best == -1:  # nothing moves from here: staying costs something between nothing and all steps
                    upper[s, left, taken], lower[s, left, taken] = 0.0, pay.bump * cells
                    continue
                upper[s, left, taken], lower[s, left, taken] = best_high, best_low
                for a in range(4):
                    if event[s, a] not in (BUMP, UNKNOWN) and a != best and highs[a] <= best_low:
                        keep[s, left, taken] &= ~(1 << a)


@njit(cache=True, nogil=True)
def _count_dropped(transitions: Transitions, pay: StatePay, keep: np.ndarray, reached: np.ndarray) -> tuple[int, int]:
    next_cell, event, _ = transitions
    cells, golds = reached.shape[:2]
    reached[0, golds - 1, 0] = True
    dropped, moves = 0, 0
    for s in range(cells):
        for left in range(golds):
            for taken in range(2):
                if not reached[s, left, taken]:
                    continue
                for a in range(4):
                    e = event[s, a]
                    if e in (BUMP, UNKNOWN):
                        continue
                    moves += 1
                    dropped += not (keep[s, left, taken] >> a) & 1
                    if e not in (ENTER_EXIT, ENTER_HAZARD):
                        _, left_after, taken_after = enter(e, left, taken, pay)
                        reached[next_cell[s, a], left_after, taken_after] = True
    return dropped, moves
