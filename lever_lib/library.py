"""The library: every policy of a spec with its Q-table, visit counts and training episodes, as open files."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from numbers import Integral, Real
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd

from lever_lib.artifacts import Outputs, Stage, file_hash, made_up, shown
from lever_lib.bounded import LONGEST
from lever_lib.energy import UNKNOWN, Meter, policy_joules
from lever_lib.envs.gridworld import ACTIONS, Layout, make_layout, memory_count, seed_name
from lever_lib.envs.rewards import REWARD_SYSTEMS, RewardSystem, reward_system
from lever_lib.errors import LeverError, MissingArtifactError, one_line
from lever_lib.files import read_array, read_arrays, read_table, write_array
from lever_lib.jobs import run_jobs
from lever_lib.params import Params, gold_slots, snapshot_episodes
from lever_lib.planning import optimum
from lever_lib.policies.base import CellPolicy, Episode, PolicyRecord, greedy_actions
from lever_lib.policies.tabular import CurvePoint, TrainingJob, train
from lever_lib.rollout import Outcome, evaluate, event_counts, returns, start_state
from lever_lib.timed_planning import check_plannable

Run = tuple[list[PolicyRecord], list[CurvePoint]]
Kind = TypeVar("Kind")

STAGE = Stage(
    name="library",
    notebook="01_generation",
    files=(
        "policies.parquet",
        "timings.parquet",
        "curves.parquet",
        "q_tables.npy",
        "visits.npy",
        "episodes.npz",
        "layouts.npz",
    ),
    params=("grid", "seeds", "root_seed", "libraries", "sarsa", "energy"),
    upstream=(),
    module="lever_lib.library",
)


@dataclass(frozen=True)
class Library:
    """A library read from its files.

    Attributes:
        spec: it belongs to.
        params: it was built with.
        folder: of its files.
        checksums: by file, of a library that was opened; what is read later is held against them.
    """

    spec: str
    params: Params
    folder: Path
    checksums: dict[str, str] = field(default_factory=dict)

    @cached_property
    def policies(self) -> pd.DataFrame:
        """One row per policy; row i has Q-table and visits i."""
        return read_table(self._file("policies.parquet"))

    @cached_property
    def timings(self) -> pd.DataFrame:
        """CPU seconds and joules that each policy took to train."""
        table, numbers = read_table(self._file("timings.parquet")), ("train_seconds", "energy_joules")
        known = {"policy_id", "energy_label", *numbers} <= set(table)
        known = known and pd.api.types.is_string_dtype(table["energy_label"])
        if not known or not all(pd.api.types.is_numeric_dtype(table[name]) for name in numbers):
            raise self.made_up("timings.parquet", f"must hold policy_id, energy_label, and {' and '.join(numbers)}")
        if not table["policy_id"].equals(self.policies["policy_id"]):
            raise self.made_up("timings.parquet", "must name the policies of the library, in their order")
        return table

    @cached_property
    def curves(self) -> pd.DataFrame:
        """Learning curves, one row per run and chunk of episodes."""
        return read_table(self._file("curves.parquet"))

    @cached_property
    def q_tables(self) -> np.ndarray:
        """Action values, float64 (P, S, 4); with `sarsa.state: augmented` (P, S * 2 (G + 1), 4)."""
        return read_array(self.folder / "q_tables.npy", on_disk=True)

    @cached_property
    def visits(self) -> np.ndarray:
        """Times each action was taken in training, int32, as many."""
        return read_array(self.folder / "visits.npy", on_disk=True)

    @cached_property
    def actions(self) -> np.ndarray:
        """Greedy action of each policy in each row of its Q-table, int8 (P, S)."""
        return greedy_actions(self.q_tables)

    @cached_property
    def layouts(self) -> dict[str, Layout]:
        """Layouts by seed name."""
        stored = read_arrays(self._file("layouts.npz"))
        return {
            str(name): Layout(cells, str(name), self.params.grid.moves)
            for name, cells in zip(stored["seeds"], stored["cells"], strict=True)
        }

    @cached_property
    def event_counts(self) -> np.ndarray:
        """Events of each policy's episode in its own layout, float64 (P, E)."""
        counts = []
        for seed, actions in zip(self.policies["seed"], self.actions, strict=True):
            layout = self.layouts[seed]
            start = start_state(layout)
            counts.append(event_counts(layout, start, CellPolicy(actions).paths(layout, start)))
        return np.concatenate(counts)

    def greedy_episode(self, row: int) -> Outcome:
        """What a policy does from the start of its layout, paid under its own reward system."""
        policy = self.policies.iloc[row]
        return evaluate(CellPolicy(self.actions[row]), self.layouts[policy["seed"]], self.system(policy["setup"]))

    @cached_property
    def returns(self) -> np.ndarray:
        """Exact return of each policy under each trained reward system, float64 (P, R), columns as in `systems`."""
        return returns(self.event_counts, list(self.systems.values()))

    @cached_property
    def systems(self) -> dict[str, RewardSystem]:
        """The trained reward systems by name, under this spec's exit rule."""
        return {name: self.system(name) for name in REWARD_SYSTEMS}

    @cached_property
    def setups(self) -> tuple[str, ...]:
        """Reward systems that any policy was trained under, those of policies that joined later included."""
        return tuple(self.policies["setup"].unique())

    def system(self, setup: str) -> RewardSystem:
        """Any reward system, under this spec's exit rule."""
        return reward_system(setup, self.params.grid.legacy_gold_exit)

    def layout(self, seed: int | str) -> Layout:
        """The layout of a seed: `3`, `"3"` or `"0003"`.

        A layout of your own is called by its name.

        Raises:
            LeverError: if the library has none.
        """
        name = seed if isinstance(seed, str) and seed in self.layouts else seed_name(seed)
        if name not in self.layouts:
            raise LeverError(f"seed {seed!r}: no such layout in spec {self.spec}; seeds: {', '.join(self.layouts)}")
        return self.layouts[name]

    def check_library(self, name: str) -> str:
        """`name` if it is one of this spec's training budgets, else a `LeverError`."""
        if not isinstance(name, str) or name not in self.params.libraries:
            raise LeverError(f"library {name!r}: spec {self.spec} has {', '.join(self.params.libraries)}")
        return name

    @cached_property
    def episodes(self) -> list[Episode]:
        """The training episode recorded at each policy's snapshot."""
        try:
            episodes = unpack_episodes(read_arrays(self._file("episodes.npz")))
        except (LookupError, TypeError, ValueError) as error:
            if isinstance(error, LeverError):
                raise
            raise self.made_up("episodes.npz", f"holds no episodes: {error}") from None
        if len(episodes) != len(self.policies):
            raise self.made_up("episodes.npz", "must hold an episode of each policy")
        return episodes

    def made_up(self, file: str, rule: str) -> MissingArtifactError:
        """What to say of a file that no run can have written."""
        return made_up(self.folder.parent, STAGE, file, rule)

    def _file(self, name: str) -> Path:
        """A file of the library, as it was when the library was opened.

        Raises:
            MissingArtifactError: if it was built again since then.
        """
        path = self.folder / name
        if name in self.checksums and not (path.is_file() and file_hash(path) == self.checksums[name]):
            raise MissingArtifactError(f"{shown(path)} is not what it was when the library was opened; open it again")
        return path

    def records(self, rows: Sequence[int]) -> list[PolicyRecord]:
        """Some policies with all that is kept of each."""
        found = []
        for row in rows:
            facts = self.policies.iloc[row]
            found.append(
                PolicyRecord(
                    **{name: str(facts[name]) for name in ("policy_id", "source", "setup", "library", "seed")},
                    snapshot=float(facts["snapshot"]),
                    episodes=int(facts["episodes"]),
                    description=str(facts["description"]),
                    q_table=np.array(self.q_tables[row]),
                    visits=np.array(self.visits[row]),
                    episode=self.episodes[row],
                    train_seconds=float(self.timings["train_seconds"].iloc[row]),
                )
            )
        return found

    def joined(self, records: Iterable[PolicyRecord], layouts: Iterable[Layout] = ()) -> Library:
        """This library with further policies and layouts, in memory: the files stay as they are.

        Args:
            records: policies, whatever trained them; each valid in a layout of the library or in one of `layouts`.
            layouts: further worlds of the spec's size.

        Raises:
            LeverError: if a name is taken, or a record does not fit the library.
        """
        records, layouts = _all_of(PolicyRecord, "records", records), _all_of(Layout, "layouts", layouts)
        if not records:
            raise LeverError("records: there must be at least one")
        names = [check_layout(layout, self).name for layout in layouts]
        if len(set(names)) != len(names):
            raise LeverError(f"layouts: each name may be used once, are {names}")
        worlds = self.layouts | dict(zip(names, layouts, strict=True))
        known = set(self.policies["policy_id"])
        for position, record in enumerate(records):
            records[position] = _checked(record, worlds, known, self.q_tables.shape[1:])
            self.check_library(record.library)
            known.add(record.policy_id)
        for layout in layouts:
            if not any(record.seed == layout.name for record in records):
                raise LeverError(f"layout {layout.name!r}: comes without a policy")
        rows = _policy_table(self.spec, self.params, records, worlds)
        times = _timing_table(self.params, records, 0.0, None)
        rows["q_index"] += len(self.policies)
        joined = replace(self)
        vars(joined).update(  # what a library reads from its files when first asked for it
            layouts=worlds,
            policies=pd.concat([self.policies, rows], ignore_index=True),
            timings=pd.concat([self.timings, times], ignore_index=True),
            q_tables=np.concatenate([self.q_tables, [record.q_table for record in records]]),
            visits=np.concatenate([self.visits, [record.visits for record in records]]),
            episodes=[*self.episodes, *(record.episode for record in records)],
        )
        return joined


