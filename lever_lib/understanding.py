"""How well questions are understood: the evaluation set, scores on it, and what is fitted on its development part.

`lever_lib/data/queries.csv` holds questions with the objectives that they ask for. They were written one at a time,
without templates. On the part `development` the vocabulary was tuned and everything here is fitted; the part `test`
was written by other hands, and is for reporting.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lever_lib.envs.rewards import COMPONENTS, REWARD_SYSTEMS, SINGLE_OBJECTIVES, reward_system
from lever_lib.recognise import FITTED, features, fitted, recognise
from lever_lib.text import encode

QUERIES_FILE = Path(__file__).parent / "data" / "queries.csv"
PARTS = ("development", "test")
KINDS = ("single", "double", "triple", "four", "none", "offtopic")
NOTHING = "nothing"

Answerer = Callable[[str], tuple[str, ...]]
Encode = Callable[[list[str]], np.ndarray]


def load_queries(part: str) -> pd.DataFrame:
    """Questions of one part: `query, objectives, kind`; objectives joined by `-`, empty if there is none."""
    table = pd.read_csv(QUERIES_FILE, keep_default_na=False)
    return table[table["part"] == part].drop(columns="part").reset_index(drop=True)


def answer_offline(query: str) -> tuple[str, ...]:
    """Objectives by words."""
    return recognise(query).objectives


@dataclass(frozen=True)
class Scores:
    """What became of a list of questions.

    Attributes:
        overall: one row: `questions, exact, low, high`, the share answered with exactly the objectives asked for and
            its 95 % interval (Wilson).
        by_kind: the same per kind of question.
        by_objective: per objective `asked, found, precision, recall`.
        confusion: questions by what they asked for (rows) and what was answered (columns).
        mistakes: `query, asked, answered` of the others.
    """

    overall: pd.DataFrame
    by_kind: pd.DataFrame
    by_objective: pd.DataFrame
    confusion: pd.DataFrame
    mistakes: pd.DataFrame

    def with_overall(self) -> pd.DataFrame:
        """The shares of each kind of question, and of all."""
        return pd.concat([self.by_kind, self.overall.set_axis(["all"])])


def answer_nearest(gate: float) -> Answerer:
    """Answers of the baseline: the one objective whose sentence is nearest, or nothing below the gate."""

    def answer(query: str) -> tuple[str, ...]:
        cosines, names = nearest_sentence(encode, [query], SINGLE_OBJECTIVES)
        return (names[0],) if cosines[0] >= gate else ()

    return answer


def some_of_each(queries: pd.DataFrame, count: int) -> pd.DataFrame:
    """The first `count` questions of each kind."""
    return queries.groupby("kind", sort=False).head(count).reset_index(drop=True)


def evaluate(queries: pd.DataFrame, answer: Answerer) -> Scores:
    """Ask every question and compare the answers with what was meant."""
    answers = ["-".join(answer(query)) for query in queries["query"]]
    table = queries.assign(answered=answers, right=queries["objectives"] == answers)
    kinds = [_shares(part).assign(kind=kind) for kind, part in table.groupby("kind")]
    by_kind = pd.concat(kinds).set_index("kind").reindex([kind for kind in KINDS if kind in set(table["kind"])])
    named = table[["objectives", "answered"]].replace("", NOTHING)
    order = sorted(set(named.to_numpy().ravel()), key=_place)
    confusion = pd.crosstab(named["objectives"], named["answered"]).reindex(index=order, columns=order, fill_value=0)
    wrong = table.loc[~table["right"], ["query", "objectives", "answered"]]
    return Scores(
        overall=_shares(table),
        by_kind=by_kind,
        by_objective=_by_objective(table),
        confusion=confusion.rename_axis(index="asked", columns="answered"),
        mistakes=wrong.rename(columns={"objectives": "asked"}).reset_index(drop=True),
    )


def _shares(table: pd.DataFrame) -> pd.DataFrame:
    from scipy.stats import binomtest  # half a second to import, and only needed here

    share = binomtest(int(table["right"].sum()), len(table))
    low, high = share.proportion_ci(method="wilson")
    return pd.DataFrame([{"questions": len(table), "exact": share.statistic, "low": low, "high": high}])


def _by_objective(table: pd.DataFrame) -> pd.DataFrame:
    asked, answered = (table[column].str.split("-") for column in ("objectives", "answered"))
    rows = []
    for name in SINGLE_OBJECTIVES:
        is_asked, is_found = (np.array([name in parts for parts in column]) for column in (asked, answered))
        both = (is_asked & is_found).sum()
        rows.append(
            {
                "objective": name,
                "asked": is_asked.sum(),
                "found": is_found.sum(),
                "precision": both / max(is_found.sum(), 1),
                "recall": both / max(is_asked.sum(), 1),
            }
        )
    return pd.DataFrame(rows).set_index("objective")


def _place(named: str) -> tuple[int, list[int]]:
    if named == NOTHING:
        return 0, []
    parts = named.split("-")
    return len(parts), [list(COMPONENTS).index(part) for part in parts]


def nearest_sentence(encode: Encode, queries: Sequence[str], setups: Sequence[str]) -> tuple[np.ndarray, list[str]]:
    """The reward system whose sentence is nearest by cosine; over the single objectives, the baseline.

    Args:
        encode: sentences to unit vectors.
        queries: the questions.
        setups: reward systems to choose from.

    Returns:
        Cosines of the nearest sentence, float32 (n,), and its reward system.
    """
    cosines = encode(list(queries)) @ encode([reward_system(setup).sentence for setup in setups]).T
    return cosines.max(axis=1), [setups[place] for place in cosines.argmax(axis=1)]


def calibrated_gate(encode: Encode) -> float:
    """The cosine that best tells questions about the world from those that are off topic, per encoder.

    It is fitted on the development part: the threshold with the highest balanced accuracy, rounded to two decimals.
    """
    queries = load_queries("development")
    queries = queries[(queries["objectives"] != "") | (queries["kind"] == "offtopic")]
    cosines, _ = nearest_sentence(encode, queries["query"], REWARD_SYSTEMS)
    wanted = (queries["kind"] != "offtopic").to_numpy()
    grid = np.round(np.arange(0, 1, 0.01), 2)
    passed = cosines[:, None] >= grid
    balanced = (passed[wanted].mean(axis=0) + (~passed[~wanted]).mean(axis=0)) / 2
    return float(grid[balanced.argmax()])


def fit_topic(queries: pd.DataFrame) -> dict[str, Any]:
    """Weights of the regression that tells whether a sentence is about the world."""
    from sklearn.linear_model import LogisticRegression  # a second to import, and only needed here

    found = np.stack([features(query) for query in queries["query"]])
    model = LogisticRegression(C=10.0, max_iter=10_000, class_weight="balanced")
    model.fit(found, queries["kind"] != "offtopic")
    return {"weights": model.coef_[0].round(4).tolist(), "intercept": round(float(model.intercept_[0]), 4)}


def certainty(queries: pd.DataFrame) -> dict[str, float]:
    """How often mentions are read right, by kind; one right and one wrong are added to what was seen."""
    counts: dict[str, list[int]] = {}
    for query, asked in zip(queries["query"], queries["objectives"], strict=True):
        reading = recognise(query)
        for mention in reading.mentions if reading.objectives else []:
            seen = counts.setdefault(mention.kind, [1, 2])
            seen[0] += mention.wanted == (mention.component in asked.split("-"))
            seen[1] += 1
    return {kind: round(right / count, 3) for kind, (right, count) in sorted(counts.items())}


def fit() -> None:
    """Fit what recognition learns from the development part, and write it."""
    queries = load_queries("development")
    found = {"topic": fit_topic(queries), "certainty": {}}
    for _ in range(2):  # which mentions count depends on the topic
        FITTED.write_text(json.dumps(found) + "\n", encoding="utf-8")
        fitted.cache_clear()
        found["certainty"] = certainty(queries)


if __name__ == "__main__":
    fit()
