"""The reward regressor: from a policy's successor features to its return under any reward system.

The published regressor learns a policy's own return from its embedding alone, so it cannot tell under which reward the
return is wanted. Rewards are linear in what happens on the way (`envs.rewards.EVENTS`), so here the model predicts how
often each event happens; the weights of a reward system then read the return out of it, also for a system that nobody
trained. The input is psi at the start state, which says what one episode will be like, and the embedding, its mean
over canonical states; the model is a forest of boosted trees.

Where the model comes from is `regressor.source`. `study`: from many layouts, none of them the run's own, fitted by
`./run_all.sh study` and kept in the repository. `library`: from the run's own layouts; then every prediction comes
from a model that never saw the layout, one model per layout left out.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from lever_lib import library as library_stage
from lever_lib import pi2vec
from lever_lib.artifacts import MODEL, Outputs, Stage, file_hash, shown
from lever_lib.envs.features import feature_count
from lever_lib.envs.gridworld import seed_name
from lever_lib.envs.rewards import EVENTS, REWARD_SYSTEMS, RewardSystem
from lever_lib.errors import LeverError, MissingArtifactError
from lever_lib.files import read_csv, read_table
from lever_lib.forest import Forest, checked, fit_forest
from lever_lib.library import Library
from lever_lib.params import Params, resolved
from lever_lib.params import Regressor as Settings
from lever_lib.pi2vec import Embedded, Embeddings
from lever_lib.queries import QUERIES, QUERY_CLASSES

MODEL_FILE = "regressor.safetensors"
TRAINING = "training.npz"  # beside it: what it was fitted on; not in git

STAGE = Stage(
    name="regressor",
    notebook="03_regressor",
    files=("models.safetensors", "predictions.parquet", "cross_validation.csv"),
    params=("grid", "seeds", "regressor"),
    upstream=(library_stage.STAGE, pi2vec.STAGE),
    module="lever_lib.regressor",
    outside=lambda outputs: model_hash(outputs),
)

ALL_LAYOUTS = "all"  # name of the model that layouts get which no model left out
TREES = "trees"
BASELINES = ("median", "median_system", "median_system_stuck")
STRONGEST = BASELINES[-1]
SUBSETS = ("all", "not_stuck")
_DECIMALS = 6  # of predictions: what differs by rounding of the linear algebra alone is a tie, on any machine
_FOLDS = 10  # of layouts, for intervals


class Medians(NamedTuple):
    """What a constant would predict: medians of training returns.

    Attributes:
        overall: float64 ().
        system: by trained reward system, float64 (R,), in the order of `REWARD_SYSTEMS`.
        stuck: by stuck flag and reward system, float64 (2, R).
    """

    overall: np.ndarray
    system: np.ndarray
    stuck: np.ndarray

    def predict(self, table: Table) -> dict[str, np.ndarray]:
        """Predicted returns by name of the baseline, float64 (P, R)."""
        shape, flags = table.returns.shape, table.stuck.astype(int)
        guesses = (np.full(shape, self.overall), np.tile(self.system, (shape[0], 1)), self.stuck[flags])
        return dict(zip(BASELINES, guesses, strict=True))


@dataclass(frozen=True)
class Predictor:
    """A fitted model.

    Attributes:
        forest: from psi at the start and the embedding (2 D inputs) to event counts (E outputs).
        half_widths: of the prediction interval at the params' `interval_level`, by trained reward system.
        medians: baselines of the same training data.
    """

    forest: Forest
    half_widths: dict[str, float]
    medians: Medians

    def predict(self, embedded: Embedded, system: RewardSystem) -> np.ndarray:
        """Predicted returns of B embedded policies under one reward system, float64 (B,)."""
        return np.round(self.forest.predict(inputs_of(embedded)) @ system.weights, _DECIMALS)

    def half_width(self, system: RewardSystem) -> float:
        """Half of the prediction interval's width; of a system that nobody trained, the widest of all."""
        return self.half_widths.get(system.name, max(self.half_widths.values()))


