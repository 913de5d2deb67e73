"""What an embedding is for, and how well it is learned: studies of pi2vec on layouts of a library.

`retrieval`: is the policy that is nearest by behaviour one with the same objective, and does it go the same way? Asked
of the embedding, of its ablations, and of the sentences that policies are found by. `agreement`: how close a network
that sees transitions only comes to the exact successor features, from the published learner, one change after the
other, to the improved one.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from scipy.spatial.distance import cdist
from sklearn.decomposition import PCA

from lever_lib.envs.features import SLICES
from lever_lib.envs.gridworld import Layout, States
from lever_lib.library import Library
from lever_lib.params import Pi2Vec
from lever_lib.pi2vec import Embedded, Embedder, Embeddings, episode_pairs, standardised
from lever_lib.policies.base import CellPolicy
from lever_lib.psi_network import LEARNERS, Learner, Pairs, learn
from lever_lib.rollout import start_state
from lever_lib.seeding import stream
from lever_lib.stats import interval
from lever_lib.text import encode

_GAMMAS = (0.0, 0.5, 0.9, 0.99, 0.999)
_COUNTS = (1, 8, 32, 128)
_SAMPLE = 8  # policies per layout that are learned by descent
_SLOW_LAYOUTS = 2  # layouts that anything is learned on by descent
_SLOW_STARTS, _FAST_STARTS = 2, 5  # initialisations
_PUBLISHED, _IMPROVED = LEARNERS["published"], LEARNERS["improved"]
ELSEWHERE = "improved, from paths elsewhere"


@dataclass(frozen=True)
class Behaviour:
    """What these studies found; columns are explained in `lever_lib.columns`.

    Attributes:
        retrieval: what the nearest neighbour shares, by representation.
        agreement: of learned with exact embeddings, by learner.
        agreement_timings: CPU seconds of the same.
    """

    retrieval: pd.DataFrame
    agreement: pd.DataFrame
    agreement_timings: pd.DataFrame


def study_behaviour(library: Library, embeddings: Embeddings) -> Behaviour:
    """All studies of pi2vec on the layouts of a library."""
    return Behaviour(retrieval(library, embeddings), *agreement(library, embeddings))


def learned(library: Library, embeddings: Embeddings) -> Embedded:
    """The library embedded by a network that sees transitions only, with the improved learner."""
    parts = [np.empty_like(part) for part in embeddings.embedded]
    for name, layout in library.layouts.items():
        rows = np.flatnonzero(library.policies["seed"] == name)
        settings = Pi2Vec(method="network", gamma=embeddings.settings.gamma)
        embedder = replace(embeddings.embedder(layout), settings=settings)
        found = embedder.embed([CellPolicy(actions) for actions in library.actions[rows]])
        for whole, part in zip(parts, found, strict=True):
            whole[rows] = part
    return Embedded(*parts)


# ---- retrieval


def retrieval(library: Library, embeddings: Embeddings) -> pd.DataFrame:
    """What a policy shares with its nearest neighbour of another training run on the same layout.

    Policies that are stuck from the start take no part.

    Returns:
        Columns `ablation, value`, then `same_objective, same_cells` (of the episodes' cells, intersection over union)
        and `return_gap` (difference of the returns under the policy's own reward), each with `_low, _high`; and
        `layouts`. A neighbour drawn at random is the ablation `chance`.
    """
    found: dict[tuple[str, str], list[np.ndarray]] = {}
    for layout in library.layouts.values():
        rows = np.flatnonzero((library.policies["seed"] == layout.name) & ~library.policies["stuck"])
        policies = library.policies.iloc[rows]
        others = (policies["setup"] + " " + policies["library"]).to_numpy()
        others = others[:, None] != others[None, :]
        if not len(rows) or not others.any(axis=1).all():
            continue  # next to nobody moves here
        shared = _shared(library, rows)
        for name, distances in _distances(library, embeddings, layout, rows):
            nearest = others & (distances <= np.where(others, distances, np.inf).min(axis=1, keepdims=True) + 1e-9)
            weights = nearest / nearest.sum(axis=1, keepdims=True)  # of equally near ones each counts alike
            means = [(weights * share).sum(axis=1).mean() for share in shared.values()]
            found.setdefault(name, []).append(np.array(means))
    table = []
    for (ablation, value), means in found.items():
        row = {"ablation": ablation, "value": value}
        for name, column in zip(shared, np.stack(means).T, strict=True):
            rng = stream(library.params.root_seed, "bootstrap", "retrieval")
            row[name], row[f"{name}_low"], row[f"{name}_high"] = interval(column[:, None], rng)
        table.append(row | {"layouts": len(means)})
    return pd.DataFrame(table)


def _shared(library: Library, rows: np.ndarray) -> dict[str, np.ndarray]:
    """What any two policies share, by name, float (P, P)."""
    setups = library.policies["setup"].to_numpy()[rows]
    visited = np.zeros((len(rows), library.params.grid.size**2), bool)
    for position, row in enumerate(rows):
        visited[position, library.greedy_episode(row).cells] = True
    both = visited.astype(np.int64) @ visited.T.astype(np.int64)
    count = visited.sum(axis=1)
    column = [list(library.systems).index(setup) for setup in setups]
    returns = library.returns[rows][:, column].T  # of policy j under the reward of policy i
    return {
        "same_objective": (setups[:, None] == setups[None, :]).astype(float),
        "same_cells": both / (count[:, None] + count[None, :] - both),
        "return_gap": np.abs(returns - np.diag(returns)[:, None]),
    }


def _distances(
    library: Library, embeddings: Embeddings, layout: Layout, rows: np.ndarray
) -> Iterator[tuple[tuple[str, str], np.ndarray]]:
    """Distances between policies by what represents them, float (P, P)."""
    yield ("representation", "chance"), np.zeros((len(rows), len(rows)))
    sentences = library.policies["description"].to_numpy()[rows]
    distinct, position = np.unique(sentences, return_inverse=True)
    text = encode(distinct, library.params.search.encoder, library.params.search.trust_remote_code)
    yield ("representation", "text"), 1 - (text @ text.T)[np.ix_(position, position)]
    policies = [CellPolicy(actions) for actions in library.actions[rows]]
    exact = replace(embeddings.embedder(layout), settings=Pi2Vec(gamma=embeddings.settings.gamma))
    psi = exact.successor_features(policies)
    states, start = psi[:, :-1], psi[:, -1]
    mean = states.mean(axis=1)
    for name, vectors in (("raw", mean), ("standardised", standardised(mean)), ("start state", standardised(start))):
        yield ("representation", f"pi2vec, {name}"), cdist(vectors, vectors)
    rng = stream(library.params.root_seed, "ablation", layout.name)
    order = rng.permutation(states.shape[1])
    for count in [count for count in _COUNTS if count <= len(order)]:
        vectors = standardised(states[:, order[:count]].mean(axis=1))
        yield ("canonical states", str(count)), cdist(vectors, vectors)
    for gamma in _GAMMAS:
        other = replace(exact, settings=Pi2Vec(gamma=gamma)).successor_features(policies)[:, :-1].mean(axis=1)
        yield ("gamma", f"{gamma:g}"), cdist(standardised(other), standardised(other))
    for name, part in SLICES.items():
        vectors = standardised(mean[:, part])
        yield ("features", name), cdist(vectors, vectors) if vectors.size else np.zeros((len(rows), len(rows)))


def plane(vectors: np.ndarray) -> tuple[np.ndarray, float]:
    """The two directions in which standardised embeddings differ most.

    Args:
        vectors: of policies, float (P, D).

    Returns:
        Coordinates, float (P, 2), zero in a direction in which nothing differs, and the share of the variance that
        they show.
    """
    features = standardised(vectors) if len(vectors) else vectors
    points = np.zeros((len(features), 2))
    count = min(2, len(features) - 1, features.shape[1])
    if count < 1:
        return points, 1.0
    projection = PCA(n_components=count)
    points[:, :count] = projection.fit_transform(features)
    return points, float(projection.explained_variance_ratio_.sum())


# ---- agreement


def ladder() -> dict[str, Learner]:
    """The published learner, one change after the other, to the improved one."""
    steps = {"published": _PUBLISHED}
    changes = {
        "+ ends": {"ends": True},
        "+ standardised features": {"standardise": True},
        "+ layer norm": {"norm": "layer"},
        "+ the same initial weights": {"alike": True},
        "+ paths from the canonical states, smaller network": {
            **{"data": "canonical", "hidden": (128, 128), "batch": 64, "epochs": 30},
        },
        "+ target network": {"hold": 20},
    }
    for name, change in changes.items():
        steps[name] = replace(list(steps.values())[-1], **change)
    return steps | {"improved": _IMPROVED, ELSEWHERE: _IMPROVED}


def agreement(library: Library, embeddings: Embeddings) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Learned against exact embeddings, by learner; and what they cost.

    Embeddings are standardised over the exact ones of their layout. What is learned by descent is learned of fewer
    policies, layouts and initialisations.
    """
    results, timings = [], []
    names = list(library.layouts)
    for step, learner in ladder().items():
        layouts = names if learner.solved else names[:_SLOW_LAYOUTS]
        rounds = range(_FAST_STARTS if learner.solved else _SLOW_STARTS)
        found = []
        seconds, learned, pairs = 0.0, 0, 0
        for name in layouts:
            embedder = replace(
                embeddings.embedder(library.layouts[name]), settings=Pi2Vec(gamma=embeddings.settings.gamma)
            )
            rows = np.flatnonzero(library.policies["seed"] == name)
            policies = [CellPolicy(actions) for actions in library.actions[rows]]
            exact = embedder.embed(policies)
            picked = np.arange(len(rows))
            if not learner.solved:
                picked = np.linspace(0, len(rows) - 1, _SAMPLE).round().astype(int)
            rounds_found = []
            for number in rounds:
                started = time.thread_time()
                seen = _seen(step, learner, library, embedder, rows[picked])
                rounds_found.append(_learned(step, learner, seen, embedder, number))
                seconds += time.thread_time() - started
                learned += len(picked)
                pairs += sum(len(part.kind) for part in seen)
            means, starts = (np.stack(parts) for parts in zip(*rounds_found, strict=True))
            start = _compare(exact.start, starts, picked)
            found.append(_compare(exact.mean, means, picked) | {"start_error": start["relative_error"]})
        features = np.stack([part.pop("features") for part in found])
        told = ~np.isnan(features).all(axis=0)  # by some layout: on another one a feature may never change
        worst = np.nanmedian(features[:, told], axis=0).max() if told.any() else np.nan
        rng = stream(library.params.root_seed, "bootstrap", "agreement")
        row: dict[str, object] = {"learner": step}
        for name in found[0]:
            values = np.array([[part[name]] for part in found])
            row[name], row[f"{name}_low"], row[f"{name}_high"] = interval(values, rng)
        counts = {"policies": learned // len(rounds), "initialisations": len(rounds), "layouts": len(layouts)}
        results.append(row | {"worst_feature": worst, "pairs": pairs / learned} | counts)
        timings.append(
            {"learner": step, "seconds_per_policy": seconds / learned, "policies_per_second": learned / seconds}
        )
    costs = pd.DataFrame(timings)
    costs["times_published"] = costs["policies_per_second"] / costs["policies_per_second"].iloc[0]
    return pd.DataFrame(results), costs


def _seen(step: str, learner: Learner, library: Library, embedder: Embedder, rows: np.ndarray) -> list[Pairs]:
    """What a learner gets to see of each policy."""
    if step == ELSEWHERE:
        starts = _other_states(library, embedder)
    elif learner.data == "canonical":
        starts = embedder.starts
    else:
        return [episode_pairs(embedder.layout, embedder.tables, library.episodes[row]) for row in rows]
    return [embedder.pairs(CellPolicy(actions), starts) for actions in library.actions[rows]]


def _other_states(library: Library, embedder: Embedder) -> States:
    """As many recorded states that are not among the canonical ones, as far as there are so many."""
    mine = np.flatnonzero(library.policies["seed"] == embedder.layout.name)
    episodes = [library.episodes[row] for row in mine]
    parts = (
        np.concatenate([getattr(episode, name)[: len(episode.actions)] for episode in episodes])
        for name in States._fields
    )
    recorded = States(*parts)

    def keys(states: States) -> np.ndarray:
        """One row of numbers per state."""
        return np.column_stack([states.cells, states.golds, states.lever])

    distinct, first = np.unique(keys(recorded), axis=0, return_index=True)
    canonical = {row.tobytes() for row in keys(embedder.canonical)}
    fresh = np.array([index for row, index in zip(distinct, first, strict=True) if row.tobytes() not in canonical])
    rng = stream(library.params.root_seed, "elsewhere", embedder.layout.name)
    picks = np.sort(rng.permutation(fresh)[: len(embedder.canonical.cells)])
    if not len(picks):  # a world so small that every state is canonical
        return start_state(embedder.layout)
    return States(*(part[picks] for part in recorded))


def _learned(step: str, learner: Learner, seen: list[Pairs], embedder: Embedder, root_seed: int) -> Embedded:
    """Learned embeddings. The published learner learns policy by policy, as it was published."""
    batches = [[pairs] for pairs in seen] if step == "published" else [seen]
    read, gamma = embedder.state_features, embedder.gamma
    psi = np.concatenate([learn(batch, read, embedder.scale, learner, gamma, root_seed) for batch in batches])
    return Embedded(psi[:, :-1].mean(axis=1), psi[:, -1])


def _compare(exact: np.ndarray, learned: np.ndarray, picked: np.ndarray) -> dict[str, np.ndarray | float]:
    """How well learned embeddings agree with exact ones.

    Args:
        exact: of all policies of a layout, float (P, D).
        learned: of some of them, by initialisation, float (I, p, D).
        picked: which these are.

    Returns:
        `relative_error`: median over features of the median over policies, of standardised values; `nearest`: share of
        policies whose own exact embedding is the nearest; `spread`: standard deviation over initialisations, median;
        `features`: relative error by feature, (D,), nan where the feature never changes.
    """
    spread = exact.std(axis=0)
    alive = spread > 1e-9 * np.maximum(np.abs(exact).max(axis=0), 1)
    scale = np.where(alive, spread, np.nan)
    true, guess = ((part - exact.mean(axis=0)) / scale for part in (exact, learned))
    errors = np.abs(guess - true[picked]) / np.maximum(np.abs(true[picked]), 1e-9)
    features = np.median(errors, axis=(0, 1))
    shares = []
    for one in guess:
        distances = cdist(one[:, alive], true[:, alive])
        own = distances[np.arange(len(picked)), picked]
        alike = cdist(true[picked][:, alive], true[:, alive]) < 1e-6  # policies that do the same
        shares.append((own <= np.where(alike, np.inf, distances).min(axis=1)).mean())
    return {
        "relative_error": np.nanmedian(features),
        "nearest": np.mean(shares) if alive.any() else np.nan,
        "spread": np.nanmedian(guess.std(axis=0)),
        "features": features,
    }
