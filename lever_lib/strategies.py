"""Which candidates get composed: targeted, hybrid, exhaustive, or the whole library."""

from __future__ import annotations

import time
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import product

from lever_lib.composition import Method, Pool
from lever_lib.errors import LeverError
from lever_lib.pi2vec import Embedder
from lever_lib.policies.base import CellPolicy
from lever_lib.regressor import Predictor
from lever_lib.rollout import Policy

STRATEGIES = ("targeted", "hybrid", "exhaustive", "library")


@dataclass(frozen=True)
class Choice:
    """The combination that a strategy settled on.

    Attributes:
        members: rows of the pool.
        policy: composed of them.
        predicted_return: by the regressor, for the composed policy's embedding.
        combinations: how many were composed and scored.
        seconds_compose: wall time of composing them all.
        seconds_score: wall time of embedding and scoring them all.
    """

    members: tuple[int, ...]
    policy: Policy
    predicted_return: float
    combinations: int
    seconds_compose: float
    seconds_score: float


def combinations(
    strategy: str, candidates: Sequence[Sequence[int]], top_k: int, everything: Sequence[int]
) -> list[tuple[int, ...]]:
    """Combinations of pool rows that a strategy composes.

    Args:
        strategy: `targeted` takes the first candidate of each sub-query, `hybrid` every combination of the first
            `top_k`, `exhaustive` every combination, `library` all policies at once.
        candidates: rows per sub-query, best first.
        top_k: of `hybrid`.
        everything: rows that `library` composes.
    """
    if strategy == "library":
        return [tuple(everything)]
    if strategy not in STRATEGIES:
        raise LeverError(f"strategy {strategy!r}: must be one of {', '.join(STRATEGIES)}")
    keep = {"targeted": 1, "hybrid": top_k, "exhaustive": None}[strategy]
    return list(product(*(rows[:keep] for rows in candidates)))


def choose(
    pool: Pool, method: Method, combos: Sequence[tuple[int, ...]], embedder: Embedder, predictor: Predictor
) -> Choice:
    """Compose every combination, embed it, predict its return, keep the best; the first one on ties.

    What is known to come to the same policy is composed or embedded once: combinations that act alike under a method
    that reads behaviour only, and policies that take the same action in every cell.
    """
    seconds_compose = seconds_score = 0.0
    best: tuple[float, tuple[int, ...], Policy] | None = None
    known: dict[Hashable, float] = {}
    for members in combos:
        started = composed = time.perf_counter()
        key: Hashable = frozenset(pool.behaviour[member] for member in members) if method.by_behaviour else None
        if key is None or key not in known:
            policy = pool.compose(method, members)
            if isinstance(policy, CellPolicy):
                key = policy.actions.tobytes()
            composed = time.perf_counter()
            value = known.get(key)
            if value is None:
                value = float(predictor.predict(embedder.embed(policy)[None], pool.system.indicator)[0])
            if key is not None:
                known[key] = value
            if best is None or value > best[0]:
                best = value, members, policy
        seconds_compose += composed - started
        seconds_score += time.perf_counter() - composed
    if best is None:
        raise LeverError("combos: nothing to compose")
    value, members, policy = best
    return Choice(members, policy, value, len(combos), seconds_compose, seconds_score)
