import numpy as np
import pandas as pd
import pytest

from lever_lib.envs.rewards import REWARD_SYSTEMS, reward_system
from lever_lib.index import EMBEDDED_GATE
from lever_lib.reader import trained_on
from lever_lib.text import encode
from lever_lib.understanding import (
    KINDS,
    PARTS,
    answer_offline,
    calibrated_gate,
    evaluate,
    fingerprint,
    load_queries,
)

ASKED = pd.DataFrame(
    [("a", "path", "single"), ("b", "path-gold", "double"), ("c", "", "none"), ("d", "gold-lever", "double")],
    columns=["query", "objectives", "kind"],
)
ANSWERED = {"a": ("path",), "b": ("path",), "c": (), "d": ("gold", "hazard")}


@pytest.fixture(scope="module")
def scores():
    """Four questions, of which two are answered right."""
    return evaluate(ASKED, ANSWERED.__getitem__)


def test_the_share_answered_exactly_and_its_interval(scores):
    (row,) = scores.overall.to_dict("records")
    assert (row["questions"], row["exact"]) == (4, 0.5)
    z = 1.959964  # Wilson (1927): p = 1/2, n = 4
    half = z * (1 / 16 + z**2 / 64) ** 0.5 / (1 + z**2 / 4)
    assert (row["low"], row["high"]) == pytest.approx((0.5 - half, 0.5 + half))
    assert scores.by_kind["questions"].to_dict() == {"single": 1, "double": 2, "none": 1}
    assert scores.by_kind["exact"].tolist() == [1, 0, 1]


def test_precision_and_recall_of_each_objective(scores):
    table = scores.by_objective
    assert table["asked"].to_dict() == {"path": 2, "gold": 2, "hazard": 0, "lever": 1}
    assert table["found"].to_dict() == {"path": 2, "gold": 1, "hazard": 1, "lever": 0}
    assert table["precision"].to_dict() == {"path": 1, "gold": 1, "hazard": 0, "lever": 0}
    assert table["recall"].to_dict() == {"path": 1, "gold": 0.5, "hazard": 0, "lever": 0}


def test_what_was_taken_for_what(scores):
    table = scores.confusion
    assert table.index.tolist() == table.columns.tolist()
    assert table.index.tolist() == ["nothing", "path", "path-gold", "gold-hazard", "gold-lever"]
    pairs = [(asked, answered) for asked in table.index for answered in table.columns if table.loc[asked, answered]]
    assert pairs == [
        ("nothing", "nothing"),
        ("path", "path"),
        ("path-gold", "path"),
        ("gold-lever", "gold-hazard"),
    ]
    assert table.to_numpy().sum() == 4
    assert scores.mistakes.to_numpy().tolist() == [["b", "path-gold", "path"], ["d", "gold-lever", "gold-hazard"]]


@pytest.mark.parametrize("part", PARTS)
def test_the_questions_have_answers_that_can_be_given(part):
    queries = load_queries(part)
    assert len(queries) >= 300
    assert set(queries["kind"]) == set(KINDS)
    for objectives, kind in zip(queries["objectives"], queries["kind"], strict=True):
        count = {"single": 1, "double": 2, "triple": 3, "four": 4}.get(kind, 0)
        assert len(objectives.split("-") if objectives else []) == count
        assert objectives == "" or reward_system(objectives).name == objectives, "in the order of the reward table"


def test_no_question_is_in_both_parts():
    development, test = (set(load_queries(part)["query"]) for part in PARTS)
    shared = len(development & test)
    assert shared == 0


def test_the_gate_separates_what_a_fake_encoder_keeps_apart():
    queries = load_queries("development")
    cosines = dict(zip(queries["query"], np.where(queries["kind"] == "offtopic", 0.305, 0.7), strict=True))

    def vectors(texts):
        near = np.array([cosines.get(text, 1.0) for text in texts])
        return np.stack([near, np.sqrt(1 - near**2)], axis=1)

    assert all(reward_system(setup).sentence not in cosines for setup in REWARD_SYSTEMS)
    assert calibrated_gate(vectors) == 0.31, "the lowest of two decimals that lets nothing off topic pass"


def test_the_gate_of_the_embedded_encoder_is_its_calibrated_one():
    assert calibrated_gate(encode) == EMBEDDED_GATE


@pytest.fixture(scope="module")
def development():
    return load_queries("development")


def test_the_reader_was_taught_the_questions_that_are_there_now(development):
    assert trained_on() == fingerprint(development), "run `python -m lever_lib.understanding`"


def test_most_questions_that_the_reader_was_taught_are_understood(development):
    some = development.iloc[::10].reset_index(drop=True)
    scores = evaluate(some, answer_offline)
    assert scores.overall["exact"].item() >= 0.95
    assert (scores.by_objective[["precision", "recall"]] > 0.95).all(axis=None)
