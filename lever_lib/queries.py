"""The six published queries, and what each query class may use to answer them."""

from __future__ import annotations

from dataclasses import dataclass

from lever_lib.envs.rewards import COMPONENTS, COMPOSITE_SENTENCES, SINGLE_OBJECTIVES


@dataclass(frozen=True)
class QueryClass:
    """How much the library is allowed to know already.

    Attributes:
        setups: reward systems whose policies may be retrieved.
        pool: sentences that a query may be split into.
    """

    setups: tuple[str, ...]
    pool: tuple[str, ...]


QUERY_CLASSES: dict[str, QueryClass] = {
    "trivial": QueryClass(SINGLE_OBJECTIVES, tuple(COMPONENTS[name].sentence for name in SINGLE_OBJECTIVES)),
    "double": QueryClass(
        ("path-gold", "hazard", "hazard-lever"),
        (
            COMPOSITE_SENTENCES["path-gold"],
            "Reach the exit while avoiding hazards.",
            COMPOSITE_SENTENCES["hazard-lever"],
        ),
    ),
    "triple": QueryClass(
        ("path-gold-hazard", "lever"),
        (
            "Find the fastest exit and collect as much gold as possible, while avoiding hazards.",
            "Activate the lever and reach the exit as quickly as possible.",
        ),
    ),
}


@dataclass(frozen=True)
class Query:
    """A question in words.

    Attributes:
        query_class: key of `QUERY_CLASSES`.
        setup: reward system that its answer is judged by.
        text: the words.
        parts: reward systems that it is made of; what retrieval should find.
    """

    query_class: str
    setup: str
    text: str
    parts: tuple[str, ...]


_TEXTS = {
    "path-gold": "Find the fastest exit and collect as much gold as possible",
    "path-gold-hazard": ("Find the fastest exit, collect as much gold as possible, avoid hazards at all cost"),
    "path-gold-hazard-lever": (
        "Find the fastest exit after activating the lever, collect as much gold as possible, avoid hazards at all cost"
    ),
}
_PARTS = {
    ("trivial", "path-gold"): ("path", "gold"),
    ("trivial", "path-gold-hazard"): ("path", "gold", "hazard"),
    ("trivial", "path-gold-hazard-lever"): ("path", "gold", "hazard", "lever"),
    ("double", "path-gold-hazard"): ("path-gold", "hazard"),
    ("double", "path-gold-hazard-lever"): ("path-gold", "hazard-lever"),
    ("triple", "path-gold-hazard-lever"): ("path-gold-hazard", "lever"),
}
QUERIES = tuple(Query(name, setup, _TEXTS[setup], parts) for (name, setup), parts in _PARTS.items())
