import numpy as np
import pytest
from sklearn.ensemble import HistGradientBoostingRegressor

from lever_lib.errors import LeverError
from lever_lib.forest import Forest, checked, fit_forest


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(400, 6)).astype(np.float32)
    outputs = np.stack([inputs[:, 0] * inputs[:, 1], np.full(400, 7.0), np.sign(inputs[:, 2])], axis=1)
    return inputs, outputs


@pytest.fixture(scope="module")
def forest(data):
    return fit_forest(*data, trees=20, leaves=7)


def test_it_predicts_what_scikit_learn_predicts(data, forest):
    inputs, outputs = data
    fresh = np.random.default_rng(1).normal(size=(300, 6)).astype(np.float32)
    for column in (0, 2):
        model = HistGradientBoostingRegressor(
            max_iter=20, max_leaf_nodes=7, learning_rate=0.15, early_stopping=False, random_state=0
        ).fit(inputs, outputs[:, column])
        np.testing.assert_allclose(forest.predict(fresh)[:, column], model.predict(fresh), rtol=1e-9)


def test_an_output_that_never_changes_needs_no_tree(data, forest):
    assert (forest.predict(data[0])[:, 1] == 7.0).all()
    assert 1 not in forest.output


def test_the_same_data_give_the_same_forest(data, forest):
    again = fit_forest(*data, trees=20, leaves=7)
    assert all((a == b).all() for a, b in zip(forest, again, strict=True))


def test_nothing_to_learn_is_a_forest_without_trees():
    forest = fit_forest(np.ones((30, 2), np.float32), np.full((30, 3), 2.0), trees=5, leaves=4)
    assert (checked(forest, 2, 3).predict(np.zeros((4, 2), np.float32)) == 2.0).all()


def test_a_forest_that_was_fitted_is_sound(forest):
    assert checked(forest, 6, 3) is forest


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("left", lambda nodes: nodes * 0),  # a circle: a kernel would walk it for ever
        ("right", lambda nodes: nodes + 10**6),
        ("feature", lambda nodes: nodes + 6),
        ("roots", lambda nodes: nodes - 1),
        ("output", lambda nodes: nodes + 3),
        ("threshold", lambda nodes: nodes * np.nan),
        ("value", lambda nodes: nodes[:-1]),
        ("base", lambda nodes: nodes[:2]),
        ("left", lambda nodes: nodes.astype(np.int64)),
        ("value", lambda nodes: nodes[:, None]),
    ],
)
def test_a_forest_that_a_kernel_could_get_lost_in_is_refused(forest, part, change):
    spoiled: Forest = forest._replace(**{part: change(getattr(forest, part))})
    with pytest.raises(LeverError):
        checked(spoiled, 6, 3)
