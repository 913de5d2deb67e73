"""Q-tables that are indexed by (cell, golds left, lever taken)."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lever_lib.artifacts import Outputs
from lever_lib.certificate import certify
from lever_lib.composition import METHODS, Pool
from lever_lib.envs.gridworld import layout_from_text, make_layout, memory_count
from lever_lib.envs.layouts import LEVER
from lever_lib.envs.rewards import reward_system
from lever_lib.errors import LeverError
from lever_lib.library import build_library, check_layout, training_jobs
from lever_lib.params import Deep
from lever_lib.planning import optimum
from lever_lib.policies.base import CellPolicy
from lever_lib.policies.tabular import train
from lever_lib.rollout import evaluate
from tests.oracle import World
from tests.worlds import layouts, systems


def augmented_tables(layout, count, seed):
    rows = layout.horizon * memory_count(len(layout.golds))
    return np.random.default_rng(seed).normal(size=(count, rows, 4))


@settings(max_examples=40)
@given(layouts(6), systems, st.integers(0, 2**16))
def test_a_policy_acts_by_golds_left_and_lever_too(layout, system, seed):
    actions = augmented_tables(layout, 1, seed)[0].argmax(axis=1).astype(np.int8)
    found = evaluate(CellPolicy(actions), layout, system)
    world, total = World(layout, system.name.split("-"), system.legacy_gold_exit), 0.0
    for _ in range(layout.horizon):
        left = sum(code == 1 for row in world.grid for code in row)
        row = world.position[0] * layout.size + world.position[1]
        total += world.step(int(actions[(row * (len(layout.golds) + 1) + left) * 2 + world.lever]))
        if world.done:
            break
    assert found.return_ == pytest.approx(total, abs=1e-6)


@settings(max_examples=25)
@given(layouts(6), systems, st.integers(1, 3), st.integers(0, 2**16))
def test_rungs_are_nested(layout, system, count, seed):
    tables = augmented_tables(layout, count, seed)
    visits = np.random.default_rng(seed).integers(0, 3, tables.shape).astype(np.int32)
    pool = Pool(layout, system, tables, visits, 0.1)
    members = tuple(range(count))
    best = optimum(layout, system).return_
    earned = {}
    for each in METHODS.values():
        policy = pool.compose(each, members)
        earned[each.name] = evaluate(policy, layout, system).return_
        assert earned[each.name] <= pool.support_return(each, members) + 1e-6 <= best + 2e-6
        certificate = certify(pool, each, members, policy)
        assert certificate.lower <= earned[each.name] + 1e-6
        assert best <= certificate.upper + 1e-6
    singles = [evaluate(CellPolicy(row), layout, system).return_ for row in pool.actions]
    assert earned["gpi"] >= max(singles) - 1e-6


@settings(max_examples=25)
@given(layouts(6), systems, st.integers(0, 2**16))
def test_tables_that_say_the_same_everywhere_compose_as_cell_tables_do(layout, system, seed):
    plain = np.random.default_rng(seed).normal(size=(2, layout.horizon, 4))
    memories = memory_count(len(layout.golds))
    wide, visits = np.repeat(plain, memories, axis=1), np.ones(plain.shape, np.int32)
    wide_visits = np.zeros(wide.shape, np.int32)
    wide_visits[:, ::memories] = visits  # as many per cell
    counted = ((plain, visits), (wide, wide_visits))
    pools = [Pool(layout, system, *tables, 0.1) for tables in counted]
    for each in METHODS.values():
        found = [evaluate(pool.compose(each, (0, 1)), layout, system).return_ for pool in pools]
        assert found[0] == pytest.approx(found[1], abs=1e-6)


def test_training_keeps_apart_what_was_collected(smoke_params):
    params = replace(smoke_params, sarsa=replace(smoke_params.sarsa, state="augmented"), deep=Deep())
    layout = make_layout(params.grid, 0)
    job = replace(training_jobs(params, [layout])[0], system=reward_system("lever"))
    record = train(job)[0][-1]
    memories = memory_count(4)
    assert record.q_table.shape == record.visits.shape == (36 * memories, 4)
    seen = record.visits.any(axis=1).reshape(36, 5, 2)  # cell, golds left, lever
    assert np.argwhere(seen[0]).tolist() == [[4, 0]], "at the start everything is still there"
    lever = int(np.flatnonzero(layout.cells.ravel() == LEVER)[0])
    assert seen[lever, :, 1].any()
    assert not seen[lever, :, 0].any(), "who stands on the lever has taken it"
    assert seen[:, :4].any(), "golds were collected"
    assert not record.q_table.reshape(36, 5, 2, 4)[~seen].any(), "nothing is learned where training never was"


def test_a_library_of_augmented_tables(smoke_params, tmp_path):
    params = replace(smoke_params, sarsa=replace(smoke_params.sarsa, state="augmented"), deep=Deep())
    library = build_library(params, Outputs("smoke", params, tmp_path))
    assert library.q_tables.shape[1:] == library.visits.shape[1:] == (36 * memory_count(4), 4)
    rows = "S . . . . .\n. . . . . .\n. G . . . .\n. . . . . .\n. . . . . .\n. . . . . E"
    with pytest.raises(LeverError, match=r"has 1 golds; .* there must be 4"):
        check_layout(layout_from_text(rows, "own"), library)
