"""Answers of `search` as people and programs read them."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pandas as pd

from lever_lib.api import Answer, OpenLibrary
from lever_lib.decompose import meaning, understood
from lever_lib.energy import joules_in_words
from lever_lib.envs.gridworld import Layout

_SHORT = ["policy_id", "cosine", "predicted", "interval", "return", "share", "stuck", "energy"]
_ADVICE = {
    "use": "reuse is enough",
    "plan": "planning on the recordings promises {:.2f} (--method exnonzero --strategy library)",
    "train": "reuse is not enough, not even planning on the recordings ({:.2f}); train a policy for this",
}


def facts(opened: OpenLibrary, rows: pd.Series) -> pd.DataFrame:
    """All that a library knows of some of its policies, one row each.

    Returns:
        Columns of the library's table, `share_of_optimum` (null where the optimum is not above 0), `train_seconds`,
        `energy_joules, energy_label` and `q_table_shape`.
    """
    library = opened.library
    found = library.policies.iloc[rows].reset_index(drop=True).drop(columns=["q_index", "spec"])
    share = found["return"] / found["optimum"].where(found["optimum"] > 0)
    times = library.timings.iloc[rows].reset_index(drop=True).drop(columns="policy_id")
    shape = " x ".join(str(length) for length in library.q_tables.shape[1:])
    return pd.concat([found.assign(share_of_optimum=share), times], axis=1).assign(q_table_shape=shape)


def candidates(opened: OpenLibrary, table: pd.DataFrame) -> pd.DataFrame:
    """A table of candidates with all that is known of each."""
    known = facts(opened, table["row"])
    found = table.drop(columns="row").reset_index(drop=True)
    return pd.concat([found, known.drop(columns=[*set(known) & set(found)])], axis=1)


def as_json(opened: OpenLibrary, answer: Answer, strategy: str) -> dict[str, Any]:
    """An answer for programs; `lever_lib/data/search.schema.json` says what is in it."""
    low, high = answer.predicted_interval
    return {
        "query": answer.query,
        "spec": opened.library.spec,
        "seed": answer.layout.name,
        "setup": answer.setup,
        "objectives": list(answer.objectives),
        "understood": understood(answer.split),
        "strategy": strategy,
        "method": answer.recipe.method,
        "sub_queries": [
            {"query": sub_query, "candidates": records(candidates(opened, table))}
            for sub_query, table in zip(answer.sub_queries, answer.candidates, strict=True)
        ],
        "policies": list(answer.policy_ids),
        "return": answer.return_,
        "optimum": answer.optimum,
        "predicted_return": answer.predicted_return,
        "predicted_interval": [low, high],
        "certificate": {
            **vars(answer.certificate),
            "recorded_planned": answer.outlook.planned,
            "recorded_upper": answer.outlook.upper,
            "advice": answer.advice,
        },
        "stuck": answer.stuck,
        "path": path_of(answer.cells, answer.layout),
        "seconds": answer.seconds,
    }


def records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows of a table as JSON has them: no NaN."""
    return json.loads(table.to_json(orient="records", double_precision=15))


def path_of(cells: np.ndarray, layout: Layout) -> list[tuple[int, int]]:
    """Row and column of each cell."""
    return [divmod(int(cell), layout.size) for cell in cells]


def in_words(opened: OpenLibrary, answer: Answer, show_all: bool) -> str:
    """An answer for people."""
    lines = ["understood: " + meaning(answer.split)]
    for sub_query, table in zip(answer.sub_queries, answer.candidates, strict=True):
        found = candidates(opened, table)
        lines += ["", sub_query, _in_full(found) if show_all else _in_short(found)]
    legend = _legend(opened.params.regressor.interval_level)
    lines += ["", legend, "", verdict(answer), answer.layout.drawn(answer.cells)]
    return "\n".join(lines)


def verdict(answer: Answer) -> str:
    """One line: what was composed and what it is worth."""
    few = len(answer.policy_ids) <= 6
    low, high = answer.predicted_interval
    return (
        f"{answer.recipe.method} of {' + '.join(answer.policy_ids) if few else f'{len(answer.policy_ids)} policies'}\n"
        f"as {answer.setup} on layout {answer.layout.name}: return {answer.return_:.2f}, optimum {answer.optimum:.2f}, "
        f"predicted {answer.predicted_return:.2f} ({low:.0f} to {high:.0f})"
        f"{', gets stuck' if answer.stuck else ''} ({answer.seconds:.2f} s)\n{promise(answer)}"
    )


def promise(answer: Answer) -> str:
    """One line: what is sure of a policy before it is run, and what to do if that is not enough."""
    bounds = f"sure from recordings: at least {answer.certificate.lower:.2f}; no policy can return more than "
    return f"{bounds}{answer.outlook.upper:.2f}: {_ADVICE[answer.advice].format(answer.outlook.planned)}"


def _in_short(found: pd.DataFrame) -> str:
    shown = found.assign(
        interval=[f"{low:.0f} to {high:.0f}" for low, high in zip(found["low"], found["high"], strict=True)],
        share=[f"{share:.0%}" if share == share else "" for share in found["share_of_optimum"]],
        energy=joules_in_words(found),
    )
    return shown[_SHORT].to_string(index=False, float_format="{:.2f}".format)


def _in_full(found: pd.DataFrame) -> str:
    return "\n\n".join(row.to_string(float_format="{:.4g}".format) for _, row in found.iterrows())


def _legend(level: float) -> str:
    return (
        f"predicted, interval: return for what is asked, and where it lies in {100 * level:g}% of cases; "
        "return, share: measured for what\nthe policy was trained for, and its share of the optimum; "
        "energy: joules of its training"
    )


def neighbours_in_words(opened: OpenLibrary, found: pd.DataFrame, show_all: bool) -> str:
    """Policies that behave alike, for people."""
    table = candidates(opened, found)
    if show_all:
        return _in_full(table)
    table["energy"] = joules_in_words(table)
    columns = ["policy_id", "distance", "setup", "return", "optimum", "stuck", "energy"]
    return table[columns].to_string(index=False, float_format="{:.2f}".format)
