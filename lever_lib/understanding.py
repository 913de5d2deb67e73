"""How well questions are understood: the evaluation set, scores on it, and what is fitted on its development part.

`lever_lib/data/queries.csv` holds questions with the objectives that they ask for. They were written one at a time,
without templates. From the part `development` the reader learned and everything here is fitted; the part `test` was
written afterwards by other hands, and is for reporting.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from lever_lib.envs.rewards import COMPONENTS, REWARD_SYSTEMS, SINGLE_OBJECTIVES, reward_system
from lever_lib.errors import OneLineParser
from lever_lib.recognise import LEARNED, recognise
from lever_lib.seeding import stream
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
    """Objectives by the network that reads wishes."""
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


def fingerprint(queries: pd.DataFrame) -> str:
    """Hash of questions and their answers: what the reader was taught."""
    lines = "\n".join(queries["query"] + "\t" + queries["objectives"])
    return hashlib.sha256(lines.encode()).hexdigest()


_EPOCHS, _BATCH, _RATE, _HEAD_RATE = 14, 32, 1e-3, 2e-3
_BUCKET = 8  # batches whose questions are sorted by length, so that little is filled up


def _lessons(queries: pd.DataFrame) -> list[list[tuple[str, np.ndarray]]]:
    """Batches of questions and what they ask for, epoch after epoch: at random, those of about one length together."""
    wanted = [np.isin(LEARNED, objectives.split("-")) for objectives in queries["objectives"]]
    examples = list(zip(queries["query"], wanted, strict=True))
    rng = stream(0, "recognition")
    lessons = []
    for _ in range(_EPOCHS):
        order = rng.permutation(len(examples))
        buckets = np.array_split(order, -(-len(order) // (_BATCH * _BUCKET)))
        alike = np.concatenate([sorted(bucket, key=lambda number: len(examples[number][0])) for bucket in buckets])
        batches = np.array_split(alike, -(-len(alike) // _BATCH))
        lessons += [[examples[place] for place in batches[number]] for number in rng.permutation(len(batches))]
    return lessons


def fit() -> None:
    """Teach the reader the development part, and write what it has learned; takes minutes."""
    from lever_lib.reader import save, train

    queries = load_queries("development")
    save(train(_lessons(queries), _RATE, _HEAD_RATE, 0), fingerprint(queries))


if __name__ == "__main__":
    OneLineParser(prog="python -m lever_lib.understanding", description=fit.__doc__).parse_args()
    fit()
