"""From sub-queries to candidate policies: cosine by text, ties by predicted return."""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from math import inf

import numpy as np
import pandas as pd

from lever_lib.envs.rewards import RewardSystem
from lever_lib.errors import LeverError
from lever_lib.index import TextIndex
from lever_lib.library import Library
from lever_lib.pi2vec import Embeddings, standardised
from lever_lib.regressor import Regressor


@dataclass(frozen=True)
class Scope:
    """Which policies may be found.

    Attributes:
        seed: name of the layout: a policy is valid in its own world only.
        library: training budget.
        setups: reward systems they were trained under.
    """

    seed: str
    library: str
    setups: tuple[str, ...]


_MOST = 1e300  # what is above it, and no infinity, is no joules and no return


@dataclass(frozen=True)
class Filters:
    """What a policy must be, to be found.

    Attributes:
        setups: reward systems it may have been trained under; all if None.
        most_joules: that its training may have taken; what nobody measured or estimated does not pass.
        least_return: that it must have, under the reward system it was trained for.
        exclude_own: whether policies trained for exactly what is asked are left out.
    """

    setups: tuple[str, ...] | None = None
    most_joules: float | None = None
    least_return: float | None = None
    exclude_own: bool = False

    def __post_init__(self) -> None:
        listed = isinstance(self.setups, tuple | list) and all(isinstance(name, str) for name in self.setups)
        if self.setups is not None and not listed:
            raise LeverError(f"setups = {self.setups!r}: must be a list of reward systems")
        for name in ("most_joules", "least_return"):
            value = getattr(self, name)
            number = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
            size = abs(value) if number else inf
            if not isinstance(size, int):
                size = float(size)  # one of 32 bits knows no _MOST
            if value is not None and not (number and (size <= _MOST or size == inf)):
                raise LeverError(f"{name} = {value!r}: must be a number")
        if not isinstance(self.exclude_own, bool):
            raise LeverError(f"exclude_own = {self.exclude_own!r}: must be True or False")

    def passed(self, library: Library, rows: np.ndarray, system: RewardSystem) -> np.ndarray:
        """The rows that fit.

        Raises:
            LeverError: if none does; names the first filter that leaves nothing.
        """
        policies = library.policies.iloc[rows]
        joules = library.timings["energy_joules"].iloc[rows]
        tests = {}
        if self.setups is not None:
            tests[f"setups = {', '.join(self.setups)}"] = policies["setup"].isin(self.setups)
        if self.most_joules is not None:
            tests[f"most_joules = {self.most_joules:g}"] = joules <= self.most_joules
        if self.least_return is not None:
            tests[f"least_return = {self.least_return:g}"] = policies["return"] >= self.least_return
        if self.exclude_own:
            tests[f"exclude_own ({system.name})"] = policies["setup"] != system.name
        kept = np.ones(len(rows), dtype=bool)
        for name, fits in tests.items():
            kept &= fits.to_numpy()
            if not kept.any():
                raise LeverError(f"filter {name}: no policy passes")
        return rows[kept]


