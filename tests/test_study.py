import re
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from lever_lib import (
    artifacts,
    behaviour,
    decompose,
    experiment,
    generalisation,
    ladder,
    notebooks,
    regressor,
    report,
    scaling,
    study,
    unfinished,
)
from lever_lib.artifacts import Outputs, file_hash, read_manifest
from lever_lib.columns import column_dictionary
from lever_lib.composition import METHODS
from lever_lib.errors import LeverError, MissingArtifactError
from lever_lib.library import build_library
from lever_lib.params import Deep, Sarsa, Study
from lever_lib.regressor import ALL_LAYOUTS
from lever_lib.report import REFERENCES

STUDY = Study(first_seed=50, layouts=6, training_first_seed=300, training_layouts=6)


@pytest.fixture(scope="module")
def studied(smoke, smoke_params, smoke_outputs, tmp_path_factory):
    """A smoke run with its study, made in two parts; the second one after an interruption."""
    root = tmp_path_factory.mktemp("studied")
    shutil.copytree(smoke_outputs.folder, root / "smoke")
    outputs = Outputs("smoke", replace(smoke_params, study=STUDY, deep=Deep(steps=1)), root)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(unfinished, "_CHUNK", 3)
        patch.setattr(scaling, "_SIZES", (6,))
        patch.setattr(scaling, "_POLICIES", (5,))
        patch.setattr(scaling, "_CANDIDATES", (1, 2))
        for name in ("_SAMPLE", "_SLOW_LAYOUTS", "_SLOW_STARTS"):
            patch.setattr(behaviour, name, 1)
        patch.setattr(generalisation, "_CURVE", (3,))
        ask_part, trained = study._ask_part, []

        def interrupted(part, models, draft, first):
            trained.append(part.params.seeds)
            if len(trained) == 2:
                (draft.parent / "0053-0055").mkdir()  # as if files were being deleted
                raise KeyboardInterrupt
            ask_part(part, models, draft, first)

        patch.setattr(study, "_ask_part", interrupted)
        with pytest.raises(KeyboardInterrupt):
            study.run_study(outputs)
        assert study.find_study(outputs) is None, "a half is no study"
        assert regressor.load_model(outputs).layouts == tuple(f"{seed:04d}" for seed in range(300, 306)), (
            "but a model is a model"
        )
        found = study.run_study(outputs)
        assert trained == [(50, 51, 52), (53, 54, 55), (53, 54, 55)], "the first part was kept"
        model = outputs.folder / "model" / "regressor.safetensors"
        stamp = model.stat().st_mtime_ns
        study.run_study(outputs)
        assert len(trained) == 3, "nothing is left to do"
        assert model.stat().st_mtime_ns == stamp
    return outputs, found


def test_a_study_is_the_experiment_on_other_layouts(studied, smoke, smoke_params, tmp_path):
    outputs, found = studied
    assert found.layouts == 6
    rows = pd.read_parquet(found.folder / "results.parquet")
    assert sorted(rows["seed"].unique()) == ["0050", "0051", "0052", "0053", "0054", "0055"]
    params = replace(smoke_params, seeds=(53, 54, 55))
    library = build_library(params, Outputs("smoke", params, tmp_path))
    scratch = library.policies.query("snapshot == 1.0").set_index(["library", "seed", "setup"])["return"]
    for row in rows.query("strategy == 'hybrid' and method == 'gpi' and seed > '0052'").itertuples():
        assert row.scratch_return == pytest.approx(scratch[row.library, row.seed, row.setup], abs=1e-4)
    shares = found.summary.overall().set_index(["strategy", "method"])
    gpi = rows.query("strategy == 'library' and method == 'gpi'")
    assert shares.loc[("library", "gpi"), "share"] == pytest.approx((gpi["return"] / gpi["optimum"]).mean(), abs=1e-4)
    assert not list(outputs.folder.glob(".study*")), "nothing unfinished is left"


def test_the_model_never_saw_a_layout_that_it_is_judged_on(studied):
    outputs, found = studied
    seen = set(regressor.load_model(outputs).layouts)
    judged = set(found.findings.cross_validation["split"]) - {"all"}
    assert len(judged) == 6
    assert not seen & (judged | {"0000", "0001", "0002"})


