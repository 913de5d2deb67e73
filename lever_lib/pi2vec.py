"""pi2vec: a policy as the mean of its successor features over canonical states.

psi^pi(s) = E[sum_t gamma^t phi(s_t) | s_0 = s, pi]. World and policies are deterministic, so psi is the discounted sum
along one path. `pi2vec.method: exact` follows that path; `network` sees pairs of successive states only and learns psi
from them, as one must where a policy is a black box. The embedding of a policy is the mean of psi over the K canonical
states of its own layout; psi at the start state is kept beside it.

Source: Barreto et al. (2017), section 3; Scarpellini et al. (2024), pi2vec.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from numba import njit

from lever_lib import library as library_stage
from lever_lib.artifacts import Outputs, Stage, made_up
from lever_lib.envs.features import HEAD, FeatureTables, add_features, feature_count, feature_tables, features
from lever_lib.envs.gridworld import Layout, States
from lever_lib.envs.layouts import EXIT, HAZARD, LEVER
from lever_lib.errors import LeverError
from lever_lib.files import read_array, read_arrays, write_array
from lever_lib.jobs import run_jobs
from lever_lib.library import Library
from lever_lib.params import Params, Pi2Vec
from lever_lib.policies.base import CellPolicy, Episode
from lever_lib.psi_network import ENDS, GOES_ON, LEARNERS, STAYS, Learner, Pairs, Scale, feature_scale, learn
from lever_lib.rollout import END_STUCK, Paths, Policy, follow, start_state
from lever_lib.seeding import stream

_CANONICAL = "canonical_states.npz"
_ARRAYS = ("embeddings.npy", "start_features.npy")
STAGE = Stage(
    name="pi2vec",
    notebook="02_pi2vec",
    files=(_CANONICAL, *_ARRAYS),
    params=("grid", "root_seed", "pi2vec"),
    upstream=(library_stage.STAGE,),
    module="lever_lib.pi2vec",
)


# How often a network's data start at the start state, for each time at a canonical one: psi is read there by itself.
_STARTS = 8
_CLIP = 3.0  # standard deviations: from some states a policy gets stuck, which is far away from everything


METHODS = ("exact", "network")


class Embedded(NamedTuple):
    """What pi2vec says of B policies.

    Attributes:
        mean: the embedding, mean psi over the canonical states, float64 (B, D).
        start: psi of the start state, float64 (B, D).
    """

    mean: np.ndarray
    start: np.ndarray


def standardised(vectors: np.ndarray) -> np.ndarray:
    """Features scaled over policies, float (P, D), and clipped; those that are all alike are left out."""
    spread = vectors.std(axis=0)
    alive = spread > 1e-9 * np.maximum(np.abs(vectors).max(axis=0), 1)
    return np.clip((vectors - vectors.mean(axis=0))[:, alive] / spread[alive], -_CLIP, _CLIP)


@dataclass(frozen=True)
class Embedder:
    """Embeds policies of one layout; the library's and composed ones alike.

    Attributes:
        layout: the world.
        canonical: K states.
        tables: features of the layout.
        settings: method, discount, learner, device.
        root_seed: of a network's initial weights.
    """

    layout: Layout
    canonical: States
    tables: FeatureTables
    settings: Pi2Vec
    root_seed: int = 0

    @property
    def gamma(self) -> float:
        """Discount per step."""
        return self.settings.gamma

    @property
    def learner(self) -> Learner:
        """How a network is fitted, where one is."""
        return LEARNERS[self.settings.learner]

    @cached_property
    def states(self) -> States:
        """The canonical states, and last the start state: where psi is wanted, K + 1."""
        parts = zip(self.canonical, start_state(self.layout), strict=True)
        return States(*(np.concatenate(part) for part in parts))

    @cached_property
    def starts(self) -> States:
        """Where a network's data start: the canonical states, and the start state as often as it takes."""
        parts = zip(self.canonical, start_state(self.layout), strict=True)
        return States(*(np.concatenate([part, *[start] * _STARTS]) for part, start in parts))

    @cached_property
    def state_features(self) -> np.ndarray:
        """Phi of `states`, float32 (K + 1, D)."""
        return features(self.tables, self.states)

    @cached_property
    def scale(self) -> Scale:
        """What standardises features for a network: the same for all policies of the layout."""
        return feature_scale(self.state_features)

    def embed(self, policies: Sequence[Policy], episodes: Sequence[Episode] | None = None) -> Embedded:
        """Embed policies, all at once.

        Args:
            policies: that can be followed.
            episodes: one recorded episode of each, for a learner that wants no more. Where there are none, as of a
                policy composed just now, it learns from the episode that the policy would have.
        """
        psi = self.successor_features(policies, episodes)
        return Embedded(psi[:, :-1].mean(axis=1), psi[:, -1])

    def successor_features(self, policies: Sequence[Policy], episodes: Sequence[Episode] | None = None) -> np.ndarray:
        """Psi of policies at each canonical state and, last, at the start, float64 (B, K + 1, D)."""
        if self.settings.method == "exact":
            return np.stack([self._exact(policy) for policy in policies])
        if self.learner.data == "canonical":
            seen = [self.pairs(policy, self.starts) for policy in policies]
        elif episodes is None:
            seen = [self.pairs(policy, start_state(self.layout)) for policy in policies]
        else:
            seen = [
                episode_pairs(self.layout, self.tables, episode)
                if len(episode.actions)
                else self.pairs(policy, start_state(self.layout))  # nothing was recorded: what it would do
                for policy, episode in zip(policies, episodes, strict=True)
            ]
        return learn(
            seen, self.state_features, self.scale, self.learner, self.gamma, self.root_seed, self.settings.device
        )

    def _exact(self, policy: Policy) -> np.ndarray:
        paths = follow(policy, self.layout, self.states)
        return successor_features(self.tables, self.states, paths, self.layout, self.gamma)

    def pairs(self, policy: Policy, starts: States) -> Pairs:
        """What is seen of a policy that is followed from given states to the end."""
        return path_pairs(self.tables, starts, follow(policy, self.layout, starts), self.layout)


