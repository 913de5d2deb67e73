import json
import os
from dataclasses import replace

import pytest

from lever_lib import llm
from lever_lib.decompose import OFFLINE, decompose, meaning, recognised, understood
from lever_lib.envs.rewards import COMPONENTS
from lever_lib.errors import LeverError
from lever_lib.llm import LLMError
from lever_lib.params import LanguageModel
from lever_lib.queries import QUERIES, QUERY_CLASSES
from lever_lib.recognise import meant_by
from tests.llm_server import LLMServer, fails, says

SPLITS = {
    ("trivial", "path-gold"): ["path", "gold"],
    ("trivial", "path-gold-hazard"): ["path", "gold", "hazard"],
    ("trivial", "path-gold-hazard-lever"): ["path", "gold", "hazard", "lever"],
    ("double", "path-gold-hazard"): ["path-gold", "hazard"],
    ("double", "path-gold-hazard-lever"): ["path-gold", "hazard-lever"],
    ("triple", "path-gold-hazard-lever"): ["path-gold-hazard", "path-lever"],
}


def test_the_six_published_queries_are_understood_and_split():
    assert len(QUERIES) == 6
    for query in QUERIES:
        split = decompose(query.text, QUERY_CLASSES[query.query_class].pool)
        assert "-".join(split.objectives) == query.setup
        meanings = ["-".join(meant_by(sentence)) for sentence in split.sub_queries]
        assert meanings == SPLITS[query.query_class, query.setup]


def test_nothing_recognised_is_an_empty_answer():
    split = decompose("bake a cake", QUERY_CLASSES["trivial"].pool)
    assert (split.objectives, split.sub_queries, split.confidence) == ((), (), 0.0)


def test_none_hands_the_query_on():
    assert decompose("collect gold quickly", (), "none").sub_queries == ("collect gold quickly",)


def test_what_the_pool_cannot_say_is_an_error():
    with pytest.raises(LeverError, match="cannot cover"):
        decompose("pull the lever", QUERY_CLASSES["double"].pool)
    with pytest.raises(LeverError, match="decompose"):
        decompose("gold", (), "magic")
    with pytest.raises(LeverError, match="must be words"):
        decompose("  ", ())


def test_what_is_asked_for_and_what_is_waved_away():
    split = recognised("Pull the lever and ignore the Gold, gold I have.")
    assert (split.objectives, split.sub_queries, split.answered_by) == (("lever",), (), OFFLINE)
    assert [found.words for found in split.evidence] == [("lever",)]
    assert [(found.component, found.words) for found in split.waved_away] == [("gold", ("Gold", "gold"))]
    assert 0.5 < split.confidence == split.evidence[0].confidence <= 1


def test_the_least_sure_objective_says_how_sure_a_question_is():
    split = recognised("coins and the levar")
    assert split.confidence == min(found.confidence for found in split.evidence)


def test_a_question_about_something_else_waves_nothing_away():
    split = recognised("Who won the gold medal, and what is a light switch?")
    assert (split.objectives, split.waved_away, split.confidence) == ((), (), 0.0)


def test_in_one_line_and_for_programs():
    split = recognised("Pull the lever, never mind the gold.")
    sure = split.confidence
    assert meaning(split) == f"lever ({sure:.0%} sure, from 'lever'); not asked for: gold ('gold')"
    assert meaning(recognised("bake a cake")) == "no objective"
    assert json.loads(json.dumps(understood(split)))["evidence"] == [
        {"objective": "lever", "confidence": sure, "words": ["lever"]}
    ]


# ---- a language model

POOL = QUERY_CLASSES["trivial"].pool
GOLD, LEVER, PATH = (COMPONENTS[name].sentence for name in ("gold", "lever", "path"))
QUERY = "Do whatever a magpie with a bus to catch would do."  # no word of it names an objective


