"""The reward regressor: from a policy's embedding to its return under any reward system.

The published regressor learns a policy's own return from its embedding alone, so it cannot tell under which reward the
return is wanted. Here the target is the exactly evaluated return of policy p under reward system r, for all pairs
(p, r); the input is the embedding of p and the components of r. The model is ridge regression on the standardised
embedding z, the component indicators c and their products z x c, because returns are linear in what the policy does
with weights that the components choose.

Every prediction of a run comes from a model that never saw the layout: one model per layout left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import pandas as pd
from threadpoolctl import threadpool_limits

from lever_lib import library as library_stage
from lever_lib import pi2vec
from lever_lib.artifacts import Outputs, Stage
from lever_lib.envs.rewards import RewardSystem
from lever_lib.library import Library
from lever_lib.params import Params
from lever_lib.pi2vec import Embeddings
from lever_lib.queries import QUERIES, QUERY_CLASSES

STAGE = Stage(
    name="regressor",
    notebook="03_regressor",
    files=("models.npz", "predictions.parquet", "cross_validation.csv"),
    params=("grid", "regressor"),
    upstream=(library_stage.STAGE, pi2vec.STAGE),
    module="lever_lib.regressor",
)

ALL_LAYOUTS = "all"  # name of the model trained on every layout, for layouts outside the library
_MODEL, _VARIANT = "ridge", "all"
_DECIMALS = 6  # of predictions: what differs by rounding of the linear algebra alone is a tie, on any machine
_CLIP = 3.0  # standard deviations: the endless tail of a stuck policy is an outlier that a linear model runs away on


@dataclass(frozen=True)
class Predictor:
    """A fitted model: y = bias + z . a + c . b + z' W c with z = (embedding - mean) / scale, clipped.

    Attributes:
        mean: float64 (D,).
        scale: float64 (D,).
        weights: float64 (D + 1, C + 1); W bordered by a (last column), b (last row) and the bias (corner).
        half_width: of the prediction interval at the params' `interval_level`.
    """

    mean: np.ndarray
    scale: np.ndarray
    weights: np.ndarray
    half_width: float

    def predict(self, embeddings: np.ndarray, indicator: np.ndarray) -> np.ndarray:
        """Predicted returns under one reward system, float64 (B,).

        Args:
            embeddings: float (B, D).
            indicator: active components, float (C,).
        """
        z = _standardise(embeddings, self.mean, self.scale)
        direction = self.weights @ np.append(indicator, 1.0)
        return np.round(z @ direction[:-1] + direction[-1], _DECIMALS)


@dataclass(frozen=True)
class Regressor:
    """The models of a spec, read from their files.

    Attributes:
        models: by the layout left out; `ALL_LAYOUTS` for the one that saw all.
        predictions: one row per (policy, reward system): return, out-of-fold prediction and interval.
        cross_validation: one row per model, held-out layout and subset.
    """

    models: dict[str, Predictor]
    predictions: pd.DataFrame
    cross_validation: pd.DataFrame

    def for_layout(self, seed: str) -> Predictor:
        """The model that never saw a layout."""
        return self.models.get(seed, self.models[ALL_LAYOUTS])

    def predict(self, seed: str, embeddings: np.ndarray, system: RewardSystem) -> np.ndarray:
        """Predicted returns of embedded policies of a layout under `system`, float64 (B,)."""
        return self.for_layout(seed).predict(embeddings, system.indicator)


@dataclass(frozen=True)
class Table:
    """What the regressor learns from: P policies under R reward systems.

    Attributes:
        embeddings: float64 (P, D).
        indicators: float64 (R, C).
        returns: exact, float64 (P, R).
        layouts: seed name of each policy, (P,).
        stuck: bool (P,).
    """

    embeddings: np.ndarray
    indicators: np.ndarray
    returns: np.ndarray
    layouts: np.ndarray
    stuck: np.ndarray

    def rows(self, mask: np.ndarray) -> Table:
        """The policies where `mask` is True."""
        picked = (part[mask] for part in (self.embeddings, self.returns, self.layouts, self.stuck))
        embeddings, returns, layouts, stuck = picked
        return Table(embeddings, self.indicators, returns, layouts, stuck)


def build_regressor(library: Library, embeddings: Embeddings, outputs: Outputs, overwrite: bool = False) -> Regressor:
    """Fit and cross-validate, unless the files on disk are whole and up to date."""
    if overwrite or not outputs.fresh(STAGE):
        with outputs.writing(STAGE) as folder:
            _write(library, training_table(library, embeddings), library.params, folder)
    return load_regressor(outputs)


def load_regressor(outputs: Outputs) -> Regressor:
    """Open the models on disk.

    Raises:
        MissingArtifactError: if they are absent, damaged or out of date.
    """
    folder = outputs.require(STAGE)
    with np.load(folder / "models.npz") as stored:
        parts = zip(*(stored[name] for name in ("held_out", "mean", "scale", "weights", "half_width")), strict=True)
        models = {str(name): Predictor(mean, scale, w, float(half)) for name, mean, scale, w, half in parts}
    table = pd.read_csv(folder / "cross_validation.csv", dtype={"split": str})
    return Regressor(models, pd.read_parquet(folder / "predictions.parquet"), table)


def training_table(library: Library, embeddings: Embeddings) -> Table:
    """Embeddings and exact returns of every policy under every trained reward system."""
    return Table(
        embeddings=embeddings.embeddings,
        indicators=np.stack([system.indicator for system in library.systems.values()]),
        returns=library.returns,
        layouts=library.policies["seed"].to_numpy(),
        stuck=library.policies["stuck"].to_numpy(),
    )


def fit(table: Table, penalty: float) -> Predictor:
    """Ridge on (z, c, z x c), every column standardised; the penalty is scikit-learn's `alpha`.

    The interval is left open; `calibrate` closes it.
    """
    # Here and below: whoever only predicts, like the workers of an experiment, does without 100 MB of these packages.
    from sklearn.linear_model import Ridge
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(table.embeddings)
    z = _standardise(table.embeddings, scaler.mean_, scaler.scale_)
    policies, systems = table.returns.shape
    bordered_z = np.hstack([z, np.ones((policies, 1))])
    bordered_c = np.hstack([table.indicators, np.ones((systems, 1))])
    design = np.einsum("pd,rc->prdc", bordered_z, bordered_c).reshape(policies * systems, -1)
    with threadpool_limits(1):  # another number of threads adds in another order: same params, same bytes
        model = make_pipeline(StandardScaler(), Ridge(alpha=penalty)).fit(design, table.returns.ravel())
    columns, ridge = model[0], model[1]
    weights = ridge.coef_ / columns.scale_
    weights[-1] = ridge.intercept_ - weights @ columns.mean_  # the last column is constant: it carries the bias
    shape = (bordered_z.shape[1], bordered_c.shape[1])
    return Predictor(scaler.mean_, scaler.scale_, weights.reshape(shape), np.inf)


def _standardise(embeddings: np.ndarray, mean: np.ndarray, scale: np.ndarray) -> np.ndarray:
    return np.clip((embeddings - mean) / scale, -_CLIP, _CLIP)


def predict_all(predictor: Predictor, table: Table) -> np.ndarray:
    """Predicted returns of all policies of `table` under all its reward systems, float64 (P, R)."""
    return np.stack([predictor.predict(table.embeddings, row) for row in table.indicators], axis=1)


def calibrate(table: Table, penalty: float, level: float) -> float:
    """Half-width of a prediction interval: a quantile of the absolute errors on layouts left out in turn.

    Source: split conformal prediction, with layouts as groups (Vovk et al., 2005; Dunn et al., 2022).
    """
    errors = []
    for name in np.unique(table.layouts):
        held_out = table.layouts == name
        part = table.rows(held_out)
        errors.append(np.abs(part.returns - predict_all(fit(table.rows(~held_out), penalty), part)).ravel())
    pooled = np.concatenate(errors)
    rank = min(1.0, level * (1 + 1 / len(pooled)))
    return float(np.quantile(pooled, rank, method="higher"))


def baselines(train: Table, test: Table) -> dict[str, np.ndarray]:
    """What a constant would predict, float64 (P, R): the median overall, per reward system, and with stuck flag."""
    systems = train.returns.shape[1]
    per_system = np.tile(np.median(train.returns, axis=0), (len(test.returns), 1))
    with_flag = per_system.copy()
    for flag in (False, True):
        if (train.stuck == flag).any():
            with_flag[test.stuck == flag] = np.median(train.returns[train.stuck == flag], axis=0)
    return {
        "median": np.full((len(test.returns), systems), np.median(train.returns)),
        "median_system": per_system,
        "median_system_stuck": with_flag,
    }


def scores(table: Table, predicted: np.ndarray, groups: list[tuple[np.ndarray, int]]) -> dict[str, float]:
    """How well returns are predicted: `r2`, `mae`, `nmae`, `spearman`, `rows`.

    Args:
        table: the true returns.
        predicted: float (P, R).
        groups: per query and layout, which policies are its candidates (bool (P,)) and the column of its system.

    Returns:
        `r2` is the mean over reward systems of R^2 within each; `spearman` the mean over groups. Where returns or
        predictions are constant neither is defined, and the system or group does not count; nan if none is left.
    """
    from scipy.stats import spearmanr

    true = table.returns
    errors = true - predicted
    spread = ((true - true.mean(axis=0)) ** 2).sum(axis=0)
    defined = spread > 1e-9
    r2 = 1 - (errors**2).sum(axis=0)[defined] / spread[defined]
    ranks = []
    for candidates, column in groups:
        y, guess = true[candidates, column], predicted[candidates, column]
        if len(y) > 1 and np.ptp(y) > 1e-9 and np.ptp(guess) > 1e-9:
            ranks.append(spearmanr(y, guess).statistic)
    mae = np.abs(errors).mean()
    return {
        "r2": float(np.mean(r2)) if len(r2) else np.nan,
        "mae": float(mae),
        "nmae": float(mae / np.abs(true).mean()),
        "spearman": float(np.mean(ranks)) if ranks else np.nan,
        "rows": true.size,
    }


def cross_validate(library: Library, table: Table) -> tuple[pd.DataFrame, dict[str, Predictor], np.ndarray]:
    """Leave one layout out in turn.

    Returns:
        The score table, a calibrated model per layout left out, and the out-of-fold predictions (P, R).
    """
    settings = library.params.regressor
    predicted = {_MODEL: np.empty_like(table.returns)}
    models: dict[str, Predictor] = {}
    half_widths = np.empty(len(table.returns))
    for name in np.unique(table.layouts):
        held_out = table.layouts == name
        train, test = table.rows(~held_out), table.rows(held_out)
        half_width = calibrate(train, settings.ridge_penalty, settings.interval_level)
        fitted = fit(train, settings.ridge_penalty)
        models[name] = Predictor(fitted.mean, fitted.scale, fitted.weights, half_width)
        half_widths[held_out] = half_width
        guesses = {_MODEL: predict_all(models[name], test), **baselines(train, test)}
        for model, guess in guesses.items():
            predicted.setdefault(model, np.empty_like(table.returns))[held_out] = guess
    return _score_table(library, table, predicted, half_widths), models, predicted[_MODEL]


def _score_table(
    library: Library, table: Table, predicted: dict[str, np.ndarray], half_widths: np.ndarray
) -> pd.DataFrame:
    columns = list(library.systems)
    rows = []
    for model, split, subset in _product(predicted, [*np.unique(table.layouts), ALL_LAYOUTS], ("all", "not_stuck")):
        mask = np.ones(len(table.layouts), bool) if split == ALL_LAYOUTS else table.layouts == split
        if subset == "not_stuck":
            mask = mask & ~table.stuck
        part = table.rows(mask)
        groups = _candidate_groups(library, mask, columns)
        baseline = scores(part, predicted["median_system_stuck"][mask], [])["nmae"]
        covered = np.abs(part.returns - predicted[model][mask]) <= half_widths[mask, None]
        found = scores(part, predicted[model][mask], groups)
        rows.append(
            {
                "model": model,
                "variant": _VARIANT,
                "split": split,
                "subset": subset,
                **{name: found[name] for name in ("r2", "mae", "nmae", "spearman")},
                "baseline_nmae": baseline,
                "coverage": covered.mean() if model == _MODEL else np.nan,
                "interval_level": library.params.regressor.interval_level if model == _MODEL else np.nan,
                "rows": found["rows"],
            }
        )
    return pd.DataFrame(rows)


def _product(models: dict[str, np.ndarray], splits: list[str], subsets: tuple[str, ...]) -> list[tuple[str, str, str]]:
    return list(chain.from_iterable(((m, s, subset) for s in splits for subset in subsets) for m in models))


def _candidate_groups(library: Library, mask: np.ndarray, columns: list[str]) -> list[tuple[np.ndarray, int]]:
    """Candidates of each published query in each layout, among the policies where `mask` is True."""
    policies = library.policies[mask]
    groups = []
    for query in QUERIES:
        allowed = policies["setup"].isin(QUERY_CLASSES[query.query_class].setups)
        for seed in policies["seed"].unique():
            groups.append(((allowed & (policies["seed"] == seed)).to_numpy(), columns.index(query.setup)))
    return groups


def _write(library: Library, table: Table, params: Params, folder: Path) -> None:
    score_table, models, predicted = cross_validate(library, table)
    score_table.round(6).to_csv(folder / "cross_validation.csv", index=False)
    settings = params.regressor
    half_width = calibrate(table, settings.ridge_penalty, settings.interval_level)
    seen_all = fit(table, settings.ridge_penalty)
    models[ALL_LAYOUTS] = Predictor(seen_all.mean, seen_all.scale, seen_all.weights, half_width)
    np.savez(
        folder / "models.npz",
        held_out=np.array(list(models)),
        mean=np.stack([model.mean for model in models.values()]),
        scale=np.stack([model.scale for model in models.values()]),
        weights=np.stack([model.weights for model in models.values()]),
        half_width=np.array([model.half_width for model in models.values()]),
    )
    half_widths = np.array([models[name].half_width for name in table.layouts])[:, None]
    pairs = pd.MultiIndex.from_product([library.policies["policy_id"], list(library.systems)])
    pd.DataFrame(
        {
            "policy_id": pairs.get_level_values(0),
            "setup": pairs.get_level_values(1),
            "return": table.returns.ravel(),
            "predicted": predicted.ravel(),
            "lower": (predicted - half_widths).ravel(),
            "upper": (predicted + half_widths).ravel(),
        }
    ).to_parquet(folder / "predictions.parquet", index=False)
