"""Numbers out of result tables. Knows nothing of worlds, policies or figures.

Every interval is a bootstrap over layouts: a layout is what repeats. It is drawn with all its rows, so that in each
resample every question and every training budget has the same weight, and rows of one layout stay together, because
what makes one of them hard makes the others hard.

Source: Efron & Tibshirani (1993), chapter 13 (percentile interval); Agarwal et al. (2021) for interquartile mean and
probability of improvement.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
from scipy.stats import bootstrap, trim_mean

LEVEL = 0.95  # of every interval
_RESAMPLES = 2000
_TIE = 1e-9
TOTAL_SECONDS = ["seconds_decompose", "seconds_search", "seconds_compose", "seconds_score"]


def mean(values: np.ndarray) -> np.ndarray:
    """Mean over layouts and their rows, float (..., L, T) to (...)."""
    return values.mean(axis=(-2, -1))


def interquartile_mean(values: np.ndarray) -> np.ndarray:
    """Mean of the middle half of all rows of all layouts, float (..., L, T) to (...)."""
    return trim_mean(values.reshape(*values.shape[:-2], -1), 0.25, axis=-1)


def interval(
    values: np.ndarray, rng: np.random.Generator, statistic: Callable[[np.ndarray], np.ndarray] = mean
) -> tuple[float, float, float]:
    """A statistic with its percentile bootstrap interval over layouts at `LEVEL`.

    Of a handful of layouts the interval is rough and too narrow (of five it covers a normal mean in 83 % of cases, not
    95 %), and with a single one it is not defined (nan).

    Args:
        values: float (L, T); a row per layout.
        rng: draws the resamples.
        statistic: of float (..., L, T), to (...).

    Returns:
        Value, lower end, upper end.
    """
    value = float(statistic(values))
    if len(values) < 2:
        return value, np.nan, np.nan

    def resampled(layouts: np.ndarray, axis: int) -> np.ndarray:
        """The statistic of the layouts drawn, (..., L) to (...)."""
        return statistic(values[layouts])

    found = bootstrap(
        (np.arange(len(values)),), resampled, n_resamples=_RESAMPLES, vectorized=True,
        confidence_level=LEVEL, method="percentile", rng=rng,
    ).confidence_interval  # fmt: skip
    return value, float(found.low), float(found.high)


def summarise(rows: pd.DataFrame, keys: list[str], rng: np.random.Generator, column: str = "return") -> pd.DataFrame:
    """Returns and their share of the optimum by group, with intervals over layouts and the share of stuck policies.

    All groups are resampled alike, so that equal groups have equal intervals.

    Args:
        rows: columns `seed, optimum, stuck`, those of `keys` and `column`; every optimum above 0, and each group with
            the same number of rows for every layout.
        keys: columns to keep apart.
        rng: of the bootstrap.
        column: which return to summarise; where it is not `return` nothing is said of stuck policies.

    Returns:
        Columns of `keys`, then `share, low, high, iqm, iqm_low, iqm_high` (mean and interquartile mean of the shares),
        `return, return_low, return_high, optimum` (means), `stuck_share, layouts`.
    """
    if (rows["optimum"] <= 0).any():
        raise ValueError("optimum: a share needs an optimum above 0")
    seed = int(rng.integers(2**63))
    summary = []
    for key, part in rows.groupby(keys, sort=False):
        returns, optima = by_layout(part, column), by_layout(part, "optimum")
        shares = returns / optima
        means, rewards = (  # of each layout first: the same mean, quicker
            interval(values.mean(axis=1, keepdims=True), np.random.default_rng(seed)) for values in (shares, returns)
        )
        middles = interval(shares, np.random.default_rng(seed), interquartile_mean)
        stuck = part["stuck"].mean() if column == "return" else np.nan
        summary.append((*key, *means, *middles, *rewards, optima.mean(), stuck, len(shares)))
    columns = ["share", "low", "high", "iqm", "iqm_low", "iqm_high", "return", "return_low", "return_high"]
    return pd.DataFrame(summary, columns=[*keys, *columns, "optimum", "stuck_share", "layouts"])


def of_optimum(rows: pd.DataFrame, keys: list[str], columns: list[str], rng: np.random.Generator) -> pd.DataFrame:
    """Means of some columns as shares of the optimum by group, each with its interval over layouts.

    Args:
        rows: columns `seed, optimum`, those of `keys` and `columns`; every optimum above 0.
        keys: columns to keep apart.
        columns: what to summarise.
        rng: of the bootstrap.

    Returns:
        Columns of `keys`, then `<column>, <column>_low, <column>_high` for each, and `layouts`.
    """
    if (rows["optimum"] <= 0).any():
        raise ValueError("optimum: a share needs an optimum above 0")
    seed = int(rng.integers(2**63))
    summary = []
    for key, part in rows.groupby(keys, sort=False):
        optima, found = by_layout(part, "optimum"), dict(zip(keys, key, strict=True))
        for column in columns:
            shares = (by_layout(part, column) / optima).mean(axis=1, keepdims=True)
            ends = interval(shares, np.random.default_rng(seed))
            found |= dict(zip((column, f"{column}_low", f"{column}_high"), ends, strict=True))
        summary.append(found | {"layouts": len(optima)})
    return pd.DataFrame(summary)


def by_layout(rows: pd.DataFrame, column: str) -> np.ndarray:
    """A column as a matrix, float (L, T): layouts in the order of their names, their rows as they come."""
    names = rows["seed"].to_numpy(dtype=str)
    order = np.argsort(names, kind="stable")
    _, counts = np.unique(names, return_counts=True)
    if len(set(counts)) != 1:
        raise ValueError("rows: every layout must have the same number of them")
    return rows[column].to_numpy(dtype=np.float64)[order].reshape(len(counts), -1)


def improvement(ours: np.ndarray, theirs: np.ndarray, rng: np.random.Generator) -> tuple[float, float, float]:
    """Probability that one way does better than another on the same question and layout, with its interval.

    Equal counts half. Both answer the same questions on the same layouts, so they are compared pair by pair.

    Args:
        ours: returns or shares, float (L, T).
        theirs: of the same rows, float (L, T).
        rng: draws the resamples.

    Returns:
        Probability, lower end, upper end.
    """
    difference = ours - theirs
    wins = np.where(np.abs(difference) <= _TIE, 0.5, difference > 0)
    return interval(wins, rng)


def seconds_summary(timings: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """Median seconds of a query by group, and the middle half of them.

    Args:
        timings: columns of `keys` and `TOTAL_SECONDS`; `scratch_seconds` where they are known.
        keys: columns to keep apart.

    Returns:
        Columns of `keys`, one median per part, `seconds, low, high` of the whole (quartiles),
        `seconds_without_decompose` and `scratch_seconds` (medians), and `speedup`: the median of scratch seconds /
        seconds.
    """
    total = timings.assign(seconds=timings[TOTAL_SECONDS].sum(axis=1))
    total["seconds_without_decompose"] = total["seconds"] - total["seconds_decompose"]
    if "scratch_seconds" in total:
        total["speedup"] = total["scratch_seconds"] / total["seconds"]
    groups = total.groupby(keys, sort=False)
    measured = [name for name in ("seconds_without_decompose", "scratch_seconds", "speedup") if name in total]
    summary = groups[[*TOTAL_SECONDS, "seconds"]].median()
    summary["low"], summary["high"] = (groups["seconds"].quantile(share) for share in (0.25, 0.75))
    return summary.join(groups[measured].median()).reset_index()
