from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from lever_lib import vectors as vector_index
from lever_lib.index import EMBEDDED_GATE, TextIndex, extend, load_index
from lever_lib.params import Search
from lever_lib.text import encode


@pytest.fixture
def vectors():
    raw = np.random.default_rng(0).normal(size=(50, 16)).astype(np.float32)
    return raw / np.linalg.norm(raw, axis=1, keepdims=True)


@pytest.fixture
def toy(vectors):
    """An index of made-up sentences, one per policy."""
    ids = np.arange(len(vectors))
    postings = pd.DataFrame({"sentence_id": ids, "sentence": [f"s{i}" for i in ids], "policy_id": ids.astype(str)})
    return TextIndex(vector_index.build(vectors), postings, Search(), 0.42)


def test_faiss_equals_brute_force_under_a_filter(vectors, toy):
    allowed = np.array([3, 8, 13, 40])
    query = vectors[[5, 40]]
    cosines, ids = toy.search(query, allowed)
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


def test_a_sentence_of_the_library_needs_no_encoder(toy, vectors):
    assert np.array_equal(toy.vector_of("s7"), vectors[7])
    assert toy.vector_of("s99") is None


def test_what_joins_gets_the_next_ids_and_the_old_index_stays(smoke):
    index = smoke.index
    more = pd.DataFrame({"policy_id": ["a", "b", "c"], "description": ["Dance.", index.sentences[3], "Dance."]})
    joined = SimpleNamespace(policies=pd.concat([smoke.library.policies, more], ignore_index=True))
    grown = extend(index, joined)
    assert grown.sentence_of[-3:].tolist() == [8, 3, 8]
    assert grown.sentences == [*index.sentences, "Dance."]
    assert grown.postings["policy_id"].tolist() == joined.policies["policy_id"].tolist()
    assert (grown.index.ntotal, index.index.ntotal) == (9, 8)
    assert len(index.postings) == len(index.sentence_of) == len(smoke.library.policies)
    np.testing.assert_array_equal(grown.vector_of("Dance."), encode(["Dance."])[0])
    twice = extend(grown, SimpleNamespace(policies=pd.concat([joined.policies, more.assign(policy_id=list("def"))])))
    assert twice.sentence_of[-3:].tolist() == [8, 3, 8], "a second batch finds the sentences of the first"


def test_the_gate_is_the_calibrated_one_unless_params_say_otherwise(smoke, smoke_params, smoke_outputs):
    assert smoke.index.gate == EMBEDDED_GATE
    settings = replace(smoke_params.search, cosine_gate=0.6)
    strict = replace(smoke.library, params=replace(smoke_params, search=settings))
    assert load_index(strict, smoke_outputs).gate == 0.6
