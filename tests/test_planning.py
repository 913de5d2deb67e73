from functools import cache
from importlib.resources import files
from itertools import product

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lever_lib.envs.gridworld import States, layout_from_text, make_layout
from lever_lib.envs.rewards import reward_system
from lever_lib.params import Grid, load_params
from lever_lib.planning import optimum, plan
from lever_lib.policies.base import CellPolicy
from lever_lib.rollout import evaluate
from tests.oracle import World
from tests.worlds import layouts, systems

PUBLISHED = pd.read_csv(files("lever_lib") / "data" / "published_exnonzero.csv", dtype={"seed": str})


@cache
def best(spec, seed, setup):
    # The published 16x16 table was made with the older exit rule for gold, the 32x32 table with the newer one.
    system = reward_system(setup, legacy_gold_exit=spec == "16x16")
    return optimum(make_layout(load_params(spec).grid, seed), system)


def test_all_540_published_returns_to_the_cent():
    assert len(PUBLISHED) == 540
    ours = [best(row.spec, row.seed, row.setup).return_ for row in PUBLISHED.itertuples()]
    off = np.abs(PUBLISHED["published_return"] - ours) > 0.005
    assert off.sum() == 0, PUBLISHED[off]


@pytest.mark.parametrize("spec", ["16x16", "32x32"])
def test_the_best_path_earns_its_return_step_by_step(spec):
    for seed in range(5):
        layout = make_layout(load_params(spec).grid, seed)
        episode = best(spec, f"{seed:04d}", "path-gold-hazard-lever")
        world = World(layout, ["path", "gold", "hazard", "lever"], legacy=spec == "16x16")
        earned = sum(world.step(int(action)) for action in episode.actions)
        assert world.done
        assert earned == pytest.approx(episode.return_, abs=1e-6)


def test_the_corridor_solved_by_hand(corridor):
    # three moves at -1 each, or four with a gold: 5 and half the exit penalty less cannot pay for itself under path
    assert optimum(corridor, reward_system("path")).return_ == 100 - 3 - 1
    # both golds: right x2 (gold), down twice is blocked by nothing, then down to the second gold
    both = optimum(corridor, reward_system("gold"))
    assert both.return_ == pytest.approx(5 + 5 + 100 - 4 * 0.01)
    assert set(corridor.golds) <= set(both.cells.tolist())


def best_in_time(layout, system, support):
    """Best of all that can be done step by step within a support, whatever it goes by, until the horizon.

    Where no action is allowed, a step costs 1.
    """
    steps = {}

    def step(state, action):
        if (state, action) not in steps:
            position, lever, grid = state
            after = World(layout, system.components, system.legacy_gold_exit)
            after.grid, after.position, after.lever = [list(row) for row in grid], position, lever
            reward = after.step(action)
            steps[state, action] = reward, None if after.done else state_of(after)
        return steps[state, action]

    def state_of(world):
        return world.position, world.lever, tuple(map(tuple, world.grid))

    @cache
    def value(state, left):
        if left == 0:
            return 0.0
        cell = state[0][0] * layout.size + state[0][1]
        found = [step(state, action) for action in range(4) if support[cell, action]]
        values = [reward if after is None else reward + value(after, left - 1) for reward, after in found]
        return max(values, default=-1.0 + value(state, left - 1))

    return value(state_of(World(layout, system.components, system.legacy_gold_exit)), layout.horizon)


@given(layouts(largest=5), systems, st.integers(0, 2**32 - 1), st.sampled_from([0.4, 0.7, 1.0]))
def test_planning_equals_trying_everything(layout, system, seed, density):
    support = np.random.default_rng(seed).random((layout.cells.size, 4)) < density
    assert optimum(layout, system, support).return_ == pytest.approx(best_in_time(layout, system, support), abs=1e-6)


DEAD_END = layout_from_text(
    """
    S . . # # #
    # # . # # #
    # # G x x #
    # # x # # #
    # # x # # #
    # # # # # E
    """,
    "dead end",
)