@dataclass(frozen=True)
class Embeddings:
    """Embeddings of a library, read from their files.

    Attributes:
        embeddings: float64 (P, D); row i is policy i of the library.
        start: psi at the start state, float64 (P, D).
        canonical: canonical states by seed name.
        settings: they were made with.
        root_seed: they were made with.
        joined: method by which each of the last policies, those of no file, was embedded; None for that of `settings`.
    """

    embeddings: np.ndarray
    start: np.ndarray
    canonical: dict[str, States]
    settings: Pi2Vec
    root_seed: int
    joined: tuple[str | None, ...] = ()

    def embedder(self, layout: Layout) -> Embedder:
        """What embeds further policies of a layout of the library."""
        return Embedder(layout, self.canonical[layout.name], feature_tables(layout), self.settings, self.root_seed)

    @property
    def embedded(self) -> Embedded:
        """The arrays as an embedder returns them."""
        return Embedded(self.embeddings, self.start)

    def rows(self, rows: np.ndarray) -> Embedded:
        """Some policies of the library."""
        return Embedded(self.embeddings[rows], self.start[rows])


def build_embeddings(library: Library, outputs: Outputs, overwrite: bool = False) -> Embeddings:
    """Draw canonical states and embed every policy, unless the files on disk are whole and up to date."""
    params = library.params
    if overwrite or not outputs.fresh(STAGE):
        with outputs.writing(STAGE) as folder:
            jobs = [_embedding_job(library, layout) for layout in library.layouts.values()]
            embedded = run_jobs(_embed_layout, jobs, params.execution, "embedding", threads=True)
            _write(library, folder, jobs, list(embedded))
    return load_embeddings(params, outputs)


