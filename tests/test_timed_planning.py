"""Moves that lead back: planning, following and composing against rules written a second time."""

import json
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lever_lib.__main__ import main
from lever_lib.certificate import certify, upper_bound
from lever_lib.composition import METHODS, Pool, method, prune
from lever_lib.envs.features import feature_tables, features
from lever_lib.envs.gridworld import Layout, States, layout_from_text, make_layout
from lever_lib.envs.layouts import sample_layout
from lever_lib.envs.rewards import COMPONENTS, Component, reward_system
from lever_lib.errors import LeverError
from lever_lib.integer_bounds import upper_bound_by_integers
from lever_lib.notebooks import check_spec
from lever_lib.params import PARAMS_FOLDER, Grid
from lever_lib.pi2vec import path_pairs, successor_features
from lever_lib.planning import optimum
from lever_lib.policies.base import CellPolicy, FollowedSuccessors
from lever_lib.rollout import evaluate, start_state
from lever_lib.timed_planning import check_plannable, plannable
from tests.oracle import World, follow
from tests.worlds import random_q_tables, systems


@st.composite
def worlds(draw):
    """A small layout with cardinal moves and golds that can be walked past twice."""
    size = draw(st.integers(3, 5))
    golds, blocks, hazards = draw(st.integers(0, 3)), draw(st.integers(0, 1)), draw(st.integers(0, 2))
    seed = draw(st.integers(0, 9999))
    return Layout(sample_layout(size, golds, blocks, hazards, seed), f"{seed:04d}", "cardinal")


