"""Numbers out of result tables. Knows nothing of worlds, policies or figures."""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy.stats import bootstrap

LEVEL = 0.95  # of every interval
_RESAMPLES = 9999
TOTAL_SECONDS = ["seconds_decompose", "seconds_search", "seconds_compose", "seconds_score"]


def layout_shares(results: pd.DataFrame, column: str = "return") -> pd.DataFrame:
    """Share of the optimum, one row per layout, strategy and method.

    A layout is the unit that repeats: libraries and queries of one layout are averaged before any interval is taken.

    Args:
        results: columns `seed, strategy, method, optimum` and `column`; every optimum above 0.
        column: which return to compare with the optimum.

    Returns:
        Columns `seed, strategy, method, share`.
    """
    return _shares(results, column).groupby(["seed", "strategy", "method"], sort=False)["share"].mean().reset_index()


def _shares(results: pd.DataFrame, column: str) -> pd.DataFrame:
    if (results["optimum"] <= 0).any():
        raise ValueError("optimum: a share needs an optimum above 0")
    return results.assign(share=results[column] / results["optimum"])


def mean_interval(values: np.ndarray, rng: np.random.Generator) -> tuple[float, float, float]:
    """Mean of independent values with its percentile bootstrap interval at `LEVEL`.

    Of a handful of values the interval is rough, and with a single one it is not defined (nan).

    Args:
        values: float (n,).
        rng: draws the resamples.

    Returns:
        Mean, lower end, upper end.

    Source: Efron & Tibshirani (1993), chapter 13.
    """
    values = np.asarray(values, dtype=np.float64)
    if len(values) < 2:
        return float(values.mean()), np.nan, np.nan
    found = bootstrap(
        (values,), np.mean, n_resamples=_RESAMPLES, confidence_level=LEVEL, method="percentile", rng=rng
    ).confidence_interval
    return float(values.mean()), float(found.low), float(found.high)


def share_summary(
    results: pd.DataFrame, rng: np.random.Generator, by: tuple[str, ...] = (), column: str = "return"
) -> pd.DataFrame:
    """Share of the optimum with its interval over layouts, and the share of stuck policies beside it.

    Args:
        results: columns `seed, strategy, method, optimum, stuck`, those of `by` and `column`.
        rng: of the bootstrap.
        by: columns to keep apart besides strategy and method.
        column: which return to compare with the optimum; where it is not `return` nothing is said of stuck policies.

    Returns:
        Columns of `by`, then `strategy, method, share, low, high, stuck_share, layouts`.
    """
    keys = [*by, "strategy", "method"]
    shares = _shares(results, column)
    rows = []
    for key, part in shares.groupby(keys, sort=False):
        per_layout = part.groupby("seed")["share"].mean()
        share, low, high = mean_interval(per_layout.to_numpy(), rng)
        stuck = part["stuck"].mean() if column == "return" else np.nan
        rows.append((*key, share, low, high, stuck, len(per_layout)))
    return pd.DataFrame(rows, columns=[*keys, "share", "low", "high", "stuck_share", "layouts"])


def seconds_summary(timings: pd.DataFrame) -> pd.DataFrame:
    """Median seconds of a query by strategy and method, and the middle half of them.

    Args:
        timings: columns `strategy, method, scratch_seconds` and those of `TOTAL_SECONDS`.

    Returns:
        Columns `strategy, method`, one median per part, then `seconds, low, high` of the whole (quartiles) and
        `scratch_seconds` (median).
    """
    total = timings.assign(seconds=timings[TOTAL_SECONDS].sum(axis=1))
    groups = total.groupby(["strategy", "method"], sort=False)
    summary = groups[[*TOTAL_SECONDS, "seconds", "scratch_seconds"]].median()
    summary.insert(len(TOTAL_SECONDS) + 1, "low", groups["seconds"].quantile(0.25))
    summary.insert(len(TOTAL_SECONDS) + 2, "high", groups["seconds"].quantile(0.75))
    return summary.reset_index()
