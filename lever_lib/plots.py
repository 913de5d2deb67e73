"""Figures. Tables and arrays in, matplotlib figures out; nothing here computes a result.

Colours come from a palette that colour-blind readers can tell apart, and never carry meaning alone. Figures are narrow
and their legends stand below, so that a phone shows them at a readable size.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import ParamSpec, TypeVar

import matplotlib
import matplotlib.pyplot as plt
import matplotlib.ticker
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from lever_lib.artifacts import DRAWN, Outputs, is_plain, write_whole
from lever_lib.errors import LeverError
from lever_lib.looks import GRID_LINE, LOOKS
from lever_lib.pictures import smaller

PALETTE = sns.color_palette("colorblind")
MARKERS = ["o", "s", "^", "D", "v", "P", "X", "*", "h", "<"]
STYLE = {
    "figure.dpi": 110,
    "savefig.dpi": 160,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": "medium",
    "font.size": 10.5,
}
WIDTH = 5.6  # inches
_PATH_LINES = ["-", (0, (4, 2)), "-.", ":"]
# How matplotlib calls the shapes of `looks`: marker, share of a cell, filled.
_SHAPES = {
    "diamond": ("D", 0.42, True),
    "triangle": ("^", 0.55, True),
    "cross": ("X", 0.55, True),
    "full": ("s", 0.9, True),
    "frame": ("s", 0.62, False),
}


Arguments = ParamSpec("Arguments")
Name = TypeVar("Name")


@contextmanager
def _style() -> Iterator[None]:
    """The project's style, whatever the caller's own figures look like."""
    with plt.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        yield


def _styled(draw: Callable[Arguments, Figure]) -> Callable[Arguments, Figure]:
    """Draw in the project's style without changing the style of the caller's own figures."""

    @wraps(draw)
    def styled(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Figure:
        """Draw, in the project's style."""
        with _style():
            figure = draw(*args, **kwargs)
            interactive = plt.isinteractive()
        # Notebooks switch this on with their first figure; without it no later figure would be shown.
        matplotlib.interactive(interactive)
        return figure

    return styled


def save_figure(figure: Figure, outputs: Outputs, name: str) -> None:
    """Write a figure as PNG and PDF under `figures/` of the spec, without dates: same figure, same bytes.

    In a run they come there when the notebook is finished, together with it.

    Args:
        figure: to write.
        outputs: of the spec.
        name: file name without ending; begins with the number of its notebook.

    Raises:
        LeverError: if no file can be called so, or the system does not let it be written.
    """
    if not is_plain(name):
        raise LeverError(f"name {name!r}: must be the name of a file, in letters that can be read")
    folder = Path(os.environ.get(DRAWN) or outputs.folder / "figures")
    folder.mkdir(parents=True, exist_ok=True)
    for ending, metadata in (("png", {"Software": None}), ("pdf", {"CreationDate": None, "Creator": None})):
        drawn = io.BytesIO()
        with _style():
            figure.savefig(drawn, format=ending, metadata=metadata)
        write_whole(folder / f"{name}.{ending}", smaller(drawn.getvalue()) if ending == "png" else drawn.getvalue())


@_styled
def layout_paths(cells: np.ndarray, paths: dict[str, np.ndarray], title: str) -> Figure:
    """A layout with paths drawn on it.

    Args:
        cells: cell codes, int (N, N).
        paths: cells of each path by its label, int (T + 1,).
        title: above the figure.
    """
    figure, axes = plt.subplots(figsize=(WIDTH, WIDTH), layout="constrained")
    things = _draw_layout(axes, cells, WIDTH * 0.72)
    lines = _draw_paths(axes, len(cells), list(paths.values()))
    axes.set(title=title, xlabel="column", ylabel="row")
    _legend_below(figure, [*lines, *things], [*paths, *(thing.get_label() for thing in things)])
    return figure