def load_embeddings(params: Params, outputs: Outputs) -> Embeddings:
    """Open the embeddings on disk.

    Raises:
        MissingArtifactError: if they are absent, damaged or out of date.
    """
    with outputs.reading():
        folder = outputs.require(STAGE)
        stored = read_arrays(folder / _CANONICAL)
        arrays = [read_array(folder / name) for name in _ARRAYS]
    shape = (arrays[0].shape[0], feature_count(params.grid.size))
    for name, array in zip(_ARRAYS, arrays, strict=True):
        if array.shape != shape or array.dtype != np.float64:
            raise made_up(outputs.folder, STAGE, name, f"must be {shape} numbers, is {array.shape} {array.dtype}")
        if not np.isfinite(array).all():
            raise made_up(outputs.folder, STAGE, name, "must be finite")
    try:
        states = zip(*(stored[name] for name in ("seeds", *States._fields)), strict=True)
        canonical = {str(name): States(*parts) for name, *parts in states}
        known = all(are_states(states, params.grid.size**2, params.grid.golds) for states in canonical.values())
    except (LookupError, TypeError, ValueError):
        known = False
    if not known:
        raise made_up(outputs.folder, STAGE, _CANONICAL, "holds no states of this grid")
    return Embeddings(*arrays, canonical, params.pi2vec, params.root_seed)


def are_states(states: States, cells: int, golds: int) -> bool:
    """Whether kernels, which look at no bounds, may be given these as states of a world of so many cells and golds."""
    at, left, lever = states
    kinds = at.dtype == np.int32 and left.dtype == bool and lever.dtype == bool
    shapes = at.ndim == 1 and lever.shape == at.shape and left.shape == (len(at), golds)
    return kinds and shapes and len(at) > 0 and at.min() >= 0 and at.max() < cells


def extend(
    embeddings: Embeddings,
    library: Library,
    methods: Sequence[str | None],
    canonical: Mapping[str, States] = MappingProxyType({}),
) -> Embeddings:
    """Embeddings of a library that further policies and layouts have joined.

    Args:
        embeddings: of the library's first policies.
        library: with further policies after these.
        methods: that embed these, each `exact`, `network` or None for the one that embedded the first ones.
        canonical: states of further layouts, where they were drawn before; else they are drawn now.

    Raises:
        LeverError: if there is no such method.
    """
    for method in methods:
        if method not in (None, *METHODS):
            raise LeverError(f"embedding = {method!r}: must be one of {', '.join(METHODS)}")
    settings, known = embeddings.settings, len(embeddings.embeddings)
    states = dict(embeddings.canonical)
    for name, layout in library.layouts.items():
        if name not in states:
            drawn = canonical.get(name)
            fits = drawn is not None and len(drawn.cells) == settings.canonical_states
            states[name] = drawn if fits else _canonical_states(library, layout)
    mean, start = (
        np.concatenate([part, np.empty((len(library.policies) - known, part.shape[1]))]) for part in embeddings.embedded
    )
    grown = Embeddings(mean, start, states, settings, embeddings.root_seed, (*embeddings.joined, *methods))
    alike: dict[tuple[str, str], list[int]] = {}  # rows by layout and method
    for row, method in enumerate(methods, known):
        alike.setdefault((library.policies["seed"][row], method or settings.method), []).append(row)
    for (seed, method), rows in alike.items():
        embedder = grown.embedder(library.layouts[seed])
        embedder = replace(embedder, settings=replace(settings, method=method))
        mean[rows], start[rows] = _embed_layout(_job(embedder, library, np.array(rows)))
    return grown


def _job(embedder: Embedder, library: Library, rows: np.ndarray) -> _EmbeddingJob:
    """What it takes to embed policies of one layout, without a file, so that it can be done anywhere."""
    return _EmbeddingJob(embedder, library.actions[rows], [library.episodes[row] for row in rows], rows)