def test_a_run_can_use_the_model_of_the_study(studied, smoke, tmp_path):
    outputs, _ = studied
    params = replace(outputs.params, regressor=replace(outputs.params.regressor, source="study"))
    used = Outputs("smoke", params, tmp_path)
    shutil.copytree(outputs.folder, used.folder)
    assert "other params" in used.problem(regressor.STAGE)
    library = replace(smoke.library, params=params)
    built = regressor.build_regressor(library, smoke.embeddings, used)
    assert set(built.models) == {ALL_LAYOUTS}
    table = regressor.training_table(library, smoke.embeddings)
    expected = regressor.predict_all(regressor.load_model(used).predictor, table)
    assert built.predictions["predicted"].to_numpy() == pytest.approx(expected.ravel())
    assert used.fresh(regressor.STAGE)
    used.forget("model")
    assert not used.fresh(regressor.STAGE), "another model, another regressor"


def test_every_column_of_a_study_is_explained(studied):
    known = column_dictionary()
    known = known[known["table"].str.startswith("study/")]
    read = {".csv": pd.read_csv, ".parquet": pd.read_parquet}
    found = {f"study/{path.name}": list(read[path.suffix](path)) for path in studied[1].folder.iterdir()}
    assert {name: columns.tolist() for name, columns in known.groupby("table")["column"]} == found


def test_the_ladder_is_climbed_on_the_layouts_of_the_study(studied, monkeypatch):
    outputs, found = studied
    climbed = ladder.run_ladder(outputs, study.fit_model)
    assert climbed.layouts == found.layouts
    shares = climbed.shares.query("library == 'all' and query_class == 'all' and setup == 'all'")
    assert set(shares["method"]) == {*METHODS, *REFERENCES}
    for name, table in vars(climbed).items():
        assert list(table) == column_dictionary(f"ladder/{name}.csv").index.tolist()
    whole = climbed.regret.query("library == 'all' and query_class == 'all' and setup == 'all'")
    parts = whole.set_index(["strategy", "method"])[["coverage", "composition"]].sum(axis=1)
    lost = 1 - shares.set_index(["strategy", "method"])["share"].reindex(parts.index)
    np.testing.assert_allclose(parts, lost, atol=1e-5)
    exact = climbed.selection.query("judge == 'exact on recordings'")
    assert (climbed.selection["regret"] >= -1e-9).all()
    assert (exact[exact["k"] == exact["k"].max()]["regret"] < 1e-6).all(), "he who knows everything loses nothing"
    assert set(climbed.selection["judge"]) == {"ours", "published", "exact on recordings"}
    monkeypatch.setattr(ladder, "answers", None)
    assert ladder.run_ladder(outputs, study.fit_model).shares.equals(climbed.shares), "nothing is left to do"
    assert not list(outputs.folder.glob(".ladder*")), "nothing unfinished is left"


def test_a_finished_study_needs_nothing_that_git_does_not_keep(studied, tmp_path, monkeypatch):
    outputs, found = studied
    shutil.copytree(outputs.folder, tmp_path / "smoke")
    (tmp_path / "smoke" / "model" / "training.npz").unlink()
    clone = Outputs("smoke", outputs.params, tmp_path)
    monkeypatch.setattr(study, "fit_model", None)
    assert study.up_to_date(clone)
    assert study.run_study(clone).layouts == found.layouts


FINDERS = {"study": study.find_study, "ladder": ladder.find_ladder}


