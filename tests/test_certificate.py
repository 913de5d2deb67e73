import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lever_lib.certificate import certify, recorded_return, upper_bound
from lever_lib.composition import METHODS
from lever_lib.envs.gridworld import BUMP, layout_from_text
from lever_lib.envs.rewards import reward_system
from lever_lib.planning import optimum
from lever_lib.rollout import Outcome, evaluate
from tests.test_composition import ABOVE_NOISE, pool_of
from tests.worlds import layouts, systems


@given(layouts(), systems, st.integers(1, 3), st.floats(0, 1), st.integers(0, 2**32 - 1))
def test_a_return_lies_between_its_bounds(layout, system, count, visited, seed):
    pool = pool_of(layout, system, count, seed, visited)
    members = tuple(range(count))
    best = optimum(layout, system).return_
    for method in METHODS.values():
        policy = pool.compose(method, members)
        found = certify(pool, method, members, policy)
        earned = evaluate(policy, layout, system).return_
        assert found.lower <= earned + ABOVE_NOISE, method.name
        assert best <= found.upper + ABOVE_NOISE, method.name
        if method.rung > 0:
            assert found.estimate <= earned + ABOVE_NOISE, "what a rung promises is kept"


@given(layouts(), systems, st.integers(0, 2**32 - 1))
def test_the_more_is_known_the_tighter_the_bound(layout, system, seed):
    rng = np.random.default_rng(seed)
    some = rng.random(layout.transitions.event.shape) < 0.5
    nothing, more, everything = (
        upper_bound(layout, system, known) for known in (np.zeros_like(some), some, np.ones_like(some))
    )
    assert nothing >= more - ABOVE_NOISE
    assert more >= everything - ABOVE_NOISE
    best = optimum(layout, system)
    if not best.stuck:
        assert everything == pytest.approx(best.return_), "with every transition known it is the optimum"


LINE = layout_from_text("S . .\n# # G\n# # E", "line")


def test_what_is_unknown_may_be_the_best_there_is():
    nothing = np.zeros((9, 4), bool)
    assert upper_bound(LINE, reward_system("path"), nothing) == 100 - 2, "two moves to the exit"
    assert upper_bound(LINE, reward_system("gold"), nothing) == pytest.approx(5 + 100 - 0.02), (
        "a gold may lie in the corner"
    )


def test_from_the_first_unrecorded_transition_on_the_worst_is_assumed():
    pool = pool_of(LINE, reward_system("path"), 1, 0, visited=1.0)
    pool.visits[...] = 1
    found = optimum(LINE, pool.system)
    assert found.return_ == recorded_return(pool, (0,), found)
    last = found.cells[len(found.actions) - 1], found.actions[-1]
    pool.visits[0, last[0], last[1]] = 0
    pool = pool.fresh()
    assert LINE.transitions.event[last] != BUMP
    assert recorded_return(pool, (0,), found) == -4 - 100, "a detour and then a hazard, not staying"


def test_steps_that_were_waited_leave_no_fewer_moves_to_fear():
    trap = layout_from_text("S . # .\nx G . .\n. x # .\n. . . E", "trap")
    pool = pool_of(trap, reward_system("path"), 1, 0, visited=1.0)
    pool.visits[...] = 1
    moves, waits = 2, 3
    pool.visits[0, 5, 2] = 0
    pool = pool.fresh()
    cells, actions = np.array([0, 0, 0, 0, 1, 5, 7]), np.array([2, 2, 2, 0, 1, 2])
    found = Outcome(0.0, False, cells, actions.astype(np.int8))
    left = trap.longest_path - moves
    assert recorded_return(pool, (0,), found) == -moves - waits - left - 100
