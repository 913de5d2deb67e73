"""Figures. Tables and arrays in, matplotlib figures out; nothing here computes a result.

Colours come from a palette that colour-blind readers can tell apart, and never carry meaning alone.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

from lever_lib.artifacts import Outputs

PALETTE = sns.color_palette("colorblind")
STYLE = {
    "figure.dpi": 110,
    "savefig.dpi": 160,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": "medium",
}
# Cell codes with a look of their own: name, fill, letter.
_CELLS = {
    1: ("gold", "#f0e442", "G"),
    2: ("lever", "#56b4e9", "L"),
    5: ("start", "#ffffff", "S"),
    10: ("exit", "#009e73", "E"),
    -1: ("block", "#4d4d4d", ""),
    -2: ("hazard", "#d55e00", "x"),
}


Arguments = ParamSpec("Arguments")


def _styled(draw: Callable[Arguments, Figure]) -> Callable[Arguments, Figure]:
    """Draw in the project's style without changing the style of the caller's own figures."""

    @wraps(draw)
    def styled(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Figure:
        with plt.rc_context(STYLE):
            return draw(*args, **kwargs)

    return styled


def save_figure(figure: Figure, outputs: Outputs, name: str) -> None:
    """Write a figure as PNG and PDF under `figures/` of the spec, without dates: same figure, same bytes.

    Args:
        figure: to write.
        outputs: of the spec.
        name: file name without ending; begins with the number of its notebook.
    """
    folder = outputs.folder / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    for ending, metadata in (("png", {"Software": None}), ("pdf", {"CreationDate": None, "Creator": None})):
        draft = folder / f".{name}.writing.{ending}"
        figure.savefig(draft, metadata=metadata, dpi=STYLE["savefig.dpi"])
        draft.replace(folder / f"{name}.{ending}")


@_styled
def layout_paths(cells: np.ndarray, paths: dict[str, np.ndarray], title: str) -> Figure:
    """A layout with paths drawn on it.

    Args:
        cells: cell codes, int (N, N).
        paths: cells of each path by its label, int (T + 1,).
        title: above the figure.
    """
    size = len(cells)
    figure, axes = plt.subplots(figsize=(6.6, 4.6), layout="constrained")
    codes = list(_CELLS)
    image = np.zeros(cells.shape, dtype=int)
    for index, code in enumerate(codes, start=1):
        image[cells == code] = index
    colours = ListedColormap(["#f5f5f5", *(look[1] for look in _CELLS.values())])
    axes.imshow(image, cmap=colours, vmin=0, vmax=len(codes))
    for (row, column), code in np.ndenumerate(cells):
        if code in _CELLS:
            axes.text(column, row, _CELLS[code][2], ha="center", va="center", fontsize=min(9, 90 / size))
    shift = np.linspace(-0.18, 0.18, len(paths)) if len(paths) > 1 else [0.0]
    for (label, path), offset, colour, dash in zip(paths.items(), shift, PALETTE, ["-", "--", "-.", ":"], strict=False):
        rows, columns = np.divmod(path, size)
        axes.plot(columns + offset, rows + offset, dash, color=colour, marker=".", label=label, linewidth=1.8)
    axes.set(title=title, xticks=range(0, size, max(1, size // 8)), yticks=range(0, size, max(1, size // 8)))
    axes.set(xlabel="column", ylabel="row")
    figure.legend(loc="outside right center", frameon=False)
    return figure


@_styled
def embedding_map(coordinates: np.ndarray, labels: pd.DataFrame, title: str) -> Figure:
    """Policies as points in a plane.

    Args:
        coordinates: float (P, 2).
        labels: columns `setup` and `stuck`, (P,).
        title: above the figure.
    """
    figure, axes = plt.subplots(figsize=(6.4, 4.4), layout="constrained")
    data = labels.assign(x=coordinates[:, 0], y=coordinates[:, 1])
    sns.scatterplot(
        data, x="x", y="y", hue="setup", style="setup", palette="colorblind", s=45, alpha=0.85, linewidth=0, ax=axes
    )
    axes.set(title=title, xlabel="first principal component", ylabel="second principal component")
    axes.get_legend().remove()
    figure.legend(loc="outside right center", frameon=False, title="trained for")
    return figure


@_styled
def predicted_against_true(predictions: pd.DataFrame, title: str) -> Figure:
    """Predicted against true return, stuck policies apart.

    Args:
        predictions: columns `return`, `predicted`, `stuck`.
        title: above the figure.
    """
    figure, axes = plt.subplots(figsize=(5.4, 4.4), layout="constrained")
    named = predictions.assign(policy=np.where(predictions["stuck"], "stuck", "reaches an end"))
    sns.scatterplot(
        named,
        x="return",
        y="predicted",
        hue="policy",
        style="policy",
        hue_order=["reaches an end", "stuck"],
        style_order=["reaches an end", "stuck"],
        palette=PALETTE[:2],
        alpha=0.35,
        s=16,
        linewidth=0,
        ax=axes,
    )
    bounds = [predictions[["return", "predicted"]].min().min(), predictions[["return", "predicted"]].max().max()]
    axes.plot(bounds, bounds, color="black", linewidth=0.8, label="perfect")
    axes.set(title=title, xlabel="true return", ylabel="predicted return (layout never seen)")
    axes.legend(frameon=False)
    return figure


@_styled
def cosine_table(cosines: pd.DataFrame, title: str) -> Figure:
    """Cosines of queries (rows) with sentences (columns) as an annotated heat map."""
    figure, axes = plt.subplots(figsize=(7.4, 0.5 * len(cosines) + 1.9), layout="constrained")
    sns.heatmap(cosines, annot=True, fmt=".2f", vmin=0, vmax=1, cmap="cividis", cbar_kws={"label": "cosine"}, ax=axes)
    axes.set(title=title, xlabel="", ylabel="")
    plt.setp(axes.get_xticklabels(), rotation=30, ha="right", rotation_mode="anchor")
    return figure


@_styled
def share_of_optimum(shares: pd.DataFrame, title: str) -> Figure:
    """Share of the optimum by strategy and method: mean over layouts, 95 % bootstrap interval.

    Args:
        shares: columns `strategy`, `method`, `share`; one row per layout, strategy and method.
        title: above the figure.
    """
    methods = shares["method"].unique()
    figure, axes = plt.subplots(figsize=(6.4, 3.9), layout="constrained")
    sns.pointplot(
        shares,
        x="strategy",
        y="share",
        hue="method",
        palette="colorblind",
        markers=["o", "s", "^", "D", "v", "P", "X"][: len(methods)],
        linestyles="none",
        dodge=0.4 if len(methods) > 1 else False,
        errorbar=("ci", 95),
        seed=0,
        ax=axes,
    )
    axes.axhline(1, color="black", linewidth=0.8, linestyle=":")
    axes.set(title=title, xlabel="strategy", ylabel="return / optimum")
    axes.get_legend().remove()
    figure.legend(loc="outside right center", frameon=False, title="method")
    return figure
