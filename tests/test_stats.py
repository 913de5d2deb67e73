import numpy as np
import pandas as pd
import pytest

from lever_lib.stats import (
    by_layout,
    improvement,
    interquartile_mean,
    interval,
    seconds_summary,
    summarise,
)

KEYS = ["strategy", "method"]


def test_a_share_needs_a_positive_optimum():
    results = pd.DataFrame(
        {"seed": ["0"], "strategy": "a", "method": "b", "return": [1.0], "optimum": [0.0], "stuck": False}
    )
    with pytest.raises(ValueError, match="optimum"):
        summarise(results, KEYS, np.random.default_rng(0))


def test_equal_shares_have_equal_intervals():
    part = pd.DataFrame({"seed": list("01234"), "return": [1.0, 2.0, 3.0, 5.0, 8.0], "optimum": 10.0, "stuck": False})
    results = pd.concat([part.assign(strategy=name, method="m") for name in ("targeted", "hybrid")])
    summary = summarise(results, KEYS, np.random.default_rng(0))
    assert summary.loc[0, ["low", "high"]].tolist() == summary.loc[1, ["low", "high"]].tolist()


def column(values):
    """One row per layout."""
    return np.array(values)[:, None]


def test_the_interval_of_a_mean():
    rng = np.random.default_rng(0)
    assert interval(column([0.25] * 5), rng) == (0.25, 0.25, 0.25)
    mean, low, high = interval(column([0.0, 1.0]), rng)
    assert (mean, low, high) == (0.5, 0.0, 1.0), "one resample in four is all zeros, one in four all ones"
    mean, low, high = interval(column([2.0]), rng)
    assert mean == 2.0
    assert np.isnan([low, high]).all()


@pytest.mark.parametrize("statistic", [lambda values: values.mean(axis=(-2, -1)), interquartile_mean])
def test_intervals_cover_about_as_often_as_they_say(statistic):
    rng = np.random.default_rng(1)
    ends = [interval(rng.normal(size=(30, 1)), rng, statistic)[1:] for _ in range(300)]
    assert 0.88 < np.mean([low <= 0 <= high for low, high in ends]) < 0.98


def test_the_interquartile_mean_leaves_out_a_quarter_on_either_side():
    values = np.array([[-100.0, 1.0, 2.0, 3.0], [4.0, 5.0, 6.0, 900.0]])
    assert interquartile_mean(values) == (2 + 3 + 4 + 5) / 4
    assert interquartile_mean(np.stack([values, 2 * values])).tolist() == [3.5, 7.0]


def test_rows_of_a_layout_stay_together_in_a_resample():
    """Rows that say the same thing again are no further evidence."""
    values = np.random.default_rng(0).normal(size=(20, 1))
    once = interval(values, np.random.default_rng(0))
    again = interval(np.repeat(values, 9, axis=1), np.random.default_rng(0))
    assert again == pytest.approx(once)


def test_improvement_is_counted_pair_by_pair():
    ours = np.array([[1.0, 2.0], [3.0, 4.0]])
    theirs = np.array([[0.0, 2.0], [5.0, 1.0]])
    probability, low, high = improvement(ours, theirs, np.random.default_rng(0))
    assert probability == (1 + 0.5 + 0 + 1) / 4
    assert (low, high) == (0.5, 0.75)
    assert improvement(theirs, ours, np.random.default_rng(0))[0] == 1 - probability


def test_every_layout_has_the_same_rows():
    rows = pd.DataFrame({"seed": ["b", "a", "b", "a"], "return": [3, 1, 4, 2]})
    assert by_layout(rows, "return").tolist() == [[1, 2], [3, 4]]
    with pytest.raises(ValueError, match="same number"):
        by_layout(rows.iloc[1:], "return")


def test_shares_by_group_with_stuck_policies_beside_them():
    results = pd.DataFrame(
        {
            "seed": ["0000", "0000", "0001", "0001"],
            "library": ["X1", "X5"] * 2,
            "strategy": "targeted",
            "method": "qsum",
            "return": [50.0, 100.0, -10.0, 60.0],
            "scratch_return": [100.0, 100.0, 60.0, 60.0],
            "optimum": [100.0, 100.0, 60.0, 60.0],
            "stuck": [False, False, True, False],
        }
    )
    rng = np.random.default_rng(0)
    overall = summarise(results, KEYS, rng).iloc[0]
    assert overall["share"] == pytest.approx(((0.5 + 1) / 2 + (-1 / 6 + 1) / 2) / 2)
    assert overall["low"] <= overall["share"] <= overall["high"]
    assert (overall["stuck_share"], overall["layouts"]) == (0.25, 2)
    assert overall["return"] == 50.0
    assert overall["return_low"] <= 50.0 <= overall["return_high"]
    assert overall["optimum"] == 80.0
    assert overall["iqm"] == pytest.approx((0.5 + 1) / 2), "the best and the worst row are left out"
    by_library = summarise(results, ["library", *KEYS], rng).set_index("library")
    assert by_library["share"].to_dict() == pytest.approx({"X1": (0.5 - 1 / 6) / 2, "X5": 1.0})
    scratch = summarise(results, KEYS, rng, "scratch_return").iloc[0]
    assert scratch["share"] == 1
    assert np.isnan(scratch["stuck_share"]), "nothing is known of it"


def test_seconds_are_summed_per_row_before_the_median():
    timings = pd.DataFrame(
        {
            "strategy": "hybrid",
            "method": "gpi",
            "seconds_decompose": [1.0, 0.0, 0.0],
            "seconds_search": [0.0, 2.0, 0.0],
            "seconds_compose": [0.0, 0.0, 4.0],
            "seconds_score": 0.5,
            "scratch_seconds": [7.0, 8.0, 9.0],
        }
    )
    row = seconds_summary(timings, KEYS).iloc[0]
    assert (row["seconds"], row["low"], row["high"]) == (2.5, 2.0, 3.5)
    assert (row["seconds_search"], row["seconds_score"], row["scratch_seconds"]) == (0.0, 0.5, 8.0)
    assert row["seconds_without_decompose"] == 2.5, "0.5, 2.5 and 4.5"
    assert row["speedup"] == 3.2, "7 / 1.5, 8 / 2.5 and 9 / 4.5: the middle one"
    assert "speedup" not in seconds_summary(timings.drop(columns="scratch_seconds"), KEYS)
