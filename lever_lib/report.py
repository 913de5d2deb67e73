"""What a spec's results come to: summary tables for reading, the published tables beside ours, tables for LaTeX."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from importlib.resources import files
from pathlib import Path

import numpy as np
import pandas as pd

from lever_lib import experiment
from lever_lib.artifacts import Outputs, Stage
from lever_lib.columns import write_tables
from lever_lib.envs.gridworld import make_layout
from lever_lib.envs.rewards import reward_system
from lever_lib.experiment import Tables, read_table
from lever_lib.params import Grid, Params
from lever_lib.planning import optimum
from lever_lib.queries import QUERIES
from lever_lib.seeding import stream
from lever_lib.stats import LEVEL, by_layout, improvement, of_optimum, seconds_summary, summarise

ALL = "all"  # a column that is not kept apart
REFERENCES = {"best single": "best_single_return", "scratch": "scratch_return"}
_KEYS = ("library", "query_class", "setup")
_GROUPS = ((), ("library",), ("query_class",), ("query_class", "setup"), ("library", "query_class"))
# Exit rule for gold under which the published numbers come out, by method and spec.
_PUBLISHED_LEGACY_EXIT = {
    ("exnonzero", "16x16"): True,
    ("exnonzero", "32x32"): False,
    ("qsum", "16x16"): True,
    ("qsum", "32x32"): True,
}
_PUBLISHED_GRID = {"16x16": Grid(16, 50, 25, 30), "32x32": Grid(32, 50, 25, 30)}
_PUBLISHED_SEEDS = range(5)
_FEW = 10  # layouts: with fewer, percentile intervals are clearly too narrow
_CENT = 0.005


@dataclass(frozen=True)
class Summary:
    """Summary tables of an experiment; columns are explained in `lever_lib.columns`.

    Attributes:
        shares: returns and shares of the optimum with intervals and stuck share; `all` where a column is not kept
            apart.
        improvement: how probably one way does better than another.
        sweep: what combining the best k candidates brings, by method and k.
        direct: what the right policies come to when nothing has to be retrieved.
        timings: seconds of a query, beside our training from scratch and the published seconds.
        sweep_timings: seconds of a query by method and k.
    """

    shares: pd.DataFrame
    improvement: pd.DataFrame
    sweep: pd.DataFrame
    direct: pd.DataFrame
    timings: pd.DataFrame
    sweep_timings: pd.DataFrame

    def overall(self) -> pd.DataFrame:
        """Shares over all libraries and queries."""
        return overall(self.shares)

    def by(self, *columns: str) -> pd.DataFrame:
        """Shares kept apart by `library`, by `query_class`, by both, or by `query` (class and set-up)."""
        apart = {"query_class", "setup"} if columns == ("query",) else set(columns)
        rows = apart_by(self.shares, apart)
        return rows.assign(query=rows["query_class"] + "\n" + rows["setup"]) if columns == ("query",) else rows


SUMMARY_FILES = tuple(f"{field.name}.csv" for field in fields(Summary))

STAGE = Stage(
    name="results",
    notebook="06_results",
    files=(
        *SUMMARY_FILES,
        "regret.csv",
        "hybrid_timings.csv",
        "published_comparison.csv",
        "published_averages.csv",
        "table.tex",
        "timings.tex",
    ),
    params=("root_seed", "grid"),
    upstream=(experiment.STAGE,),
    module="lever_lib.report",
    from_published=True,
)


@dataclass(frozen=True)
class Report:
    """What notebook 06 shows of a spec.

    Attributes:
        summary: of the results.
        regret: what is lost and where, and what can be promised, as shares of the optimum.
        hybrid_seconds: what choosing among the best few takes, beside choosing among all.
        comparison: every return of the published `exnonzero` table of this spec beside ours; empty if there is none.
        averages: published averages beside ours; empty if there are none.
        latex: overall returns and shares of the optimum as LaTeX tables.
        latex_timings: overall seconds as a LaTeX table.
    """

    summary: Summary
    regret: pd.DataFrame
    hybrid_seconds: pd.DataFrame
    comparison: pd.DataFrame
    averages: pd.DataFrame
    latex: str
    latex_timings: str


def build_report(outputs: Outputs, overwrite: bool = False) -> Report:
    """Summarise a spec's results, whether they were computed here or came with the repository.

    Raises:
        MissingArtifactError: if there are no results.
    """
    outputs.adopt(experiment.STAGE)
    spec, grid = outputs.spec, outputs.params.grid
    if overwrite or not outputs.fresh(STAGE):
        tables = experiment.read_results(outputs)
        with outputs.writing(STAGE) as folder:
            summary = summarise_tables(tables, spec, outputs.params.root_seed)
            write_tables(summary, folder)
            regret = all_regrets(tables.results, outputs.params.root_seed)
            regret.round(6).to_csv(folder / "regret.csv", index=False)
            hybrid_seconds(tables.timings).to_csv(folder / "hybrid_timings.csv", index=False)
            published_comparison(tables.results, spec, grid).to_csv(folder / "published_comparison.csv", index=False)
            averages = published_averages(summary.shares, spec, outputs.params)
            averages.round(6).to_csv(folder / "published_averages.csv", index=False)
            (folder / "table.tex").write_text(latex_table(summary.shares, spec), encoding="utf-8")
            (folder / "timings.tex").write_text(latex_timings(summary.timings, spec), encoding="utf-8")
    folder = outputs.require(STAGE)
    return Report(
        read_summary(folder),
        read_table(folder / "regret.csv"),
        read_table(folder / "hybrid_timings.csv"),
        read_table(folder / "published_comparison.csv"),
        read_table(folder / "published_averages.csv"),
        (folder / "table.tex").read_text(encoding="utf-8"),
        (folder / "timings.tex").read_text(encoding="utf-8"),
    )


def read_summary(folder: Path) -> Summary:
    """The summary tables in a folder."""
    return Summary(*(read_table(folder / name) for name in SUMMARY_FILES))


def summarise_tables(tables: Tables, spec: str, root_seed: int) -> Summary:
    """Summary tables of an experiment.

    Args:
        tables: of the experiment.
        spec: whose published seconds stand beside ours.
        root_seed: of the params.
    """
    sweep = pd.concat([_spread(_sweep_shares(tables.sweep, by, root_seed)) for by in ((), _GROUPS[3])])
    direct = pd.concat(
        [_spread(summarise(tables.direct, [*by, "method"], stream(root_seed, "bootstrap"))) for by in _GROUPS]
    )
    sweep_timings = pd.concat(
        [_spread(seconds_summary(tables.sweep_timings, [*by, "method", "k"])) for by in ((), _GROUPS[3])]
    )
    return Summary(
        all_shares(tables.results, root_seed),
        all_improvements(tables.results, root_seed),
        sweep.reset_index(drop=True),
        direct.reset_index(drop=True),
        all_seconds(tables.timings, spec),
        sweep_timings.reset_index(drop=True),
    )


def _spread(table: pd.DataFrame) -> pd.DataFrame:
    """The table with all of `_KEYS` in front, `all` where one is not kept apart."""
    spread = table.assign(**{key: ALL for key in _KEYS if key not in table})
    return spread[[*_KEYS, *(column for column in spread if column not in _KEYS)]]


def apart_by(table: pd.DataFrame, keys: set[str]) -> pd.DataFrame:
    """The rows of a summary table that keep just these of `library, query_class, setup` apart."""
    inside = np.ones(len(table), dtype=bool)
    for key in _KEYS:
        inside &= (table[key] != ALL).to_numpy() == (key in keys)
    return table[inside].reset_index(drop=True)


def main_methods(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of a table without the stricter variants of `exnonzero`, which have a figure of their own."""
    return table[~table["method"].str.startswith("exnonzero-")]