def test_who_waits_and_takes_the_gold_last_is_out_of_time_before_the_hazard():
    system, horizon = reward_system("gold"), DEAD_END.horizon
    episode = optimum(DEAD_END, system)
    assert episode.return_ == pytest.approx(5 - 4 * 0.01 - (horizon - 4))
    assert episode.return_ == pytest.approx(best_in_time(DEAD_END, system, np.ones((36, 4), bool)))
    assert episode.stuck
    assert episode.cells[-1] == DEAD_END.golds[0] != episode.cells[-2]
    assert len(episode.actions) == horizon
    world = World(DEAD_END, ["gold"])
    assert sum(world.step(int(action)) for action in episode.actions) == pytest.approx(episode.return_)


def test_a_published_world_in_which_waiting_is_best():
    layout = make_layout(Grid(size=8, golds=4, blocks=16, hazards=12), 1790)
    for setup, best in (("path-gold-hazard", -63.33), ("path-gold", -59.03), ("path-gold-hazard-lever", -44.42)):
        assert optimum(layout, reward_system(setup)).return_ == pytest.approx(best, abs=0.005)


def test_where_every_way_is_worse_than_staying_the_optimum_stays():
    trap = layout_from_text("S x .\nx x .\n. . E", "trap")
    # every double step enters a wall or a hazard-free cell: close those too
    support = np.ones((9, 4), dtype=bool)
    support[0, 2:] = False
    support[1:, :] = True
    episode = optimum(trap, reward_system("path"), support)
    assert not episode.stuck, "without a bump at the start it must move"
    assert episode.return_ == -100
    support[0, :] = False
    episode = optimum(trap, reward_system("path"), support)
    assert episode.stuck, "with nothing known it stays"
    assert episode.return_ == -9


@given(layouts(), systems, st.integers(0, 2**32 - 1))
def test_no_policy_beats_the_optimum_and_supports_are_monotone(layout, system, seed):
    rng = np.random.default_rng(seed)
    actions = rng.integers(0, 4, layout.cells.size).astype(np.int8)
    small = np.zeros((layout.cells.size, 4), dtype=bool)
    small[np.arange(layout.cells.size), actions] = True
    large = small | (rng.random(small.shape) < 0.5)
    own = evaluate(CellPolicy(actions), layout, system).return_
    values = [optimum(layout, system, support).return_ for support in (small, large, None)]
    assert own == pytest.approx(values[0]), "a support of one policy allows just that policy"
    assert values[0] <= values[1] + 1e-6 <= values[2] + 2e-6


def test_all_returns_of_a_tiny_world():
    tiny = layout_from_text("S . .\n. . .\n. . E", "tiny")
    found = []
    for actions in product(range(4), repeat=4):
        world = World(tiny, ["path"])
        found.append(sum(world.step(action) for action in actions if not world.done))
    assert optimum(tiny, reward_system("path")).return_ == max(found) == 99 - 1


@given(layouts(largest=6), systems)
def test_states_that_no_episode_comes_to_can_be_left_out(layout, system):
    full = plan(layout.transitions, layout.rewards(system))
    spared = plan(layout.transitions, layout.rewards(system), fewest_golds=layout.fewest_golds)
    assert evaluate(spared, layout, system).return_ == evaluate(full, layout, system).return_
    left = np.arange(len(layout.golds) + 1)
    planned = left >= layout.fewest_golds[:, None]
    assert (spared.end_value[planned] == full.end_value[planned]).all()
    assert (spared.stuck_value[planned] == full.stuck_value[planned]).all()


def test_an_impossible_start_is_refused(corridor):
    spared = plan(corridor.transitions, corridor.rewards(reward_system("gold")), fewest_golds=corridor.fewest_golds)
    none_left = States(np.array([4], np.int32), np.zeros((1, 2), bool), np.zeros(1, bool))
    assert corridor.fewest_golds[[0, 2, 4, 15]].tolist() == [2, 1, 2, 0]
    with pytest.raises(ValueError, match="an episode from the start"):
        spared.paths(corridor, none_left)
