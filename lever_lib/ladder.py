"""What must a library hold, so that its policies can be recombined into anything?

`./run_all.sh study` asks this, and asks every rung of `lever_lib.composition`, on many layouts. All methods answer the
published queries from the largest training budget (`ladder/shares.csv`, `regret.csv`), and judges choose among the
combinations (`selection.csv`). Then one thing changes at a time: snapshots kept of each training, how early it was
stopped, reward systems trained, episodes, hazards in the world, objectives asked for, the discount of training, the
moves and what Q-tables are indexed by; each time all policies that were not trained for the question are composed at
once (`library.csv`), and beside them stands what training for the question itself comes to. What is written is small
and stays.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from lever_lib.artifacts import LADDER, MODEL, Outputs, file_hash, json_hash, source_hash
from lever_lib.columns import read_described, write_tables
from lever_lib.composition import METHODS, Method, Pool
from lever_lib.envs.gridworld import MOVE_SETS, make_layout
from lever_lib.envs.rewards import COMPONENTS, REWARD_SYSTEMS, SINGLE_OBJECTIVES, Component, reward_system
from lever_lib.errors import LeverError
from lever_lib.experiment import (
    ExperimentJob,
    experiment_jobs,
    question,
    read_table,
    result,
    search_settings,
    single_returns,
)
from lever_lib.files import read_csv
from lever_lib.generalisation import load_table, published_regressor
from lever_lib.index import build_index
from lever_lib.jobs import run_jobs
from lever_lib.library import build_library, training_jobs
from lever_lib.params import Deep, Params, resolved
from lever_lib.pi2vec import Embedded, build_embeddings
from lever_lib.planning import optimum
from lever_lib.policies.base import CellPolicy, PolicyRecord, greedy_actions
from lever_lib.policies.tabular import TrainingJob, train
from lever_lib.regressor import ALL_LAYOUTS, TRAINING, Regressor, load_model
from lever_lib.report import all_regrets, all_shares
from lever_lib.rollout import Policy, evaluate
from lever_lib.search import Retriever
from lever_lib.seeding import stream
from lever_lib.selection import selection_rows, summarise_selection
from lever_lib.stats import interval, mean
from lever_lib.strategies import choose, combinations
from lever_lib.timed_planning import plannable
from lever_lib.unfinished import new_draft, parts_of, publish, whole, work_folder

FILES = ("shares.csv", "regret.csv", "selection.csv", "library.csv")
_PARTS = ("answers.csv", "chosen.csv", "changed.csv")
ASKED = ("path-gold", "path-gold-hazard", "path-gold-hazard-lever")
COMPOSED = ("qsum", "softmax", "gpi", "switch", "exnonzero-100", "exnonzero")
SCRATCH = "scratch"  # SARSA trained for the question itself
_FINEST = 20  # snapshots of a training
_SNAPSHOTS = (1, 2, 5, 10, 20)
_STOPPED = (0.05, 0.1, 0.2, 0.5, 1.0)  # of a training, with what it had learned by then as its only snapshot
_SYSTEMS = (2, 4, 6, 8)  # reward systems of the library, from single objectives to composites
_HAZARDS = (1, 1.5, 2)  # times as many as in the spec; with three times as many, worlds cannot be walked any more
_STATES = ("cell", "augmented")  # what Q-tables are indexed by
_DISCOUNTS = (0.99, 0.5, 0.0)
_READ = ("grid", "root_seed", "libraries", "sarsa", "pi2vec", "study")
# Two more objectives, so that six can be asked for.
FURTHER = {
    "tidy": Component("Tidy up before the exit.", {"step": -0.1, "exit_all_gold": 100.0}, words="tidy*|tidie*"),
    "stroll": Component("Take a long walk before the exit.", {"step": 2.0, "exit": 10.0}, words="stroll*|long walk"),
}


@contextmanager
def further_objectives() -> Iterator[list[str]]:
    """Put two more objectives into the reward table, by names that are free there; take them out again."""
    further = {f"further_{name}" if name in COMPONENTS else name: found for name, found in FURTHER.items()}
    COMPONENTS.update(further)
    try:
        yield list(further)
    finally:
        for name in further:
            del COMPONENTS[name]


@dataclass(frozen=True)
class LadderJob:
    """All changes of a library on one layout.

    Attributes:
        params: of the spec.
        seed: of the layout.
    """

    params: Params
    seed: int


@dataclass(frozen=True)
class Ladder:
    """What was found; columns are explained in `lever_lib.columns`.

    Attributes:
        shares: of the optimum, by strategy and method.
        regret: what is lost and where, and what can be promised.
        selection: what is lost by choosing among combinations, by judge.
        library: what changes when the library does.
    """

    shares: pd.DataFrame
    regret: pd.DataFrame
    selection: pd.DataFrame
    library: pd.DataFrame

    @property
    def layouts(self) -> int:
        """How many it was measured on."""
        return int(self.shares["layouts"].max())


def find_ladder(outputs: Outputs) -> Ladder | None:
    """What was found for a spec, by a run of its own or by the one that came with the repository; None if nothing.

    Raises:
        MissingArtifactError: if a file is damaged.
    """
    folder = outputs.lasting(LADDER, FILES, _key(outputs.params))
    return None if folder is None else Ladder(*(read_described(folder / name, dtype={"value": str}) for name in FILES))


def run_ladder(outputs: Outputs, fit: Callable[[Outputs], None]) -> Ladder:
    """Climb the ladder on the layouts of the study, unless that was done; what an interrupted run has left to do.

    Args:
        outputs: of the spec.
        fit: makes the model, and the policies that it was fitted on, whole if they are not: a clone comes without them.

    Raises:
        LeverError: if there is no model to rank candidates with.
    """
    params = outputs.params
    model = load_model(outputs)
    made_of = json_hash([_key(params), file_hash(model.path), source_hash("lever_lib.ladder")])
    known = whole(find_ladder, outputs)
    if known and outputs.made_of(LADDER) == made_of:
        return known
    judge = Regressor({ALL_LAYOUTS: model.predictor}, pd.DataFrame(), pd.DataFrame())
    fit(outputs)
    published = _published(outputs)

    def climb(part: Outputs, draft: Path) -> None:
        """Everything on a few layouts."""
        _climb(part, judge, published, draft)

    work = work_folder(outputs, LADDER, made_of)
    parts = parts_of(outputs, list(params.study.test_seeds), work, _PARTS, climb)
    answered, chosen = (pd.concat([read_table(part / name) for part in parts]) for name in _PARTS[:2])
    text = {"value": str, "seed": str}
    changed = pd.concat([read_csv(part / _PARTS[2], dtype=text) for part in parts])
    tables = Ladder(
        all_shares(answered, params.root_seed),
        all_regrets(answered, params.root_seed),
        summarise_selection(chosen, params.root_seed),
        summary(changed, params.root_seed),
    )
    write_tables(tables, new_draft(work))
    publish(outputs, LADDER, work, {"key": _key(params), "made_of": made_of})
    return find_ladder(outputs)


def check_changes(params: Params) -> None:
    """Refuse a spec that some change cannot be made of, before anything is trained.

    Raises:
        LeverError: with the rule that it would break.
    """
    try:
        finer = _finer(params)
        for seed in params.study.test_seeds:
            for times in _HAZARDS:
                make_layout(_harder(finer, times).grid, seed)
    except ValueError as error:  # pydantic's have a line for the rule
        reason = error.errors()[0]["msg"] if hasattr(error, "errors") else str(error)
        raise LeverError(
            f"study: the ladder takes {_FINEST} snapshots of each training and up to {_HAZARDS[-1]} times the hazards, "
            f"which does not go with these params: {reason}"
        ) from None


def _published(outputs: Outputs) -> Callable[[Embedded], np.ndarray]:
    """The published regressor, fitted on the same policies as ours."""
    legacy = outputs.params.grid.legacy_gold_exit
    systems = tuple(reward_system(name, legacy) for name in REWARD_SYSTEMS)
    return published_regressor(load_table(outputs.folder / MODEL / TRAINING, systems))


def _climb(outputs: Outputs, judge: Regressor, published: Callable[[Embedded], np.ndarray], draft: Path) -> None:
    params = outputs.params
    last = list(params.libraries)[-1]
    own = Outputs(outputs.spec, replace(params, libraries={last: params.libraries[last]}), outputs.folder.parent)
    policies = build_library(own.params, own)
    retriever = Retriever(policies, build_embeddings(policies, own), judge, build_index(policies, own))
    jobs = experiment_jobs(retriever)
    answered = run_jobs(answers, jobs, params.execution, "composing", threads=False)
    pd.DataFrame([row for rows in answered for row in rows]).round(9).to_csv(draft / _PARTS[0], index=False)
    selection_rows(jobs, published).to_csv(draft / _PARTS[1], index=False)
    changes = run_jobs(measure, [LadderJob(params, seed) for seed in params.seeds], params.execution, "changing", False)
    pd.DataFrame([row for rows in changes for row in rows]).to_csv(draft / _PARTS[2], index=False)


def answers(job: ExperimentJob) -> list[dict]:
    """Rows as in `composition/results.csv`, of every method and all strategies but exhaustive."""
    rows = []
    for asked in job.asked:
        pool, about = question(job, asked)
        single = single_returns(pool)
        for method in METHODS.values():
            for strategy in ("targeted", "hybrid", "library"):
                combos = combinations(strategy, asked.candidates, job.top_k, asked.everything)
                choice = choose(pool.fresh(), method, combos, job.embedder, job.predictor)
                rows.append(about | {"strategy": strategy} | result(job, asked, pool, method, choice, single))
    return rows


def _key(params: Params) -> str:
    settings = {name: value for name, value in resolved(params).items() if name in _READ}
    settings["search"] = search_settings(params)
    del settings["pi2vec"]["device"]  # where something is computed changes nothing
    return json_hash(settings)


def summary(rows: pd.DataFrame, root_seed: int) -> pd.DataFrame:
    """Shares of the optimum by change and method, with intervals over layouts.

    Args:
        rows: as from `measure`.
        root_seed: of the params.

    Returns:
        Columns `change, value, method, policies, share, low, high, stuck_share, layouts`.
    """
    found = []
    for (change, value, method), part in rows.groupby(["change", "value", "method"], sort=False):
        shares = part.groupby("seed")["share"].mean().to_numpy()[:, None]
        ends = interval(shares, stream(root_seed, "bootstrap"), mean)
        found.append((change, value, method, part["policies"].mean(), *ends, part["stuck"].mean(), len(shares)))
    columns = ["change", "value", "method", "policies", "share", "low", "high", "stuck_share", "layouts"]
    return pd.DataFrame(found, columns=columns)


def measure(job: LadderJob) -> list[dict]:
    """Every change on one layout: rows with `change, value, method, policies, seed, share, stuck`."""
    params = _finer(job.params)
    last = list(params.libraries)[-1]
    trained = _trained(params, job.seed, REWARD_SYSTEMS)
    world = (params, job.seed)
    rows = []
    for count in _SNAPSHOTS:
        kept = _snapshots(trained, count)
        rows += _compose(world, [record for record in kept if record.library == last], ASKED, "snapshots", count)
    for share in _STOPPED:
        early = [record for record in trained if record.library == last and record.snapshot == share]
        rows += _compose(world, early, ASKED, "stopped", share)
    usual = _snapshots(trained, len(job.params.sarsa.snapshots))
    for count in _SYSTEMS:
        some = [record for record in usual if record.library == last and record.setup in REWARD_SYSTEMS[:count]]
        rows += _compose(world, some, ASKED, "systems", count)
    for name in params.libraries:
        rows += _compose(world, [record for record in usual if record.library == name], ASKED, "budget", name)
    for times in _HAZARDS:
        harder = _harder(params, times)
        records = _snapshots(_trained(harder, job.seed, REWARD_SYSTEMS, last), len(job.params.sarsa.snapshots))
        rows += _compose((harder, job.seed), records, ASKED, "hazards", harder.grid.hazards)
    for change, value, other in _trained_otherwise(job.params):
        records = [record for record in usual if record.library == last]
        if other is not job.params:
            records = _trained(other, job.seed, REWARD_SYSTEMS, last)
        rows += _compose((other, job.seed), records, ASKED, change, value)
    with further_objectives() as further:
        objectives = (*SINGLE_OBJECTIVES, *further)
        records = _snapshots(_trained(params, job.seed, objectives, last), len(job.params.sarsa.snapshots))
        for count in range(2, len(objectives) + 1):
            rows += _compose(world, records, ("-".join(objectives[:count]),), "objectives", count)
    return rows


def _trained_otherwise(params: Params) -> Iterator[tuple[str, object, Params]]:
    """Other discounts, moves and tables to train with: change, value, params."""
    for gamma in _DISCOUNTS:
        sarsa = replace(params.sarsa, gamma=gamma)
        yield "discount", gamma, params if sarsa == params.sarsa else replace(params, sarsa=sarsa)
    for moves in MOVE_SETS:
        grid = replace(params.grid, moves=moves)
        if plannable(make_layout(grid, 0)):
            for state in _STATES:
                sarsa = replace(params.sarsa, state=state)
                usual = (grid, sarsa) == (params.grid, params.sarsa)
                # No deep policies take part here, and they could not with augmented tables.
                other = params if usual else replace(params, grid=grid, sarsa=sarsa, deep=Deep())
                yield "moves", f"{moves}, {state}", other


def _finer(params: Params) -> Params:
    """The same with as many snapshots as any change wants."""
    shares = tuple(round(step / _FINEST, 2) for step in range(1, _FINEST + 1))
    return replace(params, sarsa=replace(params.sarsa, snapshots=shares))


def _harder(params: Params, times: float) -> Params:
    """The same with more hazards."""
    return replace(params, grid=replace(params.grid, hazards=round(params.grid.hazards * times)))


def _trained(params: Params, seed: int, setups: tuple[str, ...], library: str | None = None) -> list[PolicyRecord]:
    """Policies of one layout, all snapshots; of one budget or of all."""
    template = training_jobs(params, [make_layout(params.grid, seed)])
    by_library: dict[str, TrainingJob] = {job.library: job for job in template}
    legacy = params.grid.legacy_gold_exit
    jobs = [
        replace(job, system=reward_system(setup, legacy))
        for name, job in by_library.items()
        if library in (None, name)
        for setup in setups
    ]
    return [record for job in jobs for record in train(job)[0]]


def _snapshots(records: list[PolicyRecord], count: int) -> list[PolicyRecord]:
    """The policies of `count` snapshots of each training, spread evenly up to the last."""
    wanted = {round((step + 1) * _FINEST / count) for step in range(count)}
    return [record for record in records if round(record.snapshot * _FINEST) in wanted]


def _compose(
    world: tuple[Params, int], records: list[PolicyRecord], asked: tuple[str, ...], change: str, value: object
) -> list[dict]:
    """Compose everything that was not trained for the question, by every method, for each question."""
    params, seed = world
    layout = make_layout(params.grid, seed)
    rows = []
    for setup in asked:
        system = reward_system(setup, params.grid.legacy_gold_exit)
        others = [record for record in records if record.setup != system.name]
        q_tables, visits = (np.stack([getattr(record, name) for record in others]) for name in ("q_table", "visits"))
        pool = Pool(layout, system, q_tables, visits.astype(np.int32), params.sarsa.alpha)
        best = optimum(layout, system).return_
        acting: list[tuple[str, int, Policy]] = [
            (name, len(others), pool.compose(METHODS[name], _members(METHODS[name], others))) for name in COMPOSED
        ]
        own = [record for record in records if record.setup == system.name and record.snapshot == _last(records)]
        acting += [(SCRATCH, 1, CellPolicy(greedy_actions(record.q_table))) for record in own]
        for name, policies, policy in acting:
            found = evaluate(policy, layout, system)
            rows.append(
                {
                    "change": change,
                    "value": value,
                    "method": name,
                    "policies": policies,
                    "seed": layout.name,
                    "share": found.return_ / best,
                    "stuck": found.stuck,
                }
            )
    return rows


def _members(method: Method, records: list[PolicyRecord]) -> tuple[int, ...]:
    """Everything; for sums of Q-values the last snapshot of each training, which serves them better than all."""
    least = 0.0 if method.rung > 0 else _last(records)
    return tuple(place for place, record in enumerate(records) if record.snapshot >= least)


def _last(records: list[PolicyRecord]) -> float:
    """The share of training that the last snapshots were taken at."""
    return max(record.snapshot for record in records)
