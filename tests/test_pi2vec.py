import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lever_lib.envs.features import SLICES, feature_tables, features
from lever_lib.envs.gridworld import States
from lever_lib.pi2vec import Embedder, draw_canonical_states, successor_features
from lever_lib.policies.base import CellPolicy
from lever_lib.rollout import start_state
from lever_lib.seeding import stream
from tests.oracle import World
from tests.worlds import layouts

RIGHT, DOWN, RIGHT_TWICE, DOWN_TWICE = range(4)


def psi(layout, actions, gamma, starts=None):
    starts = starts or start_state(layout)
    paths = CellPolicy(actions).paths(layout, starts)
    return successor_features(feature_tables(layout), starts, paths, layout, gamma)


def test_a_stuck_policy_is_a_geometric_series(corridor):
    actions = np.zeros(16, np.int8)
    actions[1] = DOWN  # right, then into the block for ever
    first, second = features(
        feature_tables(corridor), States(np.array([0, 1], np.int32), np.ones((2, 2), bool), np.zeros(2, bool))
    )
    np.testing.assert_allclose(psi(corridor, actions, 0.9)[0], first + 0.9 * second / (1 - 0.9), rtol=1e-5)


def test_without_a_future_psi_is_phi(corridor):
    actions = np.zeros(16, np.int8)
    actions[0] = DOWN_TWICE
    np.testing.assert_allclose(
        psi(corridor, actions, 0.0), features(feature_tables(corridor), start_state(corridor)), rtol=1e-6
    )


def test_the_terminal_state_counts_once(corridor):
    actions = np.zeros(16, np.int8)
    last = States(np.array([14], np.int32), np.array([[False, False]]), np.array([True]))
    after = States(np.array([15], np.int32), last.golds, last.lever)
    tables = feature_tables(corridor)
    expected = features(tables, last) + 0.9 * features(tables, after)
    np.testing.assert_allclose(psi(corridor, actions, 0.9, last), expected, rtol=1e-6)


@given(layouts(largest=6), st.integers(0, 2**32 - 1))
def test_fast_equals_walking_and_adding(layout, seed):
    gamma = 0.8
    actions = np.random.default_rng(seed).integers(0, 4, layout.cells.size).astype(np.int8)
    world = World(layout, ["path"])
    total = np.zeros(70)
    for t in range(400):  # gamma^400 is nothing
        total += gamma**t * np.array(world.features(50))
        if world.done:
            break
        world.step(int(actions[world.position[0] * world.size + world.position[1]]))
    np.testing.assert_allclose(psi(layout, actions, gamma)[0], total, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("gamma", [-0.1, 1.0])
def test_gamma_is_a_discount(corridor, gamma):
    with pytest.raises(ValueError, match="gamma"):
        psi(corridor, np.zeros(16, np.int8), gamma)


def test_library_and_later_policies_share_one_space(smoke):
    library, embeddings = smoke.library, smoke.embeddings
    for row in (0, len(library.policies) - 1):
        layout = library.layout(library.policies["seed"].iloc[row])
        again = embeddings.embedder(layout).embed(CellPolicy(library.actions[row]))
        assert (again == embeddings.embeddings[row]).all()


def test_canonical_states_are_spread_evenly_and_never_terminal(smoke):
    library = smoke.library
    for name, states in smoke.embeddings.canonical.items():
        layout = library.layout(name)
        assert len(states.cells) == library.params.pi2vec.canonical_states
        assert not np.isin(layout.cells.ravel()[states.cells], [10, -2, -1]).any()
        on_gold = layout.gold_index[states.cells]
        assert not states.golds[np.arange(len(on_gold)), on_gold][on_gold >= 0].any(), "a gold underfoot is taken"
    layout = library.layout(0)
    ten = draw_canonical_states(library, layout, 10, stream(0, "test"))
    assert len(ten.cells) == 10
    assert (draw_canonical_states(library, layout, 10, stream(0, "test")).cells == ten.cells).all()


def test_stored_features_are_those_of_the_canonical_states(smoke, smoke_outputs):
    with np.load(smoke_outputs.folder / "pi2vec" / "canonical_states.npz") as stored:
        assert stored["features"].shape == (3, 32, 70)
        layout = smoke.library.layout(str(stored["seeds"][1]))
        states = smoke.embeddings.canonical[layout.name]
        assert (stored["features"][1] == features(feature_tables(layout), states)).all()


def test_an_embedding_is_the_mean_over_canonical_states(corridor):
    states = States(np.array([0, 14], np.int32), np.array([[True, True], [True, False]]), np.array([False, True]))
    embedder = Embedder(corridor, states, feature_tables(corridor), 0.9)
    policy = CellPolicy(np.zeros(16, np.int8))
    np.testing.assert_allclose(embedder.embed(policy), embedder.successor_features(policy).mean(axis=0))
    assert embedder.embed(policy)[SLICES["agent"]][1] > 0
