import re
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from lever_lib import artifacts, experiment, report
from lever_lib.artifacts import Outputs
from lever_lib.composition import everyday_methods
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
    found = report.build_report(smoke_outputs).summary
    results = experiment.load_results(smoke_outputs).results
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
    assert len(found.by("library", "query_class")) == 2 * 3 * len(overall)
    references = found.overall().query("method in @report.REFERENCES")
    assert references["stuck_share"].isna().all()


def test_improvements_are_those_of_the_results(smoke, smoke_outputs):
    found = report.build_report(smoke_outputs).summary.improvement
    results = experiment.load_results(smoke_outputs).results
    keys = ["library", "seed", "query_class", "setup"]
    wide = results.query("strategy == 'hybrid'").pivot_table(index=keys, columns="method", values="return")
    better = (wide["qsum"] > wide["gpi"]).mean() + (wide["qsum"] == wide["gpi"]).mean() / 2
    pairs = found.set_index(["strategy", "method", "over_strategy", "over_method"])
    assert pairs.loc[("hybrid", "qsum", "hybrid", "gpi"), "probability"] == pytest.approx(better, abs=1e-6)
    assert pairs.index.is_unique
    shown = report.improvement_pairs(found, "hybrid", ["qsum", "gpi"])
    assert shown["pair"].tolist() == [
        "qsum over gpi", "qsum over best single", "qsum over scratch", "gpi over best single", "gpi over scratch",
    ]  # fmt: skip


def test_readable_tables_say_what_the_shares_say(smoke, smoke_outputs):
    found = report.build_report(smoke_outputs).summary
    row = found.overall().query("method == 'qsum' and strategy == 'hybrid'").iloc[0]
    text = report.readable_shares(found.shares)["hybrid"]
    assert text["qsum", "mean"] == f"{row['share']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"
    assert text["qsum", "IQM"] == f"{row['iqm']:.3f} [{row['iqm_low']:.3f}, {row['iqm_high']:.3f}]"
    assert text["qsum", "stuck"] == f"{row['stuck_share']:.1%}"
    assert text["scratch", "stuck"] == ""
    direct = report.readable_direct(found)
    assert direct.columns.tolist() == ["direct", "targeted", "hybrid", "exhaustive", "library"]
    assert direct.index.tolist() == [method.name for method in everyday_methods()]
    assert direct.loc["qsum", "hybrid"] == text["qsum", "mean"]


def test_the_latex_table_says_what_the_shares_say(smoke, smoke_outputs):
    found = report.build_report(smoke_outputs)
    shares, returns = found.latex.split("\\end{table}")[:2]
    rows = {line.split(" & ")[0]: line for line in shares.splitlines() if "&" in line and line[0] != " "}
    assert set(rows) == {*(method.name for method in everyday_methods()), "best single", "scratch"}
    assert found.latex.count("toprule") == 2, "shares, then returns"
    gpi = found.summary.overall().query("method == 'gpi' and strategy == 'targeted'").iloc[0]
    assert f"{gpi['share']:.3f} [{gpi['low']:.3f}, {gpi['high']:.3f}]" in rows["gpi"]
    assert f"{gpi['return']:.1f} [{gpi['return_low']:.1f}, {gpi['return_high']:.1f}]" in returns
    assert f"the optimum is {gpi['optimum']:.1f}" in returns
    assert found.latex.count("{") == found.latex.count("}")
    assert not re.search(r"(?<!\\)%", found.latex), "a bare percent sign starts a comment in LaTeX"


def test_latex_takes_names_as_they_are(smoke, smoke_outputs):
    shares = report.build_report(smoke_outputs).summary.shares
    latex = report.latex_table(shares.assign(method=shares["method"].replace("gpi", "my_sum")), "my_grid")
    assert "my\\_sum & " in latex
    assert "optimum, my\\_grid: mean over 3 layouts" in latex
    assert "too narrow for so few" in latex