def draw_canonical_states(library: Library, layout: Layout, count: int, rng: np.random.Generator) -> States:
    """States that the library's training episodes passed through, evenly over reward systems.

    Terminal states are left out: no policy acts in them.

    Args:
        library: with recorded episodes.
        layout: whose states.
        count: K; what does not divide evenly goes to the first reward systems.
        rng: draws without replacement where enough states were recorded.
    """
    mine = library.policies[library.policies["seed"] == layout.name]
    chosen = []
    acting = {mine["setup"][i] for i in mine.index if len(library.episodes[i].actions)}
    setups = [setup for setup in dict.fromkeys([*library.systems, *library.setups]) if setup in acting]
    if not setups:
        raise LeverError(f"layout {layout.name!r}: no policy of it has an episode with a step")
    for index, setup in enumerate(setups):
        episodes = [library.episodes[i] for i in mine.index[mine["setup"] == setup]]
        cells, golds, lever = (
            np.concatenate([getattr(episode, name)[: len(episode.actions)] for episode in episodes])
            for name in ("cells", "golds", "lever")
        )
        share = count // len(setups) + (index < count % len(setups))
        picks = np.sort(rng.choice(len(cells), size=share, replace=share > len(cells)))
        chosen.append(States(cells[picks], golds[picks], lever[picks]))
    return States(*(np.concatenate(parts) for parts in zip(*chosen, strict=True)))


def _canonical_states(library: Library, layout: Layout) -> States:
    """The canonical states of a layout under the library's params."""
    params = library.params
    rng = stream(params.root_seed, "canonical states", layout.name)
    return draw_canonical_states(library, layout, params.pi2vec.canonical_states, rng)


def successor_features(tables: FeatureTables, starts: States, paths: Paths, layout: Layout, gamma: float) -> np.ndarray:
    """Psi along given paths: sum over t of gamma^t phi(s_t), float64 (K, D).

    The terminal state counts once. A stuck policy stays where it is for ever: its last state counts
    1 / (1 - gamma) times. One that ran out of time goes its last round for ever.

    Args:
        tables: of the layout.
        starts: K states.
        paths: from these states.
        layout: the world.
        gamma: discount per step, in [0, 1).

    Raises:
        ValueError: if gamma is outside [0, 1).
    """
    if not 0 <= gamma < 1:
        raise ValueError(f"gamma = {gamma}: must be in [0, 1)")
    out = np.zeros((len(starts.cells), HEAD + tables.slots))
    _discounted(tables, starts, paths, layout.gold_index, _lever_cell(layout), gamma, layout.horizon, out)
    return out


@njit(cache=True, nogil=True)
def _collect(s: int, golds: np.ndarray, lever: bool, gold_index: np.ndarray, lever_cell: int) -> bool:
    if gold_index[s] >= 0:
        golds[gold_index[s]] = False
    return lever or s == lever_cell


@njit(cache=True, nogil=True)
def _discounted(
    tables: FeatureTables,
    starts: States,
    paths: Paths,
    gold_index: np.ndarray,
    lever_cell: int,
    gamma: float,
    horizon: int,
    out: np.ndarray,
) -> None:
    cells, _, steps, end = paths
    for k in range(len(steps)):
        golds = starts.golds[k].copy()
        lever = starts.lever[k]
        weight = 1.0
        for t in range(steps[k] + 1):
            s = cells[k, t]
            lever = _collect(s, golds, lever, gold_index, lever_cell)
            add_features(tables, s, golds, lever, weight, out[k])
            weight *= gamma
        if end[k] == END_STUCK:
            first = _last_round(cells[k], steps[k], horizon)
            again = 1 - gamma ** (steps[k] + 1 - first)
            for t in range(first, steps[k] + 1):
                add_features(tables, cells[k, t], golds, lever, weight / again, out[k])
                weight *= gamma


@njit(cache=True, nogil=True)
def _last_round(cells: np.ndarray, steps: int, horizon: int) -> int:
    """Where the round starts that a stuck policy goes for ever: at its last state, if it stays there."""
    if steps == horizon:
        for t in range(steps - 1, -1, -1):
            if cells[t] == cells[steps]:
                return t + 1
    return steps


