"""The text index: nearest sentences of a library, and postings from sentence to policies.

All snapshots of a reward system share one sentence, so sentences are indexed once and policies hang on them: the index
stays small, and equal cosines are an explicit tie to be broken by predicted return instead of by insertion order.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from lever_lib import library as library_stage
from lever_lib import vectors
from lever_lib.artifacts import Outputs, Stage, made_up
from lever_lib.files import read_json, read_table
from lever_lib.library import Library
from lever_lib.params import Search
from lever_lib.text import EMBEDDED, encode, fingerprint
from lever_lib.understanding import calibrated_gate

if TYPE_CHECKING:
    import faiss

_INDEX, _POSTINGS, _GATE = "index.faiss", "postings.parquet", "gate.json"
STAGE = Stage(
    name="search",
    notebook="04_search",
    files=(_INDEX, _POSTINGS, _GATE),
    params=("search.encoder", "search.trust_remote_code", "search.index"),
    upstream=(library_stage.STAGE,),
    module="lever_lib.index",
    outside=lambda outputs: fingerprint(outputs.params.search.encoder),
)

EMBEDDED_GATE = 0.26  # `calibrated_gate` of the embedded encoder, which takes seconds to find again


@dataclass(frozen=True)
class TextIndex:
    """Sentences of a library, searchable by cosine.

    Attributes:
        index: FAISS index by inner product over unit vectors, one per distinct sentence.
        postings: columns `sentence_id, sentence, policy_id`, one row per policy in the library's order.
        settings: the encoder that made the vectors.
        gate: least cosine of a hit: calibrated for the encoder, unless params say otherwise.
    """

    index: faiss.Index
    postings: pd.DataFrame
    settings: Search
    gate: float

    @cached_property
    def sentence_of(self) -> np.ndarray:
        """Sentence id of each policy, int64 (P,)."""
        return self.postings["sentence_id"].to_numpy()

    @cached_property
    def sentences(self) -> list[str]:
        """Distinct sentences by id."""
        return self.postings.drop_duplicates("sentence_id").sort_values("sentence_id")["sentence"].tolist()

    def encode(self, sentences: Sequence[str]) -> np.ndarray:
        """Unit vectors of sentences by the encoder of this index, float32 (n, W)."""
        return encode(sentences, self.settings.encoder, self.settings.trust_remote_code)

    def search(self, queries: np.ndarray, allowed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """All allowed sentences by falling cosine.

        Args:
            queries: unit vectors, float32 (M, W).
            allowed: ids of the sentences that may be found, int64 (A,), rising.

        Returns:
            Cosines, float32 (M, A), and sentence ids, int64 (M, A).
        """
        return vectors.nearest(self.index, queries, len(allowed), allowed)

    def vector_of(self, sentence: str) -> np.ndarray | None:
        """Vector of a sentence that the library knows word for word, float32 (W,); no encoder is needed for these."""
        try:
            return self.index.reconstruct(self.sentences.index(sentence))
        except ValueError:
            return None


def build_index(library: Library, outputs: Outputs, overwrite: bool = False) -> TextIndex:
    """Embed and index the library's sentences, unless the files on disk are whole and up to date."""
    if overwrite or not outputs.fresh(STAGE):
        settings = library.params.search
        embed = partial(encode, encoder=settings.encoder, trust_remote_code=settings.trust_remote_code)
        with outputs.writing(STAGE) as folder:
            sentences = library.policies["description"]
            ids, distinct = pd.factorize(sentences)
            postings = pd.DataFrame(
                {"sentence_id": ids, "sentence": sentences, "policy_id": library.policies["policy_id"]}
            )
            vectors.save(vectors.build(embed(list(distinct)), settings.index), folder / _INDEX)
            postings.to_parquet(folder / _POSTINGS, index=False)
            gate = EMBEDDED_GATE if settings.encoder == EMBEDDED else calibrated_gate(embed)
            (folder / _GATE).write_text(json.dumps({"encoder": settings.encoder, "gate": gate}) + "\n")
    return load_index(library, outputs)


def extend(index: TextIndex, library: Library) -> TextIndex:
    """The index of a library that further policies have joined; the old one stays as it is.

    Args:
        index: of the library's first policies.
        library: with further policies after these.
    """
    known = {sentence: number for number, sentence in enumerate(index.sentences)}
    more = library.policies.iloc[len(index.postings) :]
    fresh = [sentence for sentence in more["description"].unique() if sentence not in known]
    known |= {sentence: len(known) + number for number, sentence in enumerate(fresh)}
    grown = index.index
    if fresh:
        grown = vectors.appended(grown, index.encode(fresh))
    return _with(
        index,
        grown,
        pd.DataFrame(
            {
                "sentence_id": more["description"].map(known),
                "sentence": more["description"],
                "policy_id": more["policy_id"],
            }
        ),
    )


def _with(index: TextIndex, grown: faiss.Index, more: pd.DataFrame) -> TextIndex:
    """The index with further postings, in memory."""
    return TextIndex(grown, pd.concat([index.postings, more], ignore_index=True), index.settings, index.gate)


def load_index(library: Library, outputs: Outputs) -> TextIndex:
    """Open the index on disk.

    Raises:
        MissingArtifactError: if it is absent, damaged or out of date.
    """
    settings = library.params.search
    with outputs.reading():
        folder = outputs.require(STAGE)
        index, postings = vectors.load(folder / _INDEX), read_table(folder / _POSTINGS)
        about = read_json(folder / _GATE)

    fault = partial(made_up, outputs.folder, STAGE)
    gate = about.get("gate") if isinstance(about, dict) else None
    if not isinstance(gate, float) or not -1 <= gate <= 1:
        raise fault(_GATE, "must hold a gate between -1 and 1")
    known = list(postings) == ["sentence_id", "sentence", "policy_id"] and postings["sentence_id"].dtype == np.int64
    if not known or not all(pd.api.types.is_string_dtype(postings[name]) for name in ("sentence", "policy_id")):
        raise fault(_POSTINGS, "must hold sentence_id (whole numbers), sentence and policy_id")
    if not np.array_equal(np.unique(postings["sentence_id"]), np.arange(index.ntotal)):
        raise fault(_POSTINGS, f"must name each of the {index.ntotal} sentences of {_INDEX}")
    found = index.reconstruct_n(0, index.ntotal)
    if not np.isfinite(found).all():
        raise fault(_INDEX, "must hold finite vectors")
    if not postings["policy_id"].equals(library.policies["policy_id"]):
        raise fault(_POSTINGS, "must name the policies of the library, in their order")
    return TextIndex(index, postings, settings, gate if settings.cosine_gate is None else settings.cosine_gate)