def test_tables_of_older_code_are_not_taken_for_whole(published):
    entry = published.manifest()["composition"]
    del entry["files"]["composition/sweep.csv"]
    published.enter("composition", entry)
    with pytest.raises(MissingArtifactError, match="built from other params or code"):
        report.build_report(published)


def test_published_tables_are_enough(published):
    found = report.build_report(published)
    assert (published.folder / "results" / "shares.csv").is_file()
    assert published.problem(experiment.STAGE).endswith("library is not built"), "and it is said"
    assert np.isfinite(found.summary.overall()["share"]).all()
    assert published.fresh(report.STAGE)


def test_tables_of_other_params_are_not_taken_for_those_of_the_library_that_is_here(
    smoke, smoke_outputs, smoke_params, tmp_path
):
    shutil.copytree(smoke_outputs.folder, tmp_path / "smoke")
    changed = Outputs("smoke", replace(smoke_params, grid=replace(smoke_params.grid, golds=3)), tmp_path)
    with pytest.raises(MissingArtifactError, match=r"library was built from other params or code; run notebook 0"):
        report.build_report(changed)
    damaged = tmp_path / "smoke" / "library" / "q_tables.npy"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    for outputs in (changed, Outputs("smoke", smoke_params, tmp_path)):
        with pytest.raises(MissingArtifactError, match=r"q_tables\.npy is missing or damaged; run notebook 0"):
            report.build_report(outputs)


@pytest.mark.parametrize("elsewhere", [False, True])
def test_published_tables_of_other_params_are_not_enough(published, smoke_params, monkeypatch, tmp_path, elsewhere):
    monkeypatch.setattr(artifacts, "ROOT", tmp_path)
    changed = replace(smoke_params, seeds=(7, 8, 9))
    outputs = Outputs("smoke", changed, tmp_path / "elsewhere" if elsewhere else tmp_path / "outputs")
    with pytest.raises(MissingArtifactError, match=r"(library|composition) is not built; run notebook 0"):
        report.build_report(outputs)
    assert outputs.problem(report.STAGE) is not None
    assert elsewhere or outputs.manifest() == published.manifest()


def test_published_tables_are_not_of_the_params_that_something_else_was_made_with(published, smoke_params):
    changed = Outputs("smoke", replace(smoke_params, seeds=(7, 8, 9)), published.folder.parent)
    changed.enter("notebooks/07_mine", {"key": "k", "root_seed": 0, "files": {}})
    with pytest.raises(MissingArtifactError, match=r"library is not built; run notebook 0"):
        report.build_report(changed)
    assert published.problem(report.STAGE).endswith("results is not built")
    report.build_report(published)


def test_another_root_takes_over_what_the_repository_holds(published, smoke_params, monkeypatch, tmp_path):
    monkeypatch.setattr(artifacts, "ROOT", tmp_path)
    elsewhere = Outputs("smoke", smoke_params, tmp_path / "elsewhere")
    found = report.build_report(elsewhere)
    assert found.summary.shares.equals(report.build_report(published).summary.shares)
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


@pytest.mark.parametrize("spec", ["16x16", "32x32"])
def test_published_averages_are_those_of_the_published_rows(spec):
    """The averages that ship are those of the rows that ship, where both do."""
    rows = report._published("published_exnonzero.csv", spec)
    means = rows.groupby(["library", "query_class", "strategy"])["published_return"].agg(["mean", "size"])
    averages = report._published("published_averages.csv", spec).query(
        "method == 'exnonzero' and strategy != 'scratch'"
    )
    averages = averages.set_index(["library", "query_class", "strategy"])
    assert len(averages) == len(means) == 27
    assert averages["published_return"].to_numpy() == pytest.approx(
        means.loc[averages.index, "mean"].to_numpy(), abs=1e-3
    )
    assert (averages["rows"] == means.loc[averages.index, "size"]).all()