def _all_of(kind: type[Kind], name: str, things: Iterable[Kind]) -> list[Kind]:
    try:
        found = list(things)
    except TypeError:
        found = [things]
    if not all(isinstance(thing, kind) for thing in found):
        raise LeverError(f"{name}: must be of {kind.__name__}")
    return found


def check_layout(layout: Layout, library: Library) -> Layout:
    """`layout` if it can join `library`, else a `LeverError` that says why not."""
    grid = library.params.grid
    name = layout.name
    nameable = _is_line(name) and not name.isdigit() and "+" not in name
    if not nameable or name in library.layouts:
        raise LeverError(
            f"layout name {name!r}: must be new, not a number, and without '+'; there is {list(library.layouts)}"
        )
    if layout.size != grid.size or layout.moves != grid.moves:
        raise LeverError(
            f"layout {layout.name!r}: is {layout.size} x {layout.size} with {layout.moves} moves, "
            f"spec {library.spec} has {grid.size} x {grid.size} with {grid.moves} moves"
        )
    if library.params.sarsa.state == "augmented" and len(layout.golds) != grid.golds:
        raise LeverError(
            f"layout {layout.name!r}: has {len(layout.golds)} golds; where golds left count as state "
            f"(sarsa.state: augmented) there must be {grid.golds} as in spec {library.spec}"
        )
    check_plannable(layout)
    if len(layout.golds) > gold_slots(layout.size):
        raise LeverError(f"layout {layout.name!r}: {len(layout.golds)} golds, at most {gold_slots(layout.size)} fit")
    return layout