def overall(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of a summary table in which libraries and queries are not kept apart."""
    return apart_by(table, set())


def all_shares(results: pd.DataFrame, root_seed: int) -> pd.DataFrame:
    """Shares of the optimum over everything, by library, by query class and by query, for methods and references.

    Args:
        results: of the experiment.
        root_seed: of the params.

    Returns:
        Columns as in `results/shares.csv`; the keys of `REFERENCES` stand among the methods.
    """
    parts = []
    for by in _GROUPS:
        keys = [*by, "strategy", "method"]
        parts.append(summarise(results, keys, stream(root_seed, "bootstrap")))
        for name, column in REFERENCES.items():
            # Neither depends on how policies were composed; the best single one does on which were chosen.
            rows = results[results["method"] == "gpi"].assign(method=name)
            parts.append(summarise(rows, keys, stream(root_seed, "bootstrap"), column))
    return pd.concat([_spread(part) for part in parts], ignore_index=True)


def all_improvements(results: pd.DataFrame, root_seed: int) -> pd.DataFrame:
    """How probably each way of choosing and composing does better than each other one, all questions together.

    Returns:
        Columns `strategy, method, over_strategy, over_method, probability, low, high, layouts`; each pair once.
    """
    order = ["library", "query_class", "setup"]
    rows = results.sort_values(order, kind="stable")
    ways = {}
    for strategy in results["strategy"].unique():
        mine = rows[rows["strategy"] == strategy]
        for method in results["method"].unique():
            ways[strategy, method] = by_layout(mine[mine["method"] == method], "return")
        for name, column in REFERENCES.items():
            ways[strategy, name] = by_layout(mine[mine["method"] == "gpi"], column)
    table = []
    for position, (way, ours) in enumerate(ways.items()):
        for other, theirs in list(ways.items())[position + 1 :]:
            if way[0] == other[0] or way[1] == other[1]:
                table.append((*way, *other, *improvement(ours, theirs, stream(root_seed, "bootstrap")), len(ours)))
    columns = ["strategy", "method", "over_strategy", "over_method", "probability", "low", "high", "layouts"]
    return pd.DataFrame(table, columns=columns)


def all_regrets(results: pd.DataFrame, root_seed: int) -> pd.DataFrame:
    """Where the distance to the optimum comes from, and what the certificates say, by the groups of `all_shares`.

    Returns:
        Columns as in `results/regret.csv`.
    """
    names = {"coverage_regret": "coverage", "composition_regret": "composition", "certificate_lower": "lower"}
    rows = results.rename(columns=names | {"certificate_upper": "upper"})
    rows["gap"] = rows["upper"] - rows["lower"]
    rows["certified"] = rows["lower"] >= rows["return"] - _CENT
    rows["loses_in_composing"] = rows["composition"] > _CENT
    parts = []
    for by in _GROUPS:
        keys = [*by, "strategy", "method"]
        columns = [*names.values(), "upper", "gap"]
        table = of_optimum(rows, keys, columns, stream(root_seed, "bootstrap"))
        counted = rows.groupby(keys, sort=False)[["certified", "loses_in_composing"]].mean().reset_index()
        parts.append(_spread(table.merge(counted, on=keys)))
    return pd.concat(parts, ignore_index=True)


def hybrid_seconds(timings: pd.DataFrame) -> pd.DataFrame:
    """What `hybrid` takes of the time of `exhaustive`, by method and the number of sub-queries.

    Args:
        timings: of the experiment.

    Returns:
        Columns `method, parts, hybrid, exhaustive, ratio, rows`: mean seconds of composing and scoring, their ratio.
    """
    number = {(query.query_class, query.setup): len(query.parts) for query in QUERIES}
    rows = timings[timings["strategy"].isin(["hybrid", "exhaustive"])]
    asked = zip(rows["query_class"], rows["setup"], strict=True)
    rows = rows.assign(
        parts=[number[query] for query in asked], seconds=rows["seconds_compose"] + rows["seconds_score"]
    )
    table = rows.pivot_table(index=["method", "parts"], columns="strategy", values="seconds", sort=False)
    table = table[["hybrid", "exhaustive"]].assign(ratio=table["hybrid"] / table["exhaustive"])
    counts = rows[rows["strategy"] == "hybrid"].groupby(["method", "parts"], sort=False).size()
    return table.assign(rows=counts).reset_index()


def _sweep_shares(sweep: pd.DataFrame, by: tuple[str, ...], root_seed: int) -> pd.DataFrame:
    keys = [*by, "method", "k"]
    table = summarise(sweep, keys, stream(root_seed, "bootstrap"))
    for column, name in (("predicted_return", "predicted"), ("best_return", "best")):
        other = summarise(sweep, keys, stream(root_seed, "bootstrap"), column)
        table[[f"{name}_return", f"{name}_low", f"{name}_high"]] = other[["return", "return_low", "return_high"]]
    return table


def all_seconds(timings: pd.DataFrame, spec: str) -> pd.DataFrame:
    """Seconds of a query over everything, by library, by query class and by query, beside the published ones.

    Returns:
        Columns as in `results/timings.csv`. `speedup` compares with our own training from scratch,
        `speedup_over_published_scratch` with the published one: two different things.
    """
    parts = [_spread(seconds_summary(timings, [*by, "strategy", "method"])) for by in _GROUPS]
    table = pd.concat(parts, ignore_index=True)
    published = _published_seconds(spec)
    table = table.merge(published, on=["library", "query_class", "setup", "strategy", "method"], how="left")
    scratch = published[published["strategy"] == "scratch"].set_index(["library", "query_class", "setup"])
    groups = pd.MultiIndex.from_frame(table[list(_KEYS)])
    table["published_scratch_seconds"] = scratch["published_seconds"].reindex(groups).to_numpy()
    table["speedup_over_published_scratch"] = table["published_scratch_seconds"] / table["seconds"]
    return table


def _published(name: str, spec: str) -> pd.DataFrame:
    with files("lever_lib").joinpath(f"data/{name}").open(encoding="utf-8") as file:
        return pd.read_csv(file, dtype={"seed": str}).query("spec == @spec").drop(columns="spec")


def _published_seconds(spec: str) -> pd.DataFrame:
    """Mean published seconds by library and query class, and over all of either."""
    rows = _published("published_averages.csv", spec).dropna(subset="published_seconds")
    value = rows["published_seconds"] + rows["published_seconds_decompose"].fillna(0)
    rows = rows.assign(total=rows["published_seconds"] * rows["rows"], whole=value * rows["rows"])
    parts = []
    for by in ((), ("library",), ("query_class",), ("library", "query_class")):
        sums = rows.groupby([*by, "strategy", "method"], sort=False)[["total", "whole", "rows"]].sum().reset_index()
        sums["published_seconds"] = sums["total"] / sums["rows"]
        sums["published_seconds_with_decompose"] = sums["whole"] / sums["rows"]
        # The qsum tables name no seconds of decomposition.
        sums.loc[sums["method"] != "exnonzero", "published_seconds_with_decompose"] = np.nan
        parts.append(_spread(sums.drop(columns=["total", "whole", "rows"])))
    return pd.concat(parts, ignore_index=True)


def same_exit_rule(spec: str, grid: Grid) -> bool:
    """Whether a spec pays for gold at the exit as its published table does, so that results compare as they are."""
    return _PUBLISHED_LEGACY_EXIT.get(("exnonzero", spec), grid.legacy_gold_exit) == grid.legacy_gold_exit


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
    published = _published("published_exnonzero.csv", spec)
    keys = ["setup", "library", "seed", "query_class", "strategy", "method"]
    if same_exit_rule(spec, grid):
        table = published.merge(results[[*keys, "return"]], on=keys, how="left")
    else:
        problems = published[["seed", "setup"]].drop_duplicates()
        legacy = _PUBLISHED_LEGACY_EXIT["exnonzero", spec]
        best = [_optimum(grid, row.seed, row.setup, legacy) for row in problems.itertuples()]
        table = published.merge(problems.assign(**{"return": best}), on=["seed", "setup"])
    table["agrees"] = (table["return"] - table["published_return"]).abs() < _CENT
    return table[[*keys, "published_return", "return", "agrees"]]


def _optimum(grid: Grid, seed: int | str, setup: str, legacy_gold_exit: bool) -> float:
    return optimum(make_layout(grid, seed), reward_system(setup, legacy_gold_exit)).return_


def published_averages(shares: pd.DataFrame, spec: str, params: Params) -> pd.DataFrame:
    """Average returns of the published tables of a spec beside ours, by library and query class.

    The published protocol differs (exit rule for gold, which candidates `targeted` takes, how policies are embedded and
    scored), so each side is also given as a share of the average optimum under its own exit rule.

    Args:
        shares: as from `all_shares`.
        spec: `16x16` and `32x32` are published; for others the table is empty.
        params: of the spec. Where its layouts are not the published ones, ours are left out.

    Returns:
        Columns `method, library, query_class, strategy, rows, published_return, published_optimum, published_share,
        return, return_low, return_high, optimum, share_of_averages`; `strategy` holds `scratch` too.
    """
    published = _published("published_averages.csv", spec)
    setups = {query.query_class: [] for query in experiment.QUERIES}
    for query in experiment.QUERIES:
        setups[query.query_class].append(query.setup)
    published["published_optimum"] = [
        np.mean(
            [
                _optimum(_PUBLISHED_GRID[spec], seed, setup, _PUBLISHED_LEGACY_EXIT[row.method, spec])
                for seed in _PUBLISHED_SEEDS
                for setup in setups[row.query_class]
            ]
        )
        for row in published.itertuples()
    ]
    ours = _with_scratch(apart_by(shares, {"library", "query_class"}), published["method"].unique())
    keys = ["method", "library", "query_class", "strategy"]
    columns = ["return", "return_low", "return_high", "optimum"]
    if not _published_layouts(spec, params):
        ours = ours.iloc[:0]
    table = published.merge(ours[[*keys, *columns]], on=keys, how="left")
    table["published_share"] = table["published_return"] / table["published_optimum"]
    table["share_of_averages"] = table["return"] / table["optimum"]
    theirs = ["published_return", "published_optimum", "published_share"]
    return table[[*keys, "rows", *theirs, *columns, "share_of_averages"]]


def _published_layouts(spec: str, params: Params) -> bool:
    """Whether a spec has the layouts of the published tables."""
    grid, theirs = params.grid, _PUBLISHED_GRID.get(spec)
    same = theirs and replace(theirs, legacy_gold_exit=grid.legacy_gold_exit) == grid
    return bool(same) and set(params.seeds) == set(_PUBLISHED_SEEDS)


def pooled_averages(averages: pd.DataFrame, shares: pd.DataFrame) -> pd.DataFrame:
    """Published averages beside ours with libraries and query classes pooled, each published row weighing the same.

    Args:
        averages: as from `published_averages`.
        shares: of the same run, as from `all_shares`; gives the intervals over layouts.

    Returns:
        Index `method, strategy`; columns `published_return, published_share` (an average return over an average
        optimum, since their rows are not known) and `return, share, low, high` (ours; shares as everywhere else).
    """
    sums = averages[["published_return", "published_optimum"]].mul(averages["rows"], axis=0)
    sums = pd.concat([averages[["method", "strategy"]], sums], axis=1)
    sums = sums.assign(rows=averages["rows"]).groupby(["method", "strategy"], sort=False).sum()
    theirs = pd.DataFrame(
        {
            "published_return": sums["published_return"] / sums["rows"],
            "published_share": sums["published_return"] / sums["published_optimum"],
        }
    )
    ours = _with_scratch(overall(shares), averages["method"].unique()).set_index(["method", "strategy"])
    return theirs.join(ours[["return", "share", "low", "high"]])


def _with_scratch(shares: pd.DataFrame, methods: np.ndarray) -> pd.DataFrame:
    """The rows with training from scratch as a strategy of each method too, as the published tables have it."""
    scratch = shares[(shares["method"] == "scratch") & (shares["strategy"] == "targeted")].assign(strategy="scratch")
    return pd.concat([shares, *(scratch.assign(method=method) for method in methods)])


def readable_shares(shares: pd.DataFrame) -> pd.DataFrame:
    """Overall shares as text, by method and strategy: mean and interquartile mean with intervals, stuck share."""
    rows = overall(shares)
    stuck = rows["stuck_share"].map("{:.1%}".format).where(rows["stuck_share"].notna(), "")
    texts = rows.assign(mean=_cells(rows, "share", ""), IQM=_cells(rows, "iqm", "iqm_"), stuck=stuck)
    long = texts.melt(["method", "strategy"], ["mean", "IQM", "stuck"], var_name="of the share")
    return _crossed(long, ["method", "of the share"])


def readable_direct(summary: Summary) -> pd.DataFrame:
    """Mean shares as text: the right policies composed without retrieval, beside what the strategies do."""
    direct = overall(summary.direct).assign(strategy="direct")
    rows = pd.concat([direct, summary.overall().query("method in @direct['method']")])
    return _crossed(rows.assign(value=_cells(rows, "share", "")), ["method"])


def improvement_pairs(improvement: pd.DataFrame, strategy: str, methods: list[str]) -> pd.DataFrame:
    """Rows of one strategy that compare some methods with each other and with the references; `pair` names them."""
    mine = improvement[(improvement["strategy"] == strategy) & (improvement["over_strategy"] == strategy)]
    mine = mine[mine["method"].isin(methods) & mine["over_method"].isin([*methods, *REFERENCES])]
    return mine.assign(pair=mine["method"] + " over " + mine["over_method"])


def _cells(rows: pd.DataFrame, value: str, ends: str, digits: int = 3) -> list[str]:
    """`value [low, high]` of each row; the value alone where no interval is known."""
    return [
        f"{middle:.{digits}f}" + ("" if pd.isna(low) else f" [{low:.{digits}f}, {high:.{digits}f}]")
        for middle, low, high in rows[[value, f"{ends}low", f"{ends}high"]].itertuples(index=False)
    ]


def _crossed(rows: pd.DataFrame, index: list[str]) -> pd.DataFrame:
    """Texts in `value`, a column per strategy."""
    return rows.pivot_table(index=index, columns="strategy", values="value", aggfunc="first", sort=False)


def latex_table(shares: pd.DataFrame, spec: str) -> str:
    """Overall returns and shares, a row per method, a column per strategy; needs the LaTeX package booktabs."""
    rows = overall(shares)
    count = rows["layouts"].max()
    layouts = f"{count} layouts with its {100 * LEVEL:.0f}\\% bootstrap interval over layouts"
    layouts += " (too narrow for so few)" if count < _FEW else ""
    returns = rows.assign(value=_cells(rows, "return", "return_", digits=1))
    cells = [
        f"{share}, {row.iqm:.3f}" + ("" if pd.isna(row.stuck_share) else f", {100 * row.stuck_share:.0f}\\%")
        for share, row in zip(_cells(rows, "share", ""), rows.itertuples(), strict=True)
    ]
    caption = (
        f"Return as share of the exact optimum, {_escaped(spec)}: mean over {layouts}, interquartile mean, "
        "share of policies that get stuck."
    )
    optimum_caption = f"Return, {_escaped(spec)}: mean over {layouts}; the optimum is {rows['optimum'].iloc[0]:.1f}."
    return "\n".join(
        [
            _latex(rows.assign(value=cells), caption, f"tab:lever-{spec}"),
            _latex(returns, optimum_caption, f"tab:lever-returns-{spec}"),
        ]
    )


def latex_timings(timings: pd.DataFrame, spec: str) -> str:
    """The overall seconds of a query: a row per method, a column per strategy; needs the LaTeX package booktabs."""
    rows = overall(timings)
    cells = [
        f"{row.seconds:.3f} ({row.seconds_without_decompose:.3f}), {row.speedup:.1f}$\\times$"
        for row in rows.itertuples()
    ]
    caption = (
        f"Seconds of a query, {_escaped(spec)}: median with (without) decomposition of the question, and how many "
        f"times longer training from scratch takes (median {rows['scratch_seconds'].iloc[0]:.3f} s of CPU)."
    )
    return _latex(rows.assign(value=cells), caption, f"tab:lever-seconds-{spec}")


def _latex(rows: pd.DataFrame, caption: str, label: str) -> str:
    table = _crossed(rows, ["method"])
    table = table.rename(index=_escaped, columns=_escaped)
    table.columns.name = table.index.name = None
    return table.style.to_latex(hrules=True, caption=caption, label=label, position_float="centering")


def _escaped(name: str) -> str:
    """A name as LaTeX takes it."""
    return name.replace("_", r"\_")
