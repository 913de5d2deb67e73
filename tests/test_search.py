import numpy as np
import pytest

from lever_lib.errors import LeverError
from lever_lib.queries import QUERY_CLASSES
from lever_lib.search import Retriever, Scope
from lever_lib.text import encode

GOLD = "Collect as much gold as possible before exiting."


@pytest.fixture
def scope():
    return Scope("0001", "X5", QUERY_CLASSES["trivial"].setups)


def test_candidates_stay_in_their_layout_library_and_class(smoke, scope):
    vectors = encode(["Find a quick exit and some gold", "pull the lever"])
    system = smoke.library.system("path-gold-hazard-lever")
    for table in smoke.candidates(vectors, scope, system, 100):
        found = smoke.library.policies.iloc[table["row"]]
        assert (found["seed"] == "0001").all()
        assert (found["library"] == "X5").all()
        assert set(found["setup"]) <= set(scope.setups)
        assert (table["cosine"] >= smoke.gate).all()


def test_a_sentence_finds_its_own_policies_first(smoke, scope):
    table = smoke.candidates(encode([GOLD]), scope, smoke.library.system("path-gold"), 5)[0]
    assert (smoke.library.policies.iloc[table["row"]]["setup"] == "gold").all()
    np.testing.assert_allclose(table["cosine"], 1, rtol=1e-5)


def test_ties_go_by_predicted_return_then_name(smoke, scope):
    table = smoke.candidates(encode([GOLD]), scope, smoke.library.system("path-gold"), 5)[0]
    keys = list(zip(-table["predicted"], table["policy_id"], strict=True))
    assert keys == sorted(keys)
    direct = smoke.regressor.predict("0001", smoke.embeddings.rows(table["row"]), smoke.library.system("path-gold"))
    np.testing.assert_allclose(table["predicted"], direct)


def test_below_the_gate_there_is_nothing(smoke, scope):
    vectors = encode(["make coffee"])
    assert smoke.candidates(vectors, scope, smoke.library.system("path"), 5)[0].empty
    open_gate = Retriever(smoke.library, smoke.embeddings, smoke.regressor, smoke.index, -1.0)
    assert len(open_gate.candidates(vectors, scope, smoke.library.system("path"), 5)[0]) == 5


def test_an_empty_scope_is_an_error(smoke):
    with pytest.raises(LeverError, match="no policy of library X9"):
        smoke.candidates(encode([GOLD]), Scope("0001", "X9", ("gold",)), smoke.library.system("gold"), 5)
