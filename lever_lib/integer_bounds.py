"""The bounds of ExNonZeroDiscount as an integer program: slow, but nothing about it can be got wrong by recursion.

How often a value was updated is an integer that the bounds leave open. A mixed-integer program chooses, in every state,
a move and how often it was updated, so that the value of the start is as high as it can be. `composition.prune` finds
the same number by one backward sweep; this is what it is checked against on small worlds.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp

from lever_lib.composition import Experience
from lever_lib.envs.gridworld import BUMP, ENTER_EXIT, ENTER_HAZARD, UNKNOWN, enter
from lever_lib.errors import LeverError

_MOST_CHOICES = 300  # a program of this size is solved in seconds

State = tuple[int, int, int]  # cell, golds left, lever taken


class _Choice(NamedTuple):
    """A move with a number of updates: value = factor (reward + value of the next state)."""

    state: State
    factor: float
    reward: float
    after: State | None  # None where the episode ends


def upper_bound_by_integers(view: Experience) -> float:
    """The upper bound on the value of the start, as `composition.prune` defines it.

    Args:
        view: of rung 3, of a small world.

    Raises:
        LeverError: if the world is too large for this, or moves lead back: the program has no steps left in it.
    """
    if view.cyclic:
        raise LeverError("integer bounds: only for moves that never lead back to a cell")
    choices = list(_choices(view))
    if len(choices) > _MOST_CHOICES:
        raise LeverError(f"integer bounds: {len(choices)} choices, at most {_MOST_CHOICES} can be handled")
    states = {state: number for number, state in enumerate(dict.fromkeys(choice.state for choice in choices))}
    count = len(states)
    cells, rewards = len(view.visits), [choice.reward for choice in choices]
    low, high = cells * min(0.0, *rewards), cells * max(0.0, *rewards)  # no path has more steps than there are cells
    slack = high - low + max(map(abs, rewards))
    rows, most = [], []
    chosen_once = np.zeros((count, count + len(choices)))
    for number, choice in enumerate(choices):
        # value <= factor (reward + next value) if this is chosen; else it says nothing
        row = np.zeros(count + len(choices))
        row[states[choice.state]] = 1
        if choice.after is not None and choice.after in states:
            row[states[choice.after]] -= choice.factor
        row[count + number] = slack
        rows.append(row)
        most.append(choice.factor * choice.reward + slack)
        chosen_once[states[choice.state], count + number] = 1
    objective = np.zeros(count + len(choices))
    objective[states[_start(view)]] = -1
    found = milp(
        objective,
        constraints=[
            LinearConstraint(np.array(rows), -np.inf, np.array(most)),
            LinearConstraint(chosen_once, 1, 1),
        ],
        integrality=np.repeat([0, 1], [count, len(choices)]),
        bounds=Bounds(np.repeat([low, 0], [count, len(choices)]), np.repeat([high, 1], [count, len(choices)])),
        options={"mip_rel_gap": 0.0},
    )
    if found.x is None:
        raise LeverError(f"integer bounds: no solution ({found.message})")
    return float(found.x[states[_start(view)]])


def _start(view: Experience) -> State:
    return 0, view.rewards.pay.exit.shape[0] - 1, 0


def _choices(view: Experience) -> Iterator[_Choice]:
    """Every move from every state that can be reached, with one update and with all of them: factors lie between."""
    next_cell, event, _ = view.transitions
    waiting, seen = [_start(view)], set()
    while waiting:
        state = waiting.pop()
        if state in seen:
            continue
        seen.add(state)
        cell, left, taken = state
        moves = [action for action in range(4) if event[cell, action] not in (BUMP, UNKNOWN)]
        if not moves:
            yield _Choice(state, 1.0, 0.0, None)  # staying costs something between nothing and all steps
        for action in moves:
            extra, left_after, taken_after = enter(event[cell, action], left, taken, view.rewards.pay)
            ends = event[cell, action] in (ENTER_EXIT, ENTER_HAZARD)
            after = None if ends else (int(next_cell[cell, action]), int(left_after), int(taken_after))
            updates = int(view.visits[cell, action])
            factors = {view.alpha, 1 - (1 - view.alpha) ** updates if updates else 1.0}
            for factor in sorted(factors):
                yield _Choice(state, factor, float(view.rewards.fixed[cell, action] + extra), after)
            if after is not None:
                waiting.append(after)