@dataclass(frozen=True)
class Regressor:
    """The models of a spec, read from their files.

    Attributes:
        models: by the layout left out; `ALL_LAYOUTS` for all others.
        predictions: one row per (policy, reward system): return, prediction by a model that never saw the layout, and
            interval.
        cross_validation: one row per model, layout and subset.
    """

    models: dict[str, Predictor]
    predictions: pd.DataFrame
    cross_validation: pd.DataFrame

    def for_layout(self, seed: str) -> Predictor:
        """A model that never saw a layout."""
        return self.models.get(seed, self.models[ALL_LAYOUTS])

    def predict(self, seed: str, embedded: Embedded, system: RewardSystem) -> np.ndarray:
        """Predicted returns of embedded policies of a layout under `system`, float64 (B,)."""
        return self.for_layout(seed).predict(embedded, system)


@dataclass(frozen=True)
class Table:
    """What a regressor learns from and is judged by: P policies under R reward systems.

    Attributes:
        policies: one row per policy: `seed, setup, library, stuck`.
        embedded: their embeddings and psi at the start.
        counts: events of their episodes, float64 (P, E).
        systems: R reward systems.
    """

    policies: pd.DataFrame
    embedded: Embedded
    counts: np.ndarray
    systems: tuple[RewardSystem, ...]

    @cached_property
    def returns(self) -> np.ndarray:
        """Exact returns, float64 (P, R)."""
        return read_out(self.counts, self.systems)

    @property
    def layouts(self) -> np.ndarray:
        """Name of each policy's layout, (P,)."""
        return self.policies["seed"].to_numpy()

    @property
    def stuck(self) -> np.ndarray:
        """Whether a policy gets stuck, bool (P,)."""
        return self.policies["stuck"].to_numpy()

    def rows(self, mask: np.ndarray) -> Table:
        """The policies where `mask` is True."""
        embedded = Embedded(*(part[mask] for part in self.embedded))
        return Table(self.policies[mask].reset_index(drop=True), embedded, self.counts[mask], self.systems)


def inputs_of(embedded: Embedded) -> np.ndarray:
    """What a model reads of B policies, float32 (B, 2 D): psi at the start, then the embedding."""
    return np.hstack([embedded.start, embedded.mean]).astype(np.float32)


def read_out(counts: np.ndarray, systems: Sequence[RewardSystem]) -> np.ndarray:
    """Returns under R reward systems of what events come to, float64 (P, R)."""
    return np.round(counts @ np.stack([system.weights for system in systems]).T, _DECIMALS)


def training_table(library: Library, embeddings: Embeddings) -> Table:
    """Embeddings and events of every policy of a library, under every trained reward system."""
    columns = ["seed", "setup", "library", "stuck"]
    systems = tuple(library.systems.values())
    return Table(library.policies[columns], embeddings.embedded, library.event_counts, systems)


def fit(table: Table, settings: Settings) -> Predictor:
    """A model without intervals; `fit_calibrated` makes one with them."""
    forest = fit_forest(inputs_of(table.embedded), table.counts, settings.trees, settings.leaves)
    return Predictor(forest, {}, medians(table))


def predict_all(predictor: Predictor, table: Table) -> np.ndarray:
    """Predicted returns of all policies of `table` under all its reward systems, float64 (P, R)."""
    return read_out(predictor.forest.predict(inputs_of(table.embedded)), table.systems)


def medians(table: Table) -> Medians:
    """Baselines of training data; where no policy is stuck, or all are, the flag says nothing."""
    system = np.median(table.returns, axis=0)
    by_flag = [table.returns[table.stuck == flag] for flag in (False, True)]
    stuck = np.stack([np.median(part, axis=0) if len(part) else system for part in by_flag])
    return Medians(np.median(table.returns), system, stuck)


