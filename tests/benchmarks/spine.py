"""How fast the kernels are, on one core: `python tests/benchmarks/spine.py [SPEC]`.

Prints medians over repeats, in CPU seconds of this thread. Figures vary with the machine: compare runs made side by
side, not numbers from another day.
"""

from __future__ import annotations

import statistics
import sys
import time

import numpy as np

from lever_lib.composition import METHODS, Pool
from lever_lib.envs.features import feature_tables
from lever_lib.envs.gridworld import States, make_layout
from lever_lib.envs.rewards import REWARD_SYSTEMS, reward_system
from lever_lib.params import load_params, snapshot_episodes
from lever_lib.pi2vec import Embedder
from lever_lib.planning import optimum
from lever_lib.policies.base import CellPolicy, greedy_actions
from lever_lib.policies.tabular import TrainingJob, train

REPEATS = 15


def median_seconds(call, repeats=REPEATS):
    """Median CPU seconds of `call`, after one call that loads what is compiled."""
    call()
    seconds = []
    for _ in range(repeats):
        started = time.thread_time()
        call()
        seconds.append(time.thread_time() - started)
    return statistics.median(seconds)


def report(what, value, unit):
    print(f"{what:<58}{value:>12.3f} {unit}")


def main(spec):
    params = load_params(spec)
    layout = make_layout(params.grid, 0)
    library = next(iter(params.libraries))
    runs = [
        train(
            TrainingJob(
                layout,
                reward_system(setup, params.grid.legacy_gold_exit),
                library,
                params.sarsa,
                params.libraries[library].epsilon_decay,
                snapshot_episodes(params, library),
                root_seed=attempt,
            )
        )[0]
        for attempt in range(2)  # the first attempt compiles
        for setup in REWARD_SYSTEMS
    ][len(REWARD_SYSTEMS) :]
    last = [records[-1] for records in runs]
    steps = sum(record.visits.sum() for record in last)
    report(
        f"{spec}: SARSA, all reward systems", steps / sum(r.train_seconds for r in last) / 1e6, "million steps / CPU s"
    )

    records = [record for run in runs for record in run]
    states = [record.episode for record in records]
    cells, golds, lever = (
        np.concatenate([getattr(episode, name)[:-1] for episode in states]) for name in ("cells", "golds", "lever")
    )
    picks = np.random.default_rng(0).choice(len(cells), params.pi2vec.canonical_states)
    embedder = Embedder(
        layout, States(cells[picks], golds[picks], lever[picks]), feature_tables(layout), params.pi2vec.gamma
    )
    policies = [CellPolicy(greedy_actions(record.q_table)) for record in records]
    seconds = median_seconds(lambda: [embedder.embed(policy) for policy in policies]) / len(policies)
    report(f"exact embedding, {len(picks)} canonical states", seconds * 1e3, "ms / policy")

    system = reward_system("path-gold-hazard-lever", params.grid.legacy_gold_exit)
    report(f"exact optimum, {len(layout.golds)} golds", median_seconds(lambda: optimum(layout, system)) * 1e3, "ms")

    q_tables = np.stack([record.q_table for record in records])
    visits = np.stack([record.visits for record in records]).astype(np.int32)
    for method in METHODS.values():
        pool = Pool(layout, system, q_tables, visits, params.sarsa.alpha)
        combos = [(i, i + 5, i + 10, i + 15) for i in range(5)]

        def compose_and_embed(pool=pool, method=method, combos=combos):
            for members in combos:
                embedder.embed(pool.compose(method, members))

        report(f"{method.name}: compose and embed 4 policies", median_seconds(compose_and_embed) / 5 * 1e3, "ms")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "16x16")
