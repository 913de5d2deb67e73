"""Which objectives a sentence asks for; a query and its answer stand on one line, objectives joined by `-`."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lever_lib import recognise as recognise_module
from lever_lib.decompose import recognised
from lever_lib.envs.rewards import COMPONENTS, REWARD_SYSTEMS, Component, reward_system
from lever_lib.errors import LeverError
from lever_lib.grammar import mentions
from lever_lib.recognise import check_sentences, meant_by, recognise


def cases(text):
    """Pairs of query and objectives."""
    pairs = [line.rsplit("->", 1) for line in text.strip().splitlines()]
    rows = [pytest.param(query.strip(), named.strip(), id=query.strip()[:40]) for query, named in pairs]
    return pytest.mark.parametrize(("query", "objectives"), rows)


def asked(query):
    return "-".join(recognise(query).objectives)


def worded(query):
    """What the grammar makes of a sentence, without the network."""
    wanted = {mention.component for mention in mentions(query) if mention.wanted}
    return "-".join(name for name in COMPONENTS if name in wanted)


@cases("""
    Grab every nugget you come across. -> gold
    I want to leave this maze with a heavy purse. -> gold
    Get me home without a scratch. -> hazard
    Stay well clear of the spikes. -> hazard
    Be there before you know it, no dawdling. -> path
    Reach the goal in as few moves as you can. -> path
    Somebody has to work the crank. -> lever
    Flip the switch on your way. -> lever
""")
def test_an_objective_has_many_words(query, objectives):
    assert worded(query) == objectives


@cases("""
    Run to the exit, scooping up coins on the way. -> path-gold
    A quick but safe way out. -> path-hazard
    Pull the lever, then hurry to the door. -> path-lever
    Treasure and switch, please. -> gold-lever
    Carefully collect the jewels. -> gold-hazard
    Sneak past the traps and throw the switch. -> hazard-lever
    The shortest way that passes the lever and no hazard. -> path-hazard-lever
    I would like all of it: speed, gold, safety and the lever. -> path-gold-hazard-lever
""")
def test_a_sentence_may_ask_for_several(query, objectives):
    assert worded(query) == objectives


@cases("""
    Get to the exit without picking up any gold. ->
    Find the shortest path but ignore the gold. -> path
    Do not touch the lever, just collect coins. -> gold
    Avoid the lever and the gold; only be quick. -> path
    There is no need to hurry, but bring the treasure. -> gold
    Rather than coins, go for the lever. -> lever
    I do not care about danger; I want gold. -> gold
    never mind the traps, get the gold -> gold
""")
def test_what_is_waved_away_is_not_asked_for(query, objectives):
    assert worded(query) == objectives


@cases("""
    No traps, please. -> hazard
    Never step on a hazard. -> hazard
    Be as quick as possible without touching the traps. -> path-hazard
    Don't die! -> hazard
    Anything but the long way round. -> path
""")
def test_to_be_spared_something_bad_is_a_wish(query, objectives):
    assert worded(query) == objectives


@cases("""
    Don't forget the gold. -> gold
    Do not ignore the lever. -> lever
    Never leave without the treasure. -> gold
    Not without the lever! -> lever
    You must not neglect the coins. -> gold
    It is not true that the lever can be skipped. -> lever
    Don't you dare be slow. -> path
    Do not be careless. -> hazard
    don't avoid the traps ->
""")
def test_twice_turned_round_is_back_again(query, objectives):
    assert worded(query) == objectives


@cases("""
    Neither gold nor lever, only the shortest way. -> path
    Forget the coins and the switch, just get out alive. -> hazard
    No coins or levers, please hurry. -> path
    Skip the gold and the lever, avoid the hazards. -> hazard
    Avoid traps, pits and lava. -> hazard
    without gold or lever, quickly -> path
""")
def test_a_negation_holds_for_a_whole_list(query, objectives):
    assert worded(query) == objectives


@cases("""
    The gold doesn't matter, be quick. -> path
    Collect the coins; the lever can stay as it is. -> gold
    Hazards are no concern of mine, speed is. -> path
    Gold is not needed, the lever is. -> lever
    Speed is optional, safety is mandatory. -> hazard
    Traps must be avoided. -> hazard
    The lever must be pulled. -> lever
    Gold yes, lever no. -> gold
    the lever should not be pulled; the coins should be taken -> gold
""")
def test_what_is_said_of_a_thing_afterwards_counts(query, objectives):
    assert worded(query) == objectives


@cases("""
    There is a lever, leave it; grab the coins. -> gold
    The coins? Leave them. ->
    About the lever: forget it. Be quick instead. -> path
    If you see a lever, ignore it; coins are what I want. -> gold
    There are traps around, keep away from them. -> hazard
    There's a lever in this room. Pull it. -> lever
""")
def test_a_pronoun_stands_for_what_was_spoken_of(query, objectives):
    assert worded(query) == objectives


@cases("""
    colect the tresure -> gold
    aviod hazzards -> hazard
    pull teh levar -> lever
    shortst path to the exti -> path
    quikly grab sum gold -> path-gold
    dont step on the trpas -> hazard
""")
def test_misspellings_are_forgiven(query, objectives):
    assert worded(query) == objectives


@cases("""
    How do I switch my phone to silent mode? ->
    What is the price of gold per ounce today? ->
    Recommend a quick pasta recipe. ->
    Who won the gold medal in the 100 metres? ->
    Explain how a light switch works. ->
    Is the speed limit on this motorway 120? ->
    What a lovely day! ->
