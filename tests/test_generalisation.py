"""The candidates on planted worlds, and the targets against direct computation."""

from dataclasses import replace

import numpy as np
import pytest

from lever_lib import generalisation
from lever_lib.envs.rewards import EVENTS, REWARD_SYSTEMS
from lever_lib.generalisation import (
    BY_NETWORK,
    PUBLISHED,
    VARIANTS,
    candidates,
    find_out,
    joined,
    load_table,
    save_table,
    transfer_rows,
)
from lever_lib.params import Regressor as Settings
from lever_lib.pi2vec import Embedded
from lever_lib.regressor import STRONGEST, TREES, fit_calibrated, predict_all, scores, training_table
from tests.test_regressor import planted

SETTINGS = Settings(trees=30)


def labelled(policies=480, layouts=6, seed=0):
    """A planted table with policies of every reward system."""
    table = planted(policies, layouts, seed=seed)
    setups = np.array(REWARD_SYSTEMS)[np.arange(policies) // layouts % len(REWARD_SYSTEMS)]
    return replace(table, policies=table.policies.assign(setup=setups))


def blurred(table):
    """As a network would embed the same policies."""
    noise = np.random.default_rng(5)
    return replace(table, embedded=Embedded(*(part + noise.normal(0, 0.3, part.shape) for part in table.embedded)))


@pytest.fixture(scope="module")
def found():
    train, test = labelled(), labelled(seed=1)
    model = fit_calibrated(train, SETTINGS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generalisation, "_CURVE", (2,))
        return find_out(train, test, blurred(test), model, SETTINGS, 0), train, test, model


def test_a_table_survives_its_file(smoke, tmp_path):
    table = training_table(smoke.library, smoke.embeddings)
    save_table(table, tmp_path / "table.npz")
    again = load_table(tmp_path / "table.npz", table.systems)
    assert again.policies.equals(table.policies.astype(again.policies.dtypes))
    assert (again.returns == table.returns).all()
    np.testing.assert_allclose(again.embedded.start, table.embedded.start, rtol=1e-6)
    model = fit_calibrated(table, SETTINGS)
    assert (predict_all(model, again) == predict_all(model, table)).all(), "a model sees single precision anyway"
    parts = [table.rows(table.layouts == name) for name in np.unique(table.layouts)]
    assert len(joined(parts).returns) == len(table.returns)


def test_every_candidate_is_scored_on_all_layouts(found):
    table = found[0].cross_validation
    whole = table.query("split == 'all' and subset == 'not_stuck' and variant == 'all'")
    names = {TREES, BY_NETWORK, "median", "median_system", STRONGEST, *(name for name, _ in candidates(SETTINGS))}
    assert set(whole["model"]) == names
    assert len(names) == 5 + 3 * 4 - 1 + 1, "two targets, two models, three inputs; and the published one"
    single = table.query("split != 'all'")
    assert set(single["model"]) == {TREES, STRONGEST}
    assert single["split"].nunique() == 6


def test_variants_are_about_their_own_policies(found):
    table = found[0].cross_validation.query("split == 'all' and subset == 'all'")
    test = found[2]
    for variant, setups in VARIANTS.items():
        part = table[table["variant"] == variant].set_index("model")
        inside = test.policies["setup"].isin(setups).sum()
        assert part.loc[TREES, "rows"] == part.loc["one for all", "rows"] == inside * 8
        assert part.loc[PUBLISHED, "rows"] == inside, "it can only be asked about a policy's own reward"


def test_the_published_model_cannot_tell_for_which_reward(found):
    table = found[0].cross_validation.query("split == 'all' and subset == 'all' and variant == 'all'")
    scores = table.set_index("model")
    assert scores.loc[TREES, "nmae"] < scores.loc[STRONGEST, "nmae"]
    guess = dict(candidates(SETTINGS))[PUBLISHED](found[1])(found[2])
    assert (guess == guess[:, :1]).all()


def test_what_is_linear_is_found_by_the_linear_read_out():
    train, test = labelled(), labelled(seed=1)
    for table in (train, test):
        table.counts[:, EVENTS.index("step")] = 2 * table.embedded.start[:, 0] + table.embedded.mean[:, 2]
        table.counts[:, EVENTS.index("gold")] = table.embedded.mean[:, 1]
    for name, guess in candidates(SETTINGS):
        if name in ("ridge-events-both", "ridge-returns-both"):
            error = np.abs(guess(train)(test) - test.returns).mean()
            assert error < 0.2 * test.returns.std(axis=0).mean(), name


def test_targets_are_what_they_say(found):
    findings, _, test, model = found
    targets = findings.targets.set_index("target")
    moving = test.rows(~test.stuck)
    y, guess = moving.returns, predict_all(model, moving)
    baseline = model.medians.predict(moving)[STRONGEST]
    expected = np.abs(y - guess).sum() / np.abs(y - baseline).sum()
    assert targets.loc["nmae_over_baseline", "value"] == pytest.approx(expected, abs=1e-5)
    spread = ((y - y.mean(axis=0)) ** 2).sum(axis=0)
    r2 = 1 - ((y - guess) ** 2).sum(axis=0) / spread
    assert targets.loc["r2", "value"] == pytest.approx(r2[spread > 1e-9].mean(), abs=1e-5)
    widths = np.array([model.half_width(system) for system in moving.systems])
    assert targets.loc["coverage", "value"] == pytest.approx((np.abs(y - guess) <= widths).mean(), abs=1e-5)
    whole = findings.cross_validation.query("model == 'trees' and split == 'all' and subset == 'not_stuck'").iloc[0]
    assert targets.loc["spearman", "value"] == pytest.approx(whole["spearman"], abs=1e-5)
    assert (targets["low"] <= targets["value"]).all()
    assert (targets["value"] <= targets["high"]).all()
    for row in targets.itertuples():
        reached = {"at most": row.value <= row.goal, "at least": row.value >= row.goal}
        assert row.met == reached.get(row.rule, abs(row.value - row.goal) <= 0.03)


def test_learned_embeddings_are_judged_by_the_same_model(found):
    table = (
        found[0].cross_validation.query("split == 'all' and subset == 'all' and variant == 'all'").set_index("model")
    )
    expected = np.abs(predict_all(found[3], blurred(found[2])) - found[2].returns).mean()
    assert table.loc[BY_NETWORK, "mae"] == pytest.approx(expected, abs=1e-5)
    assert table.loc[BY_NETWORK, "mae"] > table.loc[TREES, "mae"]


def test_a_constant_reward_system_does_not_spoil_r2():
    """Three layouts, and a reward under which everybody earns the same: it has no R2, the others have theirs."""
    train, test = labelled(layouts=3), labelled(layouts=3, seed=1)
    for table in (train, test):
        table.counts[:, EVENTS.index("step")] = 10.0
    model = fit_calibrated(train, SETTINGS)
    predicted = predict_all(model, test)
    covered = np.ones(predicted.shape, bool)
    targets = generalisation._targets(test, predicted, predicted + 1, covered, 0.9, 0).set_index("target")
    moving = ~test.stuck
    expected = scores(test.rows(moving), predicted[moving], [])["r2"]
    assert targets.loc["r2", "value"] == pytest.approx(expected, abs=1e-5)
    assert np.isfinite(targets.loc["r2", ["low", "high"]].astype(float)).all()


def test_a_learning_curve_ends_with_the_model_of_all_layouts(found):
    curve = found[0].learning_curve
    assert curve["layouts"].tolist() == [2, 2, 2, 6]
    last = curve.iloc[-1]
    whole = found[0].cross_validation.query("model == 'trees' and split == 'all' and subset == 'not_stuck'").iloc[0]
    assert last["nmae"] == pytest.approx(whole["nmae"])
    assert last["spearman"] == pytest.approx(whole["spearman"])


def test_a_world_twice_as_wide_is_foretold_by_scaling():
    """Planted: everything that adds up along a path is twice as much in the bigger world."""
    small, big = labelled(), labelled(seed=1)
    doubled = type(big.embedded)(*(2 * part for part in big.embedded))
    counts = big.counts.copy()
    counts[:, EVENTS.index("step")] *= 2
    big = replace(big, embedded=doubled, counts=counts)
    models = {"small": (fit_calibrated(small, SETTINGS), 8), "big": (fit_calibrated(big, SETTINGS), 16)}
    table = transfer_rows(big, models, "big").set_index(["fitted_on", "scaled"])
    assert table.index.tolist() == [("small", False), ("small", True), ("big", False)]
    assert table.loc[("small", True), "nmae"] < 0.5 * table.loc[("small", False), "nmae"]
    assert table["own"].tolist() == [False, False, True]