def _checked(record: PolicyRecord, layouts: dict[str, Layout], known: set[str], shape: tuple[int, ...]) -> PolicyRecord:
    """`record` with arrays as files keep them; refused if its name is taken or its tables are not of `shape`."""
    name = record.policy_id
    if not _is_line(name) or "+" in name or name in known:
        raise LeverError(f"policy_id {name!r}: must be new text, not empty, printable and without '+'")
    of = f"of policy {name!r}"
    words = record.description
    if not _is_line(words) or len(words) > LONGEST:
        rule = f"must be words in one line, {LONGEST:,} letters at most"
        raise LeverError(f"description {of}: {rule}, is {str(words)[:60]!r}")
    if not _is_line(record.source):
        raise LeverError(f"source {of}: must be words in one line, is {record.source!r}")
    if reward_system(record.setup).name != record.setup:
        raise LeverError(f"setup {record.setup!r} {of}: is called {reward_system(record.setup).name!r}")
    if not isinstance(record.seed, str) or record.seed not in layouts:
        raise LeverError(f"policy {name!r}: no layout {record.seed!r}; layouts: {', '.join(layouts)}")
    if not _is_a(Real, record.snapshot) or not 0 < record.snapshot <= 1:
        raise LeverError(f"snapshot {of}: must be a number above 0 and at most 1, is {record.snapshot!r}")
    if not _is_a(Integral, record.episodes) or not 0 <= record.episodes < 2**53:
        raise LeverError(f"episodes {of}: must be a whole number, not negative, is {record.episodes!r}")
    seconds = record.train_seconds
    with np.errstate(over="ignore"):  # of a float32, compared with what it cannot hold
        spent = _is_a(Real, seconds) and (0 <= seconds < 1e300 or seconds != seconds)
    if not spent:
        raise LeverError(f"train_seconds {of}: must be a number, not negative, or nan, is {seconds!r}")
    visits = as_numbers(f"visits {of}", record.visits, shape)
    if (visits < 0).any() or (visits != np.floor(visits)).any():
        raise LeverError(f"visits {of}: must be counts, none of them negative")
    return replace(
        record,
        snapshot=float(record.snapshot),
        episodes=int(record.episodes),
        q_table=as_numbers(f"q_table {of}", record.q_table, shape).astype(np.float64),
        visits=_as_stored(visits),
        episode=_checked_episode(record, layouts[record.seed]),
        train_seconds=float(seconds),
    )


