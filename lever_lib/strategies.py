"""Which candidates get composed: targeted, hybrid, exhaustive, or the whole library."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from math import prod

from lever_lib.composition import Method, Pool
from lever_lib.errors import LeverError
from lever_lib.pi2vec import Embedder
from lever_lib.policies.base import CellPolicy
from lever_lib.regressor import Predictor
from lever_lib.rollout import Policy
from lever_lib.timed_planning import states_to_plan

_MOST = 100_000  # combinations; they are tried one by one
_TOGETHER = 64  # policies that are embedded and scored at once
_WAITING = 2**30  # bytes of them; one that was planned by steps left may have a hundred million
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


def check_strategy(strategy: str) -> None:
    """Refuse what is no strategy.

    Raises:
        LeverError: naming those that there are.
    """
    if not isinstance(strategy, str) or strategy not in STRATEGIES:
        raise LeverError(f"strategy {strategy!r}: must be one of {', '.join(STRATEGIES)}")


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

    Returns:
        By the worst rank in a combination, so that those of the first k candidates come first, for every k.

    Raises:
        LeverError: if there is no such strategy, or if they are too many to try.
    """
    check_strategy(strategy)
    if strategy == "library":
        return [tuple(everything)]
    keep = {"targeted": 1, "hybrid": top_k, "exhaustive": None}[strategy]
    counts = [len(rows[:keep]) for rows in candidates]
    if prod(counts) > _MOST:
        ways = " x ".join(map(str, counts))
        rule = f"must be {_MOST:,} at most; take fewer of each (top_k, search.candidates)"
        raise LeverError(f"{strategy}: {ways} candidates make {prod(counts):,} combinations, {rule}")
    ranks = product(*map(range, counts))
    return [tuple(rows[r] for rows, r in zip(candidates, rank, strict=True)) for rank in sorted(ranks, key=max)]


def choose(
    pool: Pool, method: Method, combos: Sequence[tuple[int, ...]], embedder: Embedder, predictor: Predictor
) -> Choice:
    """Compose every combination, embed it, predict its return, keep the best; the first one on ties."""
    if not combos:
        raise LeverError("combos: nothing to compose")
    [choice] = choices(pool, method, combos, [len(combos)], embedder, predictor)
    return choice


def choices(
    pool: Pool,
    method: Method,
    combos: Sequence[tuple[int, ...]],
    ends: Sequence[int],
    embedder: Embedder,
    predictor: Predictor,
    watch: Callable[[Policy], None] | None = None,
) -> Iterator[Choice]:
    """Several choices in one go: for each end, the best of the combinations before it.

    What is known to come to the same policy is composed or embedded once: combinations that act alike under a method
    that reads behaviour only, and policies that take the same action in every cell. Each choice is the one, and counts
    the seconds, of a run over its own combinations alone.

    Args:
        pool: policies and question.
        method: how to compose.
        combos: as from `combinations`.
        ends: ascending, from 1 to the number of combinations.
        embedder: of the pool's layout.
        predictor: of returns.
        watch: called with every policy composed; its time does not count.
    """
    seconds_compose = seconds_score = 0.0
    best: tuple[float, tuple[int, ...], Policy] | None = None
    known: dict[Hashable, float] = {}
    planned = states_to_plan(pool.layout) if pool.layout.cyclic else 1
    for first, stop in pairwise(_marks(ends, max(1, min(_TOGETHER, _WAITING // planned)))):
        started = time.perf_counter()
        new: dict[Hashable, tuple[tuple[int, ...], Policy]] = {}
        for members in combos[first:stop]:
            key: Hashable = frozenset(pool.behaviour[member] for member in members) if method.by_behaviour else None
            if key is not None and (key in known or key in new):
                continue
            policy = pool.compose(method, members)
            if watch is not None:
                paused = time.perf_counter()
                watch(policy)
                started += time.perf_counter() - paused
            if isinstance(policy, CellPolicy):
                key = policy.actions.tobytes()
            if key not in known:
                new.setdefault(members if key is None else key, (members, policy))
        composed = time.perf_counter()
        if new:
            embedded = embedder.embed([policy for _, policy in new.values()])
            values = predictor.predict(embedded, pool.system)
            for (key, (members, policy)), value in zip(new.items(), values, strict=True):
                known[key] = value
                if best is None or value > best[0]:
                    best = value, members, policy
        seconds_compose += composed - started
        seconds_score += time.perf_counter() - composed
        if stop in ends:
            value, chosen, winner = best
            yield Choice(chosen, winner, float(value), stop, seconds_compose, seconds_score)


def _marks(ends: Sequence[int], together: int) -> list[int]:
    """Where to stop and score: at every end, and before too many policies wait."""
    return sorted({0, *ends, *range(0, ends[-1], together)})
