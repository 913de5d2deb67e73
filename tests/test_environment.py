import itertools
import warnings

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from hypothesis import given
from hypothesis import strategies as st

from lever_lib.envs.environment import GridWorldEnv, picture
from lever_lib.envs.layouts import AGENT
from lever_lib.envs.rewards import reward_system
from lever_lib.errors import LeverError
from lever_lib.looks import LOOKS
from lever_lib.planning import optimum
from tests.oracle import World
from tests.worlds import layouts, systems


@pytest.mark.parametrize("render_mode", ["rgb_array", "ansi", None])
def test_gymnasium_finds_it_and_its_checker_is_content(render_mode):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = gymnasium.make("lever/GridWorld-v0", spec="smoke", layout=2, setup="gold", render_mode=render_mode)
        check_env(env.unwrapped, skip_render_check=render_mode is None)
        env.close()


@given(layouts(largest=6), systems, st.integers(0, 99))
def test_every_step_agrees_with_the_rules_written_a_second_time(layout, system, seed):
    env = GridWorldEnv("16x16" if system.legacy_gold_exit else "8x8", layout, system.name)
    world = World(layout, system.components, system.legacy_gold_exit)
    env.reset()
    total, over = 0.0, False
    rng = np.random.default_rng(seed)
    for count in itertools.count(1):
        action = int(rng.integers(4))
        expected = world.step(action)
        seen, reward, terminated, truncated, info = env.step(action)
        assert reward == pytest.approx(expected)
        assert divmod(info["cell"], layout.size) == world.position
        assert info["lever"] == world.lever
        assert (seen == 1).sum() == info["golds_left"] == sum(code == 1 for row in world.grid for code in row)
        assert np.argwhere(seen == AGENT).tolist() == [list(world.position)]
        assert terminated == world.done
        assert truncated == (count == layout.horizon and not terminated)
        total, over = total + reward, terminated or truncated
        if over:
            break
    assert total <= optimum(layout, system).return_ + 1e-9
    with pytest.raises(LeverError, match="reset"):
        env.step(0)


def test_the_best_path_earns_the_optimum(corridor):
    best = optimum(corridor, reward_system("gold-lever"))
    env = GridWorldEnv(layout=corridor, setup="gold-lever")
    env.reset()
    assert sum(env.step(int(action))[1] for action in best.actions) == pytest.approx(best.return_)


@pytest.mark.parametrize(
    ("settings", "part"),
    [({"setup": "coins"}, "coins"), ({"layout": "x"}, "seed 'x'"), ({"spec": "no"}, "'no'"), ({"render_mode": 1}, "1")],
)
def test_bad_arguments_are_named(settings, part):
    with pytest.raises(LeverError, match=part):
        GridWorldEnv(**settings)


def test_a_bad_action_is_named():
    env = GridWorldEnv("smoke")
    with pytest.raises(LeverError, match="action = 4"):
        env.step(4)


def test_things_differ_in_shape_not_only_in_colour():
    """In greyscale, whatever is thing and not ground differs between any two kinds in a third of its pixels."""
    shapes = {look.name: (picture(np.array([[code]]), tile=24) < 200).any(axis=-1) for code, look in LOOKS.items()}
    assert set(shapes) == {"gold", "lever", "hazard", "block", "exit", "agent"}
    for (one, a), (other, b) in itertools.combinations(shapes.items(), 2):
        assert (a ^ b).sum() > (a | b).sum() / 3, f"{one} looks like {other}"


def test_a_frame_shows_the_agent_and_what_it_stands_on(corridor):
    env = GridWorldEnv(layout=corridor, render_mode="rgb_array")
    env.reset()
    before = env.render()
    assert before.shape == (4 * 24, 4 * 24, 3)
    assert before.dtype == np.uint8
    for action in (0, 2, 3, 1):
        env.step(action)
    after = env.render()
    corner = after[-24:, -24:]
    assert (corner == 0).all(axis=-1).any(), "the agent"
    green = np.frombuffer(bytes.fromhex(LOOKS[10].colour[1:]), np.uint8)
    assert (corner == green).all(axis=-1).any(), "and the exit around it"


def test_the_world_as_text(corridor):
    env = GridWorldEnv(layout=corridor, render_mode="ansi")
    env.reset()
    env.step(1)
    assert env.render().splitlines()[1].startswith("[.]")
    env.reset()
    env.step(2)
    env.step(True)  # a gold was entered, then the cell below it: a hazard
    assert "G" not in env.render().splitlines()[0], "what was taken is gone"
