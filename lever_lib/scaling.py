"""What a query costs as the grid, the library and the number of candidates grow: CPU seconds of one core."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable
from dataclasses import replace

import numpy as np
import pandas as pd
from tqdm import tqdm

from lever_lib.composition import Pool, everyday_methods
from lever_lib.envs.features import feature_count, feature_tables
from lever_lib.envs.gridworld import States, make_layout
from lever_lib.envs.rewards import COMPONENTS, EVENTS, REWARD_SYSTEMS, SINGLE_OBJECTIVES, reward_system
from lever_lib.forest import Forest
from lever_lib.library import training_jobs
from lever_lib.params import Grid, Params
from lever_lib.pi2vec import Embedder
from lever_lib.policies.base import CellPolicy
from lever_lib.policies.tabular import train
from lever_lib.regressor import Medians, Predictor
from lever_lib.rollout import Policy
from lever_lib.seeding import stream
from lever_lib.strategies import choices, combinations
from lever_lib.timed_planning import plannable

_SIZES = (8, 12, 16, 24, 32, 48)
_OBJECTS = (6, 4, 4)  # golds, blocks, hazards while the grid grows: those of 8x8, so that nothing else grows
_POLICIES = (5, 10, 20, 40, 80)
_CANDIDATES = (1, 2, 3, 4, 5, 6)
_SNAPSHOTS = tuple(round(0.1 * step, 1) for step in range(1, 11))
_EPISODES = 1000  # at least, so that ten snapshots differ
_TOP_K = 3  # while the grid grows
_REPEATS = 5


def measure_costs(params: Params) -> pd.DataFrame:
    """Measure the compose-and-score time of a query for all four objectives on one layout.

    One thing grows at a time: the side N of the grid (few objects, hybrid strategy with k = 3), the policies that are
    composed at once (strategy library), the k candidates per sub-query of which every combination is composed.

    Args:
        params: of the spec; its grid is where the other two are measured.

    Returns:
        Columns `grows, value, method, distinct, seconds, repeats`: `seconds` is the median CPU time of a query,
        `distinct` tells how many of the policies composed at once, or of the combinations, act differently: what acts
        alike is done once.
    """
    possible = [size for size in _SIZES if plannable(make_layout(_resized(params, size).grid, 0))]
    sizes = tqdm(possible, desc="worlds to measure in", unit="grid")
    worlds = {size: hard_question(_resized(params, size), _SNAPSHOTS) for size in sizes}
    pool, embedder, candidates = hard_question(params, _SNAPSHOTS)
    jobs: list[tuple[str, int, Pool, Embedder, list]] = [
        ("size", size, *world, combinations("hybrid", found, _TOP_K, ())) for size, (*world, found) in worlds.items()
    ]
    for count in _POLICIES:
        spread = np.linspace(0, len(pool.q_tables) - 1, count).round().astype(int)
        jobs.append(("policies", count, pool, embedder, [tuple(spread.tolist())]))
    for k in _CANDIDATES:
        jobs.append(("k", k, pool, embedder, combinations("hybrid", candidates, k, ())))
    rows = []
    for grows, value, pool, embedder, combos in tqdm(jobs, desc="measuring costs", unit="size"):
        for method in everyday_methods():
            composed: list[Policy] = []
            question = (method, combos, [len(combos)], embedder, indifferent(pool.layout.size))
            list(choices(pool.fresh(), *question, composed.append))
            alike = [pool.behaviour[row] for row in combos[0]] if grows == "policies" else map(_behaviour, composed)
            seconds = median_seconds(lambda p=pool, q=question: list(choices(p.fresh(), *q)), _REPEATS)
            rows.append((grows, value, method.name, len(set(alike)), seconds, _REPEATS))
    return pd.DataFrame(rows, columns=["grows", "value", "method", "distinct", "seconds", "repeats"])


def _behaviour(policy: Policy) -> Hashable:
    """What two policies share that are known to act alike."""
    return policy.actions.tobytes() if isinstance(policy, CellPolicy) else id(policy)


def median_seconds(call: Callable[[], object], repeats: int) -> float:
    """Median CPU seconds of `call` in this thread, after one call that loads what is compiled."""
    call()
    seconds = []
    for _ in range(repeats):
        started = time.thread_time()
        call()
        seconds.append(time.thread_time() - started)
    return float(np.median(seconds))


def indifferent(size: int) -> Predictor:
    """A predictor that costs what any costs on a grid of `size`, and predicts 0."""
    trees, inner, outputs = 60 * len(EVENTS), 15, len(EVENTS)  # complete, of depth 4
    nodes = np.arange(trees * (2 * inner + 1), dtype=np.int32)
    place = nodes % (2 * inner + 1)
    below = np.where(place < inner, nodes + place + 1, 0).astype(np.int32)
    feature = np.where(place < inner, place % (2 * feature_count(size)), -1).astype(np.int16)
    zeros = np.zeros(len(nodes))
    forest = Forest(
        np.zeros(outputs),
        nodes[place == 0],
        np.arange(trees, dtype=np.int16) % outputs,
        feature,
        zeros,
        below,
        below + (place < inner),
        zeros,
    )
    known = len(REWARD_SYSTEMS)
    return Predictor(
        forest,
        dict.fromkeys(REWARD_SYSTEMS, np.inf),
        Medians(np.zeros(()), np.zeros(known), np.zeros((2, known))),
    )


def _resized(params: Params, size: int) -> Params:
    return replace(params, grid=Grid(size, *_OBJECTS, params.grid.moves, params.grid.legacy_gold_exit))


def hard_question(params: Params, snapshots: tuple[float, ...]) -> tuple[Pool, Embedder, list[list[int]]]:
    """The question for all four objectives, put to freshly trained policies of one layout.

    Args:
        params: of the spec; its first budget and first layout are trained.
        snapshots: shares of the budget; as many candidates per sub-query.

    Returns:
        Policies and question, their embedder, and the candidates of each of the four sub-queries, rows of the pool.
    """
    first = next(iter(params.libraries))
    sarsa = replace(params.sarsa, snapshots=snapshots)
    budget = replace(params.libraries[first], episodes=max(_EPISODES, params.libraries[first].episodes))
    settings = replace(params, libraries={first: budget}, sarsa=sarsa)
    layout = make_layout(params.grid, params.seeds[0])
    runs = [train(job)[0] for job in training_jobs(settings, [layout])]
    records = [record for run in runs for record in run]
    episodes = [record.episode for record in records]
    cells, golds, lever = (
        np.concatenate([getattr(episode, name)[: len(episode.actions)] for episode in episodes])
        for name in ("cells", "golds", "lever")
    )
    picks = stream(params.root_seed, "scaling").choice(len(cells), params.pi2vec.canonical_states)
    canonical = States(cells[picks], golds[picks], lever[picks])
    embedder = Embedder(layout, canonical, feature_tables(layout), params.pi2vec, params.root_seed)
    system = reward_system("-".join(COMPONENTS), params.grid.legacy_gold_exit)
    q_tables, visits = (np.stack([getattr(record, name) for record in records]) for name in ("q_table", "visits"))
    pool = Pool(layout, system, q_tables, visits.astype(np.int32), params.sarsa.alpha)
    setups = [record.setup for record in records]
    candidates = [[row for row, setup in enumerate(setups) if setup == single][::-1] for single in SINGLE_OBJECTIVES]
    return pool, embedder, candidates


def fit_exponents(costs: pd.DataFrame) -> pd.DataFrame:
    """How cost grows: seconds ~ value^exponent, a least-squares line through the logarithms.

    Args:
        costs: as from `measure_costs`.

    Returns:
        Columns `grows, method, exponent, first_half, second_half`: over all points, and over either half of them, so
        that growth that is no power law shows.
    """
    rows = []
    for (grows, method), part in costs.groupby(["grows", "method"], sort=False):
        x, y = np.log(part["value"].to_numpy()), np.log(part["seconds"].to_numpy())
        half = len(x) // 2
        slope, first, last = (
            np.polyfit(x[s], y[s], 1)[0] for s in (slice(None), slice(0, half + 1), slice(half, None))
        )
        rows.append((grows, method, slope, first, last))
    return pd.DataFrame(rows, columns=["grows", "method", "exponent", "first_half", "second_half"])