def _is_line(text: Any) -> bool:
    return isinstance(text, str) and bool(text.strip()) and text.isprintable()


def _is_a(kind: type, value: Any) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def as_numbers(name: str, table: Any, shape: tuple[int, ...]) -> np.ndarray:
    """`table` as real numbers of a shape, so small that sums of them are finite.

    Raises:
        LeverError: if it cannot be had so.
    """
    rule = f"{name}: must be finite numbers of shape {shape}, {_MOST:g} at most"
    if np.ma.is_masked(table):
        raise LeverError(f"{rule}, none of them masked")
    try:
        found = np.asarray(table)
    except Exception as error:  # an object's own way to become an array may raise whatever it likes
        reason = one_line(f"{type(error).__name__}: {error}")
        raise LeverError(f"{rule}, cannot be read as an array ({reason})") from None
    if found.shape != shape:  # before anything is made of it: it may be large
        raise LeverError(f"{rule}, is {found.dtype} of shape {found.shape}")
    if found.dtype.kind == "f":
        with np.errstate(over="ignore"):  # what is too large becomes infinite, and is refused
            found = found.astype(np.float64)
    if found.dtype.kind not in "biuf" or not (np.abs(found.astype(np.float64)) <= _MOST).all():
        raise LeverError(f"{rule}, is {found.dtype} of shape {found.shape}")
    return found


_MOST = 1e100  # of a table's numbers; squares and sums of such are still finite
_EPISODE_TYPES = Episode(np.int32, np.int8, np.bool_, np.bool_, np.int32)


