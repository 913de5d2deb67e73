import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import load_file, save_file

from lever_lib import regressor as stage
from lever_lib.artifacts import MODEL, Outputs, file_hash
from lever_lib.envs.rewards import EVENTS, REWARD_SYSTEMS, reward_system
from lever_lib.errors import LeverError, MissingArtifactError
from lever_lib.params import Regressor as Settings
from lever_lib.pi2vec import Embedded
from lever_lib.regressor import (
    ALL_LAYOUTS,
    MODEL_FILE,
    SCORE_COLUMNS,
    Table,
    candidate_groups,
    fit,
    half_widths,
    leave_one_out,
    load_model,
    medians,
    model_facts,
    out_of_fold,
    predict_all,
    read_models,
    scores,
    training_table,
    write_models,
)

SETTINGS = Settings(trees=30)
SYSTEMS = tuple(reward_system(name) for name in REWARD_SYSTEMS)


def planted(policies=400, layouts=4, noise=0.0, seed=0):
    """Policies whose event counts are a function of what is seen of them."""
    rng = np.random.default_rng(seed)
    embedded = Embedded(rng.uniform(0, 10, (policies, 3)), rng.uniform(0, 10, (policies, 3)))
    counts = np.zeros((policies, len(EVENTS)))
    counts[:, EVENTS.index("step")] = embedded.start[:, 0].round() + noise * rng.normal(size=policies)
    counts[:, EVENTS.index("gold")] = (embedded.mean[:, 1] > 5) * 3.0
    counts[:, EVENTS.index("exit")] = 1.0
    names = [f"{i % layouts:04d}" for i in range(policies)]
    rows = pd.DataFrame({"seed": names, "setup": "path", "library": "X1", "stuck": np.arange(policies) % 5 == 0})
    return Table(rows, embedded, counts, SYSTEMS)


def test_returns_are_counts_times_weights():
    table = planted()
    step, gold = table.counts[:, EVENTS.index("step")], table.counts[:, EVENTS.index("gold")]
    np.testing.assert_allclose(table.returns[:, REWARD_SYSTEMS.index("path")], 100 - step)
    share = table.counts[:, EVENTS.index("exit_gold_share")]
    np.testing.assert_allclose(table.returns[:, REWARD_SYSTEMS.index("gold")], 5 * gold - 0.01 * step - 10 * share)


def test_a_planted_function_is_found_and_read_out_under_any_reward():
    model, fresh = fit(planted(2000), Settings(trees=200)), planted(200, seed=1)
    predicted = predict_all(model, fresh)
    assert np.abs(predicted - fresh.returns).mean() < 0.2
    untrained = reward_system("gold-lever")
    expected = fresh.counts @ untrained.weights
    assert np.abs(model.predict(fresh.embedded, untrained) - expected).mean() < 0.2


def test_predicting_one_system_is_a_column_of_predicting_all():
    table = planted()
    model = fit(table, SETTINGS)
    np.testing.assert_allclose(model.predict(table.embedded, SYSTEMS[3]), predict_all(model, table)[:, 3], atol=1e-5)


def test_an_interval_covers_what_it_promises():
    train, test = planted(2000, layouts=20, noise=1.0), planted(2000, noise=1.0, seed=1)
    model = fit(train, SETTINGS)
    widths = half_widths(train, out_of_fold(train, SETTINGS), level=0.8)
    covered = np.abs(predict_all(model, test) - test.returns) <= np.array(list(widths.values()))
    assert covered.mean(axis=0) == pytest.approx(0.8, abs=0.05)


def test_intervals_count_layouts_not_policies():
    """Whole layouts are off by as much: what few of them say must be widened, as far as their errors go."""
    rng = np.random.default_rng(0)
    covered = []
    for _ in range(300):
        table = planted(5 * 40, layouts=5)
        off = rng.normal(size=5)[np.unique(table.layouts, return_inverse=True)[1]]
        known, fresh = table.layouts != "0004", table.layouts == "0004"
        predicted = table.returns + off[:, None]
        width = half_widths(table.rows(known), predicted[known], 0.8)["path"]
        covered.append(np.abs(off[fresh][0]) <= width)
    assert np.mean(covered) == pytest.approx(0.8, abs=0.08)
    few = planted(80, layouts=2)
    off = np.arange(80.0)[:, None]
    assert half_widths(few, few.returns + off, 0.8)["path"] == 79, "of two layouts, the greatest error"


