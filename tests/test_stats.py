import pandas as pd
import pytest

from lever_lib.stats import layout_shares


def test_a_layout_is_averaged_before_anything_else():
    results = pd.DataFrame(
        {
            "seed": ["0000", "0000", "0001"],
            "strategy": "targeted",
            "method": "gpi",
            "return": [50.0, 100.0, 30.0],
            "optimum": [100.0, 100.0, 60.0],
        }
    )
    assert layout_shares(results)["share"].tolist() == [0.75, 0.5]


def test_a_share_needs_a_positive_optimum():
    results = pd.DataFrame({"seed": ["0"], "strategy": "a", "method": "b", "return": [1.0], "optimum": [0.0]})
    with pytest.raises(ValueError, match="optimum"):
        layout_shares(results)
