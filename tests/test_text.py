import numpy as np
import pytest

from lever_lib.envs.rewards import COMPONENTS
from lever_lib.text import encode


def test_unit_vectors_and_known_cosines():
    sentences = [COMPONENTS["gold"].sentence, "collect gold quickly", "make coffee"]
    vectors = encode(sentences)
    assert vectors.dtype == np.float32
    assert vectors.shape == (3, 384)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
    assert vectors[0] @ vectors[1] == pytest.approx(0.736, abs=0.005)
    assert vectors[0] @ vectors[2] < 0.2


def test_an_unknown_encoder_is_refused():
    with pytest.raises(ValueError, match="encoder"):
        encode(["a"], "other")
