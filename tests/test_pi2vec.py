from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lever_lib import pi2vec
from lever_lib.artifacts import Outputs
from lever_lib.envs.features import SLICES, feature_tables, features
from lever_lib.envs.gridworld import States
from lever_lib.library import load_library
from lever_lib.params import Pi2Vec
from lever_lib.pi2vec import Embedder, build_embeddings, draw_canonical_states, episode_pairs, successor_features
from lever_lib.policies.base import CellPolicy
from lever_lib.policies.tabular import record_episode
from lever_lib.psi_network import ENDS, GOES_ON, LEARNERS, STAYS
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
        again = embeddings.embedder(layout).embed([CellPolicy(library.actions[row])])
        assert (again.mean[0] == embeddings.embeddings[row]).all()
        assert (again.start[0] == embeddings.start[row]).all()


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


STATES = States(np.array([0, 14], np.int32), np.array([[True, True], [True, False]]), np.array([False, True]))


def embedder(layout, **settings):
    return Embedder(layout, STATES, feature_tables(layout), Pi2Vec(gamma=0.9, **settings))


def test_an_embedding_is_the_mean_over_canonical_states(corridor):
    policy = CellPolicy(np.zeros(16, np.int8))
    found = embedder(corridor).successor_features([policy])
    assert found.shape == (1, 3, 70)
    embedded = embedder(corridor).embed([policy])
    np.testing.assert_allclose(embedded.mean[0], found[0, :2].mean(axis=0))
    np.testing.assert_allclose(embedded.start[0], psi(corridor, policy.actions, 0.9)[0])
    assert embedded.mean[0][SLICES["agent"]][1] > 0


def test_pairs_are_the_steps_of_the_paths(corridor):
    actions = np.zeros(16, np.int8)
    actions[0], actions[8] = DOWN_TWICE, DOWN  # to the lever, down, right to the exit
    tables = feature_tables(corridor)
    found = embedder(corridor).pairs(CellPolicy(actions), start_state(corridor))
    assert found.kind.tolist() == [GOES_ON, GOES_ON, GOES_ON, GOES_ON, ENDS]
    np.testing.assert_array_equal(found.before[1:], found.after[:-1])
    lever = States(np.array([8], np.int32), np.ones((1, 2), bool), np.ones(1, bool))
    np.testing.assert_array_equal(found.after[0], features(tables, lever)[0])
    exit_ = States(np.array([15], np.int32), np.array([[True, False]]), np.ones(1, bool))
    np.testing.assert_array_equal(found.after[-1], features(tables, exit_)[0])


def test_a_stuck_policy_stays_in_its_pairs(corridor):
    actions = np.zeros(16, np.int8)
    actions[1] = DOWN  # right, then into the block for ever
    found = embedder(corridor).pairs(CellPolicy(actions), start_state(corridor))
    assert found.kind.tolist() == [GOES_ON, STAYS]
    np.testing.assert_array_equal(found.before[1], found.after[1])


def test_pairs_of_a_recorded_episode(smoke):
    library = smoke.library
    layout = library.layout(0)
    row = int(library.policies.query("seed == '0000'").index[-1])
    episode = library.episodes[row]
    found = episode_pairs(layout, feature_tables(layout), episode)
    assert len(found.kind) == len(episode.actions)
    ended = layout.cells.ravel()[episode.cells[-1]] in (10, -2)
    assert found.kind[-1] == (ENDS if ended else GOES_ON)
    assert (found.kind[:-1] == GOES_ON).all()


@pytest.mark.parametrize("learner", ["improved", "published"])
def test_composed_policies_are_embedded_by_the_library_s_learner(smoke, tmp_path, learner):
    """The same learner, settings and initial weights: the policy at a query is where it is in the library."""
    settings = Pi2Vec(method="network", canonical_states=8, learner=learner)
    params = replace(smoke.library.params, pi2vec=settings)
    short = replace(smoke.library, params=params)
    vars(short).update(policies=smoke.library.policies.iloc[:6], actions=smoke.library.actions[:6])
    vars(short).update(layouts={"0000": smoke.library.layout(0)}, episodes=smoke.library.episodes[:6])
    outputs = Outputs("smoke", params, tmp_path)
    outputs.folder.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Outputs, "problem", lambda *_: None)
        patch.setattr(Outputs, "fresh", lambda *_: False)
        embeddings = build_embeddings(short, outputs)
    used = embeddings.embedder(short.layouts["0000"])
    assert used.settings == settings
    assert used.learner is LEARNERS[learner]
    episodes = smoke.library.episodes[:6]
    seen = [CellPolicy(actions) for actions in short.actions]
    together = used.embed(seen, episodes)
    for row in range(6):
        alone = used.embed([seen[row]], [episodes[row]])
        np.testing.assert_allclose(alone.mean[0], embeddings.embeddings[row], rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(together.mean[row], embeddings.embeddings[row], rtol=1e-5, atol=1e-5)
    if learner == "improved":
        exact = replace(used, settings=replace(settings, method="exact")).embed(seen)
        np.testing.assert_allclose(together.mean, exact.mean, atol=0.05 * exact.mean.std())


def test_an_embedding_job_needs_no_file(smoke, smoke_outputs, monkeypatch):
    """It may run on another machine."""
    library = load_library(smoke.library.params, smoke_outputs)
    job = pi2vec._embedding_job(library, library.layout(0))
    assert all(type(part) is not type(library) for part in vars(job).values())
    monkeypatch.setattr(np, "load", None)
    found = pi2vec._embed_layout(job)
    assert (found.mean == smoke.embeddings.embeddings[job.rows]).all()


def test_a_policy_without_a_step_is_learned_from_what_it_would_do(corridor):
    stuck = CellPolicy(np.full(16, DOWN, np.int8))
    nothing = record_episode(corridor, np.zeros(1, np.int32), np.zeros(0, np.int8))
    found = embedder(corridor, method="network", learner="published").embed([stuck], [nothing])
    assert np.isfinite(found.mean).all()
