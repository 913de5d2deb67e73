"""What users import: open the library of a spec, ask it for a behaviour, get a policy."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from lever_lib import index, library, pi2vec, regressor
from lever_lib.artifacts import Outputs
from lever_lib.composition import Pool, method
from lever_lib.decompose import decompose
from lever_lib.envs.gridworld import Layout, make_layout
from lever_lib.envs.rewards import COMPONENTS, RewardSystem, reward_system
from lever_lib.errors import LeverError
from lever_lib.library import Library
from lever_lib.params import Params, load_params
from lever_lib.planning import optimum
from lever_lib.queries import QUERY_CLASSES
from lever_lib.rollout import Outcome, Policy, evaluate
from lever_lib.search import Retriever, Scope
from lever_lib.strategies import Choice, choose, combinations
from lever_lib.text import encode

_ASK = QUERY_CLASSES["trivial"]  # a question of one's own is answered from single objectives


@dataclass(frozen=True)
class Answer:
    """A policy for a question, and how it came about.

    Attributes:
        query: as it was asked.
        setup: reward system that the answer is judged by.
        objectives: components recognised in the query.
        sub_queries: sentences searched for.
        candidates: policies found per sub-query: `row, policy_id, cosine, predicted`, best first.
        policy_ids: of the policies composed.
        policy: the composed policy.
        return_: of one episode from the start, exact.
        optimum: best possible return.
        predicted_return: by the regressor.
        stuck: whether the episode reaches neither exit nor hazard.
        cells: cells of the episode, int32 (T + 1,).
        layout: the world.
        seconds: wall time of the whole answer.
    """

    query: str
    setup: str
    objectives: tuple[str, ...]
    sub_queries: tuple[str, ...]
    candidates: list[pd.DataFrame]
    policy_ids: tuple[str, ...]
    policy: Policy
    return_: float
    optimum: float
    predicted_return: float
    stuck: bool
    cells: np.ndarray
    layout: Layout
    seconds: float


@dataclass(frozen=True)
class OpenLibrary:
    """A library with everything needed to answer questions; `open_library` makes one.

    Attributes:
        params: of the spec.
        retriever: policies, embeddings, regressor and text index.
    """

    params: Params
    retriever: Retriever

    @property
    def library(self) -> Library:
        """The policies."""
        return self.retriever.library

    def ask(
        self,
        query: str,
        seed: int | str | None = None,
        library: str | None = None,
        strategy: str = "hybrid",
        method_name: str = "gpi",
        top_k: int | None = None,
        how: str | None = None,
    ) -> Answer:
        """Find or make a policy for a behaviour said in words.

        Args:
            query: the behaviour.
            seed: layout; by default the first of the spec.
            library: training budget; by default the last of the spec.
            strategy: `targeted`, `hybrid`, `exhaustive` or `library`.
            method_name: id of a composition method, e.g. `gpi`.
            top_k: candidates per sub-query of `hybrid`; by default as in params.
            how: `offline` or `none`; by default as in params.

        Raises:
            LeverError: if nothing is recognised or found, or an argument is not one of the above.
        """
        started = time.perf_counter()
        settings = self.params.search
        composer = method(method_name)
        if top_k is not None and top_k < 1:
            raise LeverError(f"top_k = {top_k}: must be at least 1")
        layout = self.library.layout(self.params.seeds[0] if seed is None else seed)
        name = self.library.check_library(list(self.params.libraries)[-1] if library is None else library)
        how = how or settings.decompose
        split = decompose(query, _ASK.pool, how)
        if not split.sub_queries:
            raise LeverError(
                f"query {query!r}: no objective recognised; this library knows {', '.join(COMPONENTS)}, "
                "for instance 'find the fastest exit and collect gold'"
            )
        vectors = encode(list(split.sub_queries), settings.encoder)
        if how == "none":
            system, setups = self._nearest_system(vectors), tuple(self.library.systems)
        else:
            system, setups = self.library.system("-".join(split.objectives)), _ASK.setups
        scope = Scope(layout.name, name, setups)
        top_k = settings.top_k if top_k is None else top_k
        count = max(settings.candidates, top_k) if strategy == "hybrid" else settings.candidates
        found = self.retriever.candidates(vectors, scope, system, count)
        for sub_query, table in zip(split.sub_queries, found, strict=True):
            if table.empty:
                gate = settings.cosine_gate
                raise LeverError(f"query {sub_query!r}: no policy has a cosine of search.cosine_gate = {gate} or more")
        choice, rows = self._choose(layout, system, scope, found, strategy, composer.name, top_k)
        outcome = evaluate(choice.policy, layout, system)
        return Answer(
            query=query,
            setup=system.name,
            objectives=split.objectives,
            sub_queries=split.sub_queries,
            candidates=found,
            policy_ids=tuple(self.library.policies["policy_id"].iloc[rows[list(choice.members)]]),
            policy=choice.policy,
            return_=outcome.return_,
            optimum=optimum(layout, system).return_,
            predicted_return=choice.predicted_return,
            stuck=outcome.stuck,
            cells=outcome.cells,
            layout=layout,
            seconds=time.perf_counter() - started,
        )

    def _nearest_system(self, vectors: np.ndarray) -> RewardSystem:
        """What an undivided query is judged by: the reward system whose sentence it comes closest to."""
        sentences = self.retriever.index.sentences
        _, nearest = self.retriever.index.search(vectors, np.arange(len(sentences)))
        policies = self.library.policies
        return self.library.system(policies.loc[policies["description"] == sentences[nearest[0, 0]], "setup"].iloc[0])

    def _choose(
        self,
        layout: Layout,
        system: RewardSystem,
        scope: Scope,
        found: list[pd.DataFrame],
        strategy: str,
        method_name: str,
        top_k: int,
    ) -> tuple[Choice, np.ndarray]:
        everything = self.retriever.rows(Scope(scope.seed, scope.library, tuple(self.library.systems)))
        everything = everything[self.library.policies["setup"].to_numpy()[everything] != system.name]
        rows = np.unique(np.concatenate([everything, *(table["row"] for table in found)]))
        local = {row: position for position, row in enumerate(rows)}
        pool = Pool(
            layout,
            system,
            np.array(self.library.q_tables[rows]),
            np.array(self.library.visits[rows]),
            self.params.sarsa.alpha,
        )
        combos = combinations(
            strategy,
            [[local[row] for row in table["row"]] for table in found],
            top_k,
            [local[row] for row in everything],
        )
        predictor = self.retriever.regressor.for_layout(layout.name)
        return choose(pool, method(method_name), combos, self.retriever.embeddings.embedder(layout), predictor), rows


def open_library(spec: str = "8x8", root: str | Path | None = None) -> OpenLibrary:
    """Open what notebooks 01 to 04 have written for a spec.

    Args:
        spec: name of a params file.
        root: folder of all outputs; by default `outputs/` of the repository or `LEVER_OUTPUTS`.

    Raises:
        LeverError: if the spec is unknown, or a stage is absent, damaged or out of date.
    """
    params = load_params(spec)
    outputs = Outputs(spec, params, Path(root) if root else None)
    policies = library.load_library(params, outputs)
    retriever = Retriever(
        policies,
        pi2vec.load_embeddings(params, outputs),
        regressor.load_regressor(outputs),
        index.load_index(policies, outputs),
        params.search.cosine_gate,
    )
    return OpenLibrary(params, retriever)


def best_episode(
    spec: str, seed: int | str, setup: str, legacy_gold_exit: bool | None = None
) -> tuple[Layout, RewardSystem, Outcome]:
    """The exact optimum of a reward system on a layout; needs no library.

    Args:
        spec: whose grid, counts and exit rule to use.
        seed: layout; need not be one of the spec's.
        setup: component names joined by `-`.
        legacy_gold_exit: exit rule for gold; by default the spec's.
    """
    grid = load_params(spec).grid
    system = reward_system(setup, grid.legacy_gold_exit if legacy_gold_exit is None else legacy_gold_exit)
    layout = make_layout(grid, seed)
    return layout, system, optimum(layout, system)
