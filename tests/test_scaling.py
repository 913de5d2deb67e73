import numpy as np
import pandas as pd
import pytest

from lever_lib import scaling
from lever_lib.composition import everyday_methods
from lever_lib.scaling import fit_exponents, measure_costs


def test_exponents_of_a_power_law_and_of_a_bend():
    value = np.array([1.0, 2.0, 4.0, 8.0, 16.0])
    law = pd.DataFrame({"grows": "k", "value": value, "method": "law", "seconds": 3 * value**4})
    bend = pd.DataFrame({"grows": "k", "value": value, "method": "bend", "seconds": np.maximum(value, 4)})
    fitted = fit_exponents(pd.concat([law, bend])).set_index("method")
    assert fitted.loc["law", ["exponent", "first_half", "second_half"]].tolist() == pytest.approx([4, 4, 4])
    assert fitted.loc["bend", ["first_half", "second_half"]].tolist() == pytest.approx([0, 1])
    assert 0 < fitted.loc["bend", "exponent"] < 1


def test_everything_that_grows_is_measured(smoke_params, monkeypatch):
    monkeypatch.setattr(scaling, "_SIZES", (6, 8))
    monkeypatch.setattr(scaling, "_POLICIES", (5, 80))
    monkeypatch.setattr(scaling, "_CANDIDATES", (1, 4))
    costs = measure_costs(smoke_params)
    assert costs.groupby("grows", sort=False)["value"].unique().map(list).to_dict() == {
        "size": [6, 8],
        "policies": [5, 80],
        "k": [1, 4],
    }
    assert len(costs) == 6 * len(everyday_methods())
    assert (costs["seconds"] > 0).all()
    assert (costs["distinct"] >= 1).all()
    assert costs.query("grows == 'k' and value == 4 and method == 'exnonzero'")["distinct"].iloc[0] == 256
    assert costs.query("grows == 'policies' and value == 80")["distinct"].max() <= 80
    slow = costs.query("method == 'exnonzero'").set_index(["grows", "value"])["seconds"]
    assert slow["k", 4] > 5 * slow["k", 1], "256 combinations, not one"
