import re
import shutil

import numpy as np
import pytest

from lever_lib import artifacts, experiment, report
from lever_lib.artifacts import Outputs
from lever_lib.errors import MissingArtifactError


@pytest.fixture
def published(smoke, smoke_outputs, smoke_params, tmp_path):
    """A clone: finished tables and their manifest, and nothing that was trained."""
    folder = tmp_path / "outputs" / "smoke"
    (folder / "composition").mkdir(parents=True)
    shutil.copy(smoke_outputs.folder / "manifest.json", folder)
    for path in (smoke_outputs.folder / "composition").iterdir():
        shutil.copy(path, folder / "composition")
    return Outputs("smoke", smoke_params, tmp_path / "outputs")


def test_shares_are_those_of_the_results(smoke, smoke_outputs):
    found = report.build_report(smoke_outputs)
    results, _ = experiment.load_results(smoke_outputs)
    overall = found.overall().set_index(["strategy", "method"])
    for (strategy, method), part in results.groupby(["strategy", "method"]):
        row = overall.loc[(strategy, method)]
        assert row["share"] == pytest.approx((part["return"] / part["optimum"]).mean(), abs=1e-6)
        assert row["stuck_share"] == pytest.approx(part["stuck"].mean(), abs=1e-6)
        assert row["low"] <= row["share"] <= row["high"]
    hybrid = results.query("strategy == 'hybrid' and method == 'gpi'")
    assert overall.loc[("hybrid", "scratch"), "share"] == pytest.approx(
        (hybrid["scratch_return"] / hybrid["optimum"]).mean(), abs=1e-6
    )
    assert found.by("query")["query"].nunique() == 6
    assert found.by("library")["library"].unique().tolist() == ["X1", "X5"]


def test_the_latex_table_says_what_the_shares_say(smoke, smoke_outputs):
    found = report.build_report(smoke_outputs)
    rows = {line.split(" & ")[0]: line for line in found.latex.splitlines() if "&" in line and line[0] != " "}
    assert set(rows) == {"qsum", "gpi", "exnonzero", "best single", "scratch"}
    gpi = found.overall().query("method == 'gpi' and strategy == 'targeted'").iloc[0]
    assert f"{gpi['share']:.3f} [{gpi['low']:.3f}, {gpi['high']:.3f}]" in rows["gpi"]
    assert found.latex.count("{") == found.latex.count("}")
    assert not re.search(r"(?<!\\)%", found.latex), "a bare percent sign starts a comment in LaTeX"


def test_published_tables_are_enough(published):
    found = report.build_report(published)
    assert (published.folder / "results" / "shares.csv").is_file()
    assert published.problem(experiment.STAGE).endswith("library is not built"), "and it is said"
    assert np.isfinite(found.overall()["share"]).all()
    assert published.fresh(report.STAGE)


def test_another_root_takes_over_what_the_repository_holds(published, smoke_params, monkeypatch, tmp_path):
    monkeypatch.setattr(artifacts, "ROOT", tmp_path)
    elsewhere = Outputs("smoke", smoke_params, tmp_path / "elsewhere")
    found = report.build_report(elsewhere)
    assert found.shares.equals(report.build_report(published).shares)
    assert not elsewhere.fresh(experiment.STAGE), "the experiment itself is not here"


def test_damaged_published_files_are_not_taken_over(published, smoke_params, monkeypatch, tmp_path):
    monkeypatch.setattr(artifacts, "ROOT", tmp_path)
    (published.folder / "composition" / "results.csv").write_text("spec\n")
    with pytest.raises(MissingArtifactError, match="05_composition"):
        report.build_report(Outputs("smoke", smoke_params, tmp_path / "elsewhere"))


def test_without_results_the_notebook_to_run_is_named(smoke_params, monkeypatch, tmp_path):
    monkeypatch.setattr(artifacts, "ROOT", tmp_path / "a clone without results")
    with pytest.raises(MissingArtifactError, match="run notebook 05_composition"):
        report.build_report(Outputs("smoke", smoke_params, tmp_path))


def test_damaged_published_results_are_named(published):
    (published.folder / "composition" / "results.csv").write_text("spec\n")
    with pytest.raises(MissingArtifactError, match=r"results\.csv is missing or damaged"):
        report.build_report(published)
