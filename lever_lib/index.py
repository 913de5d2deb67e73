"""The text index: FAISS over the distinct sentences of a library, and postings from sentence to policies.

All snapshots of a reward system share one sentence, so sentences are indexed once and policies hang on them: the index
stays small, and equal cosines are an explicit tie to be broken by predicted return instead of by insertion order.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

if sys.platform == "darwin":
    # torch and faiss each ship an OpenMP runtime there; loading both aborts the process without this.
    os.environ.setdefault("KMP_DUPLICATE_LIB_OK", "TRUE")
import faiss

from lever_lib import library as library_stage
from lever_lib.artifacts import Outputs, Stage
from lever_lib.library import Library
from lever_lib.text import encode

STAGE = Stage(
    name="search",
    notebook="04_search",
    files=("index.faiss", "postings.parquet"),
    params=("search.encoder",),
    upstream=(library_stage.STAGE,),
    module="lever_lib.index",
)


@dataclass(frozen=True)
class TextIndex:
    """Sentences of a library, searchable by cosine.

    Attributes:
        index: FAISS inner-product index over unit vectors, one per distinct sentence.
        postings: columns `sentence_id, sentence, policy_id`.
        encoder: that made the vectors.
    """

    index: faiss.Index
    postings: pd.DataFrame
    encoder: str

    @cached_property
    def sentences(self) -> list[str]:
        """Distinct sentences by id."""
        return self.postings.drop_duplicates("sentence_id").sort_values("sentence_id")["sentence"].tolist()

    def search(self, vectors: np.ndarray, allowed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """All allowed sentences by falling cosine.

        Args:
            vectors: unit queries, float32 (M, W).
            allowed: ids of the sentences that may be found, int64 (A,).

        Returns:
            Cosines, float32 (M, A), and sentence ids, int64 (M, A).
        """
        parameters = faiss.SearchParameters(sel=faiss.IDSelectorBatch(np.asarray(allowed, dtype=np.int64)))
        return self.index.search(np.ascontiguousarray(vectors, dtype=np.float32), len(allowed), params=parameters)


def build_index(library: Library, outputs: Outputs, overwrite: bool = False) -> TextIndex:
    """Embed and index the library's sentences, unless the files on disk are whole and up to date."""
    if overwrite or not outputs.fresh(STAGE):
        with outputs.writing(STAGE) as folder:
            sentences = library.policies["description"]
            ids, distinct = pd.factorize(sentences)
            postings = pd.DataFrame(
                {"sentence_id": ids, "sentence": sentences, "policy_id": library.policies["policy_id"]}
            )
            vectors = encode(list(distinct), library.params.search.encoder)
            index = faiss.IndexFlatIP(vectors.shape[1])
            index.add(vectors)
            faiss.write_index(index, str(folder / "index.faiss"))
            postings.to_parquet(folder / "postings.parquet", index=False)
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
    grown = faiss.clone_index(index.index)
    if fresh:
        grown.add(encode(fresh, index.encoder))
    postings = pd.DataFrame(
        {"sentence_id": more["description"].map(known), "sentence": more["description"], "policy_id": more["policy_id"]}
    )
    return TextIndex(grown, pd.concat([index.postings, postings], ignore_index=True), index.encoder)


def load_index(library: Library, outputs: Outputs) -> TextIndex:
    """Open the index on disk.

    Raises:
        MissingArtifactError: if it is absent, damaged or out of date.
    """
    folder = outputs.require(STAGE)
    index = faiss.read_index(str(folder / "index.faiss"))
    return TextIndex(index, pd.read_parquet(folder / "postings.parquet"), library.params.search.encoder)
