from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from lever_lib import behaviour
from lever_lib.behaviour import ELSEWHERE, agreement, ladder, retrieval, standardised
from lever_lib.psi_network import LEARNERS


@pytest.fixture(scope="module")
def found(smoke):
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("_SAMPLE", 2), ("_SLOW_LAYOUTS", 1), ("_SLOW_STARTS", 1), ("_FAST_STARTS", 2)):
            patch.setattr(behaviour, name, value)
        return agreement(smoke.library, smoke.embeddings)


def test_the_ladder_starts_and_ends_where_it_should_and_changes_one_thing_at_a_time():
    steps = ladder()
    assert steps["published"] is LEARNERS["published"]
    assert steps["improved"] is steps[ELSEWHERE] is LEARNERS["improved"]
    changes = []
    for before, after in pairwise(list(steps)):
        changes.append({name for name, value in vars(steps[after]).items() if value != vars(steps[before])[name]})
    assert changes[:4] == [{"ends"}, {"standardise"}, {"norm"}, {"alike"}]
    assert changes[4] == {"data", "hidden", "batch", "epochs"}, "so many more pairs take a smaller network"
    assert changes[5] == {"hold"}
    assert "solved" in changes[6]
    assert changes[7] == set()


def test_the_improved_learner_agrees_with_the_exact_embeddings(found):
    results = found[0].set_index("learner")
    assert results.loc["improved", "relative_error"] < 0.05
    assert results.loc["improved", "worst_feature"] < 0.05
    assert results.loc["improved", "start_error"] < 0.05
    assert results.loc["published", "start_error"] > 0.5
    assert results.loc["improved", "nearest"] >= 0.95
    assert results.loc["published", "relative_error"] > 0.5
    assert results.loc[ELSEWHERE, "relative_error"] > results.loc["improved", "relative_error"]
    assert results.loc["improved", "spread"] > 0, "initial weights matter a little"
    assert results.loc["improved", ["policies", "initialisations", "layouts"]].tolist() == [240, 2, 3]


def test_costs_are_beside_those_of_the_published_learner(found):
    costs = found[1].set_index("learner")
    assert costs.loc["published", "times_published"] == 1
    np.testing.assert_allclose(costs["policies_per_second"], 1 / costs["seconds_per_policy"])
    assert list(costs.index) == list(ladder())


def test_agreement_by_hand():
    exact = np.array([[0.0, 1, 5], [1, 3, 5], [2, 8, 5]])
    learned = exact[None].copy()
    perfect = behaviour._compare(exact, learned, np.arange(3))
    assert (perfect["relative_error"], perfect["nearest"], perfect["spread"]) == (0, 1, 0)
    assert np.isnan(perfect["features"][2]), "a feature that never changes says nothing"
    swapped = behaviour._compare(exact, exact[None, [1, 0, 2]], np.arange(3))
    assert swapped["nearest"] == pytest.approx(1 / 3)
    twice = np.stack([exact, exact])
    twice[1, :, 0] += 0.5 * exact[:, 0].std()
    assert behaviour._compare(exact, twice, np.arange(3))["spread"] == pytest.approx(0.125)  # of 0.25 and 0
    assert behaviour._compare(exact, exact[None, [2]], np.array([2]))["nearest"] == 1


def test_policies_that_do_the_same_need_not_be_told_apart():
    exact = np.array([[0.0, 1], [0, 1], [2, 8]])
    assert behaviour._compare(exact, exact[None], np.arange(3))["nearest"] == 1


def test_other_states_are_recorded_and_not_canonical(smoke):
    name = "0001"
    embedder = smoke.embeddings.embedder(smoke.library.layouts[name])
    few = replace(embedder, canonical=type(embedder.canonical)(*(part[:3] for part in embedder.canonical)))
    others = behaviour._other_states(smoke.library, few)
    keys = [{(s, g.tobytes(), e) for s, g, e in zip(*states, strict=True)} for states in (others, few.canonical)]
    assert 0 < len(others.cells) <= 3
    assert not keys[0] & keys[1]


def test_what_neighbours_share(smoke):
    table = retrieval(smoke.library, smoke.embeddings)
    found = table.set_index(["ablation", "value"])
    chance, text = found.loc[("representation", "chance")], found.loc[("representation", "text")]
    nearest = found.loc[("representation", "pi2vec, standardised")]
    assert text["same_objective"] == 1, "policies of one reward share a sentence"
    assert chance["same_objective"] < nearest["same_objective"] < 1
    assert nearest["same_cells"] > text["same_cells"] > chance["same_cells"]
    assert nearest["return_gap"] < text["return_gap"] < chance["return_gap"]
    constant = found.loc[("gamma", "0")]
    assert constant["same_cells"] == pytest.approx(chance["same_cells"]), "without a future all policies look alike"
    assert (table["layouts"] == 3).all()


def test_equally_near_neighbours_count_alike(smoke, monkeypatch):
    """Distances that are all 0 are a neighbour drawn at random."""
    monkeypatch.setattr(
        behaviour, "_distances", lambda library, embeddings, layout, rows: [(("a", "b"), np.zeros((len(rows),) * 2))]
    )
    table = retrieval(smoke.library, smoke.embeddings)
    expected = []
    for _, policies in smoke.library.policies.query("not stuck").groupby("seed"):
        setups, runs = policies["setup"].to_numpy(), (policies["setup"] + policies["library"]).to_numpy()
        others = runs[:, None] != runs[None, :]
        same = (setups[:, None] == setups[None, :]) & others
        expected.append((same.sum(axis=1) / others.sum(axis=1)).mean())
    assert table["same_objective"].iloc[0] == pytest.approx(np.mean(expected))


def test_a_layout_where_next_to_nobody_moves_is_left_out(smoke):
    stuck = smoke.library.policies["stuck"] | (smoke.library.policies["seed"] == "0001")
    library = replace(smoke.library)
    vars(library).update({**vars(smoke.library), "policies": smoke.library.policies.assign(stuck=stuck)})
    table = retrieval(library, smoke.embeddings)
    assert (table["layouts"] == 2).all()
    assert table.notna().all(axis=None)


def test_a_feature_that_is_constant_on_one_layout_still_counts(smoke, monkeypatch):
    found = iter([np.array([0.01, np.nan]), np.array([0.01, 5.0]), np.array([0.01, 5.0])] * 20)
    plain = behaviour._compare
    monkeypatch.setattr(behaviour, "ladder", lambda: {"improved": LEARNERS["improved"]})
    monkeypatch.setattr(behaviour, "_FAST_STARTS", 1)
    calls = []

    def compare(exact, learned, picked):
        calls.append(0)
        result = plain(exact, learned, picked)
        return result | ({"features": next(found)} if len(calls) % 2 == 0 else {})

    monkeypatch.setattr(behaviour, "_compare", compare)
    assert agreement(smoke.library, smoke.embeddings)[0]["worst_feature"].item() == 5


def test_standardised_features_are_alike_in_size_and_clipped():
    vectors = np.array([[1.0, 7, 0], [2, 7, 0], [3, 7, 1000], *[[2.0, 7, 0]] * 20])
    found = standardised(vectors)
    assert found.shape == (23, 2), "what never changes is left out"
    assert np.abs(found).max() == 3