def test_what_is_out_of_fold_was_predicted_by_a_model_without_the_layout():
    table = planted(layouts=12)
    spoiled = table.counts.copy()
    spoiled[table.layouts == "0003", EVENTS.index("step")] += 500
    changed = replace(table, counts=spoiled)
    before, after = out_of_fold(table, SETTINGS), out_of_fold(changed, SETTINGS)
    fold = np.isin(table.layouts, ["0003"])
    assert (before[fold] == after[fold]).all()
    assert (before[~fold] != after[~fold]).any()


def test_of_a_system_that_nobody_trained_the_interval_is_the_widest():
    model = replace(fit(planted(), SETTINGS), half_widths={"path": 2.0, "gold": 5.0})
    assert model.half_width(reward_system("path")) == 2.0
    assert model.half_width(reward_system("lever")) == 5.0


def test_baselines_are_medians_of_the_training_part():
    table = planted()
    train, test = table.rows(table.layouts != "0000"), table.rows(table.layouts == "0000")
    guesses = medians(train).predict(test)
    assert (guesses["median"] == np.median(train.returns)).all()
    assert (guesses["median_system"] == np.median(train.returns, axis=0)).all()
    strongest = guesses["median_system_stuck"]
    assert (strongest[test.stuck] == np.median(train.returns[train.stuck], axis=0)).all()
    assert (strongest[~test.stuck] == np.median(train.returns[~train.stuck], axis=0)).all()


def by_hand(returns):
    rows = pd.DataFrame({"seed": "0000", "setup": "path", "library": "X1", "stuck": [False] * len(returns)})
    nothing = np.zeros((len(returns), 1))
    table = Table(rows, Embedded(nothing, nothing), np.zeros((len(returns), len(EVENTS))), SYSTEMS[:2])
    vars(table)["returns"] = np.array(returns, float)
    return table


def test_scores_by_hand():
    table = by_hand([[0, 5], [2, 5], [4, 5]])
    predicted = np.array([[1, 5], [2, 5], [3, 8.0]])
    everyone = np.arange(3)
    found = scores(table, predicted, [(everyone, 0), (everyone, 1)])
    assert found["mae"] == pytest.approx((1 + 0 + 1 + 0 + 0 + 3) / 6)
    assert found["nmae"] == pytest.approx(found["mae"] / 3.5)
    assert found["r2"] == pytest.approx(1 - 2 / 8), "a system with constant returns has no R2"
    assert (found["spearman"], found["groups"]) == (pytest.approx(1), 1)
    assert found["constant_groups"] == 1, "nothing to rank"
    assert found["rows"] == 6


def test_ties_are_averaged_and_a_constant_ranks_nothing():
    table = by_hand([[1, 0], [1, 0], [2, 0], [3, 0]])
    everyone = np.arange(4)
    tied = scores(table, np.array([[0, 0], [1, 0], [2, 0], [3, 0.0]]), [(everyone, 0)])
    assert tied["spearman"] == pytest.approx(np.corrcoef([0.5, 0.5, 2, 3], [0, 1, 2, 3])[0, 1])
    assert scores(table, np.zeros((4, 2)), [(everyone, 0)])["spearman"] == 0


def test_pairs_that_nobody_asked_about_do_not_count():
    table = by_hand([[0, 50], [2, 50]])
    asked = np.array([[True, False], [True, False]])
    found = scores(table, np.array([[1, 0], [2, 0.0]]), [], asked)
    assert (found["mae"], found["nmae"], found["rows"]) == (0.5, 0.5, 2)


def test_a_model_never_sees_the_layout_it_is_asked_about(smoke):
    table = training_table(smoke.library, smoke.embeddings)
    models, predicted = leave_one_out(table, SETTINGS)
    spoiled = table.counts.copy()
    held_out = table.layouts == "0001"
    spoiled[held_out] += 50.0
    changed_models, changed = leave_one_out(replace(table, counts=spoiled), SETTINGS)
    for name, guess in predicted.items():
        assert (changed[name][held_out] == guess[held_out]).all(), name
        assert (changed[name][~held_out] != guess[~held_out]).any(), name
    assert predict_all(changed_models["0001"], table).tolist() == predict_all(models["0001"], table).tolist()
    assert changed_models["0001"].half_widths == models["0001"].half_widths
    assert changed_models["0000"].half_widths != models["0000"].half_widths


def test_candidates_of_a_query_are_of_its_class_and_layout(smoke):
    table = training_table(smoke.library, smoke.embeddings)
    groups = candidate_groups(table)
    assert len(groups) == 6 * 3, "six queries on three layouts"
    for rows, _ in groups:
        assert len(set(table.layouts[rows])) == 1
    trivial = {setup for rows, _ in groups[:3] for setup in table.policies["setup"].iloc[rows]}
    assert trivial == {"path", "gold", "hazard", "lever"}


