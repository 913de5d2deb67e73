"""The experiment: every query x strategy x method on every layout and training budget, as one tidy table."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from lever_lib import index, pi2vec, regressor
from lever_lib import library as library_stage
from lever_lib.artifacts import Outputs, Stage
from lever_lib.composition import METHODS, Method, Pool
from lever_lib.decompose import decompose
from lever_lib.envs.rewards import reward_system
from lever_lib.errors import LeverError
from lever_lib.jobs import run_jobs
from lever_lib.pi2vec import Embedder
from lever_lib.planning import optimum
from lever_lib.policies.base import CellPolicy
from lever_lib.queries import QUERIES, QUERY_CLASSES, Query
from lever_lib.regressor import Predictor
from lever_lib.rollout import evaluate
from lever_lib.search import Retriever, Scope
from lever_lib.strategies import STRATEGIES, choose, combinations
from lever_lib.text import encode

STAGE = Stage(
    name="composition",
    notebook="05_composition",
    files=("results.csv", "timings.csv"),
    params=("grid", "search", "sarsa.alpha", "pi2vec"),
    upstream=(library_stage.STAGE, pi2vec.STAGE, regressor.STAGE, index.STAGE),
    module="lever_lib.experiment",
)

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
    "combinations",
    "stuck",
]
TIMING_COLUMNS = [
    *KEY_COLUMNS,
    "seconds_decompose",
    "seconds_search",
    "seconds_compose",
    "seconds_score",
    "scratch_seconds",
]


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
    methods: tuple[Method, ...]
    asked: list[Asked]


def build_results(retriever: Retriever, outputs: Outputs, overwrite: bool = False) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Run the experiment, unless its tables on disk are whole and up to date.

    Returns:
        Results and timings; columns as in `RESULT_COLUMNS` and `TIMING_COLUMNS`.
    """
    if overwrite or not outputs.fresh(STAGE):
        with outputs.writing(STAGE) as folder:
            jobs = experiment_jobs(retriever)
            execution = retriever.library.params.execution
            rows = [row for part in run_jobs(run_job, jobs, execution, "composing", threads=False) for row in part]
            _write(pd.DataFrame(rows), folder)
    return load_results(outputs)


def load_results(outputs: Outputs) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Open results and timings on disk.

    Raises:
        MissingArtifactError: if they are absent, damaged or out of date.
    """
    outputs.require(STAGE)
    return read_results(outputs)


def read_results(outputs: Outputs) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Results and timings on disk, whatever became of the library they are about.

    Raises:
        MissingArtifactError: if they are absent or damaged.
    """
    folder = outputs.require_files(STAGE)
    text = dict.fromkeys(KEY_COLUMNS, str)
    results, timings = (pd.read_csv(folder / name, dtype=text, keep_default_na=False) for name in STAGE.files)
    return results, timings


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
    settings = retriever.library.params.search
    pool = QUERY_CLASSES[query.query_class].pool
    encode(list(pool), settings.encoder)  # warm: loading the encoder is no part of a search
    started = time.perf_counter()
    split = decompose(query.text, pool, settings.decompose)
    decomposed = time.perf_counter()
    vectors = encode(list(split.sub_queries), settings.encoder)
    return _QueryPlan(query, vectors, decomposed - started, time.perf_counter() - decomposed)


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
        methods=tuple(METHODS.values()),
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
            f"search.cosine_gate = {retriever.gate}: too high, a sub-query of {query.text!r} finds no policy"
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


def run_job(job: ExperimentJob) -> list[dict]:
    """Answer every question of a job with every strategy and method; one dictionary per row of the tables."""
    METHODS.update({method.name: method for method in job.methods})
    list(_answer(job, job.asked[0]))  # warm: compiled kernels are loaded before anything is timed
    return [row for asked in job.asked for row in _answer(job, asked)]


def _answer(job: ExperimentJob, asked: Asked) -> Iterator[dict]:
    layout = job.embedder.layout
    system = reward_system(asked.query.setup, job.legacy_gold_exit)
    pool = Pool(layout, system, job.q_tables, job.visits, job.alpha)
    single = np.array([evaluate(CellPolicy(actions), layout, system).return_ for actions in pool.actions])
    best = optimum(layout, system).return_
    for strategy in STRATEGIES:
        combos = combinations(strategy, asked.candidates, job.top_k, asked.everything)
        searched = strategy != "library"
        for method in job.methods:
            # A pool of its own: nothing that another row computed may shorten the time of this one.
            choice = choose(pool.fresh(), method, combos, job.embedder, job.predictor)
            found = evaluate(choice.policy, layout, system)
            support = pool.support_return(method.rung, choice.members)
            yield {
                "spec": job.spec,
                "library": job.library,
                "seed": layout.name,
                "query_class": asked.query.query_class,
                "setup": system.name,
                "query": asked.query.text,
                "strategy": strategy,
                "method": method.name,
                "rung": method.rung,
                "policies": "+".join(job.policies["policy_id"].iloc[list(choice.members)]),
                "return": found.return_,
                "optimum": best,
                "support_return": support,
                "scratch_return": single[asked.scratch],
                "best_single_return": single[list(choice.members)].max(),
                "predicted_return": choice.predicted_return,
                "coverage_regret": best - support,
                "composition_regret": support - found.return_,
                "combinations": choice.combinations,
                "stuck": found.stuck,
                "seconds_decompose": asked.seconds_decompose if searched else 0.0,
                "seconds_search": asked.seconds_search if searched else 0.0,
                "seconds_compose": choice.seconds_compose,
                "seconds_score": choice.seconds_score,
                "scratch_seconds": job.train_seconds[asked.scratch],
            }


def _write(rows: pd.DataFrame, folder: Path) -> None:
    rows[RESULT_COLUMNS].round(9).to_csv(folder / "results.csv", index=False)
    rows[TIMING_COLUMNS].to_csv(folder / "timings.csv", index=False)
