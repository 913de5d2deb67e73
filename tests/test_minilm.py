import numpy as np
import pytest

from lever_lib import minilm
from lever_lib.text import encode

LONG = "Collect the gold, then pull the lever, and stay away from hazards. " * 40
SENTENCES = [
    "gold",
    "Find the shortest path to the exit.",
    "Ist das ein Schatz? 宝 🪙",
    "step " * 253 + "gold",  # with what marks the start and the end, 256 tokens
    "step " * 254 + "gold",  # one more than are read
    LONG,
]


@pytest.fixture(scope="module")
def vectors():
    return minilm.encode(SENTENCES)


def test_the_vectors_are_those_of_sentence_transformers(vectors):
    by_folder = encode(SENTENCES, str(minilm.FOLDER))
    np.testing.assert_allclose(vectors, by_folder, atol=1e-5)


def test_they_are_unit_vectors_of_single_precision(vectors):
    assert (vectors.dtype, vectors.shape) == (np.float32, (len(SENTENCES), 384))
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-6)


def test_a_vector_does_not_depend_on_its_company(vectors):
    assert np.array_equal(minilm.encode(SENTENCES[::-1])[::-1], vectors)
    assert np.array_equal(minilm.encode(SENTENCES[1:2]), vectors[1:2])


def test_of_a_long_text_the_first_256_tokens_are_read(vectors):
    assert np.array_equal(*minilm.encode([LONG, LONG + "and dance."]))
    assert not np.array_equal(vectors[3], vectors[4])
    assert np.array_equal(*minilm.encode(["step " * 254, "step " * 254 + "gold"]))


def test_an_empty_text_has_a_vector_too():
    np.testing.assert_allclose(np.linalg.norm(minilm.encode([""])), 1, rtol=1e-6)
