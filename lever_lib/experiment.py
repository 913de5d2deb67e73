"""The experiment: every query x strategy x method on every layout and training budget, as one tidy table."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import pandas as pd

from lever_lib import index, pi2vec, regressor
from lever_lib import library as library_stage
from lever_lib.artifacts import Outputs, Stage
from lever_lib.certificate import certify
from lever_lib.composition import METHODS, Method, Pool, everyday_methods
from lever_lib.decompose import decompose, recording_hash
from lever_lib.envs.gridworld import make_layout
from lever_lib.envs.rewards import reward_system
from lever_lib.errors import LeverError
from lever_lib.files import read_csv
from lever_lib.jobs import run_jobs
from lever_lib.params import Execution, Params, resolved
from lever_lib.pi2vec import Embedder
from lever_lib.planning import optimum
from lever_lib.policies.base import CellPolicy
from lever_lib.queries import QUERIES, QUERY_CLASSES, Query
from lever_lib.regressor import Predictor
from lever_lib.rollout import Policy, evaluate
from lever_lib.search import Retriever, Scope
from lever_lib.strategies import STRATEGIES, Choice, choices, choose, combinations
from lever_lib.text import encode, fingerprint

STAGE = Stage(
    name="composition",
    notebook="05_composition",
    files=("results.csv", "timings.csv", "sweep.csv", "sweep_timings.csv", "direct.csv"),
    params=("grid", "search", "llm", "sarsa.alpha", "pi2vec"),
    upstream=(library_stage.STAGE, pi2vec.STAGE, regressor.STAGE, index.STAGE),
    module="lever_lib.experiment",
    outside=lambda outputs: recording_hash(outputs.params),
)
_SEARCH_READ = ("encoder", "decompose", "candidates", "top_k")

KEY_COLUMNS = ["spec", "library", "seed", "query_class", "setup", "query", "strategy", "method"]
RESULT_COLUMNS = [
    *KEY_COLUMNS,
    "rung",
    "policies",
    "return",
    "optimum",
    "support_return",
    "scratch_return",
    "best_single_return",
    "predicted_return",
    "coverage_regret",
    "composition_regret",
    "certificate_estimate",
    "certificate_lower",
    "certificate_upper",
    "combinations",
    "stuck",
]
SECONDS = ["seconds_decompose", "seconds_search", "seconds_compose", "seconds_score"]
TIMING_COLUMNS = [*KEY_COLUMNS, *SECONDS, "scratch_seconds"]
_JOB_COLUMNS = ["library", "seed", "query_class", "setup", "method"]
SWEEP_COLUMNS = [
    *_JOB_COLUMNS,
    "k",
    "combinations",
    "return",
    "best_return",
    "predicted_return",
    "optimum",
    "stuck",
]
SWEEP_TIMING_COLUMNS = [*_JOB_COLUMNS, "k", *SECONDS]
DIRECT_COLUMNS = [*_JOB_COLUMNS, "policies", "return", "optimum", "stuck"]

_REPEATS = 5  # of splitting and encoding a query; the median counts, for all layouts and libraries
_WATCHED = 16  # policies that are evaluated together
_CLOCK = Lock()

Rows = dict[str, list[dict]]  # by table: results, sweep, direct


@dataclass(frozen=True)
class Asked:
    """One query put to one layout and library.

    Attributes:
        query: the question.
        candidates: rows of the job's policies per sub-query, best first.
        scratch: row of the policy trained longest on the question itself.
        everything: rows of all policies but those trained on the question itself.
        seconds_decompose: wall time of splitting the query.
        seconds_search: wall time of embedding the sub-queries and finding candidates.
    """

    query: Query
    candidates: list[list[int]]
    scratch: int
    everything: list[int]
    seconds_decompose: float
    seconds_search: float


@dataclass(frozen=True)
class ExperimentJob:
    """All questions to one layout and library; needs no file, so that it can run anywhere.

    Attributes:
        spec: name of the spec.
        library: training budget.
        policies: of this layout and library: columns of the library's table.
        q_tables: float64 (P, S, 4), rows as in `policies`.
        visits: int32 (P, S, 4).
        train_seconds: (P,).
        embedder: of this layout.
        predictor: that never saw this layout.
        legacy_gold_exit: exit rule.
        alpha: step size of training.
        top_k: of `hybrid`.
        most: candidates per sub-query that were asked for; fewer may have been found.
        methods: composition methods to try; they travel with the job, so that one registered in a notebook is known
            wherever the job runs.
        asked: the questions.
    """

    spec: str
    library: str
    policies: pd.DataFrame
    q_tables: np.ndarray
    visits: np.ndarray
    train_seconds: np.ndarray
    embedder: Embedder
    predictor: Predictor
    legacy_gold_exit: bool
    alpha: float
    top_k: int
    most: int
    methods: tuple[Method, ...]
    asked: list[Asked]


@dataclass(frozen=True)
class Tables:
    """What an experiment found; columns are explained in `lever_lib.columns`.

    Attributes:
        results: a row per query, strategy and method on every layout and library.
        timings: the seconds of the same rows.
        sweep: the same queries with the best k candidates per sub-query combined, for every k from 2.
        sweep_timings: the seconds of these rows.
        direct: what the right policies come to when nothing has to be retrieved.
    """

    results: pd.DataFrame
    timings: pd.DataFrame
    sweep: pd.DataFrame
    sweep_timings: pd.DataFrame
    direct: pd.DataFrame

    def write(self, folder: Path) -> None:
        """One CSV per table."""
        for name, table in vars(self).items():
            digits = "%.6g" if name.endswith("timings") else None  # nobody measures seconds to more
            table.round(9).to_csv(folder / f"{name}.csv", index=False, float_format=digits)


def build_results(retriever: Retriever, outputs: Outputs, overwrite: bool = False) -> Tables:
    """Run the experiment, unless its tables on disk are whole and up to date."""
    if overwrite or not outputs.fresh(STAGE):
        with outputs.writing(STAGE) as folder:
            execution = retriever.library.params.execution
            run_experiment(experiment_jobs(retriever), execution, "composing").write(folder)
    return load_results(outputs)


def search_settings(params: Params) -> dict[str, Any]:
    """The params that decide what is found for the published questions, and with them all answers.

    They are well above any gate, and known word for word.
    """
    settings = resolved(params)
    found = {name: settings["search"][name] for name in _SEARCH_READ}
    files = fingerprint(params.search.encoder)
    if files is not None:  # the embedded one has none but its name
        found["encoder_files"] = files
    if params.search.decompose == "llm":
        found |= {name: settings["llm"][name] for name in ("model", "tries", "fallback")}
        found["recording"] = recording_hash(params)
    return found


def run_experiment(jobs: list[ExperimentJob], execution: Execution, label: str) -> Tables:
    """Run jobs, with a progress bar, and put their rows together."""
    found = list(run_jobs(run_job, jobs, execution, label, threads=False))
    results, sweep, direct = (
        pd.DataFrame([row for part in found for row in part[table]]) for table in ("results", "sweep", "direct")
    )
    return Tables(
        results[RESULT_COLUMNS],
        results[TIMING_COLUMNS],
        sweep[SWEEP_COLUMNS],
        sweep[SWEEP_TIMING_COLUMNS],
        direct[DIRECT_COLUMNS],
    )


def load_results(outputs: Outputs) -> Tables:
    """Open the tables on disk.

    Raises:
        MissingArtifactError: if they are absent, damaged or out of date.
    """
    outputs.require(STAGE)
    return read_results(outputs)


def read_results(outputs: Outputs) -> Tables:
    """The tables on disk, whatever became of the library they are about.

    Raises:
        MissingArtifactError: if they are absent or damaged.
    """
    with outputs.reading():
        folder = outputs.require_files(STAGE)
        return Tables(*(read_table(folder / name) for name in STAGE.files))


def read_table(path: Path) -> pd.DataFrame:
    """A table of an experiment, its names kept as text."""
    text = dict.fromkeys([*KEY_COLUMNS, "policies"], str)
    return read_csv(path, dtype=text, keep_default_na=False, na_values=[""])


def check_shares(outputs: Outputs, key: str, seeds: Iterable[int]) -> None:
    """Refuse layouts on which the best return for a question is not above 0: returns are told as shares of it.

    Args:
        outputs: of the spec.
        key: of the params, where it says which layouts.
        seeds: of the layouts.

    Raises:
        LeverError: naming the layout, the reward system and its optimum.
    """
    grid = outputs.params.grid
    for seed in seeds:
        layout = make_layout(grid, seed)
        for setup in dict.fromkeys(query.setup for query in QUERIES):
            best = optimum(layout, reward_system(setup, grid.legacy_gold_exit)).return_
            if best <= 0:
                rule = (
                    "shares of it need one above 0; take another layout, or a grid that is smaller or has fewer hazards"
                )
                where = f"params/{outputs.spec}.yaml: {key}, grid: on layout {layout.name!r}"
                raise LeverError(f"{where} the best return under {setup} is {best:g}, and {rule}")


def experiment_jobs(retriever: Retriever) -> list[ExperimentJob]:
    """One job per library and layout, with the candidates of every query already found."""
    library = retriever.library
    plans = [_plan_query(query, retriever) for query in QUERIES]
    return [
        _experiment_job(retriever, name, seed, plans) for name in library.params.libraries for seed in library.layouts
    ]


@dataclass(frozen=True)
class _QueryPlan:
    query: Query
    vectors: np.ndarray  # of the sub-queries
    seconds_decompose: float
    seconds_encode: float


def _plan_query(query: Query, retriever: Retriever) -> _QueryPlan:
    library = retriever.library
    settings = library.params.search
    pool = QUERY_CLASSES[query.query_class].pool
    model = library.params.llm
    encode(list(pool), settings.encoder, settings.trust_remote_code)  # warm: loading it is no part of a search
    seconds = []
    for _ in range(_REPEATS):
        started = time.perf_counter()
        split = decompose(query.text, pool, settings.decompose, model, count=len(query.parts))
        decomposed = time.perf_counter()
        vectors = encode(split.sub_queries, settings.encoder, settings.trust_remote_code)
        seconds.append((decomposed - started, time.perf_counter() - decomposed))
    return _QueryPlan(query, vectors, *np.median(seconds, axis=0).tolist())


def _experiment_job(retriever: Retriever, name: str, seed: str, plans: list[_QueryPlan]) -> ExperimentJob:
    library = retriever.library
    rows = retriever.rows(Scope(seed, name, tuple(library.systems)))
    policies = library.policies.iloc[rows].reset_index(drop=True)
    local = {row: position for position, row in enumerate(rows)}
    return ExperimentJob(
        spec=library.spec,
        library=name,
        policies=policies,
        q_tables=np.array(library.q_tables[rows]),
        visits=np.array(library.visits[rows]),
        train_seconds=library.timings["train_seconds"].to_numpy()[rows],
        embedder=retriever.embeddings.embedder(library.layout(seed)),
        predictor=retriever.regressor.for_layout(seed),
        legacy_gold_exit=library.params.grid.legacy_gold_exit,
        alpha=library.params.sarsa.alpha,
        top_k=library.params.search.top_k,
        most=library.params.search.candidates,
        methods=everyday_methods(),
        asked=[_ask(retriever, plan, Scope(seed, name, ()), policies, local) for plan in plans],
    )


def _ask(retriever: Retriever, plan: _QueryPlan, scope: Scope, policies: pd.DataFrame, local: dict[int, int]) -> Asked:
    query, library = plan.query, retriever.library
    scope = Scope(scope.seed, scope.library, QUERY_CLASSES[query.query_class].setups)
    started = time.perf_counter()
    count = library.params.search.candidates
    tables = retriever.candidates(plan.vectors, scope, library.system(query.setup), count)
    seconds = time.perf_counter() - started
    if any(table.empty for table in tables):
        raise LeverError(
            f"search.cosine_gate = {retriever.index.gate}: too high, a sub-query of {query.text!r} finds no policy"
        )
    own = policies["setup"] == query.setup
    return Asked(
        query=query,
        candidates=[[local[row] for row in table["row"]] for table in tables],
        scratch=int(policies.index[own][policies.loc[own, "snapshot"].argmax()]),
        everything=policies.index[~own].tolist(),
        seconds_decompose=plan.seconds_decompose,
        seconds_search=plan.seconds_encode + seconds,
    )


def run_job(job: ExperimentJob) -> Rows:
    """Answer every question of a job with every strategy and method.

    One job at a time per process: threads of a cluster's worker would take the interpreter from each other, and the
    clock would count that.
    """
    with _CLOCK:
        return _run_job(job)


def _run_job(job: ExperimentJob) -> Rows:
    METHODS.update({method.name: method for method in job.methods})
    _answer(job, job.asked[0])  # warm: compiled kernels are loaded before anything is timed
    rows: Rows = {"results": [], "sweep": [], "direct": []}
    for asked in job.asked:
        for table, more in _answer(job, asked).items():
            rows[table] += more
    return rows


def question(job: ExperimentJob, asked: Asked) -> tuple[Pool, dict]:
    """The policies of a job and what they are asked; and how its rows begin."""
    layout = job.embedder.layout
    system = reward_system(asked.query.setup, job.legacy_gold_exit)
    about = {
        "library": job.library,
        "seed": layout.name,
        "query_class": asked.query.query_class,
        "setup": system.name,
        "optimum": optimum(layout, system).return_,
    }
    return Pool(layout, system, job.q_tables, job.visits, job.alpha), about


def _answer(job: ExperimentJob, asked: Asked) -> Rows:
    pool, about = question(job, asked)
    single = single_returns(pool)
    rows: Rows = {"results": [], "sweep": [], "direct": []}
    for method in job.methods:
        by_k = _sweep(job, asked, pool, method)
        # Pools of their own: nothing that another row computed may shorten the time of this one.
        everything = choose(pool.fresh(), method, [tuple(asked.everything)], job.embedder, job.predictor)
        chosen = {"targeted": by_k[1], "hybrid": by_k[job.top_k], "exhaustive": by_k[job.most]}
        for strategy, (choice, _) in (chosen | {"library": (everything, None)}).items():
            found = result(job, asked, pool, method, choice, single)
            rows["results"].append(about | {"strategy": strategy} | found | _seconds(choice, asked, strategy))
        for k in range(2, job.most + 1):
            choice, best_return = by_k[k]
            found = {"method": method.name, "k": k, "combinations": choice.combinations, "best_return": best_return}
            found |= _outcome(choice.policy, pool) | {"predicted_return": choice.predicted_return}
            rows["sweep"].append(about | found | _seconds(choice, asked, "hybrid"))
        members = tuple(_best_snapshot(job.policies, part) for part in asked.query.parts)
        found = {"method": method.name, "policies": _names(job, members)}
        rows["direct"].append(about | found | _outcome(pool.compose(method, members), pool))
    rows["results"].sort(key=lambda row: STRATEGIES.index(row["strategy"]))
    return rows


def _sweep(job: ExperimentJob, asked: Asked, pool: Pool, method: Method) -> dict[int, tuple[Choice, float]]:
    """For every k, the choice among combinations of the first k candidates, and the best return of any of them.

    Where fewer candidates were found, the first k are all there are.
    """
    combos = combinations("exhaustive", asked.candidates, job.top_k, ())
    sizes = range(1, max(map(len, asked.candidates)) + 1)
    ends = [math.prod(min(k, len(rows)) for rows in asked.candidates) for k in sizes]
    by_k, best_return, waiting = {}, -np.inf, []

    def watch(policy: Policy | None) -> None:
        """Note what policies really earn; nothing is chosen by it.

        Several at a time, so that it seldom disturbs the caches of what is timed; not all, because plans are large.
        """
        nonlocal best_return
        waiting.extend([] if policy is None else [policy])
        if policy is None or len(waiting) == _WATCHED:
            earned = [evaluate(policy, pool.layout, pool.system).return_ for policy in waiting]
            best_return = max([best_return, *earned])
            waiting.clear()

    chosen = choices(pool.fresh(), method, combos, ends, job.embedder, job.predictor, watch)
    for k, choice in zip(sizes, chosen, strict=True):
        watch(None)
        by_k[k] = choice, best_return
    return by_k | {k: by_k[len(sizes)] for k in range(len(sizes) + 1, job.most + 1)}


def single_returns(pool: Pool) -> np.ndarray:
    """What each policy of a pool returns for its question, float64 (P,)."""
    return np.array([evaluate(CellPolicy(row), pool.layout, pool.system).return_ for row in pool.actions])


def result(job: ExperimentJob, asked: Asked, pool: Pool, method: Method, choice: Choice, single: np.ndarray) -> dict:
    """What came of a choice: the columns of a result that do not say what was asked."""
    found = _outcome(choice.policy, pool)
    support = pool.support_return(method, choice.members)
    certificate = certify(pool, method, choice.members, choice.policy)
    return found | {
        "spec": job.spec,
        "query": asked.query.text,
        "method": method.name,
        "rung": method.rung,
        "policies": _names(job, choice.members),
        "support_return": support,
        "scratch_return": single[asked.scratch],
        "best_single_return": single[list(choice.members)].max(),
        "predicted_return": choice.predicted_return,
        "coverage_regret": optimum(pool.layout, pool.system).return_ - support,
        "composition_regret": support - found["return"],
        "certificate_estimate": certificate.estimate,
        "certificate_lower": certificate.lower,
        "certificate_upper": certificate.upper,
        "combinations": choice.combinations,
        "scratch_seconds": job.train_seconds[asked.scratch],
    }


def _outcome(policy: Policy, pool: Pool) -> dict:
    found = evaluate(policy, pool.layout, pool.system)
    return {"return": found.return_, "stuck": found.stuck}


def _seconds(choice: Choice, asked: Asked, strategy: str) -> dict[str, float]:
    searched = strategy != "library"
    return {
        "seconds_decompose": asked.seconds_decompose if searched else 0.0,
        "seconds_search": asked.seconds_search if searched else 0.0,
        "seconds_compose": choice.seconds_compose,
        "seconds_score": choice.seconds_score,
    }


def _names(job: ExperimentJob, members: tuple[int, ...]) -> str:
    return "+".join(job.policies["policy_id"].iloc[list(members)])


def _best_snapshot(policies: pd.DataFrame, setup: str) -> int:
    """Row of the policy of a reward system with the highest return of its own; the earliest of equals."""
    return int(policies[policies["setup"] == setup].sort_values("snapshot")["return"].idxmax())
