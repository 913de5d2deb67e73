"""What is lost by choosing among combinations without running them.

Every combination of a question's candidates is composed and evaluated exactly; then a judge, who does not see that,
chooses one of them. What his choice lacks to the best of all combinations is selection regret.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from lever_lib.certificate import recorded_return
from lever_lib.composition import METHODS, Method, Pool
from lever_lib.envs.rewards import RewardSystem, reward_system
from lever_lib.experiment import Asked, ExperimentJob
from lever_lib.pi2vec import Embedded
from lever_lib.planning import optimum
from lever_lib.rollout import evaluate
from lever_lib.seeding import stream
from lever_lib.stats import of_optimum
from lever_lib.strategies import combinations

OURS, EXACT = "ours", "exact on recordings"
_METHODS = ("qsum", "softmax", "gpi")  # above these, combinations hardly differ
_TOGETHER = 64
_CENT = 0.005

Judge = Callable[[Embedded, RewardSystem], np.ndarray]


def selection_rows(jobs: Sequence[ExperimentJob], published: Callable[[Embedded], np.ndarray] | None) -> pd.DataFrame:
    """Choices of every judge for every question of some jobs.

    Args:
        jobs: of the experiment; of the last training budget only those are asked.
        published: returns by the published regressor, the same whatever is asked for; None if it is not asked.

    Returns:
        Columns `seed, query_class, setup, method, judge, k, return, best_return, optimum`: what the chosen one returns
        and the best of all combinations; `k` candidates per sub-query were combined.
    """
    last = jobs[-1].library
    rows = []
    for job in jobs:
        if job.library == last:
            judges: dict[str, Judge] = {OURS: job.predictor.predict}
            if published is not None:
                judges["published"] = lambda embedded, system: published(embedded)
            for asked in job.asked:
                for method in (METHODS[name] for name in _METHODS):
                    rows += _choices(job, asked, method, judges)
    return pd.DataFrame(rows)


def _choices(job: ExperimentJob, asked: Asked, method: Method, judges: dict[str, Judge]) -> list[dict]:
    layout = job.embedder.layout
    system = reward_system(asked.query.setup, job.legacy_gold_exit)
    pool = Pool(layout, system, job.q_tables, job.visits, job.alpha)
    combos = combinations("exhaustive", asked.candidates, job.top_k, ())
    scores: dict[str, list[np.ndarray]] = {name: [] for name in (*judges, EXACT)}
    returns = []
    for start in range(0, len(combos), _TOGETHER):
        some = combos[start : start + _TOGETHER]
        policies = [pool.compose(method, members) for members in some]
        outcomes = [evaluate(policy, layout, system) for policy in policies]
        returns += [outcome.return_ for outcome in outcomes]
        embedded = job.embedder.embed(policies)
        for name, judge in judges.items():
            scores[name].append(judge(embedded, system))
        sure = [recorded_return(pool, members, found) for members, found in zip(some, outcomes, strict=True)]
        scores[EXACT].append(np.array(sure))
    best, rows = max(returns), []
    for name, parts in scores.items():
        values = np.concatenate(parts)
        for k in range(1, job.most + 1):
            stop = math.prod(min(k, len(found)) for found in asked.candidates)
            rows.append(
                {
                    "seed": layout.name,
                    "query_class": asked.query.query_class,
                    "setup": system.name,
                    "method": method.name,
                    "judge": name,
                    "k": k,
                    "return": returns[int(values[:stop].argmax())],
                    "best_return": best,
                    "optimum": optimum(layout, system).return_,
                }
            )
    return rows


def summarise_selection(rows: pd.DataFrame, root_seed: int) -> pd.DataFrame:
    """Selection regret as a share of the optimum, with its interval over layouts.

    Args:
        rows: as from `selection_rows`.
        root_seed: of the params.

    Returns:
        Columns `method, judge, k, regret, regret_low, regret_high, as_exhaustive, layouts`; over all questions, and
        `as_exhaustive` the share of rows that return what the same judge's choice among all combinations does.
    """
    keys = ["method", "judge", "k"]
    rows = rows.assign(regret=rows["best_return"] - rows["return"])
    question = ["seed", "query_class", "setup", "method", "judge"]
    everything = rows.groupby(question)["k"].transform("max") == rows["k"]
    reached = rows[everything].set_index(question)["return"]
    exhaustive = reached.reindex(pd.MultiIndex.from_frame(rows[question])).to_numpy()
    rows["as_exhaustive"] = np.abs(rows["return"] - exhaustive) < _CENT
    found = of_optimum(rows, keys, ["regret"], stream(root_seed, "bootstrap"))
    return found.merge(rows.groupby(keys)["as_exhaustive"].mean().reset_index(), on=keys)[
        [*keys, "regret", "regret_low", "regret_high", "as_exhaustive", "layouts"]
    ]
