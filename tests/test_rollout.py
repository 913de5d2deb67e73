import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lever_lib.envs.gridworld import States
from lever_lib.envs.rewards import EVENTS, reward_system
from lever_lib.errors import LeverError
from lever_lib.policies.base import CellPolicy
from lever_lib.rollout import END_EXIT, END_HAZARD, Paths, evaluate, event_counts, start_state
from tests.oracle import follow
from tests.worlds import layouts, systems

RIGHT, DOWN, RIGHT_TWICE, DOWN_TWICE = range(4)


def policy(**actions):
    """Acts as told in some cells, right elsewhere."""
    table = np.zeros(16, np.int8)
    for cell, action in actions.items():
        table[int(cell[1:])] = action
    return CellPolicy(table)


def test_a_walk_solved_by_hand(corridor):
    # lever (20), past an empty cell, gold (5), exit with one of two golds left: steps cost .11 each
    walk = policy(c0=DOWN_TWICE, c8=DOWN, c12=RIGHT, c13=RIGHT, c14=RIGHT)
    outcome = evaluate(walk, corridor, reward_system("gold-lever"))
    assert outcome.cells.tolist() == [0, 8, 12, 13, 14, 15]
    assert outcome.return_ == pytest.approx(20 + 5 + 80 - 10 * 1 / 2 - 5 * 0.11)
    assert not outcome.stuck


def test_being_stuck_costs_one_for_every_step_left(corridor):
    outcome = evaluate(policy(c1=DOWN), corridor, reward_system("path"))
    assert outcome.stuck
    assert outcome.return_ == -16
    assert outcome.actions.tolist() == [RIGHT, DOWN]


def test_entering_a_hazard_ends_the_episode_but_is_not_stuck(corridor):
    outcome = evaluate(policy(c0=DOWN, c4=RIGHT_TWICE), corridor, reward_system("hazard"))
    assert outcome.return_ == pytest.approx(-0.1 - 100)
    assert not outcome.stuck


def test_events_from_a_state_with_the_gold_gone_and_the_lever_taken(corridor):
    starts = States(np.array([13, 12], np.int32), np.array([[False, False], [True, True]]), np.array([True, False]))
    paths = policy(c14=RIGHT).paths(corridor, starts)
    counts = event_counts(corridor, starts, paths)
    assert paths.end.tolist() == [END_EXIT, END_EXIT]
    named = dict(zip(EVENTS, counts[0], strict=True))
    assert (named["gold"], named["exit_all_gold"], named["exit_with_lever"]) == (0, 1, 1)
    named = dict(zip(EVENTS, counts[1], strict=True))
    assert (named["gold"], named["exit_gold_share"], named["exit_with_lever"]) == (1, 0.5, 0)


@given(layouts(), systems, st.integers(0, 2**32 - 1))
def test_fast_equals_slow(layout, system, seed):
    actions = np.random.default_rng(seed).integers(0, 4, layout.cells.size).astype(np.int8)
    outcome = evaluate(CellPolicy(actions), layout, system)
    value, stuck = follow(layout, actions, system.components, system.legacy_gold_exit)
    assert outcome.return_ == pytest.approx(value, abs=1e-6)
    assert outcome.stuck == stuck


class Told:
    """A policy of somebody's own, who says where it goes."""

    def __init__(self, paths):
        self.told = paths

    def paths(self, layout, starts):
        return self.told


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"cells": [[0, 8, 12, 13, 14, 15]]}, "Paths of arrays"),
        ({"steps": np.array([9])}, "path 0 is none"),
        ({"steps": np.array([-1])}, "path 0 is none"),
        ({"steps": np.array([4])}, "path 0 is none"),
        ({"cells": np.array([[1, 8, 12, 13, 14, 15]])}, "path 0 is none"),
        ({"cells": np.array([[0, 8, 12, 13, 10**6, 15]])}, "path 0 is none"),
        ({"actions": np.array([[3, 1, 0, 0, 99, 0]])}, "path 0 is none"),
        ({"actions": np.array([[3, 1, 0, 0, -1, 0]])}, "path 0 is none"),
        ({"actions": np.array([[3.0, 1, 0, 0, 0, 0]])}, "whole numbers"),
        ({"actions": np.array([[3, 1, 0, 0, 0]])}, "shapes of Paths"),
        ({"end": np.array([END_HAZARD])}, "path 0 is none"),
        ({"end": np.array(END_EXIT)}, "shapes of Paths"),
        ({"cells": np.array(0), "actions": np.array(0)}, "shapes of Paths"),
        ({"cells": np.zeros((1, 0), int), "actions": np.zeros((1, 0), int)}, "path 0 is none"),
    ],
)
def test_who_walks_where_the_layout_does_not_let_him_is_refused(corridor, change, rule):
    paths = Paths(
        np.array([[0, 8, 12, 13, 14, 15]]), np.array([[3, 1, 0, 0, 0, 0]]), np.array([5]), np.array([END_EXIT])
    )
    system = reward_system("path")
    assert evaluate(Told(paths), corridor, system).return_ > 0
    with pytest.raises(LeverError, match=f"Told.paths: .*{rule}"):
        evaluate(Told(paths._replace(**change)), corridor, system)


def test_the_byte_order_of_paths_does_not_matter(corridor):
    paths = [[[0, 8, 12, 13, 14, 15]], [[3, 1, 0, 0, 0, 0]], [5], [END_EXIT]]
    system = reward_system("path")
    ours, theirs = (
        evaluate(Told(Paths(*(np.array(part, kind) for part in paths))), corridor, system) for kind in ("<i4", ">i4")
    )
    assert ours.return_ == theirs.return_ > 0


def test_who_writes_into_the_starts_changes_nothing(corridor):
    class Careless:
        """A policy that keeps count in what it was handed."""

        def paths(self, layout, starts):
            starts.golds[:] = False
            starts.cells[:] = 7
            return CellPolicy(np.zeros(layout.horizon, np.int8)).paths(layout, start_state(layout))

    honest, system = CellPolicy(np.zeros(corridor.horizon, np.int8)), reward_system("gold")
    assert evaluate(Careless(), corridor, system).return_ == evaluate(honest, corridor, system).return_


def test_who_returns_no_paths_is_refused(corridor):
    with pytest.raises(LeverError, match="must return Paths of arrays, returned NoneType"):
        evaluate(Told(None), corridor, reward_system("path"))


def test_the_start_state_has_everything_left(corridor):
    start = start_state(corridor)
    assert start.cells.tolist() == [0]
    assert start.golds.all()
    assert not start.lever.any()