def best_by_trying(layout, system, support):
    """The optimum by recursion over everything that an agent can come to, with the rules of the oracle."""
    components = system.name.split("-")

    @cache
    def value(cell, golds, lever, steps_left):
        if steps_left == 0:
            return 0.0
        found = []
        for action in range(4):
            if not support[cell, action]:
                continue
            world = World(layout, components, system.legacy_gold_exit, cell, golds, lever)
            reward = world.step(action)
            row, column = world.position
            left = tuple(world.grid[g // layout.size][g % layout.size] == 1 for g in layout.golds.tolist())
            after = 0.0 if world.done else value(row * layout.size + column, left, world.lever, steps_left - 1)
            found.append(reward + after)
        return max(found, default=-1.0 * steps_left)

    return value(0, (True,) * len(layout.golds), False, layout.horizon)


def test_bumps_may_pay_only_where_planning_knows_what_time_is_left(monkeypatch):
    linger = Component("Take your time.", {"bump": 2.0, "exit": 100.0}, words="linger")
    monkeypatch.setitem(COMPONENTS, "linger", linger)
    monkeypatch.setattr("lever_lib.notebooks.REWARD_SYSTEMS", ("path", "linger"))
    text, system = "S . .\n. . .\n. . E", reward_system("linger")
    found = optimum(layout_from_text(text, "square", "cardinal"), system)
    assert found.return_ == 100 + 5, "nine steps, four of them to the exit, and 2 - 1 for each of the others"
    for refused in (lambda: optimum(layout_from_text(text, "square"), system), lambda: check_spec("smoke")):
        with pytest.raises(
            LeverError, match="'linger': a bump pays 1 in all; with forward moves it must pay 0 or less"
        ):
            refused()


@settings(max_examples=25)
@given(worlds(), systems, st.integers(0, 2**16), st.booleans())
def test_the_optimum_is_what_trying_everything_finds(layout, system, seed, everything):
    support = np.random.default_rng(seed).random((layout.horizon, 4)) < 0.7
    support |= everything
    found = optimum(layout, system, support)
    assert found.return_ == pytest.approx(best_by_trying(layout, system, support), abs=1e-6)


@settings(max_examples=50)
@given(worlds(), systems, st.integers(0, 2**16))
def test_a_policy_is_followed_round_in_circles_to_the_horizon(layout, system, seed):
    actions = np.random.default_rng(seed).integers(0, 4, layout.horizon).astype(np.int8)
    found = evaluate(CellPolicy(actions), layout, system)
    total, stuck = follow(layout, actions, system.name.split("-"), system.legacy_gold_exit)
    assert found.return_ == pytest.approx(total, abs=1e-6)
    assert found.stuck == stuck


@settings(max_examples=25)
@given(worlds(), systems, st.integers(1, 4), st.integers(0, 2**16))
def test_rungs_are_nested_and_certificates_hold(layout, system, count, seed):
    visits = np.random.default_rng(seed).integers(0, 3, (count, layout.horizon, 4)).astype(np.int32)
    pool = Pool(layout, system, random_q_tables(layout, count, seed), visits, 0.1)
    members = tuple(range(count))
    best = optimum(layout, system).return_
    earned = {}
    for each in METHODS.values():
        policy = pool.compose(each, members)
        earned[each.name] = evaluate(policy, layout, system).return_
        bound = pool.support_return(each, members)
        assert earned[each.name] <= bound + 1e-6 <= best + 2e-6
        certificate = certify(pool, each, members, policy)
        assert certificate.lower <= earned[each.name] + 1e-6
        assert best <= certificate.upper + 1e-6
    singles = [evaluate(CellPolicy(row), layout, system).return_ for row in pool.actions]
    assert earned["gpi"] >= max(singles) - 1e-6
    improved = pool.compose(METHODS["gpi"], members)
    assert earned["gpi"] >= certify(pool, METHODS["gpi"], members, improved).estimate - 1e-6
    assert earned["switch"] == pytest.approx(pool.support_return(METHODS["switch"], members), abs=1e-6)
    assert earned["switch"] >= earned["gpi"] - 1e-6


@settings(max_examples=25)
@given(worlds(), systems)
def test_who_knows_everything_is_bounded_by_the_optimum(layout, system):
    known = np.ones((layout.horizon, 4), bool)
    assert upper_bound(layout, system, known) == pytest.approx(optimum(layout, system).return_, abs=1e-6)


@settings(max_examples=20)
@given(worlds(), systems, st.integers(0, 2**16))
def test_psi_counts_what_happens(layout, system, seed):
    q_tables = random_q_tables(layout, 2, seed)
    pool = Pool(layout, system, q_tables, np.ones(q_tables.shape, np.int32), 0.1)
    psi = pool.view(method("gpi"), (0, 1)).psi
    assert isinstance(psi, FollowedSuccessors)
    assert {name for name in dir(psi) if not name.startswith("_")} == {"policies", "events", "promised"}
    world = World(layout, system.name.split("-"), system.legacy_gold_exit)
    action = int(seed % 4)
    total = world.step(action)
    for _ in range(layout.horizon - 1):
        if world.done:
            break
        total += world.step(int(pool.actions[1][world.position[0] * layout.size + world.position[1]]))
    counts = psi.events(0, np.ones(len(layout.golds), bool), False, layout.horizon)
    assert float(counts[-1, action] @ system.weights) == pytest.approx(total, abs=1e-6)


def test_a_round_without_end_counts_for_ever():
    layout = layout_from_text("S . .\n. . .\n. . E", "round", "cardinal")
    actions = np.zeros(9, np.int8)
    actions[[0, 1, 4, 3]] = [0, 1, 2, 3]  # right, down, left, up
    starts, tables, gamma = start_state(layout), feature_tables(layout), 0.9
    paths = CellPolicy(actions).paths(layout, starts)
    assert paths.steps[0] == layout.horizon
    psi = successor_features(tables, starts, paths, layout, gamma)[0]
    rounds = np.tile([0, 1, 4, 3], 200)
    nothing = (np.empty((len(rounds), 0), bool), np.zeros(len(rounds), bool))
    phi = features(tables, States(rounds.astype(np.int32), *nothing))
    assert psi == pytest.approx((gamma ** np.arange(len(rounds))) @ phi, rel=1e-5, abs=1e-5)
    pairs = path_pairs(tables, starts, paths, layout)
    assert len(pairs.kind) == layout.horizon
    assert (pairs.kind == pairs.kind[0]).all()


def test_pruning_on_what_was_walked_often_keeps_the_optimum():
    layout = make_layout(Grid(5, 2, 1, 1, "cardinal"), 3)
    system = reward_system("path-gold")
    visits = np.full((1, 25, 4), 10_000, np.int32)
    pool = Pool(layout, system, random_q_tables(layout, 1, 0), visits, 0.1)
    view = pool.view(method("exnonzero"), (0,))
    _, dropped = prune(view)
    assert 0 < dropped < 1
    found = evaluate(pool.compose(method("exnonzero"), (0,)), layout, system)
    assert found.return_ == pytest.approx(optimum(layout, system).return_)
    with pytest.raises(LeverError, match="never lead back"):
        upper_bound_by_integers(view)


def test_too_many_golds_to_remember_are_refused_but_bounded():
    layout = make_layout(Grid(16, 50, 25, 30, "cardinal"), 0)
    assert not plannable(layout)
    with pytest.raises(LeverError, match=r"50 golds on 16 x 16 cells .* moves: forward"):
        check_plannable(layout)
    with pytest.raises(LeverError, match="50 golds"):
        optimum(layout, reward_system("gold"))
    few = make_layout(Grid(6, 4, 2, 2, "cardinal"), 0)
    system = reward_system("path-gold")
    assert upper_bound(few, system, np.zeros((36, 4), bool)) >= optimum(few, system).return_


@pytest.fixture
def crowded(monkeypatch, tmp_path):
    """A spec with cardinal moves and more golds than can be remembered."""
    text = (PARAMS_FOLDER / "16x16.yaml").read_text()
    text = text.replace("moves: forward", "moves: cardinal").replace("source: study", "source: library")
    (tmp_path / "crowded.yaml").write_text(text)
    monkeypatch.setattr("lever_lib.params.PARAMS_FOLDER", tmp_path)
    return "crowded"


def test_the_command_line_states_a_bound_where_the_optimum_is_out_of_reach(crowded, capsys):
    assert main(["optimum", "--spec", crowded, "--seed", "0", "--setup", "path-gold", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["optimum"] is None
    assert answer["path"] is None
    assert answer["upper_bound"] <= 200 + 50 * 5
    assert main(["optimum", "--spec", crowded, "--seed", "0", "--setup", "path-gold"]) == 0
    assert f"no return exceeds {answer['upper_bound']:.2f}" in capsys.readouterr().out


def test_such_a_spec_is_refused_before_anything_runs(crowded):
    with pytest.raises(LeverError, match=r"params/crowded.yaml: grid: .* states to plan for"):
        check_spec(crowded)