@pytest.fixture(autouse=True)
def nobody(monkeypatch, tmp_path):
    """No key, no address and no `.env` of whoever runs the tests."""
    for name in [name for name in os.environ if name.startswith("OPENAI_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(llm, "ROOT", tmp_path)


@pytest.fixture
def ask(monkeypatch):
    """Splits a question with a model that says what it is told to; returns the split and what the model was asked."""

    def run(*answers, count=None, **settings):
        steps = [answer if callable(answer) else says(json.dumps({"sentences": answer})) for answer in answers]
        with LLMServer(*steps) as server:
            monkeypatch.setenv("OPENAI_BASE_URL", server.url)
            monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
            model = LanguageModel(**{"model": "stub", "timeout_s": 20.0} | settings)
            split = decompose(QUERY, POOL, "llm", model, ("right", "down"), count)
            return split, [request["body"]["messages"] for request in server.requests]

    return run


def test_a_language_model_chooses_sentences(ask):
    split, (messages,) = ask([PATH, GOLD])
    assert split.sub_queries == (PATH, GOLD)
    assert (split.objectives, split.confidence) == (("path", "gold"), 1.0)
    assert (split.answered_by, split.tokens) == ("stub at 127.0.0.1", 10)
    assert 0 < split.seconds < 20
    assert [(found.component, found.words) for found in split.evidence] == [("path", ()), ("gold", ())]
    task, question = (message["content"] for message in messages)
    assert question == QUERY
    assert all(f"- {sentence}" in task for sentence in POOL)
    assert "Actions: right, down." in task
    assert "10 tokens" in meaning(split)


def test_a_language_model_may_find_nothing(ask):
    split, _ = ask([])
    assert (split.objectives, split.sub_queries, split.confidence) == ((), (), 0.0)


REFUSED = {
    "a sentence of its own": (["Dance."], "'Dance.' is not in the list"),
    "the same twice": ([GOLD, GOLD], "there twice"),
    "too few": ([GOLD], "it chooses 1 sentences, 2 are wanted"),
    "too many": ([GOLD, LEVER, PATH], "it chooses 3 sentences, 2 are wanted"),
    "no list": (GOLD, "a list of strings"),
    "no strings": ([1, 2], "a list of strings"),
    "nothing": (None, "a list of strings"),
}


@pytest.mark.parametrize(("answer", "reason"), REFUSED.values(), ids=REFUSED)
def test_a_wrong_answer_is_told_back_and_a_right_one_then_taken(ask, answer, reason):
    split, (first, second) = ask(answer, [LEVER, GOLD], count=2)
    assert split.sub_queries == (LEVER, GOLD)
    assert split.objectives == ("gold", "lever"), "in the order of the reward table"
    assert second[: len(first)] == first
    assert reason in second[-1]["content"]
    assert "Choose exactly 2." in first[0]["content"]
    assert split.tokens == 20


STUBBORN = says(json.dumps({"sentences": ["Dance."]}))


@pytest.mark.parametrize("step", [STUBBORN, fails(401, "wrong key"), says("I would rather not.")])
def test_without_a_usable_answer_params_decide(ask, step):
    with pytest.raises(LLMError, match="stub at") as caught:
        ask(step, tries=2)
    assert "\n" not in str(caught.value)
    split, asked = ask(step, tries=2, fallback="offline")
    assert 1 <= len(asked) <= 2
    expected = decompose(QUERY, POOL)
    assert replace(split, seconds=0) == replace(expected, seconds=0)
    assert split.answered_by == OFFLINE, "and it says so"


def test_a_recorded_answer_needs_no_model(ask, monkeypatch, tmp_path):
    recording = str(tmp_path / "exchanges.jsonl")
    split, _ = ask(["Dance."], [PATH, GOLD], record=recording)
    for name in ("OPENAI_BASE_URL", "OPENAI_API_KEY"):
        monkeypatch.delenv(name)
    model = LanguageModel(model="stub", replay=recording)
    replayed = decompose(QUERY, POOL, "llm", model)
    assert replayed == replace(split, answered_by="stub at 127.0.0.1, recorded")
    with pytest.raises(LLMError, match="holds no"):
        decompose("another question", POOL, "llm", model)
    with pytest.raises(LLMError, match="holds no"):
        decompose(QUERY, POOL, "llm", model, count=2)


def test_a_model_that_nobody_gave_a_key_for_is_one_line():
    with pytest.raises(LLMError, match="OPENAI_API_KEY"):
        decompose(QUERY, POOL, "llm")
