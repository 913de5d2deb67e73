"""What users import: open the library of a spec, ask it for a behaviour, get a policy; add layouts and policies."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from numbers import Integral
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from lever_lib import additions, index, library, pi2vec, regressor
from lever_lib.artifacts import Outputs, shown
from lever_lib.certificate import Certificate, Outlook, certify, outlook, upper_bound
from lever_lib.composition import Method, Pool
from lever_lib.composition import method as find_method
from lever_lib.decompose import Decomposition, decompose
from lever_lib.envs.gridworld import ACTION_NAMES, ACTIONS, Layout, States, layout_from_text, make_layout
from lever_lib.envs.rewards import RewardSystem, reward_system
from lever_lib.errors import LeverError, MissingArtifactError
from lever_lib.jobs import run_jobs
from lever_lib.library import Library, as_numbers
from lever_lib.params import Params, load_params
from lever_lib.planning import optimum
from lever_lib.policies.base import CellPolicy, PolicyRecord, greedy_actions
from lever_lib.policies.tabular import record_episode, train
from lever_lib.queries import QUERY_CLASSES
from lever_lib.recipe import Recipe
from lever_lib.rollout import Outcome, Policy, evaluate
from lever_lib.search import Filters, Retriever, Scope
from lever_lib.strategies import Choice, check_strategy, choose, combinations
from lever_lib.text import code_version, encode, fingerprint, remembered
from lever_lib.timed_planning import plannable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MEMORY = ".sentences.sqlite"  # beside the stages of a spec; of no stage, and missed by nobody
KNOWS = (
    "it can find the shortest path, collect gold, avoid hazards, pull the lever, and any mix of these; "
    "ask for instance for 'a fast exit with gold'"
)
_ASK = QUERY_CLASSES["trivial"]  # a question of one's own is answered from single objectives


@dataclass(frozen=True)
class Answer:
    """A policy for a question, and how it came about.

    Attributes:
        query: as it was asked.
        setup: reward system that the answer is judged by.
        split: what the query was understood to ask for, from which words, and who said so.
        candidates: policies found per sub-query, best first; columns as in `Retriever.candidates`.
        policy_ids: of the policies composed.
        policy: the composed policy.
        recipe: what it was composed of and how; `save` writes it.
        return_: of one episode from the start, exact.
        optimum: best possible return.
        predicted_return: by the regressor.
        predicted_interval: of the prediction, lowest and highest.
        certificate: what is sure of the policy without running it.
        outlook: what all recordings of the layout tell of the question.
        stuck: whether the episode reaches neither exit nor hazard.
        cells: cells of the episode, int32 (T + 1,).
        layout: the world.
        seconds: wall time of the whole answer.
    """

    query: str
    setup: str
    split: Decomposition
    candidates: list[pd.DataFrame]
    policy_ids: tuple[str, ...]
    policy: Policy
    recipe: Recipe
    return_: float
    optimum: float
    predicted_return: float
    predicted_interval: tuple[float, float]
    certificate: Certificate
    outlook: Outlook
    stuck: bool
    cells: np.ndarray
    layout: Layout
    seconds: float

    @property
    def objectives(self) -> tuple[str, ...]:
        """Components recognised in the query."""
        return self.split.objectives

    @property
    def advice(self) -> str:
        """`use` this policy, `plan` on the recordings, or `train` a new one: see `Outlook.advice`."""
        return self.outlook.advice(self.certificate)

    @property
    def sub_queries(self) -> tuple[str, ...]:
        """Sentences searched for."""
        return self.split.sub_queries

    def plot(self) -> Figure:
        """The layout with the composed policy's path and the best possible one."""
        from lever_lib.plots import layout_paths  # drawing takes a second to import

        best = optimum(self.layout, self.recipe.system)
        how = f"{self.recipe.method} of {len(self.policy_ids)} policies: {self.return_:.2f}"
        paths = {f"optimum: {best.return_:.2f}": best.cells, how: self.cells}
        paths = {_plain(name): cells for name, cells in paths.items()}
        return layout_paths(self.layout.cells, paths, _plain(f"{self.setup} on layout {self.layout.name}"))

    def save(self, path: str | Path) -> None:
        """Write the composed policy as `.npz`; `lever_lib.load_policy` reads it."""
        if not isinstance(path, str | os.PathLike):
            raise LeverError(f"path = {path!r}: must be the name of a file")
        self.recipe.save(path)


