import re
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from lever_lib import artifacts, experiment, report
from lever_lib.artifacts import Outputs
from lever_lib.envs.gridworld import make_layout
from lever_lib.envs.rewards import reward_system
from lever_lib.errors import MissingArtifactError
from lever_lib.params import load_params
from lever_lib.planning import optimum


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


def rows_of(spec):
    """Results that hold the optimum of every published problem."""
    grid = load_params(spec).grid
    published = report.published_comparison(pd.DataFrame(columns=[*KEYS, "return"]), spec, grid)
    best = {
        (seed, setup): optimum(make_layout(grid, seed), reward_system(setup, grid.legacy_gold_exit)).return_
        for seed, setup in published[["seed", "setup"]].drop_duplicates().itertuples(index=False)
    }
    returns = [best[seed, setup] for seed, setup in zip(published["seed"], published["setup"], strict=True)]
    return published[KEYS].assign(**{"return": returns}), grid


KEYS = ["setup", "library", "seed", "query_class", "strategy", "method"]


@pytest.mark.parametrize("spec", ["16x16", "32x32"])
def test_every_published_return_stands_beside_ours(spec):
    results, grid = rows_of(spec)
    table = report.published_comparison(results, spec, grid)
    assert len(table) == 270
    assert table["agrees"].all()
    results.loc[3, "return"] += 0.01
    assert not report.published_comparison(results.drop(index=7), spec, grid)["agrees"].iloc[[3, 7]].any()


def test_under_another_exit_rule_the_published_one_is_computed():
    results, grid = rows_of("16x16")
    newer = replace(grid, legacy_gold_exit=False)
    assert not report.same_exit_rule("16x16", newer)
    wrong = results.assign(**{"return": 0.0})
    assert report.published_comparison(wrong, "16x16", newer)["agrees"].all()


def test_nothing_is_compared_where_nothing_is_published(smoke, smoke_outputs):
    table = report.build_report(smoke_outputs).comparison
    assert table.columns.tolist() == [*KEYS, "published_return", "return", "agrees"]
    assert table.empty
