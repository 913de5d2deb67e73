"""From sub-queries to candidate policies: cosine by text, ties by predicted return."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from lever_lib.envs.rewards import RewardSystem
from lever_lib.errors import LeverError
from lever_lib.index import TextIndex
from lever_lib.library import Library
from lever_lib.pi2vec import Embeddings
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


@dataclass(frozen=True)
class Retriever:
    """Everything that answers a search in one spec.

    Attributes:
        library: policies.
        embeddings: their behaviour.
        regressor: predicts their return.
        index: of their sentences.
        gate: least cosine of a hit.
    """

    library: Library
    embeddings: Embeddings
    regressor: Regressor
    index: TextIndex
    gate: float

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
        self, vectors: np.ndarray, scope: Scope, system: RewardSystem, count: int, filter_energy: bool = False
    ) -> list[pd.DataFrame]:
        """The best policies per sub-query.

        Args:
            vectors: unit vectors of the sub-queries, float32 (M, W).
            scope: where to look.
            system: reward system that policies are judged by.
            count: of candidates at most.
            filter_energy: whether ties go first to what took least energy to train; what nobody has measured or
                estimated comes last.

        Returns:
            One table per sub-query with columns `row, policy_id, cosine, predicted, energy_joules, energy_label`: by
            falling cosine, ties by falling predicted return, then by name. Empty where no cosine reaches the gate.
        """
        rows = self.rows(scope)
        if len(rows) == 0:
            raise LeverError(
                f"no policy of library {scope.library} and seed {scope.seed} was trained for {', '.join(scope.setups)}"
            )
        sentence_of = self.index.postings["sentence_id"].to_numpy()[rows]
        predicted = self.regressor.predict(scope.seed, self.embeddings.rows(rows), system)
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
            order = order[cosine[order] >= self.gate][:count]
            tables.append(
                pd.DataFrame(
                    {
                        "row": rows[order],
                        "policy_id": names[order],
                        "cosine": cosine[order],
                        "predicted": predicted[order],
                        "energy_joules": energy["energy_joules"].to_numpy()[order],
                        "energy_label": energy["energy_label"].to_numpy()[order],
                    }
                )
            )
        return tables