def _plain(text: str) -> str:
    """A text that is drawn as it is: somebody's own name may look like a formula."""
    return text.replace("$", r"\$")


@dataclass(frozen=True)
class OpenLibrary:
    """A library with everything needed to answer questions; `open_library` makes one.

    Attributes:
        params: of the spec.
        retriever: policies, embeddings, regressor and text index.
        outputs: where the library lies on disk; None for one that lies nowhere.
        stored: how many of its policies, from the first on, are there.
    """

    params: Params
    retriever: Retriever
    outputs: Outputs | None = None
    stored: int = 0

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
        method: str = "gpi",
        top_k: int | None = None,
        how: str | None = None,
        filter_energy: bool = False,
        filters: Filters | None = None,
    ) -> Answer:
        """Find or make a policy for a behaviour said in words.

        Args:
            query: the behaviour.
            seed: layout, or the name of your own; by default the first of the spec.
            library: training budget; by default the last of the spec.
            strategy: `targeted`, `hybrid`, `exhaustive` or `library`.
            method: id of a composition method, e.g. `gpi`.
            top_k: candidates per sub-query of `hybrid`; by default as in params.
            how: `offline`, `llm` or `none`; by default as in params.
            filter_energy: among equally close policies prefer those that took least energy to train.
            filters: what policies must be to be found; for `library`, to be composed.

        Raises:
            LeverError: if nothing is recognised or found, or an argument is not one of the above.
        """
        started = time.perf_counter()
        settings = self.params.search
        composer = find_method(method)
        if not isinstance(filters, Filters | None) or not isinstance(filter_energy, bool):
            raise LeverError(f"filters = {filters!r}, filter_energy = {filter_energy!r}: must be Filters, and a bool")
        if top_k is not None and (not isinstance(top_k, Integral) or isinstance(top_k, bool) or top_k < 1):
            raise LeverError(f"top_k = {top_k!r}: must be a whole number, at least 1")
        check_strategy(strategy)
        top_k = settings.top_k if top_k is None else top_k
        count = max(settings.candidates, top_k) if strategy == "hybrid" else settings.candidates
        layout = self.library.layout(self.params.seeds[0] if seed is None else seed)
        name = self.library.check_library(list(self.params.libraries)[-1] if library is None else library)
        split, system, found = self._find(query, Scope(layout.name, name, ()), how, count, filter_energy, filters)
        pool, rows = self._pool(layout, name, system, found)
        local = {row: position for position, row in enumerate(rows)}
        combos = combinations(
            strategy,
            [[local[row] for row in table["row"]] for table in found],
            top_k,
            [local[row] for row in self._others(rows, system, filters)] if strategy == "library" else [],
        )
        predictor = self.retriever.regressor.for_layout(layout.name)
        choice = choose(pool, composer, combos, self.retriever.embeddings.embedder(layout), predictor)
        judged = self._judged(pool, rows, composer, choice)
        return Answer(query, system.name, split, found, layout=layout, **judged, seconds=time.perf_counter() - started)

    def _judged(self, pool: Pool, rows: np.ndarray, composer: Method, choice: Choice) -> dict[str, Any]:
        """Everything an answer says of the policy that was chosen.

        Args:
            pool: that it was chosen from.
            rows: of the library, of the pool's policies.
            composer: how it was composed.
            choice: what was chosen.
        """
        layout, system, members = pool.layout, pool.system, list(choice.members)
        outcome = evaluate(choice.policy, layout, system)
        names = tuple(self.library.policies["policy_id"].iloc[rows[members]])
        half = self.retriever.regressor.for_layout(layout.name).half_width(system)
        return {
            "policy_ids": names,
            "policy": choice.policy,
            "recipe": Recipe(
                layout, system, composer.name, names, pool.q_tables[members], pool.visits[members], pool.alpha
            ),
            "return_": outcome.return_,
            "optimum": optimum(layout, system).return_,
            "predicted_return": choice.predicted_return,
            "predicted_interval": (choice.predicted_return - half, choice.predicted_return + half),
            "certificate": certify(pool, composer, choice.members, choice.policy),
            "outlook": outlook(pool),
            "stuck": outcome.stuck,
            "cells": outcome.cells,
        }

    def _others(self, rows: np.ndarray, system: RewardSystem, filters: Filters | None) -> list[int]:
        """What `library` composes: all but what was trained for the question itself."""
        others = rows[self.library.policies["setup"].to_numpy()[rows] != system.name]
        return (others if filters is None else filters.passed(self.library, others, system)).tolist()

    def _find(
        self, query: str, scope: Scope, how: str | None, count: int, filter_energy: bool, filters: Filters | None
    ) -> tuple[Decomposition, RewardSystem, list[pd.DataFrame]]:
        """Split a question, decide what its answer is judged by, find the candidates of each part.

        The scope says where to look; for which set-ups follows from the question.
        """
        how = self.params.search.decompose if how is None else how
        split = decompose(
            query, _ASK.pool, how, self.params.llm, ACTION_NAMES[self.params.grid.moves], memory=self._memory
        )
        if not split.sub_queries:
            raise LeverError(nothing_asked(split))
        vectors = self._vectors(split.sub_queries)
        if how == "none":
            scope = replace(scope, setups=self.library.setups)
            system = self._nearest_system(vectors, scope)
        else:
            wanted = None if filters is None else filters.setups
            scope = replace(scope, setups=_ASK.setups if wanted is None else wanted)
            system = self.library.system("-".join(split.objectives))
        found = self.retriever.candidates(vectors, scope, system, count, filter_energy, filters)
        for sub_query, table in zip(split.sub_queries, found, strict=True):
            if table.empty:
                gate = self.retriever.index.gate
                raise LeverError(
                    f"query {sub_query!r}: no policy has a cosine of {gate} or more, the least that "
                    f"search.cosine_gate lets pass; {KNOWS}"
                )
        return split, system, found

    @property
    def _memory(self) -> Path | None:
        """File of sentences that were read before."""
        return None if self.outputs is None else self.outputs.folder / MEMORY

    def _vectors(self, sentences: tuple[str, ...]) -> np.ndarray:
        """Vectors of sentences; the encoder is loaded only for what neither the index nor the memory knows."""
        settings = self.params.search
        known = {sentence: self.retriever.index.vector_of(sentence) for sentence in sentences}
        new = [sentence for sentence, vector in known.items() if vector is None]
        if new:
            embed = partial(encode, encoder=settings.encoder, trust_remote_code=settings.trust_remote_code)
            version = f"{settings.encoder} {fingerprint(settings.encoder)} {code_version()}"
            found = remembered(new, version, embed, self.retriever.index.index.d, self._memory)
            known |= dict(zip(new, found, strict=True))
        return np.stack([known[sentence] for sentence in sentences])

    def like(
        self, policy_id: str, count: int = 10, filters: Filters | None = None, library: str | None = None
    ) -> pd.DataFrame:
        """Policies that behave like one of the library's, whatever they were trained for.

        Args:
            policy_id: whose behaviour is wanted.
            count: of policies at most.
            filters: what they must be.
            library: training budget that they must have; by default any.

        Returns:
            Nearest first: `row, policy_id, distance` as in `Retriever.like`.

        Raises:
            LeverError: if there is no such policy, or none passes.
        """
        if not isinstance(count, Integral) or isinstance(count, bool) or count < 1:
            raise LeverError(f"count = {count!r}: must be a whole number, at least 1")
        if not isinstance(filters, Filters | None):
            raise LeverError(f"filters = {filters!r}: must be Filters")
        found = self.retriever.like(policy_id, len(self.library.policies), filters)
        if library is not None:
            budgets = self.library.policies["library"].to_numpy()[found["row"]]
            found = found[budgets == self.library.check_library(library)]
        return found.head(count).reset_index(drop=True)

    def _nearest_system(self, vectors: np.ndarray, scope: Scope) -> RewardSystem:
        """What an undivided query is judged by: the reward of the policy whose sentence it comes closest to."""
        rows = self.retriever.rows(scope)
        sentence_of = self.retriever.index.sentence_of[rows]
        _, nearest = self.retriever.index.search(vectors, np.unique(sentence_of))
        row = rows[np.flatnonzero(sentence_of == nearest[0, 0])[0]]
        return self.library.system(self.library.policies["setup"].iloc[row])

    def _pool(
        self, layout: Layout, library: str, system: RewardSystem, found: list[pd.DataFrame]
    ) -> tuple[Pool, np.ndarray]:
        """Candidates and everything else of this layout and library, and their library rows.

        Policies trained for the question itself take part only where they were found.
        """
        rows = self.retriever.rows(Scope(layout.name, library, self.library.setups))
        others = rows[self.library.policies["setup"].to_numpy()[rows] != system.name]
        rows = np.unique(np.concatenate([others, *(table["row"] for table in found)]))
        q_tables, visits = (np.array(table[rows]) for table in (self.library.q_tables, self.library.visits))
        return Pool(layout, system, q_tables, visits, self.params.sarsa.alpha), rows

    def with_records(
        self, records: Iterable[PolicyRecord], layouts: Iterable[Layout] = (), embedding: str | None = None
    ) -> OpenLibrary:
        """This library with further policies, from whatever source, ready to be asked; files stay as they are.

        Args:
            records: each valid in a layout of the library or in one of `layouts`.
            layouts: further worlds of the spec's size, each with at least one policy.
            embedding: how they are embedded, `exact` or `network` (from the transitions that they make, as a black
                box must be); by default as in params.

        Raises:
            LeverError: if a name is taken or a table does not fit.
        """
        policies = self.library.joined(records, layouts)
        return self._grown(policies, [embedding] * (len(policies.policies) - len(self.library.policies)))

    def _grown(
        self,
        policies: Library,
        methods: Sequence[str | None],
        canonical: Mapping[str, States] = MappingProxyType({}),
    ) -> OpenLibrary:
        """This library with those that joined it; arguments as of `pi2vec.extend`."""
        retriever = replace(
            self.retriever,
            library=policies,
            embeddings=pi2vec.extend(self.retriever.embeddings, policies, methods, canonical),
            index=index.extend(self.retriever.index, policies),
        )
        return replace(self, retriever=retriever)

    def with_policy(
        self,
        policy_id: str,
        q_table: np.ndarray,
        setup: str,
        seed: int | str,
        library: str | None = None,
        description: str | None = None,
        visits: np.ndarray | None = None,
    ) -> OpenLibrary:
        """This library with a policy of your own.

        Args:
            policy_id: its name.
            q_table: action values, float (S, 4); cell s is row * N + column. As many rows as the library's tables have.
            setup: reward system that it was trained for, e.g. `gold`.
            seed: layout that it is valid in.
            library: training budget that it is filed under; by default the last of the spec.
            description: sentence it is found by; by default that of `setup`.
            visits: times each action was taken in training, int, as many; by default none is known.

        Raises:
            LeverError: if an argument does not fit the library.
        """
        layout, system = self.library.layout(seed), self.library.system(setup)
        name = self.library.check_library(list(self.params.libraries)[-1] if library is None else library)
        shape = self.library.q_tables.shape[1:]
        q_table = as_numbers("q_table", q_table, shape).astype(np.float64)
        episode = evaluate(CellPolicy(greedy_actions(q_table)), layout, system)
        moved = len(episode.cells) - 1  # a bump at the end is no step
        record = PolicyRecord(
            policy_id=policy_id,
            source="own",
            setup=system.name,
            library=name,
            seed=layout.name,
            snapshot=1.0,
            episodes=0,
            description=system.sentence if description is None else description,
            q_table=q_table,
            visits=np.zeros(q_table.shape, np.int64) if visits is None else as_numbers("visits", visits, shape),
            episode=record_episode(layout, episode.cells, episode.actions[:moved]),
            train_seconds=np.nan,
        )
        return self.with_records([record])

    def with_layout(self, name: str, drawing: str) -> OpenLibrary:
        """This library with a layout of your own: trains every reward system with every budget of the spec on it.

        Args:
            name: how to call it, e.g. `ask("...", seed=name)`; not a number.
            drawing: one line per row, S start (first cell), E exit (last cell), G gold, L lever, # block, x hazard,
                . empty; of the spec's size.

        Raises:
            LeverError: if the drawing is not such a layout, or the name is taken.
        """
        layout = library.check_layout(layout_from_text(drawing, name, self.params.grid.moves), self.library)
        jobs = library.training_jobs(self.params, [layout])
        runs = run_jobs(train, jobs, self.params.execution, f"training on {name}", threads=True)
        return self.with_records([record for records, _ in runs for record in records], [layout])

    def keep(self) -> OpenLibrary:
        """Write the policies that joined in memory beside the library on disk; nothing that is there is written again.

        Returns:
            This library, with everything stored.

        Raises:
            LeverError: if it lies nowhere on disk.
        """
        if self.outputs is None:
            raise LeverError("keep: this library was not opened from disk")
        rows = range(self.stored, len(self.library.policies))
        if len(rows) == 0:
            return self
        records = self.library.records(rows)
        base = library.load_library(self.params, self.outputs)
        own = [layout for name, layout in self.library.layouts.items() if name not in base.layouts]
        used = {record.seed for record in records}
        batch = additions.Added(
            records,
            [layout for layout in own if layout.name in used],
            self.retriever.embeddings.joined[-len(rows) :],
            self.retriever.embeddings.canonical,
        )
        additions.keep(batch, base, self.outputs)
        return replace(self, stored=len(self.library.policies))