@_styled
def layout_panels(cells: np.ndarray, panels: dict[str, list[np.ndarray]], labels: list[str], title: str) -> Figure:
    """The same layout several times, each with paths of its own.

    Args:
        cells: cell codes, int (N, N).
        panels: paths by the panel's title, each int (T + 1,).
        labels: what the first, second ... path of every panel is.
        title: above the figure.
    """
    rows = -(-len(panels) // 2)
    figure, grid = plt.subplots(rows, 2, figsize=(WIDTH, 2.9 * rows + 0.9), layout="constrained", squeeze=False)
    for axes in grid.flat[len(panels) :]:
        axes.set_axis_off()
    for axes, (name, paths) in zip(grid.flat, panels.items(), strict=False):
        things = _draw_layout(axes, cells, 2.4)
        lines = _draw_paths(axes, len(cells), paths)
        axes.set(title=name, xticks=[], yticks=[])
    figure.suptitle(title, fontsize="medium")
    _legend_below(figure, [*lines, *things], [*labels, *(thing.get_label() for thing in things)])
    return figure


def _draw_layout(axes: Axes, cells: np.ndarray, inches: float) -> list[Line2D]:
    """The things in a layout, on axes about `inches` wide; returns what a legend needs."""
    size = len(cells)
    cell = inches * 72 / size  # points
    handles = []
    for code, look in LOOKS.items():
        rows, columns = np.nonzero(cells == code)
        if len(rows) == 0:
            continue
        marker, share, filled = _SHAPES[look.shape]
        fill = look.colour if filled else "none"
        axes.scatter(
            columns, rows, (share * cell) ** 2, fill, marker=marker, edgecolors=look.colour, linewidths=1.6, zorder=2
        )
        handles.append(
            Line2D([], [], color=look.colour, marker=marker, linestyle="", markerfacecolor=fill, label=look.name)
        )
    ticks = range(0, size, max(1, size // 8))
    axes.set(xlim=(-0.5, size - 0.5), ylim=(size - 0.5, -0.5), aspect="equal", xticks=ticks, yticks=ticks)
    for line in np.arange(size + 1) - 0.5:
        axes.axhline(line, color=GRID_LINE, linewidth=0.5, zorder=0)
        axes.axvline(line, color=GRID_LINE, linewidth=0.5, zorder=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.tick_params(length=0)
    return handles


def _draw_paths(axes: Axes, size: int, paths: list[np.ndarray]) -> list[Line2D]:
    """Paths side by side, so that none hides another; returns what a legend needs."""
    shifts = np.linspace(-0.14, 0.14, len(paths)) if len(paths) > 1 else [0.0]
    handles = []
    colours = _path_colours()
    for number, (path, shift) in enumerate(zip(paths, shifts, strict=True)):
        turn, place = divmod(number, len(colours))
        colour, dash = colours[place], _PATH_LINES[(place + turn) % len(_PATH_LINES)]
        rows, columns = np.divmod(path, size)
        handles += axes.plot(
            columns + shift, rows + shift, linestyle=dash, color=colour, marker="o", markersize=3.5, zorder=3, alpha=0.9
        )
    return handles


def _path_colours() -> list[str]:
    """Of paths: black and purple first, which no thing in a layout has."""
    return ["#000000", "#cc79a7", "#56b4e9", "#8c564b"]


def _looks(names: Iterable[Name]) -> Iterator[tuple[Name, tuple[float, float, float], str]]:
    """Each name with a colour and a marker; no two of the first hundred share both."""
    for number, name in enumerate(names):
        turn, place = divmod(number, len(PALETTE))
        yield name, PALETTE[place], MARKERS[(place + turn) % len(MARKERS)]


def _legend_below(figure: Figure, handles: list[Line2D], labels: list[str], columns: int = 3) -> None:
    figure.legend(
        handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize="small", columnspacing=1.2
    )


@_styled
def learning_curves(curves: pd.DataFrame, optima: dict[str, float], title: str) -> Figure:
    """Return of the greedy policy while it learns, one panel per reward system, against the exact optimum.

    Args:
        curves: columns `setup, library, episodes, greedy_return, greedy_stuck`, of one layout.
        optima: best possible return by set-up.
        title: above the figure.
    """
    rows = -(-len(optima) // 2)
    figure, grid = plt.subplots(
        rows, 2, figsize=(WIDTH, 1.75 * rows + 0.8), sharex=True, layout="constrained", squeeze=False
    )
    lines: dict[str, Line2D] = dict.fromkeys(["optimum", *curves["library"].unique(), "stuck"])  # order of the legend
    for axes, (setup, best) in zip(grid.flat, optima.items(), strict=False):
        lines["optimum"] = axes.axhline(best, color="black", linewidth=1, linestyle=":")
        mine = curves[curves["setup"] == setup]
        for number, (library, curve) in enumerate(mine.groupby("library", sort=False)):
            turn, place = divmod(number, len(PALETTE))
            look = {"color": PALETTE[place], "linestyle": _PATH_LINES[turn % len(_PATH_LINES)], "linewidth": 1.2}
            [lines[str(library)]] = axes.plot("episodes", "greedy_return", data=curve, **look)
            stuck = curve[curve["greedy_stuck"]]
            [lines["stuck"]] = axes.plot(
                stuck["episodes"], stuck["greedy_return"], "x", color="#d55e00", markersize=5, zorder=3
            )
        axes.set(xscale="log")
        axes.set_title(setup, fontsize="small")
        axes.tick_params(labelsize="small")
    for axes in grid[-1]:
        axes.set_xlabel("episodes", fontsize="small")
    for axes in grid.flat[len(optima) :]:
        axes.set_axis_off()
    figure.suptitle(title, fontsize="medium")
    figure.supylabel("return of the greedy policy", fontsize="small")
    _legend_below(figure, list(lines.values()), list(lines), columns=5)
    return figure


@_styled
def embedding_map(coordinates: np.ndarray, setups: pd.Series, runs: pd.Series, title: str) -> Figure:
    """Policies as points in a plane, coloured by what they were trained for; snapshots of a run joined.

    Args:
        coordinates: float (P, 2).
        setups: reward system of each policy, (P,).
        runs: training run of each policy, (P,); its snapshots in order, the last one drawn bigger.
        title: above the figure.
    """
    figure, axes = plt.subplots(figsize=(WIDTH, 5.6), layout="constrained")
    looks = {setup: (marker, colour) for setup, colour, marker in _looks(setups.unique())}
    for run in runs.unique():
        mine = (runs == run).to_numpy()
        points, (marker, colour) = coordinates[mine], looks[setups[mine].iloc[0]]
        axes.plot(*points.T, "-", color=colour, linewidth=0.7, alpha=0.5, zorder=1)
        axes.plot(*points[:-1].T, marker, color=colour, markersize=3.5, alpha=0.6, markeredgewidth=0)
        axes.plot(*points[-1:].T, marker, color=colour, markersize=8, alpha=0.85, markeredgewidth=0)
    handles = [Line2D([], [], color=colour, marker=marker, linestyle="") for marker, colour in looks.values()]
    axes.set(title=title, xlabel="first principal component", ylabel="second principal component")
    _legend_below(figure, handles, list(looks), columns=2)
    return figure


@_styled
def neighbours(table: pd.DataFrame, measures: dict[str, str], title: str) -> Figure:
    """What a policy shares with its nearest neighbour, by what represents policies: a panel per measure.

    Args:
        table: columns `ablation, value`, and of each measure its value, `<measure>_low` and `<measure>_high`.
        measures: columns to show, and what to call them.
        title: above the figure.
    """
    figure, grid = plt.subplots(
        1, len(measures), figsize=(WIDTH, 0.2 * len(table) + 1.2), layout="constrained", sharey=True, squeeze=False
    )
    groups = table["ablation"].to_numpy()
    places = np.arange(len(table)) + np.concatenate([[0], (groups[1:] != groups[:-1]).cumsum()])
    for axes, (measure, label) in zip(grid[0], measures.items(), strict=True):
        for group, colour, marker in _looks(dict.fromkeys(groups)):
            rows = groups == group
            part = table[rows]
            ends = np.stack([part[measure] - part[f"{measure}_low"], part[f"{measure}_high"] - part[measure]])
            axes.errorbar(
                part[measure], places[rows], xerr=np.nan_to_num(np.abs(ends)), fmt=marker,
                color=colour, markersize=5, capsize=2, elinewidth=1.1,
            )  # fmt: skip
        axes.set_xlabel(label, fontsize="small")
        axes.grid(axis="x", color=GRID_LINE, linewidth=0.5)
    labels = [
        value if group == "representation" else f"{group}: {value}"
        for group, value in zip(groups, table["value"], strict=True)
    ]
    grid[0, 0].set(yticks=places, yticklabels=labels, ylim=(places[-1] + 0.7, -0.7))
    grid[0, 0].tick_params(axis="y", labelsize="small")
    figure.suptitle(title, fontsize="medium")
    return figure


@_styled
def learning_curve(curve: pd.DataFrame, goals: dict[str, float], labels: dict[str, str], title: str) -> Figure:
    """Scores against the number of layouts that a model was fitted on, a panel per score.

    Args:
        curve: columns `layouts` and the scores; a row per draw.
        goals: what was to be reached, by score.
        labels: of the scores shown, in order.
        title: above the figure.
    """
    figure, grid = plt.subplots(1, len(labels), figsize=(WIDTH, 3.0), layout="constrained", squeeze=False)
    counts = curve["layouts"].unique()
    for axes, (score, label) in zip(grid[0], labels.items(), strict=True):
        axes.plot("layouts", score, "o", data=curve, color=PALETTE[0], markersize=4, alpha=0.7, markeredgewidth=0)
        axes.plot(counts, curve.groupby("layouts")[score].median(), color=PALETTE[0], linewidth=1.2)
        axes.axhline(goals[score], color="black", linewidth=0.8, linestyle="--")
        axes.set(xscale="log", xticks=counts, xticklabels=counts, xlabel="layouts fitted on")
        axes.minorticks_off()
        axes.set_title(label, fontsize="small")
        axes.tick_params(labelsize="small")
    figure.suptitle(title, fontsize="medium")
    return figure


@_styled
def predicted_against_true(predictions: pd.DataFrame, title: str) -> Figure:
    """Predicted against true return, stuck policies apart.

    Args:
        predictions: columns `return`, `predicted`, `stuck`.
        title: above the figure.
    """
    figure, axes = plt.subplots(figsize=(WIDTH, 5.2), layout="constrained")
    handles = []
    looks = (("reaches an end", False, PALETTE[0], "o"), ("stuck", True, PALETTE[1], "^"))
    for _, stuck, colour, marker in looks:
        part = predictions[predictions["stuck"] == stuck]
        handles += axes.plot(  # thousands of points: as a picture inside the PDF
            part["return"], part["predicted"], marker, color=colour, alpha=0.3, markersize=4, markeredgewidth=0,
            rasterized=True,
        )  # fmt: skip
    bounds = [predictions[["return", "predicted"]].min().min(), predictions[["return", "predicted"]].max().max()]
    handles += axes.plot(bounds, bounds, color="black", linewidth=0.8)
    axes.set(title=title, xlabel="true return", ylabel="predicted return (layout never seen)")
    _legend_below(figure, handles, [*(look[0] for look in looks), "prediction = truth"])
    return figure


@_styled
def cosine_table(cosines: pd.DataFrame, title: str) -> Figure:
    """Cosines of questions with sentences, as numbers on colour.

    Args:
        cosines: rows are questions, columns what they are compared with.
        title: above the figure.
    """
    figure, axes = plt.subplots(figsize=(WIDTH + 0.6, 0.55 * len(cosines) + 2.2), layout="constrained")
    sns.heatmap(
        cosines, annot=True, fmt=".2f", vmin=0, vmax=1, cmap="cividis", annot_kws={"size": 8.5}, cbar=False, ax=axes
    )
    axes.set(xlabel="", ylabel="")
    figure.suptitle(title, fontsize="medium")
    plt.setp(axes.get_xticklabels(), rotation=40, ha="right", rotation_mode="anchor", size=9)
    plt.setp(axes.get_yticklabels(), rotation=0, size=9)
    return figure


@_styled
def confusion(counts: pd.DataFrame, title: str) -> Figure:
    """What questions asked for against what was answered, as numbers on colour; what never happened stays empty.

    Args:
        counts: questions, rows by what was asked, columns by what was answered, in the same order.
        title: above the figure.
    """
    size = 0.42 * len(counts) + 2.0
    figure, axes = plt.subplots(figsize=(size + 0.6, size), layout="constrained")
    shares = counts / counts.sum(axis=1).clip(lower=1).to_numpy()[:, None]
    sns.heatmap(
        shares,
        mask=(counts == 0).to_numpy(),
        annot=counts,
        fmt="d",
        vmin=0,
        vmax=1,
        cmap="cividis",
        annot_kws={"size": 8},
        cbar=False,
        linewidths=0.5,
        linecolor=GRID_LINE,
        ax=axes,
    )
    axes.set(xlabel="answered", ylabel="asked")
    figure.suptitle(title, fontsize="medium")
    plt.setp(axes.get_xticklabels(), rotation=50, ha="right", rotation_mode="anchor", size=8)
    plt.setp(axes.get_yticklabels(), rotation=0, size=8)
    return figure


@_styled
def search_at_scale(timings: pd.DataFrame, recall: pd.DataFrame, title: str) -> Figure:
    """Median milliseconds of a search and share of the true neighbours found, by number of sentences and kind of index.

    Args:
        timings: columns `sentences, kind, filter, p50_ms`.
        recall: columns `sentences, kind, filter, recall_at_10`.
        title: above the figure.
    """
    figure, axes = plt.subplots(2, 1, figsize=(WIDTH, 5.6), layout="constrained", sharex=True)
    panels = [(timings, "p50_ms", "median of a search, ms"), (recall, "recall_at_10", "true neighbours found")]
    filters = list(dict.fromkeys(timings["filter"]))
    for axis, (table, column, label) in zip(axes, panels, strict=True):
        for number, kind in enumerate(sorted(set(table["kind"]))):
            for style, name in zip(_PATH_LINES, filters, strict=False):
                line = table[(table["kind"] == kind) & (table["filter"] == name)].sort_values("sentences")
                axis.plot(
                    line["sentences"], line[column], color=PALETTE[number], marker=MARKERS[number], linestyle=style
                )
        axis.set(xscale="log", ylabel=label)
    axes[0].set(yscale="log")
    axes[1].set(xlabel="distinct sentences", ylim=(None, 1.02))
    kinds = sorted(set(timings["kind"]))
    handles = [Line2D([], [], color=PALETTE[n], marker=MARKERS[n], label=kind) for n, kind in enumerate(kinds)]
    handles += [
        Line2D([], [], color="black", linestyle=style, label=f"filter: {name}")
        for style, name in zip(_PATH_LINES, filters, strict=False)
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False)
    figure.suptitle(title, fontsize="medium")
    return figure


@_styled
def share_of_optimum(summary: pd.DataFrame, references: dict[str, pd.DataFrame], title: str) -> Figure:
    """Share of the optimum by strategy and method with intervals, and beside it the share of stuck policies.

    Args:
        summary: columns `strategy, method, share, low, high, stuck_share`.
        references: further shares of each strategy by name, columns `strategy, share`; drawn as a dash.
        title: above the figure.
    """
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(WIDTH + 0.6, 4.4), layout="constrained", sharey=True, width_ratios=[3, 1.1]
    )
    handles = _intervals(left, summary, "strategy", "share")
    strategies, methods = summary["strategy"].unique(), summary["method"].unique()
    for method, handle, offset in zip(methods, handles, _offsets(methods), strict=True):
        stuck = summary[summary["method"] == method].set_index("strategy").loc[strategies, "stuck_share"]
        places = np.arange(len(strategies)) + offset
        right.barh(places, 100 * stuck, height=0.16, color=handle.get_color())
        right.plot(np.zeros(len(places)), places, handle.get_marker(), color=handle.get_color(), markersize=4)
    for rows, tick in zip(references.values(), ("|", "x"), strict=False):
        shares = rows.set_index("strategy").loc[strategies, "share"]
        left.plot(shares, np.arange(len(strategies)) + 0.42, tick, color="0.35", markersize=8)
        handles.append(Line2D([], [], color="0.35", marker=tick, linestyle=""))
    left.axvline(1, color="black", linewidth=0.8, linestyle=":")
    left.set(xlabel="return / optimum")
    left.set_ylim(len(strategies) - 0.45, -0.5)
    right.set(xlabel="stuck, % of rows", xlim=(0, max(5, 105 * summary["stuck_share"].max())))
    figure.suptitle(title, fontsize="medium")
    _legend_below(figure, handles, [*methods, *references])
    return figure


@_styled
def regret_parts(regret: pd.DataFrame, title: str) -> Figure:
    """What is lost to the optimum by method: coverage and, on top of it, composition, a panel per strategy.

    The axis is as wide as the first strategy needs; a bar that goes beyond it has its length written on it.

    Args:
        regret: columns `strategy, method, coverage, composition`, and `_low, _high` of both.
        title: above the figure.
    """
    strategies, methods = regret["strategy"].unique(), regret["method"].unique()
    figure, panels = plt.subplots(
        1,
        len(strategies),
        figsize=(WIDTH + 1, 0.34 * len(methods) + 1.6),
        sharex=True,
        sharey=True,
        layout="constrained",
        squeeze=False,
    )
    places = np.arange(len(methods))
    for axes, strategy in zip(panels.flat, strategies, strict=True):
        rows = regret[regret["strategy"] == strategy].set_index("method").loc[methods]
        left, handles = np.zeros(len(methods)), []
        for part, colour in zip(("coverage", "composition"), PALETTE, strict=False):
            values = 100 * rows[part].to_numpy()
            ends = 100 * np.abs(np.stack([rows[part] - rows[f"{part}_low"], rows[f"{part}_high"] - rows[part]]))
            handles.append(axes.barh(places, values, left=left, height=0.7, color=colour))
            shift = 0.16 if part == "coverage" else -0.16  # so that the two intervals do not cover each other
            axes.errorbar(left + values, places + shift, xerr=np.nan_to_num(ends), fmt="none", ecolor="0.2", capsize=2)
            left = left + values
        axes.set_title(strategy, fontsize="small")
        axes.set(yticks=places, yticklabels=methods, xlabel="% of the optimum lost", xlim=(0, None))
        widest = axes.get_xlim()[1]  # from the first panel on, as setting it ends the autoscaling of all
        for place in places[left > widest]:
            words = f"{left[place]:.1f} % in all →"
            axes.text(widest, place, words, ha="right", va="center", fontsize="small")
        axes.set_ylim(len(methods) - 0.4, -0.6)
    figure.suptitle(title, fontsize="medium")
    _legend_below(figure, handles, ["coverage: the policies lack it", "composition: the composer lost it"], columns=2)
    return figure


@_styled
def library_changes(changes: pd.DataFrame, labels: dict[str, str], title: str) -> Figure:
    """Share of the optimum as one thing about the library or the question changes: a panel each, a line per method.

    What is below 0 is out of the picture.

    Args:
        changes: columns `change, value, method, share, low, high`.
        labels: what the axis of each change is called, by change, in the order of the panels.
        title: above the figure.
    """
    lines = -(-len(labels) // 3)
    figure, panels = plt.subplots(lines, 3, figsize=(WIDTH + 2, 2.6 * lines), layout="constrained", squeeze=False)
    handles: dict[str, Line2D] = {}
    for axes, (change, label) in zip(panels.flat, labels.items(), strict=False):
        rows = changes[changes["change"] == change]
        values = list(rows["value"].unique())
        for method, colour, marker in _looks(changes["method"].unique()):
            mine = rows[rows["method"] == method]
            at = [values.index(value) for value in mine["value"]]
            if at:
                [handles[method]] = _banded(axes, at, mine["share"], mine["low"], mine["high"], colour, marker)
        axes.axhline(1, color="black", linewidth=0.8, linestyle=":")
        words = [str(value).replace(", ", "\n") for value in values]
        axes.set_xticks(range(len(values)), words, fontsize="small" if max(map(len, words)) > 9 else None)
        axes.set(xlabel=label, ylim=(max(0, axes.get_ylim()[0]), None))
    for axes in panels[:, 0]:
        axes.set_ylabel("return / optimum")
    for axes in list(panels.flat)[len(labels) :]:
        axes.axis("off")
    figure.suptitle(title, fontsize="medium")
    _legend_below(figure, list(handles.values()), list(handles))
    return figure


@_styled
def choice_by_judge(selection: pd.DataFrame, title: str) -> Figure:
    """What is lost by choosing among combinations, by judge and k, a panel per method.

    Args:
        selection: columns `method, judge, k, regret, regret_low, regret_high`.
        title: above the figure.
    """
    methods = selection["method"].unique()
    figure, panels = plt.subplots(
        1, len(methods), figsize=(WIDTH, 3.3), sharey=True, layout="constrained", squeeze=False
    )
    for axes, method in zip(panels.flat, methods, strict=True):
        handles = []
        for judge, colour, marker in _looks(selection["judge"].unique()):
            rows = selection[(selection["method"] == method) & (selection["judge"] == judge)]
            regret = (100 * rows[name] for name in ("regret", "regret_low", "regret_high"))
            handles += _banded(axes, rows["k"], *regret, colour, marker)
        axes.set(xticks=rows["k"], xlabel="k candidates per sub-query")
        axes.set_title(method, fontsize="small")
    panels.flat[0].set_ylabel("selection regret, % of the optimum")
    panels.flat[0].set_ylim(0, None)
    figure.suptitle(title, fontsize="medium")
    _legend_below(figure, handles, list(selection["judge"].unique()))
    return figure


@_styled
def share_by_group(summary: pd.DataFrame, group: str, title: str) -> Figure:
    """Share of the optimum of each method within groups, with intervals.

    Args:
        summary: columns `method, share, low, high` and `group`.
        group: column whose values are the rows of the figure.
        title: above the figure.
    """
    methods, rows = summary["method"].unique(), summary[group].nunique()
    figure, axes = plt.subplots(figsize=(WIDTH, 0.62 * rows + 1.7), layout="constrained")
    handles = _intervals(axes, summary, group, "share")
    axes.axvline(1, color="black", linewidth=0.8, linestyle=":")
    axes.set(title=title, xlabel="return / optimum")
    _legend_below(figure, handles, list(methods))
    return figure


@_styled
def seconds_of_a_query(summary: pd.DataFrame, title: str) -> Figure:
    """Seconds from a question to a composed policy on a log axis, beside training from scratch.

    Args:
        summary: columns `strategy, method, seconds, low, high, scratch_seconds`.
        title: above the figure.
    """
    figure, axes = plt.subplots(figsize=(WIDTH, 3.6), layout="constrained")
    handles = _intervals(axes, summary, "strategy", "seconds")
    handles.append(axes.axvline(summary["scratch_seconds"].median(), color="0.35", linestyle="--", linewidth=1))
    axes.set(xscale="log", xlabel="seconds (log axis)")
    axes.set_title(title)
    axes.grid(axis="x", color=GRID_LINE, linewidth=0.5)
    _legend_below(figure, handles, [*summary["method"].unique(), "SARSA from scratch"], columns=2)
    return figure


@_styled
def improvements(table: pd.DataFrame, title: str) -> Figure:
    """How probably one way does better than another, with intervals; at one half neither does.

    Args:
        table: columns `pair, probability, low, high`.
        title: above the figure.
    """
    figure, axes = plt.subplots(figsize=(WIDTH, 0.36 * len(table) + 1.1), layout="constrained")
    _intervals(axes, table.assign(method=""), "pair", "probability")
    axes.axvline(0.5, color="black", linewidth=0.8, linestyle=":")
    axes.set(xlim=(-0.03, 1.03), xlabel="probability of the higher return")
    figure.suptitle(title, fontsize="medium")
    return figure


@_styled
def by_library(summary: pd.DataFrame, value: str, label: str, log: bool, lines: dict[str, str], title: str) -> Figure:
    """What more training brings: a panel per query class, in it a point with an interval per budget and method.

    Args:
        summary: columns `library, query_class, method, low, high`, and those of `value` and `lines`.
        value: column of the points.
        label: of the vertical axis.
        log: whether that axis is logarithmic.
        lines: columns drawn as a dash per budget, and what to call them.
        title: above the figure.
    """
    classes = summary["query_class"].unique()
    figure, panels = plt.subplots(
        1, len(classes), figsize=(WIDTH, 3.7), sharey=True, layout="constrained", squeeze=False
    )
    handles: list[Line2D] = []
    for axes, name in zip(panels.flat, classes, strict=True):
        mine = summary[summary["query_class"] == name]
        libraries, methods = mine["library"].unique(), mine["method"].unique()
        handles = []
        for (method, colour, marker), offset in zip(_looks(methods), _offsets(methods), strict=True):
            rows = mine[mine["method"] == method].set_index("library").loc[libraries]
            ends = np.nan_to_num(np.abs(np.stack([rows[value] - rows["low"], rows["high"] - rows[value]])))
            places = np.arange(len(libraries)) + offset
            axes.errorbar(
                places, rows[value], yerr=ends, fmt=marker, color=colour, markersize=4.5, capsize=2, elinewidth=1.1
            )
            handles.append(Line2D([], [], color=colour, marker=marker, linestyle=""))
        for column, colour in zip(lines, ("black", "0.5"), strict=False):
            heights = mine.groupby("library", sort=False)[column].first().loc[libraries]
            places = np.arange(len(libraries))
            axes.hlines(heights, places - 0.42, places + 0.42, color=colour, linewidth=1.2, linestyle="--")
            handles.append(Line2D([], [], color=colour, linewidth=1.2, linestyle="--"))
        axes.set(xticks=range(len(libraries)), xticklabels=libraries, yscale="log" if log else "linear")
        axes.set_title(name, fontsize="small")
        axes.grid(axis="y", color=GRID_LINE, linewidth=0.5)
    panels.flat[0].set_ylabel(label)
    figure.suptitle(title, fontsize="medium")
    _legend_below(figure, handles, [*summary["method"].unique(), *lines.values()])
    return figure


@_styled
def k_sweep(sweep: pd.DataFrame, title: str) -> Figure:
    """What combining more candidates brings, a panel per method.

    Shown are the return of the combination chosen, what was predicted of it, and the best return of any combination.

    Args:
        sweep: columns `method, k, optimum`, and `return, predicted_return, best_return` with their `_low, _high` ends.
        title: above the figure.
    """
    methods = sweep["method"].unique()
    figure, panels = plt.subplots(
        1, len(methods), figsize=(WIDTH, 3.4), sharey=True, layout="constrained", squeeze=False
    )
    looks = (("best of all, by true return", "best"), ("chosen", "return"), ("chosen, as predicted", "predicted"))
    for axes, method in zip(panels.flat, methods, strict=True):
        rows = sweep[sweep["method"] == method]
        handles = []
        for (_, name), colour, marker in zip(looks, PALETTE, MARKERS, strict=False):
            value = rows["return" if name == "return" else f"{name}_return"]
            handles += _banded(axes, rows["k"], value, rows[f"{name}_low"], rows[f"{name}_high"], colour, marker)
        handles += axes.plot(rows["k"], rows["optimum"], color="black", linestyle=":", linewidth=1)
        axes.set(xticks=rows["k"], xlabel="k")
        axes.set_title(method, fontsize="small")
    panels.flat[0].set_ylabel("return")
    figure.suptitle(title, fontsize="medium")
    _legend_below(figure, handles, [*(look[0] for look in looks), "optimum"], columns=2)
    return figure


@_styled
def growth(costs: pd.DataFrame, exponents: pd.DataFrame, names: dict[str, str], title: str) -> Figure:
    """What a query costs as something grows, on log-log axes.

    A panel per thing that grows, a line per method with its fitted exponent.

    Args:
        costs: columns `grows, value, method, seconds`.
        exponents: columns `grows, method, exponent`.
        names: how to call each thing that grows.
        title: above the figure.
    """
    figure, panels = plt.subplots(1, len(names), figsize=(WIDTH, 3.6), sharey=True, layout="constrained", squeeze=False)
    methods = costs["method"].unique()
    fitted = exponents.set_index(["grows", "method"])["exponent"]
    for axes, (grows, name) in zip(panels.flat, names.items(), strict=True):
        handles = []
        for method, colour, marker in _looks(methods):
            rows = costs[(costs["grows"] == grows) & (costs["method"] == method)]
            handles += axes.plot(
                rows["value"], rows["seconds"], marker=marker, color=colour, markersize=4, linewidth=1.1
            )
        values = costs.loc[costs["grows"] == grows, "value"].unique()
        axes.set(xscale="log", yscale="log", xlabel=name, xticks=values, xticklabels=values)
        axes.xaxis.set_minor_locator(matplotlib.ticker.NullLocator())
        axes.tick_params(labelsize="x-small")
        powers = "\n".join(f"{method}: {fitted[grows, method]:.2f}" for method in methods)
        axes.text(0.04, 0.98, powers, transform=axes.transAxes, va="top", fontsize="x-small")
    panels.flat[0].set_ylabel("CPU seconds")
    figure.suptitle(title, fontsize="medium")
    _legend_below(figure, handles, list(methods))
    return figure


def _banded(
    axes: Axes,
    places: Sequence[float],
    values: pd.Series,
    low: pd.Series,
    high: pd.Series,
    colour: tuple[float, float, float],
    marker: str,
) -> list[Line2D]:
    """A line with its interval as a band; returns the line."""
    axes.fill_between(places, low, high, color=colour, alpha=0.15, linewidth=0)
    return axes.plot(places, values, marker=marker, color=colour, markersize=4.5, linewidth=1.2)


def _intervals(axes: Axes, summary: pd.DataFrame, group: str, value: str) -> list[Line2D]:
    """A row per group, in it a point with an interval (`low`, `high`) per method; returns what a legend needs."""
    groups, methods = summary[group].unique(), summary["method"].unique()
    handles = []
    for (method, colour, marker), offset in zip(_looks(methods), _offsets(methods), strict=True):
        rows = summary[summary["method"] == method].set_index(group).loc[groups]
        ends = np.nan_to_num(np.abs(np.stack([rows[value] - rows["low"], rows["high"] - rows[value]])))
        places = np.arange(len(groups)) + offset
        looks = {"fmt": marker, "color": colour, "markersize": 5.5, "capsize": 2.5, "elinewidth": 1.3}
        axes.errorbar(rows[value], places, xerr=ends, zorder=3, **looks)
        handles.append(Line2D([], [], color=colour, marker=marker, linestyle=""))
    axes.set(yticks=range(len(groups)), yticklabels=groups, ylim=(len(groups) - 0.5, -0.5))
    return handles


def _offsets(methods: np.ndarray) -> np.ndarray:
    """Where in its row a method stands."""
    return np.linspace(-0.25, 0.25, len(methods)) if len(methods) > 1 else np.zeros(1)
