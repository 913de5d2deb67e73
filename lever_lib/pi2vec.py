"""pi2vec, exact: a policy as the mean of its successor features over canonical states.

psi^pi(s) = E[sum_t gamma^t phi(s_t) | s_0 = s, pi]. World and policies are deterministic, so psi is the discounted sum
along one path: followed, not learned. The embedding of a policy is the mean of psi over the K canonical states of its
own layout.

Source: Barreto et al. (2017), section 3; Scarpellini et al. (2024), pi2vec.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numba import njit

from lever_lib import library as library_stage
from lever_lib.artifacts import Outputs, Stage
from lever_lib.envs.features import HEAD, FeatureTables, add_features, feature_tables, features
from lever_lib.envs.gridworld import Layout, States
from lever_lib.envs.layouts import LEVER
from lever_lib.jobs import run_jobs
from lever_lib.library import Library
from lever_lib.params import Params
from lever_lib.policies.base import CellPolicy
from lever_lib.rollout import END_STUCK, Paths, Policy
from lever_lib.seeding import stream

STAGE = Stage(
    name="pi2vec",
    notebook="02_pi2vec",
    files=("canonical_states.npz", "embeddings.npy"),
    params=("grid", "root_seed", "pi2vec"),
    upstream=(library_stage.STAGE,),
    module="lever_lib.pi2vec",
)


@dataclass(frozen=True)
class Embedder:
    """Embeds policies of one layout; the library's and composed ones alike.

    Attributes:
        layout: the world.
        canonical: K states.
        tables: features of the layout.
        gamma: discount per step.
    """

    layout: Layout
    canonical: States
    tables: FeatureTables
    gamma: float

    def successor_features(self, policy: Policy) -> np.ndarray:
        """Psi of a policy at each canonical state, float64 (K, D)."""
        paths = policy.paths(self.layout, self.canonical)
        return successor_features(self.tables, self.canonical, paths, self.layout, self.gamma)

    def embed(self, policy: Policy) -> np.ndarray:
        """Embedding of a policy, float64 (D,)."""
        return self.successor_features(policy).mean(axis=0)


@dataclass(frozen=True)
class Embeddings:
    """Embeddings of a library, read from their files.

    Attributes:
        embeddings: float64 (P, D); row i is policy i of the library.
        canonical: canonical states by seed name.
        gamma: discount per step.
    """

    embeddings: np.ndarray
    canonical: dict[str, States]
    gamma: float

    def embedder(self, layout: Layout) -> Embedder:
        """What embeds further policies of a layout of the library."""
        return Embedder(layout, self.canonical[layout.name], feature_tables(layout), self.gamma)


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
    folder = outputs.require(STAGE)
    with np.load(folder / "canonical_states.npz") as stored:
        states = zip(*(stored[name] for name in ("seeds", *States._fields)), strict=True)
        canonical = {str(name): States(*parts) for name, *parts in states}
    return Embeddings(np.load(folder / "embeddings.npy"), canonical, params.pi2vec.gamma)


def extend(embeddings: Embeddings, library: Library) -> Embeddings:
    """Embeddings of a library that further policies and layouts have joined.

    Args:
        embeddings: of the library's first policies.
        library: with further policies after these.
    """
    canonical = dict(embeddings.canonical)
    for name, layout in library.layouts.items():
        if name not in canonical:
            canonical[name] = _canonical_states(library, layout)
    grown = Embeddings(embeddings.embeddings, canonical, embeddings.gamma)
    first = len(embeddings.embeddings)
    seeds = library.policies["seed"].iloc[first:]
    embedders = {seed: grown.embedder(library.layouts[seed]) for seed in seeds.unique()}
    new = zip(seeds, library.actions[first:], strict=True)
    rows = [embedders[seed].embed(CellPolicy(actions)) for seed, actions in new]
    return Embeddings(np.concatenate([embeddings.embeddings, rows]), canonical, embeddings.gamma)


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
    setups = [setup for setup in library.systems if (mine["setup"] == setup).any()]
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
    1 / (1 - gamma) times.

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
    lever = np.flatnonzero(layout.cells.ravel() == LEVER)
    _discounted(tables, starts, paths, layout.gold_index, int(lever[0]) if len(lever) else -1, gamma, out)
    return out


@njit(cache=True, nogil=True)
def _discounted(
    tables: FeatureTables,
    starts: States,
    paths: Paths,
    gold_index: np.ndarray,
    lever_cell: int,
    gamma: float,
    out: np.ndarray,
) -> None:
    cells, _, steps, end = paths
    for k in range(len(steps)):
        golds = starts.golds[k].copy()
        lever = starts.lever[k]
        weight = 1.0
        for t in range(steps[k] + 1):
            s = cells[k, t]
            if gold_index[s] >= 0:
                golds[gold_index[s]] = False
            if s == lever_cell:
                lever = True
            last = t == steps[k] and end[k] == END_STUCK
            add_features(tables, s, golds, lever, weight / (1 - gamma) if last else weight, out[k])
            weight *= gamma


@dataclass(frozen=True)
class _EmbeddingJob:
    embedder: Embedder
    actions: np.ndarray  # int8 (policies of the layout, S)
    rows: pd.Index  # their rows in the library


def _embedding_job(library: Library, layout: Layout) -> _EmbeddingJob:
    settings = library.params.pi2vec
    canonical = _canonical_states(library, layout)
    rows = library.policies.index[library.policies["seed"] == layout.name]
    embedder = Embedder(layout, canonical, feature_tables(layout), settings.gamma)
    return _EmbeddingJob(embedder, library.actions[rows], rows)


def _embed_layout(job: _EmbeddingJob) -> np.ndarray:
    return np.stack([job.embedder.embed(CellPolicy(actions)) for actions in job.actions])


def _write(library: Library, folder: Path, jobs: list[_EmbeddingJob], embedded: list[np.ndarray]) -> None:
    embeddings = np.empty((len(library.policies), embedded[0].shape[1]))
    for job, rows in zip(jobs, embedded, strict=True):
        embeddings[job.rows] = rows
    np.save(folder / "embeddings.npy", embeddings)
    canonical = [job.embedder.canonical for job in jobs]
    np.savez_compressed(
        folder / "canonical_states.npz",
        seeds=np.array([job.embedder.layout.name for job in jobs]),
        cells=np.stack([states.cells for states in canonical]),
        golds=np.stack([states.golds for states in canonical]),
        lever=np.stack([states.lever for states in canonical]),
        features=np.stack([features(job.embedder.tables, job.embedder.canonical) for job in jobs]),
    )