@dataclass(frozen=True)
class Retriever:
    """Everything that answers a search in one spec.

    Attributes:
        library: policies.
        embeddings: their behaviour.
        regressor: predicts their return.
        index: of their sentences.
    """

    library: Library
    embeddings: Embeddings
    regressor: Regressor
    index: TextIndex

    def rows(self, scope: Scope) -> np.ndarray:
        """Library rows within a scope, int64."""
        policies = self.library.policies
        inside = (
            (policies["seed"] == scope.seed)
            & (policies["library"] == scope.library)
            & policies["setup"].isin(scope.setups)
        )
        return np.flatnonzero(inside)

    def candidates(
        self,
        vectors: np.ndarray,
        scope: Scope,
        system: RewardSystem,
        count: int,
        filter_energy: bool = False,
        filters: Filters | None = None,
    ) -> list[pd.DataFrame]:
        """The best policies per sub-query.

        Args:
            vectors: unit vectors of the sub-queries, float32 (M, W).
            scope: where to look.
            system: reward system that policies are judged by.
            count: of candidates at most.
            filter_energy: whether ties go first to what took least energy to train; what nobody has measured or
                estimated comes last.
            filters: what policies must be.

        Returns:
            One table per sub-query with columns `row, policy_id, cosine, predicted, low, high, energy_joules,
            energy_label`: by falling cosine, ties by falling predicted return, then by name. `low` and `high` are the
            interval of the prediction. Empty where no cosine reaches the gate.
        """
        rows = self.rows(scope)
        if len(rows) == 0:
            raise LeverError(
                f"no policy of library {scope.library} and seed {scope.seed} was trained for {', '.join(scope.setups)}"
            )
        if filters is not None:
            rows = filters.passed(self.library, rows, system)
        sentence_of = self.index.sentence_of[rows]
        predictor = self.regressor.for_layout(scope.seed)
        predicted = predictor.predict(self.embeddings.rows(rows), system)
        half = predictor.half_width(system)
        names = self.library.policies["policy_id"].to_numpy()[rows]
        energy = self.library.timings[["energy_joules", "energy_label"]].iloc[rows]
        thrift = energy["energy_joules"].fillna(np.inf).to_numpy() if filter_energy else np.zeros(len(rows))
        cosines, ids = self.index.search(vectors, np.unique(sentence_of))
        tables = []
        for found, sentences in zip(cosines, ids, strict=True):
            cosine = np.empty(len(rows), dtype=np.float32)
            for value, sentence in zip(found, sentences, strict=True):
                cosine[sentence_of == sentence] = value
            order = np.lexsort((names, -predicted, thrift, -cosine))
            order = order[cosine[order] >= self.index.gate][:count]
            tables.append(
                pd.DataFrame(
                    {
                        "row": rows[order],
                        "policy_id": names[order],
                        "cosine": cosine[order],
                        "predicted": predicted[order],
                        "low": predicted[order] - half,
                        "high": predicted[order] + half,
                        "energy_joules": energy["energy_joules"].to_numpy()[order],
                        "energy_label": energy["energy_label"].to_numpy()[order],
                    }
                )
            )
        return tables

    def like(self, policy_id: str, count: int, filters: Filters | None = None) -> pd.DataFrame:
        """Policies that behave like a given one: nearest by standardised embedding, in the same layout.

        Args:
            policy_id: whose behaviour is wanted.
            count: of policies at most.
            filters: what policies must be; of these, `exclude_own` leaves out those trained for the same as it was.

        Returns:
            Columns `row, policy_id, distance`, nearest first; the distance is Euclidean, over embeddings that are
            standardised over all policies of the layout (0: the same behaviour wherever it was looked at).

        Raises:
            LeverError: if there is no such policy, or no other.
        """
        if not isinstance(policy_id, str):
            raise LeverError(f"policy_id = {policy_id!r}: must be the name of one policy")
        policies = self.library.policies
        [own] = np.flatnonzero(policies["policy_id"] == policy_id)[:1] if policy_id in self._names else [None]
        if own is None:
            close = get_close_matches(policy_id, self._names, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise LeverError(f"policy_id {policy_id!r}: no such policy{hint}")
        rows = np.flatnonzero(policies["seed"] == policies["seed"].iloc[own])
        vectors = standardised(self.embeddings.rows(rows).mean)
        distances = np.linalg.norm(vectors - vectors[rows == own], axis=1)
        others = rows[rows != own]
        if filters is not None and len(others):
            others = filters.passed(self.library, others, self.library.system(policies["setup"].iloc[own]))
        if len(others) == 0:
            raise LeverError(f"policy_id {policy_id!r}: is alone in its layout")
        found = distances[np.searchsorted(rows, others)]
        names = policies["policy_id"].to_numpy()[others]
        order = np.lexsort((names, found))[:count]
        return pd.DataFrame({"row": others[order], "policy_id": names[order], "distance": found[order]})

    @cached_property
    def _names(self) -> list[str]:
        return self.library.policies["policy_id"].tolist()