""")
def test_a_word_in_another_sense_asks_for_nothing(query, objectives):
    assert asked(query) == objectives
    assert recognised(query).confidence == 0


def test_the_evidence_is_as_it_was_typed_and_in_its_order():
    query = "GRAB Coins & Tresure, ignore the Lever; be quick!"
    found = recognised(query)
    assert {part.component: part.words for part in found.evidence} == {"path": ("quick",), "gold": ("Coins", "Tresure")}
    assert {part.component: part.words for part in found.waved_away} == {"lever": ("Lever",)}
    words = [mention.words for mention in recognise(query).mentions]
    places = [query.index(word) for word in words]
    assert places == sorted(places)


@pytest.mark.parametrize("setup", REWARD_SYSTEMS)
def test_every_reward_system_is_recognised_in_its_own_sentence(setup):
    assert "-".join(meant_by(reward_system(setup).sentence)) == setup
    assert asked(reward_system(setup).sentence) == setup, "and is about the world"


@pytest.fixture
def stroll(monkeypatch):
    """A component of somebody's own."""
    own = Component("Walk about before the exit.", {"step": 2.0, "exit": 10.0}, words="stroll|walk|go _ wandering*")
    monkeypatch.setitem(COMPONENTS, "stroll", own)
    check_sentences()


@cases("""
    a walk with gold -> gold-stroll
    STROLL! -> stroll
    wlak to the exit -> stroll
    go hand in hand wandering -> stroll
    no walk, but the lever -> lever
    take a stroll and avoid the traps -> hazard-stroll
    pull the lever -> lever
""")
def test_words_of_a_component_of_your_own(stroll, query, objectives):
    assert worded(query) == objectives


def test_without_words_a_component_goes_by_its_name(monkeypatch):
    monkeypatch.setitem(COMPONENTS, "rest", Component("Rest before the exit.", {"step": 2.0}))
    assert worded("rest and gold") == "gold-rest"


@pytest.mark.parametrize(
    ("sentence", "words"), [("Take a long walk.", "stroll"), ("Stroll the shortest way.", "stroll"), ("Walk.", "")]
)
def test_a_sentence_that_its_own_words_do_not_name_is_refused(monkeypatch, sentence, words):
    monkeypatch.setitem(COMPONENTS, "stroll", Component(sentence, {"step": 1.0}, words))
    with pytest.raises(LeverError, match=r"component 'stroll': .* must be recognised by its own words"):
        check_sentences()


LONG = "collect the gold and do not touch the lever " * 230


PLAIN = """
    collect the gold -> gold
    as fast as possible, please -> path
    avoid hazards -> hazard
    pull the lever -> lever
    fast exit with gold -> path-gold
    pull the lever but stay away from traps -> hazard-lever
    grab the coins, never mind the traps -> gold
    be quick, safe and rich, and flip the switch -> path-gold-hazard-lever
    colect the tresure -> gold
    bake a cake ->
    get to the exit ->
"""


@cases(PLAIN)
def test_grammar_and_network_decide_together(query, objectives):
    assert asked(query) == objectives


def test_the_network_may_overrule_the_grammar(monkeypatch):
    def sure_of(*odds):
        monkeypatch.setattr(recognise_module, "_log_odds", lambda sentences: np.array([odds], np.float32))
        return recognise("collect the gold").chances

    assert sure_of(0, 0, 0, 0)["gold"] > 0.8, "the grammar's word counts where the network has no opinion"
    assert sure_of(0, -9, 0, 0)["gold"] < 0.2
    assert sure_of(0, 0, 9, 0)["hazard"] > 0.8, "what no word names may still be meant"
    assert sure_of(0, 0, 1, 0)["hazard"] < 0.5


@cases(f"""
    {LONG} -> gold
    {"a" * 10_000} ->
    {"$" * 5000} gold -> gold
    🪙🏃💨 ->
    🪙 gold 🏃 -> gold
    اجمع الذهب وتجنب الفخاخ ->
    אסוף gold מהר -> gold
    '''' 's ->
    gold\0lever -> gold-lever
    \ud800 gold -> gold
""")
def test_any_text_may_be_asked(query, objectives):
    assert worded(query) == objectives


@pytest.mark.parametrize("query", ["", " \t\n", ".", "—", "🪙"])
def test_no_words_ask_for_nothing(query):
    reading = recognise(query)
    assert (reading.mentions, reading.objectives) == ([], ())


# fmt: off
CUES = [
    "gold", "lever", "quick", "traps", "not", "no", "don't", "forget", "avoid", "without", "nor", "it", "leave", "is",
    "and", "or", "but", ",", ".", ";", ":", "?",
]
# fmt: on


@given(st.lists(st.one_of(st.sampled_from(CUES), st.text(max_size=12)), max_size=25), st.sampled_from(["", " "]))
@settings(max_examples=50, deadline=None)
def test_whatever_is_asked_the_evidence_stands_in_it(words, gap):
    query = gap.join(words)
    found = recognised(query)
    assert 0 <= found.confidence <= 1
    assert {part.component for part in found.evidence} == set(found.objectives)
    for part in (*found.evidence, *found.waved_away):
        assert all(word and word in query for word in part.words)
        assert 0.5 <= part.confidence <= 1


@given(st.text(max_size=20), st.text(max_size=20))
def test_the_words_around_it_do_not_change_how_a_word_is_quoted(before, after):
    assert ("gold", "GOLD") in {mention[:2] for mention in mentions(f"{before} GOLD {after}")}


def test_a_question_read_before_needs_no_network(tmp_path, monkeypatch):
    memory = tmp_path / "memory.sqlite"
    query = "grab the coins, never mind the traps"
    before = recognise(query, memory)

    def unavailable(sentences):
        raise AssertionError(sentences)

    monkeypatch.setattr(recognise_module, "_log_odds", unavailable)
    assert recognise(query, memory) == before
