"""What a spec's results come to: summary tables for reading, and a table for LaTeX."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files

import pandas as pd

from lever_lib import experiment
from lever_lib.artifacts import Outputs, Stage
from lever_lib.envs.gridworld import make_layout
from lever_lib.envs.rewards import reward_system
from lever_lib.params import Grid
from lever_lib.planning import optimum
from lever_lib.seeding import stream
from lever_lib.stats import LEVEL, seconds_summary, share_summary

STAGE = Stage(
    name="results",
    notebook="06_results",
    files=("shares.csv", "timings.csv", "published_comparison.csv", "table.tex"),
    params=("root_seed", "grid"),
    upstream=(experiment.STAGE,),
    module="lever_lib.report",
    from_published=True,
)

ALL = "all"  # a column that is not kept apart
REFERENCES = {"best single": "best_single_return", "scratch": "scratch_return"}
_KEYS = ("library", "query_class", "setup")
_GROUPS = ((), ("library",), ("query_class", "setup"))
# Exit rule for gold of the published tables: the only one under which their numbers come out.
_PUBLISHED_LEGACY_EXIT = {"16x16": True, "32x32": False}
_CENT = 0.005


@dataclass(frozen=True)
class Report:
    """The summary tables of a spec.

    Attributes:
        shares: share of the optimum with intervals and stuck share; `all` where a column is not kept apart.
        seconds: of a query, by strategy and method.
        comparison: every return of the published `exnonzero` table of this spec beside ours; empty if there is none.
        latex: the overall shares as a LaTeX table.
    """

    shares: pd.DataFrame
    seconds: pd.DataFrame
    comparison: pd.DataFrame
    latex: str

    def overall(self) -> pd.DataFrame:
        """Shares over all libraries and queries."""
        return overall(self.shares)

    def by(self, column: str) -> pd.DataFrame:
        """Shares by `library`, or by `query` (class and set-up)."""
        if column == "library":
            return self.shares.query("library != @ALL").reset_index(drop=True)
        rows = self.shares.query("query_class != @ALL").reset_index(drop=True)
        return rows.assign(query=rows["query_class"] + "\n" + rows["setup"])


def overall(shares: pd.DataFrame) -> pd.DataFrame:
    """The rows of `all_shares` in which libraries and queries are not kept apart."""
    return shares.query("library == @ALL and query_class == @ALL").reset_index(drop=True)


def build_report(outputs: Outputs, overwrite: bool = False) -> Report:
    """Summarise a spec's results, whether they were computed here or came with the repository.

    Raises:
        MissingArtifactError: if there are no results.
    """
    outputs.adopt(experiment.STAGE)
    if overwrite or not outputs.fresh(STAGE):
        results, timings = experiment.read_results(outputs)
        with outputs.writing(STAGE) as folder:
            shares = all_shares(results, outputs.params.root_seed)
            shares.round(6).to_csv(folder / "shares.csv", index=False)
            seconds_summary(timings).to_csv(folder / "timings.csv", index=False)
            comparison = published_comparison(results, outputs.spec, outputs.params.grid)
            comparison.to_csv(folder / "published_comparison.csv", index=False)
            (folder / "table.tex").write_text(latex_table(shares, outputs.spec))
    folder = outputs.require(STAGE)
    text = {"library": str, "seed": str}
    shares, seconds, comparison = (pd.read_csv(folder / name, dtype=text) for name in STAGE.files[:3])
    return Report(shares, seconds, comparison, (folder / "table.tex").read_text())


def same_exit_rule(spec: str, grid: Grid) -> bool:
    """Whether a spec pays for gold at the exit as its published table does, so that results compare as they are."""
    return _PUBLISHED_LEGACY_EXIT.get(spec, grid.legacy_gold_exit) == grid.legacy_gold_exit


def published_comparison(results: pd.DataFrame, spec: str, grid: Grid) -> pd.DataFrame:
    """Every return of the published `exnonzero` table of a spec beside ours.

    Where the spec pays for gold by another rule than the published table, its results answer other questions; then ours
    is the exact optimum under the published rule, which `exnonzero` reaches wherever training has seen every move.

    Args:
        results: of the experiment.
        spec: `16x16` and `32x32` are published; for others the table is empty.
        grid: of the spec.

    Returns:
        Columns `setup, library, seed, query_class, strategy, method, published_return, return, agrees`; `return` is nan
        where the run has no such row, and agreement is to the cent.
    """
    with files("lever_lib").joinpath("data/published_exnonzero.csv").open(encoding="utf-8") as file:
        published = pd.read_csv(file, dtype={"seed": str}).query("spec == @spec").drop(columns="spec")
    keys = ["setup", "library", "seed", "query_class", "strategy", "method"]
    if same_exit_rule(spec, grid):
        table = published.merge(results[[*keys, "return"]], on=keys, how="left")
    else:
        problems = published[["seed", "setup"]].drop_duplicates()
        best = [
            optimum(make_layout(grid, row.seed), reward_system(row.setup, _PUBLISHED_LEGACY_EXIT[spec])).return_
            for row in problems.itertuples()
        ]
        table = published.merge(problems.assign(**{"return": best}), on=["seed", "setup"])
    table["agrees"] = (table["return"] - table["published_return"]).abs() < _CENT
    return table[[*keys, "published_return", "return", "agrees"]]


def all_shares(results: pd.DataFrame, root_seed: int) -> pd.DataFrame:
    """Share of the optimum over everything, by library and by query, for every method and for the references.

    Args:
        results: of the experiment.
        root_seed: of the params.

    Returns:
        Columns as in `results/shares.csv`; the keys of `REFERENCES` stand among the methods.
    """
    parts = []
    for by in _GROUPS:
        parts.append(share_summary(results, stream(root_seed, "bootstrap"), by))
        for name, column in REFERENCES.items():
            # Neither depends on how policies were composed; the best single one does on which were chosen.
            rows = results[results["method"] == "gpi"].assign(method=name)
            parts.append(share_summary(rows, stream(root_seed, "bootstrap"), by, column))
    shares = pd.concat([part.assign(**{k: ALL for k in _KEYS if k not in part}) for part in parts], ignore_index=True)
    return shares[[*_KEYS, *(column for column in shares if column not in _KEYS)]]


def latex_table(shares: pd.DataFrame, spec: str) -> str:
    """The overall shares: a row per method, a column per strategy; needs the LaTeX package booktabs."""
    rows = overall(shares)
    cells = rows.assign(
        cell=[
            f"{row.share:.3f} [{row.low:.3f}, {row.high:.3f}]"
            + ("" if pd.isna(row.stuck_share) else f", {100 * row.stuck_share:.0f}\\%")
            for row in rows.itertuples()
        ]
    )
    table = cells.pivot_table(index="method", columns="strategy", values="cell", aggfunc="first", sort=False)
    table.columns.name = table.index.name = None
    return table.style.to_latex(
        hrules=True,
        caption=(
            f"Return as share of the exact optimum, {spec}: mean over {rows['layouts'].max()} layouts, "
            f"{100 * LEVEL:.0f}\\% bootstrap interval over layouts, share of policies that get stuck."
        ),
        label=f"tab:lever-{spec}",
        position_float="centering",
    )
