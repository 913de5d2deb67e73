import faiss
import numpy as np
import pandas as pd
import pytest

from lever_lib.index import TextIndex


@pytest.fixture
def vectors():
    raw = np.random.default_rng(0).normal(size=(50, 16)).astype(np.float32)
    return raw / np.linalg.norm(raw, axis=1, keepdims=True)


def text_index(vectors):
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(vectors)
    ids = np.arange(len(vectors))
    postings = pd.DataFrame({"sentence_id": ids, "sentence": [f"s{i}" for i in ids], "policy_id": ids.astype(str)})
    return TextIndex(index, postings, "minilm")


def test_faiss_equals_brute_force_under_a_filter(vectors):
    allowed = np.array([3, 8, 13, 40])
    query = vectors[[5, 40]]
    cosines, ids = text_index(vectors).search(query, allowed)
    brute = query @ vectors[allowed].T
    order = np.argsort(-brute, axis=1)
    assert (ids == allowed[order]).all()
    np.testing.assert_allclose(cosines, np.take_along_axis(brute, order, axis=1), rtol=1e-5)
    assert ids[1, 0] == 40, "a sentence finds itself"


def test_every_policy_hangs_on_its_own_sentence(smoke):
    postings, policies = smoke.index.postings, smoke.library.policies
    assert postings["policy_id"].tolist() == policies["policy_id"].tolist()
    assert postings["sentence"].tolist() == policies["description"].tolist()
    assert smoke.index.index.ntotal == policies["description"].nunique() == 8
    assert len(smoke.index.sentences) == 8