def out_of_fold(table: Table, settings: Settings) -> np.ndarray:
    """Predictions of each policy by a model that did not see its layout, float64 (P, R)."""
    names = np.unique(table.layouts)
    predicted = np.empty_like(table.returns)
    for fold in range(min(_FOLDS, len(names))):
        held_out = np.isin(table.layouts, names[fold::_FOLDS])
        predicted[held_out] = predict_all(fit(table.rows(~held_out), settings), table.rows(held_out))
    return predicted


def half_widths(table: Table, predicted: np.ndarray, level: float) -> dict[str, float]:
    """Half-width of a prediction interval per reward system: a quantile of absolute errors on layouts left out.

    A layout is what repeats: policies of one share its difficulties, so layouts are counted, not policies.

    Source: conformal prediction for groups, their errors pooled (Vovk et al., 2005; Dunn et al., 2022).
    """
    errors = np.abs(table.returns - predicted)
    rank = min(1.0, level * (1 + 1 / len(np.unique(table.layouts))))  # of few layouts: the greatest error
    widths = np.quantile(errors, rank, axis=0, method="higher")
    return {system.name: float(width) for system, width in zip(table.systems, widths, strict=True)}


def fit_calibrated(table: Table, settings: Settings) -> Predictor:
    """A model of all layouts of a table; its intervals come from errors on layouts left out in turn."""
    widths = half_widths(table, out_of_fold(table, settings), settings.interval_level)
    return replace(fit(table, settings), half_widths=widths)


def scores(
    table: Table, predicted: np.ndarray, groups: list[tuple[np.ndarray, int]], asked: np.ndarray | None = None
) -> dict[str, float]:
    """How well returns are predicted.

    Args:
        table: the true returns.
        predicted: float (P, R).
        groups: per query and layout, which policies are its candidates (positions) and the column of its system.
        asked: which pairs count for all but the ranking, bool (P, R); by default all.

    Returns:
        `mae`; `nmae`, the same over the mean absolute return; `r2`, the mean over reward systems of R^2 within each;
        `spearman`, the mean rank correlation over groups; `groups`, `constant_groups`: those that were ranked, and
        those whose returns are all alike so that there is nothing to rank; `rows`. A prediction that is constant where
        returns are not ranks nothing: 0. What is not defined is nan.
    """
    from scipy.stats import spearmanr

    true = table.returns
    asked = np.ones(true.shape, bool) if asked is None else asked
    errors = np.where(asked, true - predicted, 0)
    count = asked.sum(axis=0)
    mean = np.where(asked, true, 0).sum(axis=0) / np.maximum(count, 1)
    spread = (np.where(asked, true - mean, 0) ** 2).sum(axis=0)
    defined = spread > 1e-9
    r2 = 1 - (errors**2).sum(axis=0)[defined] / spread[defined]
    ranks, constant = [], 0
    for candidates, column in groups:
        y, guess = true[candidates, column], predicted[candidates, column]
        if len(y) < 2 or np.ptp(y) <= 1e-9:
            constant += 1
        else:
            ranks.append(spearmanr(y, guess).statistic if np.ptp(guess) > 1e-9 else 0.0)
    mae = np.abs(errors).sum() / asked.sum() if asked.any() else np.nan
    return {
        "r2": float(np.mean(r2)) if len(r2) else np.nan,
        "mae": float(mae),
        "nmae": float(mae / np.abs(true[asked]).mean()) if asked.any() else np.nan,
        "spearman": float(np.mean(ranks)) if ranks else np.nan,
        "groups": len(ranks),
        "constant_groups": constant,
        "rows": int(asked.sum()),
    }