def open_library(spec: str = "8x8", root: str | Path | None = None, added: bool = True) -> OpenLibrary:
    """Open what notebooks 01 to 04 have written for a spec.

    Args:
        spec: name of a params file.
        root: folder of all outputs; by default `outputs/` of the repository or `LEVER_OUTPUTS`.
        added: whether policies that somebody added are in it, too. What a run writes does not depend on them.

    Raises:
        LeverError: if the spec is unknown, or a stage is absent, damaged or out of date.
    """
    if not isinstance(root, str | os.PathLike | None) or root == "" or "\0" in str(root):
        raise LeverError(f"root = {root!r}: must be the name of a folder")
    if not isinstance(added, bool):
        raise LeverError(f"added = {added!r}: must be True or False")
    params = load_params(spec)
    outputs = Outputs(spec, params, None if root is None else Path(root))
    with outputs.reading():
        policies = library.load_library(params, outputs)
        embeddings = pi2vec.load_embeddings(params, outputs)
        texts = index.load_index(policies, outputs)
        retriever = Retriever(policies, embeddings, regressor.load_regressor(outputs), texts)
        more = additions.added(policies, outputs) if added else additions.Added()
    if len(embeddings.embeddings) != len(policies.policies) or not set(policies.layouts) <= set(embeddings.canonical):
        raise MissingArtifactError(
            f"{shown(outputs.folder / pi2vec.STAGE.name)}: is of another library; run notebook 02_pi2vec again"
        )
    opened = OpenLibrary(params, retriever, outputs)
    if more.records:
        opened = opened._grown(policies.joined(more.records, more.layouts), more.methods, more.canonical)
    return replace(opened, stored=len(opened.library.policies))


def nothing_asked(split: Decomposition) -> str:
    """What to say to somebody whose question asks for no objective."""
    if not split.waved_away:
        return f"query {split.query!r}: asks for nothing that this library knows; {KNOWS}"
    away = ", ".join(found.component for found in split.waved_away)
    return f"query {split.query!r}: speaks of {away}, but does not ask for it; {KNOWS}"


def best_episode(
    spec: str, seed: int | str, setup: str, legacy_gold_exit: bool | None = None
) -> tuple[Layout, RewardSystem, Outcome | float]:
    """The exact optimum of a reward system on a layout; needs no library.

    Where there are too many states to plan for, a number that no return exceeds, instead of the best episode.

    Args:
        spec: whose grid, counts and exit rule to use.
        seed: layout; need not be one of the spec's.
        setup: component names joined by `-`.
        legacy_gold_exit: exit rule for gold; by default the spec's.
    """
    grid = load_params(spec).grid
    system = reward_system(setup, grid.legacy_gold_exit if legacy_gold_exit is None else legacy_gold_exit)
    layout = make_layout(grid, seed)
    if plannable(layout):
        return layout, system, optimum(layout, system)
    return layout, system, upper_bound(layout, system, np.ones((layout.horizon, ACTIONS), bool))