def _checked_episode(record: PolicyRecord, layout: Layout) -> Episode:
    """The episode of a record; refused if its parts do not fit each other or the world it is said to be from."""
    of = f"episode of policy {record.policy_id!r}"
    if not isinstance(record.episode, Episode):
        raise LeverError(f"{of}: must be an Episode, is {type(record.episode).__name__}")
    try:
        episode = Episode(*(np.asarray(part) for part in record.episode))
    except Exception as error:  # rows of different lengths, or an object's own way to become an array
        raise LeverError(f"{of}: its parts must be arrays ({one_line(str(error))})") from None
    if any(np.ma.is_masked(part) for part in record.episode):
        raise LeverError(f"{of}: its parts must not be masked")
    states = episode.cells.size
    if not states:
        raise LeverError(f"{of}: must have a first cell")
    shapes = Episode((states,), (states - 1,), (states, len(layout.golds)), (states,), (states,))
    above = Episode(layout.cells.size, ACTIONS, 2, 2, np.iinfo(np.int32).max)
    parts = []
    for name, found, shape, kind, bound in zip(Episode._fields, episode, shapes, _EPISODE_TYPES, above, strict=True):
        flags = kind is np.bool_
        if found.shape != shape or found.dtype.kind not in ("b" if flags else "iu"):
            rule = f"{shape} {'flags' if flags else 'whole numbers'}"
            raise LeverError(f"{of}: {name} must be {rule}, are {found.shape} {found.dtype}")
        if not flags and ((found < 0).any() or (found >= bound).any()):
            raise LeverError(f"{of}: {name} must be 0 to {bound - 1}")
        parts.append(found.astype(kind))
    return Episode(*parts)


def _as_stored(visits: np.ndarray) -> np.ndarray:
    """Visit counts as files keep them, int32; nothing here needs to tell two thousand million from more."""
    return np.minimum(visits, np.iinfo(np.int32).max).astype(np.int32)


def build_library(params: Params, outputs: Outputs, overwrite: bool = False) -> Library:
    """Train every policy of the spec, unless the library on disk is whole and was built from the same inputs."""
    if overwrite or not outputs.fresh(STAGE):
        layouts = [make_layout(params.grid, seed) for seed in params.seeds]
        for layout in layouts:
            check_plannable(layout)
        with outputs.writing(STAGE) as folder:
            jobs = training_jobs(params, layouts)
            meter = Meter()
            runs: list[Run] = []
            for run in run_jobs(train, jobs, params.execution, "training", threads=True):
                runs.append(run)
                meter.update()
            joules = meter.joules if params.execution.scheduler is None else None  # a cluster's are not these counters
            _write(outputs.spec, params, folder, layouts, runs, joules)
    return load_library(params, outputs)


def load_library(params: Params, outputs: Outputs) -> Library:
    """Open the library on disk.

    Raises:
        MissingArtifactError: if it is absent, damaged or out of date.
    """
    with outputs.reading():
        folder = outputs.require(STAGE)
        checksums = {Path(name).name: checksum for name, checksum in outputs.manifest()[STAGE.name]["files"].items()}
        library = Library(outputs.spec, params, folder, checksums)
        _check_whole(library)
    return library