@pytest.mark.parametrize(
    ("name", "content", "rule"),
    [
        ("study/targets.csv", "x", "is missing or damaged"),
        ("study/targets.csv", "", "cannot be read: No columns to parse"),
        ("study/shares.csv", "a,b\n1,2\n", "must have the columns "),
        ("study/learning_curve.csv", "\udcff\udcfe", "cannot be read: "),
        ("ladder/regret.csv", "a,b\n1,2\n", "must have the columns "),
    ],
)
def test_what_is_damaged_or_made_up_is_one_line_to_readers_and_made_again(
    studied, tmp_path, capsys, name, content, rule
):
    outputs, _ = studied
    ladder.run_ladder(outputs, study.fit_model)  # if no other test has
    shutil.copytree(outputs.folder, tmp_path / "smoke")
    copy, entry_name = Outputs("smoke", outputs.params, tmp_path), name.split("/")[0]
    find = FINDERS[entry_name]
    assert find(copy)
    path = copy.folder / name
    path.write_bytes(content.encode(errors="surrogateescape"))
    if "damaged" not in rule:  # with its checksum
        entry = copy.manifest()[entry_name]
        copy.enter(entry_name, entry | {"files": entry["files"] | {name: file_hash(path)}})
    with pytest.raises(LeverError, match=f"{path.name}:? {rule}") as caught:
        find(copy)
    assert "\n" not in str(caught.value)
    capsys.readouterr()
    assert unfinished.whole(find, copy) is None
    assert capsys.readouterr().err.startswith(f"smoke: {caught.value}; making it again")
    if entry_name == "study":
        assert not study.up_to_date(copy)


def test_studies_without_a_manifest_are_not_forgotten(studied, monkeypatch, tmp_path, capsys):
    """Nothing else tells what they hold, so neither a run nor a study begins a new manifest."""
    outputs, _ = studied
    shutil.copytree(outputs.folder, tmp_path / "smoke")
    (tmp_path / "smoke" / "manifest.json").unlink()
    copy = Outputs("smoke", outputs.params, tmp_path)
    with pytest.raises(MissingArtifactError, match=r"manifest.json: is missing, .* what study, model, .* holds"):
        study.study_all([copy])
    monkeypatch.setenv("LEVER_OUTPUTS", str(tmp_path))
    assert notebooks.main(["smoke"]) == 2
    assert "manifest.json: is missing" in capsys.readouterr().err
    for path in list((tmp_path / "smoke").iterdir()):
        if path.is_dir() and path.name not in artifacts.LASTING:
            shutil.rmtree(path)
    assert list(artifacts.examine(copy.folder)) == ["manifest"]


def test_what_has_no_effect_makes_no_other_study(studied):
    outputs, _ = studied
    pi2vec = replace(outputs.params.pi2vec, learner="published", device="cuda")
    assert study.find_study(Outputs("smoke", replace(outputs.params, pi2vec=pi2vec), outputs.folder.parent))
    learned = replace(pi2vec, method="network")
    assert study.find_study(Outputs("smoke", replace(outputs.params, pi2vec=learned), outputs.folder.parent)) is None


def test_what_is_found_for_the_questions_makes_another_study_and_ladder(smoke_params, tmp_path, monkeypatch):
    monkeypatch.setattr(decompose, "ROOT", tmp_path)
    (tmp_path / "a.jsonl").write_text("one")
    search, llm = smoke_params.search, replace(smoke_params.llm, replay="a.jsonl")
    asked = replace(smoke_params, search=replace(search, decompose="llm"), llm=llm)
    others = [
        replace(smoke_params, search=replace(search, top_k=1)),
        replace(smoke_params, search=replace(search, candidates=4)),
        asked,
        replace(asked, llm=replace(llm, model="another")),
    ]
    keys = [(study._key(params), ladder._key(params)) for params in (smoke_params, *others)]
    (tmp_path / "a.jsonl").write_text("two")
    keys.append((study._key(asked), ladder._key(asked)))
    for which in zip(*keys, strict=True):
        assert len(set(which)) == len(which)
    gated = replace(smoke_params, search=replace(search, cosine_gate=0.1), llm=replace(llm, tries=1))
    assert (study._key(gated), ladder._key(gated)) == keys[0]


def test_a_model_is_tried_on_other_grid_sizes_only(studied, monkeypatch):
    """One of the same size may have been fitted on the very layouts."""
    outputs, _ = studied
    monkeypatch.setattr(study, "available_specs", lambda: ["smoke", "twin", "wider"])
    wider = replace(outputs.params, grid=replace(outputs.params.grid, size=7))
    monkeypatch.setattr(study, "load_params", lambda spec: wider if spec == "wider" else outputs.params)
    model = regressor.load_model(outputs)
    monkeypatch.setattr(regressor, "load_model", lambda other: model)
    assert study._other_models(outputs) == {"wider": (model.path, 7)}


