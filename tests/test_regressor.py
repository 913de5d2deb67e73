import numpy as np
import pytest

from lever_lib.regressor import Table, baselines, calibrate, cross_validate, fit, predict_all, scores, training_table


def planted(policies=240, features=5, layouts=4, noise=0.0, seed=0):
    """A table whose returns are linear in the embedding, with weights chosen by the components."""
    rng = np.random.default_rng(seed)
    embeddings = rng.uniform(-1, 1, (policies, features))
    indicators = np.array([[1, 0], [0, 1], [1, 1]], dtype=float)
    weights = rng.normal(size=(features + 1, 3))
    returns = np.hstack([embeddings, np.ones((policies, 1))]) @ weights @ np.hstack([indicators, np.ones((3, 1))]).T
    names = np.array([f"{i % layouts:04d}" for i in range(policies)])
    return Table(embeddings, indicators, returns + noise * rng.normal(size=returns.shape), names, names == "0003")


def test_planted_weights_are_found():
    table = planted()
    predicted = predict_all(fit(table, penalty=1e-6), table)
    np.testing.assert_allclose(predicted, table.returns, atol=1e-4)


def test_the_penalty_shrinks_to_the_mean():
    table = planted()
    predicted = predict_all(fit(table, penalty=1e12), table)
    np.testing.assert_allclose(predicted, table.returns.mean(), atol=1e-3)


def test_predicting_one_system_is_a_column_of_predicting_all():
    table = planted()
    model = fit(table, 1.0)
    np.testing.assert_allclose(
        model.predict(table.embeddings, table.indicators[2]), predict_all(model, table)[:, 2], rtol=1e-12
    )


def test_an_interval_covers_what_it_promises():
    train, test = planted(600, noise=0.3), planted(600, noise=0.3, seed=0)
    half_width = calibrate(train, 1.0, level=0.8)
    fresh = np.random.default_rng(5).normal(size=test.returns.shape) * 0.3
    truth = planted(600).returns + fresh
    covered = np.abs(predict_all(fit(train, 1.0), test) - truth) <= half_width
    assert covered.mean() == pytest.approx(0.8, abs=0.05)


def test_baselines_are_medians_of_the_training_part():
    table = planted()
    train, test = table.rows(table.layouts != "0000"), table.rows(table.layouts == "0000")
    guesses = baselines(train, test)
    assert (guesses["median"] == np.median(train.returns)).all()
    assert (guesses["median_system"] == np.median(train.returns, axis=0)).all()
    assert (guesses["median_system_stuck"] == np.median(train.returns[~train.stuck], axis=0)).all()


def test_scores_by_hand():
    table = Table(np.zeros((3, 1)), np.ones((2, 1)), np.array([[0, 5], [2, 5], [4, 5.0]]), np.array(["a"] * 3), None)
    predicted = np.array([[1, 5], [2, 5], [3, 8.0]])
    everyone = np.ones(3, bool)
    found = scores(table, predicted, [(everyone, 0), (everyone, 1)])
    assert found["mae"] == pytest.approx((1 + 0 + 1 + 0 + 0 + 3) / 6)
    assert found["nmae"] == pytest.approx(found["mae"] / 3.5)
    assert found["r2"] == pytest.approx(1 - 2 / 8), "a system with constant returns has no R2"
    assert found["spearman"] == pytest.approx(1), "nor a ranking"
    assert found["rows"] == 6


def test_a_model_never_sees_the_layout_it_is_asked_about(smoke):
    library = smoke.library
    table = training_table(library, smoke.embeddings)
    _, models, predicted = cross_validate(library, table)
    spoiled = table.returns.copy()
    held_out = table.layouts == "0001"
    spoiled[held_out] += 1000.0
    changed = Table(table.embeddings, table.indicators, spoiled, table.layouts, table.stuck)
    _, changed_models, changed_predicted = cross_validate(library, changed)
    assert (changed_predicted[held_out] == predicted[held_out]).all()
    assert changed_models["0001"].half_width == models["0001"].half_width
    assert (changed_predicted[~held_out] != predicted[~held_out]).any()


def test_the_score_table(smoke):
    table = smoke.regressor.cross_validation
    columns = [
        "model",
        "variant",
        "split",
        "subset",
        "r2",
        "mae",
        "nmae",
        "spearman",
        "baseline_nmae",
        "coverage",
        "interval_level",
        "rows",
    ]
    assert table.columns.tolist() == columns
    assert set(table["split"]) == {"0000", "0001", "0002", "all"}
    assert set(table["subset"]) == {"all", "not_stuck"}
    assert {"ridge", "median", "median_system", "median_system_stuck"} == set(table["model"])
    whole = table.query("split == 'all' and subset == 'all'").set_index("model")
    assert (whole["rows"] == len(smoke.library.policies) * 8).all()
    assert whole.loc["median_system_stuck", "nmae"] == whole.loc["ridge", "baseline_nmae"]


def test_stored_predictions_are_those_of_the_models(smoke):
    library = smoke.library
    stored = smoke.regressor.predictions
    row = library.policies.iloc[-1]
    embedding = smoke.embeddings.embeddings[-1:]
    again = smoke.regressor.predict(row["seed"], embedding, library.system("path-gold"))[0]
    found = stored.query("policy_id == @row.policy_id and setup == 'path-gold'").iloc[0]
    assert found["predicted"] == pytest.approx(again)
    assert found["return"] == library.returns[-1, list(library.systems).index("path-gold")]
    assert found["lower"] < found["predicted"] < found["upper"]
