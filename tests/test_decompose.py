import pytest

from lever_lib.decompose import decompose
from lever_lib.envs.rewards import REWARD_SYSTEMS, components_named, reward_system
from lever_lib.errors import LeverError
from lever_lib.queries import QUERIES, QUERY_CLASSES

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
        meanings = ["-".join(components_named(sentence)) for sentence in split.sub_queries]
        assert meanings == SPLITS[query.query_class, query.setup]


@pytest.mark.parametrize("setup", REWARD_SYSTEMS)
def test_every_reward_system_is_recognised_in_its_own_sentence(setup):
    assert "-".join(components_named(reward_system(setup).sentence)) == setup


@pytest.mark.parametrize(
    ("text", "objectives"),
    [
        ("collect gold quickly", ("path", "gold")),
        ("Grab every COIN on a safe way", ("gold", "hazard")),
        ("pull the switch", ("lever",)),
        ("reach the exit", ()),
        ("bake a cake", ()),
        ("", ()),
    ],
)
def test_objectives_are_told_by_their_words(text, objectives):
    assert components_named(text) == objectives


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