def test_the_score_table(smoke):
    table = smoke.regressor.cross_validation
    assert table.columns.tolist() == SCORE_COLUMNS
    assert set(table["split"]) == {"0000", "0001", "0002", "all"}
    assert set(table["subset"]) == {"all", "not_stuck"}
    assert set(table["model"]) == {"trees", "median", "median_system", "median_system_stuck"}
    whole = table.query("split == 'all' and subset == 'all'").set_index("model")
    assert (whole["rows"] == len(smoke.library.policies) * 8).all()
    assert whole.loc["median_system_stuck", "nmae"] == whole.loc["trees", "baseline_nmae"]


def test_stored_predictions_are_those_of_the_models(smoke):
    library = smoke.library
    stored = smoke.regressor.predictions
    row = library.policies.iloc[-1]
    embedded = smoke.embeddings.rows(np.array([len(library.policies) - 1]))
    again = smoke.regressor.predict(row["seed"], embedded, library.system("path-gold"))[0]
    found = stored.query("policy_id == @row.policy_id and setup == 'path-gold'").iloc[0]
    assert found["predicted"] == pytest.approx(again)
    assert found["return"] == pytest.approx(library.returns[-1, list(library.systems).index("path-gold")])
    assert found["lower"] < found["predicted"] < found["upper"]


# ---- files


@pytest.fixture
def study_model(smoke, smoke_params, tmp_path):
    """A run's outputs with a model of other layouts beside them."""
    params = replace(smoke_params, regressor=replace(smoke_params.regressor, source="study"))
    outputs = Outputs("smoke", params, tmp_path)
    model = smoke.regressor.models[ALL_LAYOUTS]
    (outputs.folder / MODEL).mkdir(parents=True)
    path = outputs.folder / MODEL / MODEL_FILE
    write_models({ALL_LAYOUTS: model}, {**model_facts(params), "layouts": ["0200", "0201"]}, path)
    enter(outputs, path)
    return outputs, path, model


def enter(outputs, path):
    outputs.enter(MODEL, {"key": "", "files": {f"{MODEL}/{MODEL_FILE}": file_hash(path)}})


def test_a_study_model_is_read_as_it_was_written(study_model, smoke):
    outputs, path, model = study_model
    found = load_model(outputs)
    assert found.layouts == ("0200", "0201")
    assert found.path == path
    table = training_table(smoke.library, smoke.embeddings)
    assert (predict_all(found.predictor, table) == predict_all(model, table)).all()
    assert found.predictor.half_widths == model.half_widths
    assert all((a == b).all() for a, b in zip(found.predictor.medians, model.medians, strict=True))


def test_a_study_model_judges_the_runs_layouts(study_model, smoke, monkeypatch):
    outputs, _, model = study_model
    monkeypatch.setattr(Outputs, "fresh", lambda *_: False)
    monkeypatch.setattr(Outputs, "require", lambda self, stage: self.folder / stage.name)
    library = replace(smoke.library, params=outputs.params)
    built = stage.build_regressor(library, smoke.embeddings, outputs)
    assert list(built.models) == [ALL_LAYOUTS]
    table = training_table(library, smoke.embeddings)
    expected = predict_all(model, table).ravel()
    np.testing.assert_allclose(built.predictions["predicted"], expected)


def test_the_run_depends_on_the_model(study_model):
    outputs, path, _ = study_model
    key = outputs.key(stage.STAGE)
    enter(outputs, path)
    assert outputs.key(stage.STAGE) == key
    models, _ = read_models(path, outputs.params)
    write_models(models, {**model_facts(outputs.params), "layouts": ["0300"]}, path)
    enter(outputs, path)
    assert outputs.key(stage.STAGE) != key
    own = Outputs("smoke", replace(outputs.params, regressor=Settings(source="library")), outputs.folder.parent)
    before = own.key(stage.STAGE)
    outputs.forget(MODEL)
    assert own.key(stage.STAGE) == before, "a run with models of its own does not"


def test_without_a_model_the_way_out_is_named(smoke_params, tmp_path):
    params = replace(smoke_params, regressor=Settings(source="study"))
    with pytest.raises(MissingArtifactError, match=r"run ./run_all.sh study smoke, or set regressor.source to library"):
        load_model(Outputs("smoke", params, tmp_path))


