import matplotlib

matplotlib.use("Agg")

import numpy as np
import pandas as pd
import pytest

from lever_lib import behaviour, plots
from lever_lib.artifacts import Outputs, file_hash
from lever_lib.params import load_params


def test_a_figure_is_written_twice_to_the_same_bytes(corridor, tmp_path):
    outputs = Outputs("smoke", load_params("smoke"), tmp_path)
    digests = []
    for _ in range(2):
        figure = plots.layout_paths(corridor.cells, {"a": np.array([0, 2]), "b": np.array([0, 8])}, "corridor")
        plots.save_figure(figure, outputs, "00_test")
        digests.append([file_hash(path) for path in sorted((tmp_path / "smoke" / "figures").iterdir())])
        matplotlib.pyplot.close(figure)
    assert digests[0] == digests[1]
    assert sorted(path.name for path in (tmp_path / "smoke" / "figures").iterdir()) == ["00_test.pdf", "00_test.png"]


def test_the_users_own_style_changes_nothing(corridor, tmp_path):
    outputs = Outputs("smoke", load_params("smoke"), tmp_path)
    own = {"savefig.facecolor": "yellow", "axes.grid": True, "font.size": 20, "figure.constrained_layout.h_pad": 1}
    digests = []
    for style in ({}, own):
        with matplotlib.rc_context(style):
            figure = plots.layout_paths(corridor.cells, {"a": np.array([0, 2])}, "corridor")
            plots.save_figure(figure, outputs, "00_test")
        digests.append([file_hash(path) for path in sorted((tmp_path / "smoke" / "figures").iterdir())])
    assert digests[0] == digests[1]


def test_a_dozen_paths_are_told_apart(corridor):
    figure = plots.layout_paths(corridor.cells, {f"{n}": np.array([0, 2]) for n in range(12)}, "corridor")
    handles = figure.legends[0].get_lines()
    looks = {
        (handle.get_color(), handle.get_linestyle(), str(handle._dash_pattern))
        for handle in handles
        if handle.get_linestyle() != "None"
    }
    assert len(looks) == 12


@pytest.fixture(autouse=True)
def closed():
    yield
    matplotlib.pyplot.close("all")


def legend_of(figure):
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def test_a_map_shows_every_policy_by_what_it_was_trained_for_and_joins_its_snapshots():
    points = np.random.default_rng(0).normal(size=(10, 2))
    runs = pd.Series(list("aaaabbbbbb"))
    figure = plots.embedding_map(points, runs.map({"a": "path", "b": "gold"}), runs, "map")
    lines = figure.axes[0].lines
    assert [len(line.get_xdata()) for line in lines] == [4, 3, 1, 6, 5, 1]
    assert lines[1].get_marker() == lines[2].get_marker() != lines[4].get_marker()
    assert lines[2].get_markersize() > lines[1].get_markersize()
    assert legend_of(figure) == ["path", "gold"]


@pytest.mark.parametrize(("policies", "features"), [(0, 5), (1, 5), (2, 5), (3, 0), (3, 1)])
def test_a_map_of_few_policies_or_of_such_as_do_not_differ_is_drawn_too(policies, features):
    vectors = np.random.default_rng(0).normal(size=(policies, features))
    points, share = behaviour.plane(vectors)
    assert points.shape == (policies, 2)
    assert share == pytest.approx(1.0)
    names = pd.Series(["gold"] * policies, dtype=str)
    plots.embedding_map(points, names, names, "few").canvas.draw()


def test_what_neighbours_share_has_a_row_per_representation():
    table = pd.DataFrame({"ablation": ["representation"] * 2 + ["gamma"], "value": ["chance", "text", "0.9"]})
    for name in ("cells", "gap"):
        table[[name, f"{name}_low", f"{name}_high"]] = [[0.5, 0.4, 0.6]] * 3
    figure = plots.neighbours(table, {"cells": "same cells", "gap": "difference"}, "neighbours")
    assert [axes.get_xlabel() for axes in figure.axes] == ["same cells", "difference"]
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["chance", "text", "gamma: 0.9"]


def test_a_learning_curve_shows_every_draw_and_the_goal():
    curve = pd.DataFrame({"layouts": [2, 2, 4], "r2": [-50.0, 0.5, 0.9], "nmae": [0.2, 0.1, 0.05]})
    figure = plots.learning_curve(curve, {"r2": 0.8, "nmae": 0.1}, {"r2": "R2", "nmae": "error"}, "curve")
    first = figure.axes[0]
    assert first.lines[0].get_xdata().tolist() == [2, 2, 4]
    assert first.lines[2].get_ydata()[0] == 0.8
    assert [axes.get_title() for axes in figure.axes] == ["R2", "error"]


def test_predictions_of_stuck_policies_stand_apart():
    pairs = pd.DataFrame({"return": [1.0, 2.0, 3.0], "predicted": [1.0, 2.5, 0.0], "stuck": [False, True, False]})
    axes = plots.predicted_against_true(pairs, "pairs").axes[0]
    assert [len(line.get_xdata()) for line in axes.lines] == [2, 1, 2]
    assert axes.get_xlabel() == "true return"


