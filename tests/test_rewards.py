import re

import numpy as np
import pytest

from lever_lib.envs.rewards import COMPONENTS, EVENTS, REWARD_SYSTEMS, Component, RewardSystem, reward_system
from lever_lib.errors import LeverError
from lever_lib.recognise import check_sentences

PUBLISHED = [
    "path",
    "gold",
    "hazard",
    "lever",
    "hazard-lever",
    "path-gold",
    "path-gold-hazard",
    "path-gold-hazard-lever",
]


def pays(system, event):
    return system.weights[EVENTS.index(event)]


def test_the_published_systems_are_there():
    assert sorted(REWARD_SYSTEMS) == sorted(PUBLISHED)


def test_a_composite_is_the_sum_of_its_components():
    both = reward_system("path-gold-hazard-lever")
    every_step = pays(both, "step")
    assert every_step == pytest.approx(-1 - 0.01 - 0.1 - 0.1)
    assert pays(both, "exit") == 100 + 100 + 20
    shared = reward_system("path").weights * (np.array(EVENTS) == "bump") + reward_system("path").weights * (
        np.array(EVENTS) == "hazard"
    )
    parts = sum(reward_system(name).weights - shared for name in COMPONENTS)
    np.testing.assert_allclose(both.weights, parts + shared)


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_system_pays_the_same_for_bumps_and_hazards(name):
    assert pays(reward_system(name), "bump") == -1
    assert pays(reward_system(name), "hazard") == -100


def test_the_legacy_exit_rule_changes_gold_only():
    new, old = reward_system("path-gold"), reward_system("path-gold", legacy_gold_exit=True)
    assert (pays(new, "exit_gold_share"), pays(new, "exit_some_gold")) == (-10, 0)
    assert (pays(old, "exit_gold_share"), pays(old, "exit_some_gold")) == (0, -20)
    assert (reward_system("path").weights == reward_system("path", legacy_gold_exit=True).weights).all()


def test_an_event_that_does_not_exist_is_refused():
    with pytest.raises(LeverError, match="'dance' is no event"):
        Component("Dance.", {"dance": 1.0})


@pytest.mark.parametrize(
    ("entry", "rule"),
    [
        ({"pays": {"step": float("nan")}}, "step = nan: must be a number"),
        ({"pays": {"step": float("inf")}}, "step = inf: must be a number"),
        ({"pays": {"step": "2"}}, "step = '2': must be a number"),
        ({"pays": {}, "pays_legacy": {"gold": True}}, "gold = True: must be a number"),
        ({"pays": {}, "sentence": " "}, "its sentence must be a line of text"),
        ({"pays": {}, "sentence": "Walk.\nRun."}, "its sentence must be a line of text"),
        ({"pays": {}, "words": ["walk"]}, "its words text"),
        ({"pays": [("step", 1.0)]}, "what it pays must be a dict, reward by event"),
        ({"pays": {}, "pays_legacy": "gold"}, "what it pays must be a dict, reward by event"),
        ({"pays": {"step": 10**4000}}, "0 ... 0"),
    ],
)
def test_an_entry_that_cannot_be_paid_or_asked_for_is_refused(entry, rule):
    with pytest.raises(LeverError, match=re.escape(rule)):
        Component(**{"sentence": "Walk."} | entry)


@pytest.mark.parametrize("name", ["long-walk", "../walk", "", "2walks", "_walk"])
def test_a_name_that_cannot_be_joined_is_refused(monkeypatch, name):
    monkeypatch.setitem(COMPONENTS, name, Component("Stroll.", {"step": 1.0}, words="stroll"))
    with pytest.raises(LeverError, match=f"component {name!r}: its name must be"):
        check_sentences()


@pytest.mark.parametrize("components", [("path", "coins"), ()])
def test_a_made_up_system_is_refused(components):
    with pytest.raises(LeverError, match=r"reward system 'mine': components .* must be among path, gold"):
        RewardSystem("mine", components)


def test_names_are_put_in_order():
    assert reward_system("lever-gold").name == "gold-lever"


@pytest.mark.parametrize("name", ["", "coins", "path-", "path-path"])
def test_an_unknown_or_repeated_component_is_refused(name):
    with pytest.raises(LeverError, match="setup"):
        reward_system(name)
