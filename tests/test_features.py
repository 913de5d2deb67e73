import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lever_lib.envs.features import SLICES, feature_count, feature_names, feature_tables, features
from lever_lib.envs.gridworld import States, layout_from_text
from tests.oracle import World
from tests.worlds import layouts


def phi(layout, cell, golds, lever):
    states = States(np.array([cell], np.int32), np.array([golds], bool).reshape(1, -1), np.array([lever]))
    return features(feature_tables(layout), states)[0]


def test_slices_name_every_entry_once():
    covered = np.zeros(feature_count(8), dtype=int)
    for part in SLICES.values():
        covered[part] += 1
    assert (covered == 1).all()
    assert feature_count(8) == feature_count(32) == 70
    assert feature_count(64) == 220
    assert len(feature_names(8)) == 70
    assert len(set(feature_names(8))) == 70


def test_the_start_of_the_corridor_by_hand(corridor):
    # S . G .    golds at (0, 2) and (3, 2), hazard at (1, 2), block at (1, 1), lever at (2, 0), exit at (3, 3)
    vector = phi(corridor, 0, [True, True], False)
    assert vector.dtype == np.float32
    expected = {
        "agent": [0, 0],
        "nearest_gold": [2 / 4, 0, 2 / (math.sqrt(2) * 4)],
        "golds_left": [2],
        "exit": [3 / 4, 3 / 4, math.sqrt(18) / (math.sqrt(2) * 4)],
        "walls": [1, 0, 1, 0],
        "lever": [0, 2 / 4, 2 / (math.sqrt(2) * 4)],
        "lever_taken": [0],
        "hazard_density": [1 / 16],
        "nearest_hazard": [math.sqrt(5) / (math.sqrt(2) * 4)],
        "hazard_steps": [0],
        "gold_distances": [2 / 8, 5 / 8] + [0] * 48,
    }
    assert expected.keys() == SLICES.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(vector[SLICES[name]], values, rtol=1e-6, err_msg=name)


def test_what_was_entered_is_gone(corridor):
    vector = phi(corridor, 8, [False, True], True)
    assert vector[SLICES["lever"]].tolist() == [0, 0, 0]
    assert vector[SLICES["lever_taken"]] == 1
    assert vector[SLICES["golds_left"]] == 1
    np.testing.assert_allclose(vector[SLICES["nearest_gold"]][:2], [2 / 4, 1 / 4])


def test_in_a_hazard_that_hazard_is_gone_and_counted(corridor):
    vector = phi(corridor, 6, [True, True], False)
    assert vector[SLICES["hazard_density"]] == 0
    assert vector[SLICES["nearest_hazard"]] == 0
    assert vector[SLICES["hazard_steps"]] == pytest.approx(1 / 16)
    assert vector[SLICES["walls"]].tolist() == [0, 0, 1, 0], "left of it stands the block"


def test_at_the_exit_the_exit_is_where_the_agent_stands(corridor):
    assert phi(corridor, 15, [True, True], False)[SLICES["exit"]].tolist() == [0, 0, 0]


def test_of_equally_near_golds_the_first_in_row_major_order_counts():
    twins = layout_from_text("S . G\n. . .\nG . E", "twins")
    assert phi(twins, 0, [True, True], False)[SLICES["nearest_gold"]][:2].tolist() == pytest.approx([2 / 3, 0])


@given(layouts(), st.integers(0, 2**32 - 1))
def test_fast_equals_slow(layout, seed):
    rng = np.random.default_rng(seed)
    cell = int(rng.integers(layout.cells.size))
    if layout.cells.ravel()[cell] == -1:
        return  # nobody stands in a block
    golds = (rng.random(len(layout.golds)) < 0.6) & (layout.golds != cell)
    code = layout.cells.ravel()[cell]
    lever = bool(rng.random() < 0.5) or code == 2
    world = World(layout, ["path"], cell=cell, golds=golds, lever=lever)
    world.hazard_steps = int(code == -2)
    np.testing.assert_allclose(phi(layout, cell, golds, lever), world.features(50), rtol=1e-5, atol=1e-6)
