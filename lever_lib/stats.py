"""Numbers out of result tables. Knows nothing of worlds, policies or figures."""

from __future__ import annotations

import pandas as pd


def layout_shares(results: pd.DataFrame, column: str = "return") -> pd.DataFrame:
    """Share of the optimum, one row per layout, strategy and method.

    A layout is the unit that repeats: libraries and queries of one layout are averaged before any interval is taken.

    Args:
        results: columns `seed, strategy, method, optimum` and `column`; every optimum above 0.
        column: which return to compare with the optimum.

    Returns:
        Columns `seed, strategy, method, share`.
    """
    if (results["optimum"] <= 0).any():
        raise ValueError("optimum: a share needs an optimum above 0")
    shares = results.assign(share=results[column] / results["optimum"])
    return shares.groupby(["seed", "strategy", "method"], sort=False)["share"].mean().reset_index()