def _check_whole(library: Library) -> None:
    """Open what belongs together, and see that it does: files that were swapped or made up are refused here.

    Raises:
        MissingArtifactError: naming the file and what is wrong with it.
    """
    fault = library.made_up
    policies = library.policies
    try:
        layouts = library.layouts
    except (KeyError, ValueError, TypeError, IndexError) as error:
        raise fault("layouts.npz", f"holds no layouts: {error}") from None
    wanted = {*_FACTS, "spec", "return", "optimum", "stuck", "q_index"}
    if not wanted <= set(policies):
        raise fault("policies.parquet", f"lacks {', '.join(sorted(wanted - set(policies)))}")
    size, grid = len(policies), library.params.grid
    words = ("policy_id", "source", "setup", "library", "seed", "description", "spec")
    if not all(pd.api.types.is_string_dtype(policies[name]) for name in words):
        raise fault("policies.parquet", f"must hold words for {', '.join(words)}")
    numbers = ("snapshot", "episodes", "return", "optimum", "stuck", "q_index")
    if not size or not all(pd.api.types.is_numeric_dtype(policies[name]) for name in numbers):
        raise fault("policies.parquet", f"must hold policies, with numbers for {', '.join(numbers)}")
    if not (policies["seed"].isin(list(layouts)).all() and policies["setup"].isin(list(REWARD_SYSTEMS)).all()):
        raise fault("policies.parquet", "names layouts or reward systems that nobody knows")
    if not policies["policy_id"].is_unique or not (policies["q_index"] == np.arange(size)).all():
        raise fault("policies.parquet", "must name each policy once, in the order of the Q-tables")
    shapes = {(layout.cells.shape, len(layout.golds)) for layout in layouts.values()}
    if shapes != {((grid.size, grid.size), grid.golds)}:
        raise fault("layouts.npz", f"its layouts must be {grid.size} x {grid.size} with {grid.golds} golds")
    rows = (memory_count(grid.golds) if library.params.sarsa.state == "augmented" else 1) * grid.size**2
    for name, table, kind in (("q_tables.npy", library.q_tables, "f"), ("visits.npy", library.visits, "i")):
        if table.shape != (size, rows, ACTIONS) or table.dtype.kind != kind:
            raise fault(name, f"must be {(size, rows, ACTIONS)} numbers of kind {kind!r}, is {table.shape}")
    if not np.isfinite(library.q_tables).all():
        raise fault("q_tables.npy", "must be finite")
    if library.visits.min() < 0:
        raise fault("visits.npy", "must be counts")


def training_jobs(params: Params, layouts: list[Layout]) -> list[TrainingJob]:
    """One job per library, layout and reward system, each with its own random stream."""
    return [
        TrainingJob(
            layout=layout,
            system=reward_system(setup, params.grid.legacy_gold_exit),
            library=library,
            sarsa=params.sarsa,
            epsilon_decay=budget.epsilon_decay,
            marks=snapshot_episodes(params, library),
            root_seed=params.root_seed,
        )
        for library, budget in params.libraries.items()
        for layout in layouts
        for setup in REWARD_SYSTEMS
    ]


def _write(
    spec: str,
    params: Params,
    folder: Path,
    layouts: list[Layout],
    runs: list[Run],
    joules: float | None,
) -> None:
    records = [record for run, _ in runs for record in run]
    by_name = {layout.name: layout for layout in layouts}
    _policy_table(spec, params, records, by_name).to_parquet(folder / "policies.parquet", index=False)
    run_seconds = sum(run[-1].train_seconds for run, _ in runs)
    _timing_table(params, records, run_seconds, joules).to_parquet(folder / "timings.parquet", index=False)
    _curve_table(runs).to_parquet(folder / "curves.parquet", index=False)
    write_array(folder / "q_tables.npy", np.stack([record.q_table for record in records]))
    write_array(folder / "visits.npy", np.stack([_as_stored(record.visits) for record in records]))
    np.savez_compressed(folder / "episodes.npz", **pack_episodes([record.episode for record in records]))
    np.savez_compressed(
        folder / "layouts.npz",
        seeds=np.array([layout.name for layout in layouts]),
        cells=np.stack([layout.cells for layout in layouts]),
        lever_then_exit=np.array([layout.lever_then_exit for layout in layouts]),
    )


def _policy_table(spec: str, params: Params, records: list[PolicyRecord], layouts: dict[str, Layout]) -> pd.DataFrame:
    best: dict[tuple[str, str], float] = {}
    rows = []
    for index, record in enumerate(records):
        layout = layouts[record.seed]
        system = reward_system(record.setup, params.grid.legacy_gold_exit)
        if (record.seed, record.setup) not in best:
            best[record.seed, record.setup] = optimum(layout, system).return_
        greedy = evaluate(CellPolicy(greedy_actions(record.q_table)), layout, system)
        rows.append(
            {
                "policy_id": record.policy_id,
                "spec": spec,
                "source": record.source,
                "setup": record.setup,
                "library": record.library,
                "seed": record.seed,
                "snapshot": record.snapshot,
                "episodes": record.episodes,
                "description": record.description,
                "return": greedy.return_,
                "optimum": best[record.seed, record.setup],
                "stuck": greedy.stuck,
                "q_index": index,
            }
        )
    return pd.DataFrame(rows)