def candidate_groups(table: Table) -> list[tuple[np.ndarray, int]]:
    """Candidates of each published query in each layout (positions), and the column of the query's reward system."""
    columns = [system.name for system in table.systems]
    setups = set(table.policies["setup"])
    groups = []
    for query in QUERIES:
        wanted = QUERY_CLASSES[query.query_class].setups
        if not setups.issuperset(wanted):
            continue  # a question that these policies cannot answer
        allowed = table.policies["setup"].isin(wanted).to_numpy()
        for seed in np.unique(table.layouts):
            candidates = np.flatnonzero(allowed & (table.layouts == seed))
            if len(candidates):
                groups.append((candidates, columns.index(query.setup)))
    return groups


SCORE_COLUMNS = [
    *("model", "variant", "split", "subset", "r2", "mae", "nmae", "spearman", "baseline_nmae", "coverage"),
    *("interval_level", "rows", "groups", "constant_groups"),
]


def score_rows(
    table: Table,
    predicted: dict[str, np.ndarray],
    covered: dict[str, np.ndarray],
    level: float,
    variant: str = "all",
    splits: Sequence[str] | None = None,
    asked: dict[str, np.ndarray] | None = None,
) -> list[dict[str, Any]]:
    """Rows of a score table: every model on every split and subset.

    Args:
        table: of layouts that the models never saw.
        predicted: by model, float (P, R); must hold the baselines.
        covered: by model with intervals, whether the return lies within, bool (P, R).
        level: nominal coverage.
        variant: what to call the policies of the table.
        splits: layouts to score one by one; by default all of them. All together are scored in any case.
        asked: by model, the pairs that it can be asked about, bool (P, R); by default all.
    """
    rows = []
    for split in [*(np.unique(table.layouts) if splits is None else splits), ALL_LAYOUTS]:
        for subset in SUBSETS:
            mask = np.ones(len(table.layouts), bool) if split == ALL_LAYOUTS else table.layouts == split
            mask = mask & ~table.stuck if subset == "not_stuck" else mask
            part = table.rows(mask)
            groups = candidate_groups(part)
            for model, guess in predicted.items():
                pairs = (asked or {}).get(model, np.ones(table.returns.shape, bool))[mask]
                baseline = scores(part, predicted[STRONGEST][mask], [], pairs)["nmae"]
                found = scores(part, guess[mask], groups, pairs)
                inside = {"coverage": np.nan, "interval_level": np.nan}
                if model in covered and mask.any():
                    inside = {"coverage": covered[model][mask].mean(), "interval_level": level}
                about = {"model": model, "variant": variant, "split": split, "subset": subset}
                rows.append(about | found | {"baseline_nmae": baseline} | inside)
    return rows