def test_cosines_are_written_into_their_cells():
    figure = plots.cosine_table(pd.DataFrame([[0.1, 0.9]], ["q"], ["a", "b"]), "cosines")
    assert [text.get_text() for text in figure.axes[0].texts] == ["0.10", "0.90"]


SUMMARY = pd.DataFrame(
    {
        "strategy": ["targeted", "targeted", "library", "library"],
        "method": ["qsum", "gpi"] * 2,
        "share": [0.5, 0.9, 0.6, 1.0],
        "low": [0.4, 0.8, np.nan, 1.0],
        "high": [0.7, 0.95, np.nan, 1.0],
        "stuck_share": [0.2, 0.0, 0.1, 0.0],
    }
)


def test_shares_with_intervals_and_stuck_policies_beside_them():
    references = {"scratch": pd.DataFrame({"strategy": ["targeted", "library"], "share": [0.8, 0.8]})}
    figure = plots.share_of_optimum(SUMMARY, references, "shares")
    left, right = figure.axes
    assert [text.get_text() for text in left.get_yticklabels()] == ["targeted", "library"]
    drawn = [segment for lines in left.collections for segment in lines.get_segments()]
    assert sorted(round(segment[0][0], 2) for segment in drawn) == [0.4, 0.6, 0.8, 1.0], "without interval: the point"
    assert sorted(bar.get_width() for bar in right.patches) == [0, 0, 10, 20]
    assert legend_of(figure) == ["qsum", "gpi", "scratch"]


def test_a_group_is_a_row():
    figure = plots.share_by_group(SUMMARY, "strategy", "groups")
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == ["targeted", "library"]


def test_seconds_stand_on_a_log_axis():
    summary = SUMMARY.rename(columns={"share": "seconds"}).assign(scratch_seconds=3.0)
    figure = plots.seconds_of_a_query(summary, "time")
    assert figure.axes[0].get_xscale() == "log"
    assert legend_of(figure) == ["qsum", "gpi", "SARSA from scratch"]


def test_improvements_stand_in_the_order_of_the_table():
    table = pd.DataFrame({"pair": ["a over b", "a over c"], "probability": [0.9, 0.5], "low": 0.4, "high": 1.0})
    axes = plots.improvements(table, "pairs").axes[0]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["a over b", "a over c"]
    assert [line.get_xdata()[0] for line in axes.lines if line.get_linestyle() == ":"] == [0.5]


def test_budgets_side_by_side_in_a_panel_per_class():
    rows = [(lib, cls, m, v) for cls in ("trivial", "double") for lib in ("X1", "X5") for m, v in (("a", 1), ("b", 2))]
    summary = pd.DataFrame(rows, columns=["library", "query_class", "method", "value"])
    summary = summary.assign(low=0.5, high=2.5, best=3.0)
    figure = plots.by_library(summary, "value", "seconds", True, {"best": "the best"}, "budgets")
    assert [axes.get_title() for axes in figure.axes] == ["trivial", "double"]
    assert figure.axes[0].get_yscale() == "log"
    assert [text.get_text() for text in figure.axes[1].get_xticklabels()] == ["X1", "X5"]
    assert legend_of(figure) == ["a", "b", "the best"]


def test_more_than_there_are_colours_are_all_drawn_and_told_apart():
    many = [f"m{number}" for number in range(23)]
    rows = pd.DataFrame({"method": many, "library": "X1", "query_class": "double", "strategy": "hybrid"})
    summary = rows.assign(value=np.arange(23.0), low=0.0, high=30.0, best=-1.0)
    figure = plots.by_library(summary, "value", "seconds", False, {"best": "the best"}, "many")
    entries = dict(zip(legend_of(figure), figure.legends[0].legend_handles, strict=True))
    assert [*entries] == [*many, "the best"]
    assert entries["the best"].get_marker() in ("None", "", "_")
    assert len({(line.get_color(), line.get_marker()) for line in entries.values()}) == 24
    budgets = pd.DataFrame({"library": many, "episodes": np.arange(1, 24)})
    figure = plots.learning_curves(
        budgets.assign(setup="path", greedy_return=1.0, greedy_stuck=False), {"path": 7.0}, "many"
    )
    drawn = [line for line in figure.axes[0].lines if len(line.get_xdata()) == 1]
    assert [line.get_xdata()[0] for line in drawn] == [*range(1, 24)]
    assert len({(line.get_color(), line.get_linestyle()) for line in drawn}) == 23


