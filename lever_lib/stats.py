"""Numbers out of result tables. Knows nothing of worlds, policies or figures."""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy.spatial.distance import cdist
from scipy.stats import bootstrap

LEVEL = 0.95  # of every interval
_RESAMPLES = 9999
TOTAL_SECONDS = ["seconds_decompose", "seconds_search", "seconds_compose", "seconds_score"]


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

    A layout is the unit that repeats: its rows are averaged before any interval is taken. All groups are resampled
    alike, so that equal shares have equal intervals.

    Args:
        results: columns `seed, strategy, method, optimum, stuck`, those of `by` and `column`; every optimum above 0.
        rng: of the bootstrap.
        by: columns to keep apart besides strategy and method.
        column: which return to compare with the optimum; where it is not `return` nothing is said of stuck policies.

    Returns:
        Columns of `by`, then `strategy, method, share, low, high, stuck_share, layouts`.
    """
    if (results["optimum"] <= 0).any():
        raise ValueError("optimum: a share needs an optimum above 0")
    keys = [*by, "strategy", "method"]
    shares = results.assign(share=results[column] / results["optimum"])
    seed = int(rng.integers(2**63))
    rows = []
    for key, part in shares.groupby(keys, sort=False):
        per_layout = part.groupby("seed")["share"].mean()
        share, low, high = mean_interval(per_layout.to_numpy(), np.random.default_rng(seed))
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


def neighbour_agreement(vectors: np.ndarray, labels: np.ndarray, groups: np.ndarray) -> tuple[float, float]:
    """How often the nearest neighbour of a point has its label, neighbours of its own group left out.

    Args:
        vectors: float (P, D); near is Euclidean.
        labels: of the points, (P,).
        groups: of the points, (P,); points of a group are near copies of each other.

    Returns:
        Share of the points whose nearest neighbour agrees, and the share that a random neighbour would reach.
    """
    others = groups[:, None] != groups[None, :]
    alike = labels[:, None] == labels[None, :]
    distances = np.where(others, cdist(vectors, vectors), np.inf)
    agrees = alike[np.arange(len(labels)), distances.argmin(axis=1)]
    return float(agrees.mean()), float(((alike & others).sum(axis=1) / others.sum(axis=1)).mean())