def test_a_study_of_other_params_is_not_taken_for_this_one(studied):
    outputs, found = studied
    other = Outputs("smoke", replace(outputs.params, sarsa=Sarsa(gamma=0.9)), outputs.folder.parent)
    assert study.find_study(other) is None
    assert "no study of smoke with these params (./run_all.sh study smoke makes one)" in study.absent(other)
    cores = replace(outputs.params, execution=replace(outputs.params.execution, workers=2))
    assert study.find_study(Outputs("smoke", cores, outputs.folder.parent)).layouts == found.layouts


def test_another_root_reads_the_study_of_the_repository(studied, monkeypatch, tmp_path):
    outputs, found = studied
    shutil.copytree(outputs.folder, tmp_path / "outputs" / "smoke")
    monkeypatch.setattr(artifacts, "ROOT", tmp_path)
    elsewhere = study.find_study(Outputs("smoke", outputs.params, tmp_path / "elsewhere"))
    assert elsewhere.folder == tmp_path / "outputs" / "smoke" / "study"
    assert elsewhere.summary.shares.equals(found.summary.shares)
    (elsewhere.folder / "shares.csv").write_text("harmed\n")
    with pytest.raises(
        MissingArtifactError, match=r"shares\.csv is missing or damaged; run \./run_all\.sh study smoke"
    ):
        study.find_study(Outputs("smoke", outputs.params, tmp_path / "elsewhere"))


def test_layouts_of_the_spec_are_refused(smoke_params, tmp_path):
    outputs = Outputs(
        "smoke", replace(smoke_params, study=Study(first_seed=2, layouts=5, training_layouts=3)), tmp_path
    )
    with pytest.raises(LeverError, match=re.escape("seeds 2 to 6 must not be among seeds = [0, 1, 2]")):
        study.run_study(outputs)
    assert not outputs.folder.exists()
    trained = replace(smoke_params, study=Study(training_first_seed=1, training_layouts=3))
    with pytest.raises(LeverError, match=re.escape("seeds 1 to 3 must not be among seeds = [0, 1, 2]")):
        study.run_study(Outputs("smoke", trained, tmp_path))


def test_what_came_with_a_clone_is_not_passed_for_its_own(studied, smoke_outputs, tmp_path, monkeypatch):
    """Tables of another machine's library, once this machine has trained its own."""
    outputs = Outputs("smoke", studied[0].params, tmp_path)
    shutil.copytree(smoke_outputs.folder / "composition", outputs.folder / "composition")
    outputs.enter("composition", read_manifest(smoke_outputs.folder)["composition"])
    shutil.copytree(studied[0].folder / "model", outputs.folder / "model")
    outputs.enter("model", read_manifest(studied[0].folder)["model"])
    monkeypatch.setattr(study, "_ask_part", lambda *rest: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        study.run_study(outputs)
    assert set(outputs.manifest()) == {"library", "pi2vec", "regressor", "model"}


def test_a_layout_that_cannot_be_drawn_is_found_before_anything_is_trained(smoke_params, tmp_path):
    crowded = replace(smoke_params, grid=replace(smoke_params.grid, blocks=12, hazards=14))
    outputs = Outputs("smoke", crowded, tmp_path)
    with pytest.raises(LeverError, match="seed 100: none of 200 draws"):
        study.run_study(outputs)
    assert not outputs.folder.exists()


def test_a_study_is_published_and_outlives_a_reset(studied, tmp_path):
    outputs, _ = studied
    folder = tmp_path / "smoke"
    shutil.copytree(outputs.folder, folder)
    assert {"study", "library"} <= set(read_manifest(folder))
    assert all(artifacts.is_published(name) for name in read_manifest(folder)["study"]["files"])
    artifacts.clear(folder)
    assert set(read_manifest(folder)) - {"ladder"} == {"model", "study"}
    assert (folder / "model" / "regressor.safetensors").is_file()
    assert study.find_study(Outputs("smoke", outputs.params, tmp_path)).layouts == 6


def test_what_a_study_holds_is_what_a_run_holds(studied, smoke_outputs):
    own = report.build_report(smoke_outputs).summary
    for name, table in vars(studied[1].summary).items():
        assert list(table) == list(vars(own)[name]), name
    assert set(experiment.RESULT_COLUMNS) > set(study._ROW_COLUMNS)