def test_a_model_of_another_world_or_of_the_runs_own_layouts_is_refused(study_model):
    outputs, path, model = study_model
    facts = model_facts(outputs.params)
    for about, said in (
        ({**facts, "pi2vec.gamma": 0.5, "layouts": ["0200"]}, "was fitted with another pi2vec.gamma; run"),
        ({**facts, "grid": {}, "layouts": ["0200"]}, "was fitted with another grid; run"),
        ({**facts, "regressor": {"interval_level": 0.5}, "layouts": ["0200"]}, "was fitted with another regressor"),
        ({**facts, "layouts": ["0002"]}, "was fitted on layout 0002; choose other seeds"),
        ({**facts, "layouts": []}, "does not say which layouts it was fitted on; run"),
        (facts, "layouts"),
        ({**facts, "layouts": 5}, "run ./run_all.sh study smoke, or set regressor.source"),
    ):
        write_models({ALL_LAYOUTS: model}, about, path)
        enter(outputs, path)
        with pytest.raises(LeverError, match=said):
            load_model(outputs)


def test_a_tampered_file_is_refused_with_one_line(study_model):
    outputs, path, _ = study_model
    sound = path.read_bytes()
    for harmed in (sound[:-1] + bytes([sound[-1] ^ 1]), sound[:100], b""):
        path.write_bytes(harmed)
        with pytest.raises(MissingArtifactError, match=r"regressor\.safetensors is missing or damaged; run") as caught:
            load_model(outputs)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "harm",
    [
        lambda tensors, about: tensors.update({"all/left": tensors["all/left"] * 0}),
        lambda tensors, about: tensors.update({"all/feature": tensors["all/feature"] + 200}),
        lambda tensors, about: tensors.update({"all/half_widths": tensors["all/half_widths"][:3]}),
        lambda tensors, about: tensors.update({"all/half_widths": tensors["all/half_widths"] * np.nan}),
        lambda tensors, about: tensors.update({"other/left": tensors["all/left"]}),
        lambda tensors, about: tensors.pop("all/value"),
        lambda tensors, about: about.update(events=["bump"]),
        lambda tensors, about: about.update(models=["0001"]),
        lambda tensors, about: about.pop("systems"),
        lambda tensors, about: about.clear(),
    ],
)
def test_a_file_with_a_good_checksum_but_bad_content_is_refused_too(study_model, harm):
    """Whoever changes the file may change the checksum with it."""
    outputs, path, _ = study_model
    tensors = load_file(path)
    _, about = read_models(path, outputs.params)
    harm(tensors, about)
    save_file(tensors, path, {"about": json.dumps(about)})
    enter(outputs, path)
    with pytest.raises(MissingArtifactError, match="no regressor can be read from it") as caught:
        load_model(outputs)
    assert "\n" not in str(caught.value)


def test_a_header_that_claims_too_much_is_refused_before_anything_is_allocated(study_model):
    outputs, path, _ = study_model
    header = json.dumps({"all/base": {"dtype": "F64", "shape": [10**12], "data_offsets": [0, 8 * 10**12]}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    enter(outputs, path)
    with pytest.raises(MissingArtifactError, match="no regressor can be read"):
        load_model(outputs)


def test_a_reward_of_ones_own_is_judged_by_a_model_that_came_before_it(study_model, smoke, monkeypatch, tmp_path):
    outputs, _, model = study_model
    later = (*REWARD_SYSTEMS, "gold-lever")
    monkeypatch.setattr(stage, "REWARD_SYSTEMS", later)
    table = training_table(smoke.library, smoke.embeddings)
    vars(table).pop("returns", None)
    grown = replace(table, systems=(*table.systems, reward_system("gold-lever")))
    models, predicted = stage._from_study(grown, outputs)
    stage.write_models(models, {}, tmp_path / "grown.safetensors")
    again = read_models(tmp_path / "grown.safetensors", outputs.params)[0][ALL_LAYOUTS]
    assert again.half_widths["gold-lever"] == max(model.half_widths.values())
    assert predicted["trees"].shape == predicted["median_system_stuck"].shape == (len(table.policies), 9)


def test_reward_systems_that_came_later_have_a_baseline_and_an_interval(study_model, monkeypatch):
    outputs, path, model = study_model
    monkeypatch.setattr(stage, "REWARD_SYSTEMS", (*REWARD_SYSTEMS, "gold-lever"))
    read = read_models(path, outputs.params)[0][ALL_LAYOUTS]
    assert read.medians.system[-1] == model.medians.overall
    assert (read.medians.system[:-1] == model.medians.system).all()
    assert read.half_width(reward_system("gold-lever")) == max(model.half_widths.values())
