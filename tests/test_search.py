from dataclasses import replace
from fractions import Fraction

import numpy as np
import pandas as pd
import pytest

from lever_lib.errors import LeverError
from lever_lib.pi2vec import standardised
from lever_lib.queries import QUERY_CLASSES
from lever_lib.search import Filters, Scope
from lever_lib.text import encode

GOLD = "Collect as much gold as possible before exiting."


@pytest.fixture
def scope():
    return Scope("0001", "X5", QUERY_CLASSES["trivial"].setups)


@pytest.fixture
def open_gate(smoke):
    """Finds everything, however far away its sentence is."""
    return replace(smoke, index=replace(smoke.index, gate=-1.0))


def test_candidates_stay_in_their_layout_library_and_class(smoke, scope):
    vectors = encode(["Find a quick exit and some gold", "pull the lever"])
    system = smoke.library.system("path-gold-hazard-lever")
    for table in smoke.candidates(vectors, scope, system, 100):
        found = smoke.library.policies.iloc[table["row"]]
        assert (found["seed"] == "0001").all()
        assert (found["library"] == "X5").all()
        assert set(found["setup"]) <= set(scope.setups)
        assert (table["cosine"] >= smoke.index.gate).all()


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


def test_a_prediction_lies_in_the_middle_of_its_interval(smoke, open_gate, scope):
    system = smoke.library.system("path-gold")
    table = open_gate.candidates(encode([GOLD]), scope, system, 100)[0]
    assert ((table["low"] < table["predicted"]) & (table["predicted"] < table["high"])).all()
    np.testing.assert_allclose((table["low"] + table["high"]) / 2, table["predicted"])
    half = smoke.regressor.for_layout("0001").half_width(system)
    np.testing.assert_allclose(table["high"] - table["low"], 2 * half)


def test_below_the_gate_there_is_nothing(smoke, open_gate, scope):
    vectors = encode(["make coffee"])
    assert smoke.candidates(vectors, scope, smoke.library.system("path"), 5)[0].empty
    assert len(open_gate.candidates(vectors, scope, smoke.library.system("path"), 5)[0]) == 5


def test_an_empty_scope_is_an_error(smoke):
    with pytest.raises(LeverError, match="no policy of library X9"):
        smoke.candidates(encode([GOLD]), Scope("0001", "X9", ("gold",)), smoke.library.system("gold"), 5)


@pytest.mark.parametrize(
    ("filters", "fits"),
    [
        (Filters(), "setup != ''"),
        (Filters(setups=("gold", "lever")), "setup in ['gold', 'lever']"),
        (Filters(least_return=20.0), "`return` >= 20"),
        (Filters(exclude_own=True), "setup != 'gold'"),
        (Filters(setups=("gold", "path"), least_return=0, exclude_own=True), "setup == 'path' and `return` >= 0"),
    ],
)
def test_a_filter_takes_away_and_changes_nothing_else(smoke, open_gate, scope, filters, fits):
    ask = {"vectors": encode([GOLD]), "scope": scope, "system": smoke.library.system("gold"), "count": 100}
    everything = open_gate.candidates(**ask)[0]
    found = open_gate.candidates(**ask, filters=filters)[0]
    policies = smoke.library.policies.iloc[everything["row"]].merge(smoke.library.timings, on="policy_id")
    wanted = everything[policies.eval(fits).to_numpy()].reset_index(drop=True)
    assert len(wanted) > 0
    assert found.equals(wanted)


def test_a_limit_lets_pass_what_just_meets_it(smoke, open_gate, scope):
    ask = {"vectors": encode([GOLD]), "scope": scope, "system": smoke.library.system("gold"), "count": 100}
    rows = open_gate.candidates(**ask)[0]["row"]
    joules, returns = smoke.library.timings["energy_joules"][rows], smoke.library.policies["return"][rows]
    for limit in (sorted(joules)[7], sorted(joules)[0]):
        found = open_gate.candidates(**ask, filters=Filters(most_joules=limit))[0]["row"]
        assert set(found) == set(rows[(joules <= limit).to_numpy()])
    for limit in (sorted(returns)[7], sorted(returns)[-1]):
        found = open_gate.candidates(**ask, filters=Filters(least_return=limit))[0]["row"]
        assert set(found) == set(rows[(returns >= limit).to_numpy()])


@pytest.mark.parametrize(
    ("filters", "name"),
    [
        (Filters(setups=("gold-lever",)), "setups = gold-lever"),
        (Filters(most_joules=0.0), "most_joules = 0"),
        (Filters(least_return=1e6), r"least_return = 1e\+06"),
        (Filters(setups=("gold",), exclude_own=True), r"exclude_own \(gold\)"),
        (Filters(setups=("gold",), least_return=1e6, exclude_own=True), r"least_return = 1e\+06"),
    ],
)
def test_the_first_filter_that_leaves_nothing_is_named(smoke, scope, filters, name):
    with pytest.raises(LeverError, match=f"filter {name}: no policy passes"):
        smoke.candidates(encode([GOLD]), scope, smoke.library.system("gold"), 5, filters=filters)


@pytest.mark.parametrize("bound", ["most_joules", "least_return"])
@pytest.mark.parametrize(
    "value", [float("nan"), True, "3", [1], 10**400, Fraction(3, 2)], ids=lambda value: str(value)[:9]
)
def test_a_bound_is_a_number(bound, value):
    with pytest.raises(LeverError, match=f"{bound} = .*: must be a number"):
        Filters(**{bound: value})


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("value", [np.float32(3), np.float64(3), np.int64(3), np.float16("inf"), -float("inf"), 3])
def test_a_bound_may_be_a_number_of_numpys(value):
    assert Filters(least_return=value).least_return == value


def test_like_is_the_distance_between_standardised_embeddings(smoke):
    policies = smoke.library.policies
    rows = np.flatnonzero(policies["seed"] == "0001")
    found = smoke.like(policies["policy_id"][rows[7]], 1000)
    assert sorted(found["row"]) == sorted(set(rows) - {rows[7]}), "all others of the layout and no more"
    vectors = standardised(smoke.embeddings.rows(rows).mean)
    by_row = dict(zip(rows, np.sqrt(((vectors - vectors[7]) ** 2).sum(axis=1)), strict=True))
    np.testing.assert_allclose(found["distance"], [by_row[row] for row in found["row"]])
    keys = list(zip(found["distance"], found["policy_id"], strict=True))
    assert keys == sorted(keys)
    assert smoke.like(policies["policy_id"][rows[7]], 3).equals(found.head(3))


def test_like_passes_filters(smoke):
    name = smoke.library.policies.query("setup == 'gold' and seed == '0001'")["policy_id"].iloc[0]
    found = smoke.like(name, 1000, Filters(setups=("gold", "path"), exclude_own=True))
    assert set(smoke.library.policies["setup"].iloc[found["row"]]) == {"path"}, "its own is what it was trained for"


@pytest.mark.parametrize(("name", "hint"), [("X5-0001-gold-l0", "did you mean 'X5-0001-gold-"), ("?", "$")])
def test_a_policy_that_is_not_there_is_named_and_a_close_one_suggested(smoke, name, hint):
    with pytest.raises(LeverError, match=f"policy_id .*: no such policy.*{hint}"):
        smoke.like(name, 3)


@pytest.mark.parametrize("name", [7, None, np.array(["X5-0001-gold-100"]), pd.Series(["X5-0001-gold-100"]), pd.NA])
def test_what_names_no_single_policy_is_refused(smoke, name):
    with pytest.raises(LeverError, match=r"^policy_id = .*: must be the name of one policy$"):
        smoke.like(name, 3)
