"""From a question in words to objectives and sub-queries.

`offline` needs no network: it recognises objectives by the words people use for them and then picks, from a pool of
sentences, the smallest set that covers exactly these objectives. `none` hands the question on as it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

from lever_lib.envs.rewards import components_named
from lever_lib.errors import LeverError


@dataclass(frozen=True)
class Decomposition:
    """What a question asks for.

    Attributes:
        query: as it was asked.
        objectives: component names recognised, in the order of the reward table.
        sub_queries: sentences to search for, one policy each.
        confidence: 1 if words of an objective were found, else 0: recognition by words knows no degrees.
    """

    query: str
    objectives: tuple[str, ...]
    sub_queries: tuple[str, ...]
    confidence: float


def decompose(query: str, pool: tuple[str, ...], how: str = "offline") -> Decomposition:
    """Split a question into sub-queries.

    Args:
        query: in words.
        pool: sentences to choose from.
        how: `offline` or `none`.

    Raises:
        LeverError: if the query is empty, or if `offline` recognises objectives that the pool cannot say exactly.
    """
    if not isinstance(query, str) or not query.strip():
        raise LeverError(f"query {query!r}: must be words")
    objectives = components_named(query)
    confidence = 1.0 if objectives else 0.0
    if how == "none":
        return Decomposition(query, objectives, (query,), confidence)
    if how != "offline":
        raise LeverError(f"decompose = {how!r}: must be 'offline' or 'none'")
    return Decomposition(query, objectives, _cover(objectives, pool), confidence)


def _cover(objectives: tuple[str, ...], pool: tuple[str, ...]) -> tuple[str, ...]:
    """The first smallest set of pool sentences whose objectives together are exactly `objectives`."""
    if not objectives:
        return ()
    meanings = {sentence: set(components_named(sentence)) for sentence in pool}
    useful = [sentence for sentence in pool if meanings[sentence] and meanings[sentence] <= set(objectives)]
    for count in range(1, len(useful) + 1):
        for chosen in combinations(useful, count):
            if set().union(*(meanings[sentence] for sentence in chosen)) == set(objectives):
                return chosen
    raise LeverError(f"query asks for {', '.join(objectives)}, which the sentences to choose from cannot cover exactly")