def test_the_sweep_shows_what_was_chosen_predicted_and_possible():
    sweep = pd.DataFrame({"method": ["a", "a", "b", "b"], "k": [2, 3] * 2, "optimum": 9.0})
    for level, name in enumerate(("return", "predicted", "best")):
        column = "return" if name == "return" else f"{name}_return"
        sweep = sweep.assign(**{column: float(level), f"{name}_low": level - 1.0, f"{name}_high": level + 1.0})
    figure = plots.k_sweep(sweep, "sweep")
    assert [axes.get_title() for axes in figure.axes] == ["a", "b"]
    assert [line.get_ydata()[0] for line in figure.axes[0].lines] == [2.0, 0.0, 1.0, 9.0]
    assert len(legend_of(figure)) == 4


def test_growth_writes_its_exponents():
    costs = pd.DataFrame({"grows": "k", "value": [1, 2, 4], "method": "a", "seconds": [1.0, 4.0, 16.0]})
    exponents = pd.DataFrame({"grows": ["k"], "method": ["a"], "exponent": [2.0]})
    axes = plots.growth(costs, exponents, {"k": "candidates"}, "costs").axes[0]
    assert (axes.get_xscale(), axes.get_yscale(), axes.get_xlabel()) == ("log", "log", "candidates")
    assert [text.get_text() for text in axes.texts] == ["a: 2.00"]


def test_learning_curves_mark_stuck_policies_and_the_optimum():
    curves = pd.DataFrame(
        {
            "setup": ["path"] * 4,
            "library": ["X1", "X1", "X5", "X5"],
            "episodes": [10, 20, 10, 20],
            "greedy_return": [-9.0, 5.0, 4.0, 6.0],
            "greedy_stuck": [True, False, False, False],
        }
    )
    figure = plots.learning_curves(curves, {"path": 7.0, "gold": 1.0}, "curves")
    assert legend_of(figure) == ["optimum", "X1", "X5", "stuck"]
    crosses = [line for line in figure.axes[0].lines if line.get_marker() == "x"]
    assert [point for line in crosses for point in line.get_ydata()] == [-9.0]
    assert figure.axes[0].lines[0].get_ydata()[0] == 7.0


def test_a_layout_shows_everything_in_it(corridor):
    figure = plots.layout_panels(corridor.cells, {"one": [np.array([0, 2])], "two": [np.array([0, 8])]}, ["p"], "world")
    assert set(legend_of(figure)) == {"p", "gold", "lever", "hazard", "block", "exit"}
    golds = figure.axes[0].collections[0].get_offsets()
    assert sorted(map(tuple, golds.tolist())) == [(2, 0), (2, 3)]


def test_the_callers_style_is_left_alone_and_notebooks_keep_showing(corridor):
    size = matplotlib.rcParams["font.size"]
    matplotlib.interactive(True)
    try:
        plots.layout_paths(corridor.cells, {"a": np.array([0, 2])}, "corridor")
        assert matplotlib.rcParams["font.size"] == size
        assert matplotlib.is_interactive()
    finally:
        matplotlib.interactive(False)


def test_what_is_lost_is_stacked(tmp_path):
    rows = [("hybrid", name, lost, 0.0, 0.5, 0.1, 0.0, 0.2) for name, lost in (("qsum", 0.2), ("gpi", 0.1))]
    ends = ["coverage_low", "coverage_high", "composition", "composition_low", "composition_high"]
    figure = plots.regret_parts(pd.DataFrame(rows, columns=["strategy", "method", "coverage", *ends]), "lost")
    bars = figure.axes[0].patches
    places = [(bar.get_x(), bar.get_width()) for bar in bars]
    np.testing.assert_allclose(places, [(0, 20), (0, 10), (20, 10), (10, 10)])
    assert legend_of(figure) == ["coverage: the policies lack it", "composition: the composer lost it"]


def test_every_change_of_a_library_has_its_panel():
    rows = [
        (change, value, method, 0.5, 0.4, 0.6)
        for change, values in (("snapshots", (1, 2)), ("budget", ("X1", "X5", "X10")))
        for value in values
        for method in ("gpi", "switch")
    ]
    changes = pd.DataFrame(rows, columns=["change", "value", "method", "share", "low", "high"])
    figure = plots.library_changes(changes, {"snapshots": "kept", "budget": "episodes"}, "changes")
    assert [axes.get_xlabel() for axes in figure.axes[:2]] == ["kept", "episodes"]
    assert [label.get_text() for label in figure.axes[1].get_xticklabels()] == ["X1", "X5", "X10"]
    assert legend_of(figure) == ["gpi", "switch"]


def test_each_judge_has_a_line_in_the_panel_of_each_method():
    rows = [(method, judge, k, 0.01 * k, 0, 0.1) for method in ("qsum", "gpi") for judge in "ab" for k in (1, 2)]
    columns = ["method", "judge", "k", "regret", "regret_low", "regret_high"]
    figure = plots.choice_by_judge(pd.DataFrame(rows, columns=columns), "choice")
    assert [line.get_ydata().tolist() for line in figure.axes[0].lines] == [pytest.approx([1, 2])] * 2
    assert legend_of(figure) == ["a", "b"]