def path_pairs(tables: FeatureTables, starts: States, paths: Paths, layout: Layout) -> Pairs:
    """Features of every state on given paths and of the state after it.

    Args:
        tables: of the layout.
        starts: K states.
        paths: from these states.
        layout: the world.
    """
    states = np.zeros((int(paths.steps.sum()) + len(paths.steps), HEAD + tables.slots), np.float32)
    _path_features(tables, starts, paths, layout.gold_index, _lever_cell(layout), states)
    in_time = paths.steps < layout.horizon
    stuck = (paths.end == END_STUCK) & in_time
    ended = paths.end != END_STUCK
    last = np.cumsum(paths.steps + 1) - 1  # row of each path's last state
    kind = np.full(len(states), GOES_ON, np.int8)
    kind[last[stuck]] = STAYS
    kind[last[ended] - 1] = ENDS
    after = np.arange(len(states)) + (kind != STAYS)
    acting = np.ones(len(states), bool)
    acting[last[~stuck]] = False  # nobody acts in a terminal state, nor when time is over
    return Pairs(states[acting], states[after[acting]], kind[acting])


def episode_pairs(layout: Layout, tables: FeatureTables, episode: Episode) -> Pairs:
    """Features of every state of a recorded episode and of the state after it."""
    states = features(tables, States(episode.cells, episode.golds, episode.lever))
    kind = np.full(len(states) - 1, GOES_ON, np.int8)
    if layout.cells.ravel()[episode.cells[-1]] in (EXIT, HAZARD):
        kind[-1] = ENDS
    return Pairs(states[:-1], states[1:], kind)


def _lever_cell(layout: Layout) -> int:
    lever = np.flatnonzero(layout.cells.ravel() == LEVER)
    return int(lever[0]) if len(lever) else -1


@njit(cache=True, nogil=True)
def _path_features(
    tables: FeatureTables, starts: States, paths: Paths, gold_index: np.ndarray, lever_cell: int, out: np.ndarray
) -> None:
    cells, _, steps, _ = paths
    row = 0
    for k in range(len(steps)):
        golds = starts.golds[k].copy()
        lever = starts.lever[k]
        for t in range(steps[k] + 1):
            s = cells[k, t]
            lever = _collect(s, golds, lever, gold_index, lever_cell)
            add_features(tables, s, golds, lever, 1.0, out[row])
            row += 1


@dataclass(frozen=True)
class _EmbeddingJob:
    embedder: Embedder
    actions: np.ndarray  # int8 (policies of the layout, S or rows of an augmented table)
    episodes: list[Episode]  # recorded, one of each
    rows: np.ndarray  # of these policies in the library


def _embedding_job(library: Library, layout: Layout) -> _EmbeddingJob:
    canonical = _canonical_states(library, layout)
    rows = np.flatnonzero(library.policies["seed"] == layout.name)
    params = library.params
    embedder = Embedder(layout, canonical, feature_tables(layout), params.pi2vec, params.root_seed)
    return _job(embedder, library, rows)


def _embed_layout(job: _EmbeddingJob) -> Embedded:
    return job.embedder.embed([CellPolicy(actions) for actions in job.actions], job.episodes)


def _write(library: Library, folder: Path, jobs: list[_EmbeddingJob], embedded: list[Embedded]) -> None:
    for name, parts in zip(("embeddings", "start_features"), zip(*embedded, strict=True), strict=True):
        table = np.empty((len(library.policies), parts[0].shape[1]))
        for job, part in zip(jobs, parts, strict=True):
            table[job.rows] = part
        write_array(folder / f"{name}.npy", table)
    canonical = [job.embedder.canonical for job in jobs]
    np.savez_compressed(
        folder / "canonical_states.npz",
        seeds=np.array([job.embedder.layout.name for job in jobs]),
        cells=np.stack([states.cells for states in canonical]),
        golds=np.stack([states.golds for states in canonical]),
        lever=np.stack([states.lever for states in canonical]),
        features=np.stack([features(job.embedder.tables, job.embedder.canonical) for job in jobs]),
    )