def score_table(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """Rows as a table, its columns in order."""
    return pd.DataFrame(rows)[SCORE_COLUMNS].round(6)


def build_regressor(library: Library, embeddings: Embeddings, outputs: Outputs, overwrite: bool = False) -> Regressor:
    """Fit or take over the models and judge them on the run's layouts, unless the files are whole and up to date."""
    if overwrite or not outputs.fresh(STAGE):
        params, table = library.params, training_table(library, embeddings)
        if params.regressor.source == "study":
            models, predicted = _from_study(table, outputs)
        else:
            models, predicted = leave_one_out(table, params.regressor)
        with outputs.writing(STAGE) as folder:
            _write(library, table, models, predicted, folder)
    return load_regressor(outputs)


def _from_study(table: Table, outputs: Outputs) -> tuple[dict[str, Predictor], dict[str, np.ndarray]]:
    """The study's model, and what it and its baselines predict."""
    predictor = load_model(outputs).predictor
    predicted = {TREES: predict_all(predictor, table)} | predictor.medians.predict(table)
    return {ALL_LAYOUTS: predictor}, predicted


def leave_one_out(table: Table, settings: Settings) -> tuple[dict[str, Predictor], dict[str, np.ndarray]]:
    """One model per layout left out and one of all, and what those that left it out predict of each layout.

    Neither a model nor its interval has seen the layout that was left out.
    """
    predicted: dict[str, np.ndarray] = {}
    models = {}
    for name in np.unique(table.layouts):
        held_out = table.layouts == name
        part = table.rows(held_out)
        models[name] = fit_calibrated(table.rows(~held_out), settings)
        guesses = {TREES: predict_all(models[name], part)} | models[name].medians.predict(part)
        for model, guess in guesses.items():
            predicted.setdefault(model, np.empty_like(table.returns))[held_out] = guess
    widths = half_widths(table, predicted[TREES], settings.interval_level)
    return models | {ALL_LAYOUTS: replace(fit(table, settings), half_widths=widths)}, predicted


def load_regressor(outputs: Outputs) -> Regressor:
    """Open the models on disk.

    Raises:
        MissingArtifactError: if they are absent, damaged or out of date.
    """
    with outputs.reading():
        folder = outputs.require(STAGE)
        models, _ = read_models(folder / STAGE.files[0], outputs.params)
        table = read_csv(folder / "cross_validation.csv", dtype={"split": str})
        return Regressor(models, read_table(folder / "predictions.parquet"), table)


def _write(
    library: Library,
    table: Table,
    models: dict[str, Predictor],
    predicted: dict[str, np.ndarray],
    folder: Path,
) -> None:
    write_models(models, {"spec": library.spec}, folder / STAGE.files[0])
    used = [models.get(name, models[ALL_LAYOUTS]) for name in table.layouts]
    widths = np.array([[model.half_width(system) for system in table.systems] for model in used])
    guess = predicted[TREES]
    covered = {TREES: np.abs(table.returns - guess) <= widths}
    level = library.params.regressor.interval_level
    score_table(score_rows(table, predicted, covered, level)).to_csv(folder / "cross_validation.csv", index=False)
    pairs = pd.MultiIndex.from_product([library.policies["policy_id"], list(library.systems)])
    pd.DataFrame(
        {
            "policy_id": pairs.get_level_values(0),
            "setup": pairs.get_level_values(1),
            "return": table.returns.ravel(),
            "predicted": guess.ravel(),
            "lower": (guess - widths).ravel(),
            "upper": (guess + widths).ravel(),
        }
    ).to_parquet(folder / "predictions.parquet", index=False)


def write_models(models: dict[str, Predictor], about: dict[str, Any], path: Path) -> None:
    """Write models as safetensors: arrays and a few words, nothing that could be run.

    Args:
        models: by name.
        about: what else to remember, as JSON can say it.
        path: of the file.
    """
    tensors = {}
    for name, model in models.items():
        parts = model.forest._asdict() | model.medians._asdict()
        widest = max(model.half_widths.values())  # what a system that came later gets
        parts["half_widths"] = np.array([model.half_widths.get(system, widest) for system in REWARD_SYSTEMS])
        tensors |= {f"{name}/{part}": np.atleast_1d(array) for part, array in parts.items()}
    # A single entry: several would be written in any order, and the same model must be the same bytes.
    facts = {"models": list(models), "systems": list(REWARD_SYSTEMS), "events": list(EVENTS), **about}
    path.write_bytes(save(tensors, {"about": json.dumps(facts, sort_keys=True)}))


def read_models(path: Path, params: Params) -> tuple[dict[str, Predictor], dict[str, Any]]:
    """Models and what else was remembered.

    Raises:
        MissingArtifactError: if the file is absent, or holds anything but models for the grid of `params`.
    """
    try:
        with safe_open(path, "numpy") as stored:
            about = json.loads(stored.metadata()["about"])
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118  not a mapping
        systems = about["systems"]
        if about["events"] != list(EVENTS):
            raise LeverError("it is of other events")
        models = {}
        for name in about["models"]:
            parts = {part: tensors.pop(f"{name}/{part}") for part in (*Forest._fields, *Medians._fields, "half_widths")}
            forest = checked(
                Forest(*(parts[part] for part in Forest._fields)), 2 * feature_count(params.grid.size), len(EVENTS)
            )
            known = len(systems)
            shapes = {"half_widths": (known,), "overall": (1,), "system": (known,), "stuck": (2, known)}
            for part, shape in shapes.items():
                if parts[part].shape != shape or not np.isfinite(parts[part]).all():
                    raise LeverError(f"{part}: must be {shape} finite numbers")
            widths = dict(zip(systems, parts["half_widths"].tolist(), strict=True))
            models[name] = Predictor(forest, widths, _medians_now(parts, systems))
        if tensors or ALL_LAYOUTS not in models:
            raise LeverError("it holds other things")
    except FileNotFoundError:
        raise MissingArtifactError(f"{shown(path)} is missing") from None
    except (SafetensorError, LeverError, LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise MissingArtifactError(f"{shown(path)}: no regressor can be read from it ({error})") from None
    return models, about


def _medians_now(parts: dict[str, np.ndarray], systems: list[str]) -> Medians:
    """Stored medians in the order of `REWARD_SYSTEMS`; of a system that is new since then, the overall one."""
    overall = parts["overall"][0]
    known = dict(zip(systems, np.vstack([parts["system"], parts["stuck"]]).T, strict=True))
    now = np.stack([known.get(name, np.full(3, overall)) for name in REWARD_SYSTEMS], axis=1)
    return Medians(overall, now[0], now[1:])


@dataclass(frozen=True)
class StudyModel:
    """The model that a study fitted.

    Attributes:
        predictor: it.
        layouts: names of those it was fitted on.
        path: of its file.
    """

    predictor: Predictor
    layouts: tuple[str, ...]
    path: Path


def model_facts(params: Params) -> dict[str, Any]:
    """What a model must share with the policies it judges."""
    settings = resolved(params)
    fitted = {name: value for name, value in settings["regressor"].items() if name != "source"}
    return {"grid": settings["grid"], "pi2vec.gamma": settings["pi2vec"]["gamma"], "regressor": fitted}


def model_hash(outputs: Outputs) -> str | None:
    """Checksum of the study's model, if the run uses it and there is one."""
    folder = outputs.lasting(MODEL, (MODEL_FILE,)) if outputs.params.regressor.source == "study" else None
    return folder and file_hash(folder / MODEL_FILE)


def load_model(outputs: Outputs) -> StudyModel:
    """The model that the study of a spec fitted.

    Raises:
        MissingArtifactError: if there is none, or it is damaged.
        LeverError: if it is of another world, or saw one of the run's layouts.
    """
    spec, params = outputs.spec, outputs.params
    folder = outputs.lasting(MODEL, (MODEL_FILE,))
    way_out = f"run ./run_all.sh study {spec}, or set regressor.source to library in params/{spec}.yaml"
    if folder is None:
        raise MissingArtifactError(f"regressor.source = study: {spec} has no model yet; {way_out}")
    path = folder / MODEL_FILE
    try:
        models, about = read_models(path, params)
        layouts = tuple(seed_name(seed) for seed in about["layouts"])
        if not layouts:
            raise LeverError(f"{shown(path)}: does not say which layouts it was fitted on")
    except (LeverError, KeyError, TypeError) as error:
        raise MissingArtifactError(f"{error}; {way_out}") from None
    different = [key for key, value in model_facts(params).items() if about.get(key) != value]
    if different:
        raise LeverError(f"regressor.source = study: {shown(path)} was fitted with another {different[0]}; {way_out}")
    seen = {seed_name(seed) for seed in params.seeds} & set(layouts)
    if seen:
        raise LeverError(
            f"seeds: the model of regressor.source = study was fitted on layout {min(seen)}; choose other seeds, "
            f"or set regressor.source to library in params/{spec}.yaml"
        )
    return StudyModel(models[ALL_LAYOUTS], layouts, path)
