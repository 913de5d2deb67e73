"""Black boxes beside the library: DQN and PPO policies, embedded, retrieved and composed by the same code.

`./run_all.sh study` trains them for specs whose params give `deep.steps`. What it writes is small and stays: records
under `deep/policies.npz`, and tables of what they earn, how well a network that sees only where they go places them
among the other policies, and what composing them gives.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.spatial.distance import cdist

from lever_lib.artifacts import DEEP, Outputs, json_hash, source_hash
from lever_lib.columns import read_described
from lever_lib.composition import Pool, everyday_methods
from lever_lib.envs.features import feature_tables
from lever_lib.envs.gridworld import Layout, States, make_layout
from lever_lib.envs.rewards import REWARD_SYSTEMS, RewardSystem, reward_system
from lever_lib.jobs import run_jobs
from lever_lib.library import load_records, save_records, training_jobs
from lever_lib.params import Params, Pi2Vec, resolved
from lever_lib.pi2vec import Embedder, standardised
from lever_lib.planning import optimum
from lever_lib.policies.base import CellPolicy, PolicyRecord, greedy_actions
from lever_lib.policies.black_box import BlackBoxJob, train_black_box
from lever_lib.policies.dqn import DQN
from lever_lib.policies.ppo import PPO
from lever_lib.policies.tabular import train
from lever_lib.queries import QUERIES
from lever_lib.rollout import evaluate
from lever_lib.seeding import stream
from lever_lib.unfinished import whole

ALGORITHMS = (DQN, PPO)
_FILES = ("policies.npz", "returns.csv", "placement.csv", "composition.csv", "training_timings.csv")
_READ = ("grid", "root_seed", "libraries", "sarsa", "pi2vec", "deep")


@dataclass(frozen=True)
class Deep:
    """What came of black boxes; columns are explained in `lever_lib.columns`.

    Attributes:
        records: of the policies, without the seconds of their training.
        returns: of each policy under its own reward.
        placement: how well a network that sees transitions only places them.
        composition: what composing policies of one source, or of all, gives.
        training_timings: CPU seconds.
    """

    records: list[PolicyRecord]
    returns: pd.DataFrame
    placement: pd.DataFrame
    composition: pd.DataFrame
    training_timings: pd.DataFrame


def find_deep(outputs: Outputs) -> Deep | None:
    """What was found for a spec, by a run of its own or by the one that came with the repository; None if nothing.

    Raises:
        MissingArtifactError: if one of the files is damaged.
    """
    folder = outputs.lasting(DEEP, _FILES, _key(outputs.params))
    if folder is None:
        return None
    tables = [read_described(folder / name, dtype={"seed": str}) for name in _FILES[1:]]
    return Deep(load_records(folder / _FILES[0]), *tables)


def run_deep(outputs: Outputs) -> Deep | None:
    """Train and judge black boxes, unless that was done; None where the params ask for none.

    Raises:
        LeverError: if a layout cannot be drawn.
    """
    params = outputs.params
    if not params.deep.steps:
        return None
    made_of = json_hash([_key(params), source_hash("lever_lib.deep")])
    known = whole(find_deep, outputs)
    if known and outputs.made_of(DEEP) == made_of:
        return known
    layouts = [make_layout(params.grid, seed) for seed in params.deep.seeds]
    sys.stderr.write(f"{outputs.spec}: black boxes\n")
    trained = list(run_jobs(train_black_box, _jobs(outputs.spec, params, layouts), params.execution, "training", False))
    records = [record for run in trained for record in run]
    last = list(params.libraries)[-1]
    jobs = [job for job in training_jobs(params, layouts) if job.library == last]
    runs = run_jobs(train, jobs, params.execution, "training beside them", threads=True)
    sarsa = [record for found, _ in runs for record in found]
    with outputs.writing_folder(DEEP, {"key": _key(params), "made_of": made_of}) as draft:
        save_records(records, draft / _FILES[0])
        tables = (
            _returns(params, layouts, [*sarsa, *records]),
            _placement(params, layouts, [*sarsa, *records]),
            _composition(params, layouts, [*sarsa, *records]),
            _timings([*sarsa, *records]),
        )
        for name, table in zip(_FILES[1:], tables, strict=True):
            table.round(6).to_csv(draft / name, index=False)
    return find_deep(outputs)


def _key(params: Params) -> str:
    return json_hash({name: value for name, value in resolved(params).items() if name in _READ})


def _jobs(spec: str, params: Params, layouts: list[Layout]) -> list[BlackBoxJob]:
    return [
        BlackBoxJob(
            algorithm=algorithm,
            spec=spec,
            layout=layout,
            system=reward_system(setup, params.grid.legacy_gold_exit),
            library=list(params.libraries)[-1],
            steps=params.deep.steps,
            snapshots=params.sarsa.snapshots,
            root_seed=params.root_seed,
        )
        for algorithm in ALGORITHMS
        for layout in layouts
        for setup in REWARD_SYSTEMS
    ]


def _of(layout: Layout, records: list[PolicyRecord]) -> list[PolicyRecord]:
    return [record for record in records if record.seed == layout.name]


def _system(params: Params, setup: str) -> RewardSystem:
    return reward_system(setup, params.grid.legacy_gold_exit)


def _returns(params: Params, layouts: list[Layout], records: list[PolicyRecord]) -> pd.DataFrame:
    """What each policy earns under its own reward."""
    rows = []
    for layout in layouts:
        best = {setup: optimum(layout, _system(params, setup)).return_ for setup in REWARD_SYSTEMS}
        for record in _of(layout, records):
            found = evaluate(CellPolicy(greedy_actions(record.q_table)), layout, _system(params, record.setup))
            about = (record.source, record.seed, record.setup, record.snapshot, record.episodes)
            rows.append((*about, found.return_, best[record.setup], found.stuck))
    columns = ["source", "seed", "setup", "snapshot", "episodes", "return", "optimum", "stuck"]
    return pd.DataFrame(rows, columns=columns)


def _placement(params: Params, layouts: list[Layout], records: list[PolicyRecord]) -> pd.DataFrame:
    """Embeddings learned from where policies go, against exact ones, among all policies of the layout.

    `nearest_own`: share of a source's policies whose own exact embedding is the nearest. `same_objective`: share whose
    nearest policy of the other sources was trained for the same reward.
    """
    rows: dict[str, list[tuple[float, float, float]]] = {}
    for layout in layouts:
        mine = _of(layout, records)
        canonical = _canonical(params, layout, mine)
        policies = [CellPolicy(greedy_actions(record.q_table)) for record in mine]
        gamma = params.pi2vec.gamma
        exact, learned = (
            Embedder(layout, canonical, feature_tables(layout), Pi2Vec(method=method, gamma=gamma), params.root_seed)
            .embed(policies)
            .mean
            for method in ("exact", "network")
        )
        both = standardised(np.vstack([exact, learned]))
        true, guess = both[: len(mine)], both[len(mine) :]
        distances = cdist(guess, true)
        alike = cdist(true, true) < 1e-6
        own = np.diag(distances) <= np.where(alike, np.inf, distances).min(axis=1)
        sources = np.array([record.source for record in mine])
        setups = np.array([record.setup for record in mine])
        others = np.where(sources[:, None] != sources[None, :], distances, np.inf)
        same = setups[others.argmin(axis=1)] == setups
        error = np.median(np.abs(guess - true), axis=1)
        for source in np.unique(sources):
            mask = sources == source
            rows.setdefault(source, []).append((own[mask].mean(), same[mask].mean(), np.median(error[mask])))
    found = [(source, *np.mean(values, axis=0), len(values)) for source, values in rows.items()]
    return pd.DataFrame(found, columns=["source", "nearest_own", "same_objective", "error", "layouts"])


def _canonical(params: Params, layout: Layout, records: list[PolicyRecord]) -> States:
    """States of the layout that training episodes of any source passed through."""
    episodes = [record.episode for record in records if len(record.episode.actions)]
    parts = (
        np.concatenate([getattr(episode, name)[: len(episode.actions)] for episode in episodes])
        for name in States._fields
    )
    recorded = States(*parts)
    rng = stream(params.root_seed, "canonical states", "deep", layout.name)
    picks = np.sort(rng.choice(len(recorded.cells), size=params.pi2vec.canonical_states))
    return States(*(part[picks] for part in recorded))


def _composition(params: Params, layouts: list[Layout], records: list[PolicyRecord]) -> pd.DataFrame:
    """Every published question, answered by composing policies of one source or of all.

    `direct` composes the policy of each part that earns most under its own reward; `library` all policies but those
    trained for the question itself.
    """
    rows = []
    pools = {source: (source,) for source in dict.fromkeys(record.source for record in records)}
    pools["all"] = tuple(pools)
    for layout in layouts:
        for name, sources in pools.items():
            mine = [record for record in _of(layout, records) if record.source in sources]
            q_tables, visits = np.stack([r.q_table for r in mine]), np.stack([r.visits for r in mine])
            own = [
                evaluate(CellPolicy(greedy_actions(r.q_table)), layout, _system(params, r.setup)).return_ for r in mine
            ]
            for query in QUERIES:
                system = _system(params, query.setup)
                pool = Pool(layout, system, q_tables, visits.astype(np.int32), params.sarsa.alpha)
                direct = [
                    max((row for row, r in enumerate(mine) if r.setup == part), key=lambda row: own[row])
                    for part in query.parts
                ]
                everything = [row for row, r in enumerate(mine) if r.setup != query.setup]
                best = optimum(layout, system).return_
                for strategy, members in (("direct", direct), ("library", everything)):
                    for method in everyday_methods():
                        found = evaluate(pool.compose(method, tuple(members)), layout, system)
                        about = (name, layout.name, query.query_class, query.setup, strategy, method.name)
                        rows.append((*about, found.return_, best, found.stuck))
    keys = ["pool", "seed", "query_class", "setup", "strategy", "method"]
    return pd.DataFrame(rows, columns=[*keys, "return", "optimum", "stuck"])


def _timings(records: list[PolicyRecord]) -> pd.DataFrame:
    """CPU seconds of training a policy to the end, by source."""
    done = pd.DataFrame(
        [
            (record.source, record.seed, record.setup, record.train_seconds)
            for record in records
            if record.snapshot == 1
        ],
        columns=["source", "seed", "setup", "train_seconds"],
    )
    return done