def _timing_table(
    params: Params, records: list[PolicyRecord], run_seconds: float, measured: float | None
) -> pd.DataFrame:
    seconds = [record.train_seconds for record in records]
    joules, label = policy_joules(seconds, run_seconds, measured, params.energy.watts_per_core)
    return pd.DataFrame(
        {
            "policy_id": [record.policy_id for record in records],
            "train_seconds": seconds,
            "energy_joules": joules,
            "energy_label": [UNKNOWN if np.isnan(second) else label for second in seconds],
        }
    )


def _curve_table(runs: list[Run]) -> pd.DataFrame:
    return pd.concat(
        [
            pd.DataFrame(curve).assign(library=run[0].library, seed=run[0].seed, setup=run[0].setup)
            for run, curve in runs
        ],
        ignore_index=True,
    )


def pack_episodes(episodes: list[Episode]) -> dict[str, np.ndarray]:
    """Episodes end to end: `offsets[i]:offsets[i + 1]` are the states of episode i; the last has action -1."""
    lengths = [len(episode.cells) for episode in episodes]
    return {
        "offsets": np.concatenate([[0], np.cumsum(lengths)]),
        "cells": np.concatenate([episode.cells for episode in episodes]),
        "actions": np.concatenate([np.append(episode.actions, np.int8(-1)) for episode in episodes]),
        "golds": np.concatenate([episode.golds for episode in episodes]),
        "lever": np.concatenate([episode.lever for episode in episodes]),
        "hazard_steps": np.concatenate([episode.hazard_steps for episode in episodes]),
    }


def unpack_episodes(stored: dict[str, np.ndarray]) -> list[Episode]:
    """What `pack_episodes` packed."""
    cells, actions, left, lever, hazards = (stored[name] for name in Episode._fields)
    offsets = stored["offsets"]
    if offsets.ndim != 1 or offsets.dtype.kind not in "iu" or (offsets < 0).any() or (offsets > len(cells)).any():
        raise ValueError("offsets of its episodes lead elsewhere")
    spans = [slice(start, stop) for start, stop in itertools.pairwise(offsets.tolist())]
    return [Episode(cells[s], actions[s.start : s.stop - 1], left[s], lever[s], hazards[s]) for s in spans]


_FACTS = ("policy_id", "source", "setup", "library", "seed", "snapshot", "episodes", "description")
_WORDS = ("policy_id", "source", "setup", "library", "seed", "description")


def save_records(records: list[PolicyRecord], path: Path) -> None:
    """Write records as `.npz`, without pickles; seconds differ from run to run and are left out."""
    content = {name: np.array([getattr(record, name) for record in records]) for name in _FACTS}
    content |= {name: np.stack([getattr(record, name) for record in records]) for name in ("q_table", "visits")}
    np.savez_compressed(path, **content, **pack_episodes([record.episode for record in records]))


def load_records(path: Path) -> list[PolicyRecord]:
    """Read what `save_records` wrote.

    Raises:
        LeverError: if the file holds something else.
    """
    try:
        parts = read_arrays(path)
        if any(parts[name].dtype.kind != "U" for name in _WORDS):
            raise ValueError(f"must hold words for {', '.join(_WORDS)}")
        episodes = unpack_episodes(parts)
        facts = zip(*(parts[name].tolist() for name in _FACTS), strict=True)
        tables = zip(facts, parts["q_table"], parts["visits"], episodes, strict=True)
        return [PolicyRecord(*fact, *rest, train_seconds=np.nan) for fact, *rest in tables]
    except Exception as error:  # the readers of damaged archives raise whatever the damage leads them to
        raise LeverError(f"{shown(path)}: no policies can be read from it ({error})") from None
