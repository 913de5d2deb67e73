"""Gradient-boosted trees as plain arrays: what is fitted by scikit-learn, kept in safetensors and read by a kernel.

A fitted `HistGradientBoostingRegressor` is an object that only the package that wrote it reads back, by running code;
it takes a millisecond per output to answer, and 80 MB of imports in every process. As arrays, the trees of all outputs
answer in microseconds, are the same file on any version, and hold nothing that could be run.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit
from threadpoolctl import threadpool_limits

from lever_lib.errors import LeverError


class Forest(NamedTuple):
    """Trees for E outputs over F inputs; an input at most `threshold` goes left.

    Attributes:
        base: what each output starts from, float64 (E,).
        roots: first node of each tree, int32 (T,).
        output: that each tree adds to, int16 (T,).
        feature: that a node asks for, -1 in a leaf, int16 (n,).
        threshold: float64 (n,).
        left: the node after it, always further on, int32 (n,).
        right: likewise.
        value: of a leaf, float64 (n,).
    """

    base: np.ndarray
    roots: np.ndarray
    output: np.ndarray
    feature: np.ndarray
    threshold: np.ndarray
    left: np.ndarray
    right: np.ndarray
    value: np.ndarray

    def predict(self, inputs: np.ndarray) -> np.ndarray:
        """Outputs, float64 (B, E), for inputs float32 (B, F)."""
        out = np.tile(self.base, (len(inputs), 1))
        _add_trees(self, np.ascontiguousarray(inputs, np.float32), out)
        return out


@njit(cache=True, nogil=True)
def _add_trees(forest: Forest, inputs: np.ndarray, out: np.ndarray) -> None:
    _, roots, output, feature, threshold, left, right, value = forest
    for row in range(len(inputs)):
        for tree in range(len(roots)):
            node = roots[tree]
            while feature[node] >= 0:
                node = left[node] if inputs[row, feature[node]] <= threshold[node] else right[node]
            out[row, output[tree]] += value[node]


def fit_forest(inputs: np.ndarray, outputs: np.ndarray, trees: int, leaves: int) -> Forest:
    """Boosted trees, one ensemble per output; an output that never changes gets none.

    Args:
        inputs: float32 (n, F).
        outputs: float64 (n, E).
        trees: per output.
        leaves: per tree, at most.
    """
    # Whoever only predicts, like the workers of an experiment, does without 80 MB of this package.
    from sklearn.ensemble import HistGradientBoostingRegressor

    base, roots, output, nodes = outputs.mean(axis=0), [], [], []
    total = 0
    for column in np.flatnonzero(np.ptp(outputs, axis=0) > 0):
        model = HistGradientBoostingRegressor(
            max_iter=trees, max_leaf_nodes=leaves, learning_rate=0.15, early_stopping=False, random_state=0
        )
        with threadpool_limits(1):  # another number of threads adds in another order: same params, same bytes
            model.fit(inputs, outputs[:, column])
        # The package keeps its trees in an attribute of its own; a test compares with its predictions.
        base[column] = model._baseline_prediction.item()
        for [tree] in model._predictors:
            roots.append(total)
            output.append(column)
            nodes.append(tree.nodes)
            total += len(tree.nodes)
    shift = np.repeat(roots, [len(part) for part in nodes])
    joined = np.concatenate(nodes) if nodes else np.zeros(0, _NODE)
    leaf = joined["is_leaf"].astype(bool)
    return Forest(
        base,
        np.array(roots, np.int32),
        np.array(output, np.int16),
        np.where(leaf, -1, joined["feature_idx"]).astype(np.int16),
        np.where(leaf, 0, joined["num_threshold"]),
        np.where(leaf, 0, joined["left"] + shift).astype(np.int32),
        np.where(leaf, 0, joined["right"] + shift).astype(np.int32),
        np.where(leaf, joined["value"], 0.0),
    )


_NODE = [
    *(("is_leaf", "u1"), ("feature_idx", "i8"), ("num_threshold", "f8"), ("left", "u4"), ("right", "u4")),
    ("value", "f8"),
]
_DTYPES = Forest(
    *(np.float64, np.int32, np.int16),
    *(np.int16, np.float64, np.int32, np.int32, np.float64),
)


def checked(forest: Forest, inputs: int, outputs: int) -> Forest:
    """A forest read from a file, if a kernel can walk it without leaving it or walking for ever.

    Raises:
        LeverError: naming what is wrong.
    """
    for name, part, dtype in zip(Forest._fields, forest, _DTYPES, strict=True):
        if part.dtype != dtype or part.ndim != 1:
            raise LeverError(f"{name}: must be a list of {np.dtype(dtype)}, is {part.dtype} of shape {part.shape}")
    nodes = len(forest.feature)
    sizes = {len(part) for part in forest[3:]}
    inner = forest.feature >= 0
    here = np.flatnonzero(inner)
    sound = {
        "base": len(forest.base) == outputs and np.isfinite(forest.base).all(),
        "roots": len(forest.roots) == len(forest.output) and _within(forest.roots, 0, nodes),
        "output": _within(forest.output, 0, outputs),
        "feature": sizes == {nodes} and _within(forest.feature, -1, inputs),
        "threshold": np.isfinite(forest.threshold).all() and np.isfinite(forest.value).all(),
    }
    for name, side in (("left", forest.left), ("right", forest.right)):
        sound[name] = sizes == {nodes} and (side[inner] > here).all() and _within(side[inner], 0, nodes)
    for name, fine in sound.items():
        if not fine:
            raise LeverError(f"{name}: is not of a forest of {inputs} inputs and {outputs} outputs")
    return forest


def _within(numbers: np.ndarray, low: int, end: int) -> bool:
    return bool(((numbers >= low) & (numbers < end)).all())