def test_averages_stand_beside_ours_under_their_own_optimum(smoke, smoke_outputs):
    params = load_params("16x16")
    shares = report.build_report(smoke_outputs).summary.shares.assign()
    shares["library"] = shares["library"].replace({"X1": "X10"})
    averages = report.published_averages(shares, "16x16", params)
    assert len(averages) == 72
    exact = averages.query("method == 'exnonzero' and strategy != 'scratch'")
    assert exact["published_share"].to_numpy() == pytest.approx(np.ones(27), abs=1e-5), "it reaches the optimum"
    ours = averages.query("library == 'X10' and method == 'qsum' and strategy == 'scratch' and query_class == 'double'")
    row = shares.query("library == 'X10' and query_class == 'double' and setup == 'all' and method == 'scratch'").iloc[
        0
    ]
    assert ours["return"].iloc[0] == row["return"]
    assert averages.query("library == 'X1'")["return"].isna().all(), "this run has no such library"
    other = replace(params, seeds=(0, 1, 7))
    elsewhere = report.published_averages(shares, "16x16", other)
    assert elsewhere["return"].isna().all(), "other layouts are no comparison"
    assert (elsewhere["published_optimum"] == averages["published_optimum"]).all()
    pooled = report.pooled_averages(averages.fillna(0.0), shares).round(2)
    # 189.9, 170.5, 185.5 and 185.1 of 241.9, as an independent reading of the published qsum tables has it
    assert pooled.loc["qsum", "published_return"].to_dict() == pytest.approx(
        {"scratch": 189.94, "targeted": 170.52, "exhaustive": 185.48, "hybrid": 185.14}, abs=0.011
    )
    assert pooled.loc["qsum", "published_share"].tolist() == [0.79, 0.70, 0.77, 0.77]


def test_published_seconds_stand_apart_from_ours():
    timings = pd.DataFrame(
        {
            "library": "X5",
            "query_class": ["trivial", "double"],
            "setup": ["path-gold", "path-gold-hazard"],
            "strategy": "hybrid",
            "method": "qsum",
            **dict.fromkeys(["seconds_decompose", "seconds_search", "seconds_compose", "seconds_score"], 0.25),
            "scratch_seconds": 10.0,
        }
    )
    table = report.all_seconds(timings, "16x16")
    row = table.query("library == 'X5' and query_class == 'trivial' and setup == 'all'").iloc[0]
    assert (row["seconds"], row["speedup"], row["published_seconds"]) == (1.0, 10.0, 23.7)
    assert row["speedup_over_published_scratch"] == row["published_scratch_seconds"] == pytest.approx(62.7, abs=3)
    assert np.isnan(row["published_seconds_with_decompose"]), "the qsum tables do not say"
    overall = report.overall(table).iloc[0]
    assert overall["published_seconds"] == pytest.approx(14.26, abs=0.01), "of all libraries, classes by their rows"
    assert report.all_seconds(timings, "8x8")["published_seconds"].isna().all()


def test_hybrid_seconds_stand_beside_those_of_all_combinations():
    rows = [
        (query, setup, strategy, method, 0.2 * factor, 0.1 * factor)
        for query, setup in (
            ("trivial", "path-gold"),
            ("trivial", "path-gold-hazard-lever"),
            ("double", "path-gold-hazard"),
        )
        for method, scale in (("qsum", 1), ("gpi", 3))
        for strategy, factor in (("targeted", 1), ("hybrid", 2 * scale), ("exhaustive", 8 * scale), ("library", 5))
    ]
    columns = ["query_class", "setup", "strategy", "method", "seconds_compose", "seconds_score"]
    table = report.hybrid_seconds(pd.DataFrame(rows, columns=columns))
    counted = [["qsum", 2, 2], ["qsum", 4, 1], ["gpi", 2, 2], ["gpi", 4, 1]]
    assert table[["method", "parts", "rows"]].to_numpy().tolist() == counted
    assert table["hybrid"].tolist() == pytest.approx([0.6, 0.6, 1.8, 1.8])
    assert table["ratio"].tolist() == pytest.approx([0.25] * 4)
