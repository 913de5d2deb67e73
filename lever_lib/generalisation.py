"""How well returns are predicted on layouts that no model saw: candidates, targets, learning curve, transfer.

The regressor of a run (`lever_lib.regressor`) is one of several candidates that are fitted here on the same training
layouts and judged on the same test layouts. They differ in what is predicted (the return itself, with the components
of the reward among the inputs, or how often each event happens, from which a return is read out linearly), in the
model (ridge, boosted trees) and in what they see of a policy (its embedding, psi at the start state, both). Beside
them stands the published one, which predicts a policy's own return from its embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from threadpoolctl import threadpool_limits

from lever_lib.envs.rewards import EVENTS, SINGLE_OBJECTIVES, RewardSystem
from lever_lib.files import read_arrays
from lever_lib.forest import fit_forest
from lever_lib.params import Regressor as Settings
from lever_lib.pi2vec import Embedded
from lever_lib.regressor import (
    STRONGEST,
    TREES,
    Predictor,
    Table,
    candidate_groups,
    fit,
    inputs_of,
    medians,
    predict_all,
    read_out,
    score_rows,
    score_table,
    scores,
)
from lever_lib.seeding import stream
from lever_lib.stats import interval

PUBLISHED = "published"
BY_NETWORK = f"{TREES}, learned embeddings"
SPLITS_SHOWN = (TREES, STRONGEST)  # candidates that are scored layout by layout too
VARIANTS: dict[str, tuple[str, ...]] = {  # whose policies a model is fitted on and asked about
    "base": SINGLE_OBJECTIVES,
    "pair": (*SINGLE_OBJECTIVES, "path-gold", "hazard-lever"),
    "trip": (*SINGLE_OBJECTIVES, "path-gold-hazard"),
}
_PENALTY = 100.0  # of ridge
_CLIP = 3.0  # standard deviations: the endless tail of a stuck policy is an outlier that a linear model runs away on
_CURVE = (2, 4, 8, 15, 30)  # training layouts, beside all of them
_DRAWS = 3  # of which layouts
_SEES: dict[str, Callable[[Embedded], np.ndarray]] = {
    "embedding": lambda embedded: embedded.mean,
    "start": lambda embedded: embedded.start,
    "both": inputs_of,
}
Guess = Callable[[Table], np.ndarray]


def save_table(table: Table, path: Path) -> None:
    """Write a table as `.npz`; `load_table` reads it."""
    columns = {name: values.to_numpy(bool if name == "stuck" else str) for name, values in table.policies.items()}
    embedded = {name: part.astype(np.float32) for name, part in table.embedded._asdict().items()}
    np.savez_compressed(path, **columns, **embedded, counts=table.counts)


def load_table(path: Path, systems: tuple[RewardSystem, ...]) -> Table:
    """Read a table; returns are read out under `systems`."""
    parts = read_arrays(path)
    embedded = Embedded(*(parts.pop(name) for name in Embedded._fields))
    return Table(pd.DataFrame({n: v for n, v in parts.items() if n != "counts"}), embedded, parts["counts"], systems)


def joined(tables: list[Table]) -> Table:
    """Tables of different layouts as one."""
    embedded = Embedded(*(np.concatenate(parts) for parts in zip(*(table.embedded for table in tables), strict=True)))
    policies = pd.concat([table.policies for table in tables], ignore_index=True)
    return Table(policies, embedded, np.concatenate([table.counts for table in tables]), tables[0].systems)


@dataclass(frozen=True)
class Findings:
    """What a study of the regressor found; columns are explained in `lever_lib.columns`.

    Attributes:
        cross_validation: scores of every candidate on the test layouts.
        targets: what the run's regressor was meant to reach, what it reached, with intervals over layouts.
        learning_curve: scores against the number of training layouts.
        systems: R^2 within each reward system.
    """

    cross_validation: pd.DataFrame
    targets: pd.DataFrame
    learning_curve: pd.DataFrame
    systems: pd.DataFrame


def find_out(
    train: Table, test: Table, learned: Table, model: Predictor, settings: Settings, root_seed: int
) -> Findings:
    """Fit every candidate on `train` and judge all on `test`.

    Args:
        train: policies of the training layouts.
        test: of other layouts.
        learned: the same policies, embedded by a network that saw their transitions.
        model: the run's regressor, fitted on `train`.
        settings: of it.
        root_seed: of the bootstrap and of which layouts a learning curve draws.
    """
    predicted = predict_all(model, test)
    widths = np.array([model.half_width(system) for system in test.systems])
    covered = np.abs(test.returns - predicted) <= widths
    guesses = {TREES: predicted} | model.medians.predict(test)
    level = settings.interval_level
    rows = score_rows(test, {name: guesses[name] for name in SPLITS_SHOWN}, {TREES: covered}, level)
    rows = [row for row in rows if row["split"] != "all"]
    others = {name: guess(train)(test) for name, guess in candidates(settings)}
    others[BY_NETWORK] = predict_all(model, learned)
    asked = {PUBLISHED: _own(test)}
    rows += score_rows(test, guesses | others, {TREES: covered}, level, splits=(), asked=asked)
    for variant, setups in VARIANTS.items():
        rows += _variant_rows(variant, setups, train, test, predicted, settings)
    return Findings(
        score_table(rows),
        _targets(test, predicted, guesses[STRONGEST], covered, level, root_seed),
        _learning_curve(train, test, settings, root_seed),
        _systems(test, predicted, guesses[STRONGEST]),
    )


def candidates(settings: Settings) -> Iterator[tuple[str, Callable[[Table], Guess]]]:
    """Name and fit of each candidate but the run's own; a fit takes a table and gives predictions (P, R)."""
    for seen, see in _SEES.items():
        yield f"ridge-returns-{seen}", lambda table, see=see: _fit_returns(table, see, _ridge())
        yield f"ridge-events-{seen}", lambda table, see=see: _fit_events(table, see)
        yield f"trees-returns-{seen}", lambda table, see=see: _fit_returns(table, see, _trees(300, 31, 0.1))
        if seen != "both":
            yield f"trees-events-{seen}", lambda table, see=see: _fit_tree_events(table, see, settings)
    yield PUBLISHED, _fit_published


def _standardised(see: Callable[[Embedded], np.ndarray], table: Table) -> Callable[[Table], np.ndarray]:
    """What a linear model sees: standardised over the training table, and clipped."""
    seen = see(table.embedded).astype(np.float64)
    mean, scale = seen.mean(axis=0), seen.std(axis=0)
    scale = np.where(scale > 1e-9, scale, 1)
    return lambda other: np.clip((see(other.embedded) - mean) / scale, -_CLIP, _CLIP)


def _ridge():  # noqa: ANN202  the types of scikit-learn are imported where they are needed
    from sklearn.linear_model import Ridge
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), Ridge(alpha=_PENALTY))


def _trees(trees: int, leaves: int, rate: float):  # noqa: ANN202
    from sklearn.ensemble import HistGradientBoostingRegressor

    return HistGradientBoostingRegressor(
        max_iter=trees, max_leaf_nodes=leaves, learning_rate=rate, early_stopping=False, random_state=0
    )


def _fit_returns(table: Table, see: Callable[[Embedded], np.ndarray], model: object) -> Guess:
    """Return from what is seen, the components of the reward, and for a linear model their products."""
    view = _standardised(see, table)
    linear = hasattr(model, "steps")

    def design(other: Table) -> np.ndarray:
        """A row per policy and reward system."""
        z, c = view(other), np.stack([system.indicator for system in other.systems])
        if not linear:
            return np.hstack([np.repeat(z, len(c), axis=0), np.tile(c, (len(z), 1))])
        z, c = (np.hstack([part, np.ones((len(part), 1))]) for part in (z, c))
        return np.einsum("pd,rc->prdc", z, c).reshape(len(z) * len(c), -1)

    with threadpool_limits(1):
        model.fit(design(table), table.returns.ravel())
    return lambda other: model.predict(design(other)).reshape(other.returns.shape)


def _fit_events(table: Table, see: Callable[[Embedded], np.ndarray]) -> Guess:
    """The successor-feature-aware linear read-out: events linear in psi, returns linear in events."""
    view = _standardised(see, table)
    with threadpool_limits(1):
        model = _ridge().fit(view(table), table.counts)
    return lambda other: read_out(model.predict(view(other)), other.systems)


def _fit_tree_events(table: Table, see: Callable[[Embedded], np.ndarray], settings: Settings) -> Guess:
    """The run's model with less to see."""
    forest = fit_forest(see(table.embedded).astype(np.float32), table.counts, settings.trees, settings.leaves)
    return lambda other: read_out(forest.predict(see(other.embedded).astype(np.float32)), other.systems)


def _fit_published(table: Table) -> Guess:
    """The published regressor, for whatever reward."""
    predict = published_regressor(table)
    return lambda other: np.repeat(predict(other.embedded)[:, None], len(other.systems), axis=1)


def published_regressor(table: Table) -> Callable[[Embedded], np.ndarray]:
    """A policy's own return from its embedding, with the published settings; the same under every reward."""
    from sklearn.ensemble import HistGradientBoostingRegressor

    model = HistGradientBoostingRegressor(
        max_iter=300, max_depth=3, learning_rate=0.05, l2_regularization=1.0, random_state=0
    )
    with threadpool_limits(1):
        model.fit(table.embedded.mean, table.returns[_own(table)])
    return lambda embedded: model.predict(embedded.mean)


def _own(table: Table) -> np.ndarray:
    """Pairs of a policy and the reward system that it was trained under, bool (P, R)."""
    names = np.array([system.name for system in table.systems])
    return table.policies["setup"].to_numpy()[:, None] == names[None, :]


def _variant_rows(
    variant: str, setups: tuple[str, ...], train: Table, test: Table, one_for_all: np.ndarray, settings: Settings
) -> list[dict]:
    """Scores on the policies of a retrieval pool, of models fitted on that pool alone and of the one for all."""
    inside = test.policies["setup"].isin(setups).to_numpy()
    pool = train.rows(train.policies["setup"].isin(setups).to_numpy())
    part = test.rows(inside)
    own = predict_all(fit(pool, settings), part)
    guesses = {TREES: own, "one for all": one_for_all[inside], PUBLISHED: _fit_published(pool)(part)}
    guesses |= medians(pool).predict(part)
    return score_rows(part, guesses, {}, settings.interval_level, variant, (), {PUBLISHED: _own(part)})


def _targets(
    test: Table, predicted: np.ndarray, baseline: np.ndarray, covered: np.ndarray, level: float, root_seed: int
) -> pd.DataFrame:
    """What the regressor was to reach on policies that are not stuck, with bootstrap intervals over layouts."""
    names = np.unique(test.layouts)
    sums: dict[str, list[np.ndarray]] = {"nmae_over_baseline": [], "r2": [], "spearman": [], "coverage": []}
    middle = test.returns[~test.stuck].mean(axis=0)  # squares of what is far from 0 would cancel
    for name in names:
        mask = (test.layouts == name) & ~test.stuck
        part, guess = test.rows(mask), predicted[mask]
        y, error = part.returns, part.returns - guess
        ranking = scores(part, guess, candidate_groups(part))
        ranked = ranking["groups"]
        sums["nmae_over_baseline"].append(np.array([np.abs(error).sum(), np.abs(y - baseline[mask]).sum()]))
        off = y - middle
        moments = (np.full(y.shape[1], len(y)), off.sum(axis=0), (off**2).sum(axis=0), (error**2).sum(axis=0))
        sums["r2"].append(np.concatenate(moments))
        sums["spearman"].append(np.array([ranking["spearman"] * ranked if ranked else 0.0, ranked]))
        sums["coverage"].append(np.array([covered[mask].sum(), covered[mask].size]))
    goals = {
        "nmae_over_baseline": ("at most", 0.5, _ratio),
        "r2": ("at least", 0.8, _mean_r2),
        "spearman": ("at least", 0.9, _ratio),
        "coverage": ("within 0.03 of", level, _ratio),
    }
    rows = []
    for target, (rule, goal, statistic) in goals.items():
        rng = stream(root_seed, "bootstrap", target)
        value, low, high = interval(np.stack(sums[target]), rng, statistic)
        met = {"at most": value <= goal, "at least": value >= goal}.get(rule, abs(value - goal) <= 0.03)
        rows.append((target, rule, goal, value, low, high, met, len(names)))
    columns = ["target", "rule", "goal", "value", "low", "high", "met", "layouts"]
    return pd.DataFrame(rows, columns=columns).round(6)


def _ratio(sums: np.ndarray) -> np.ndarray:
    """Of the totals over layouts, (..., L, 2)."""
    totals = sums.sum(axis=-2)
    return totals[..., 0] / totals[..., 1]


def _mean_r2(sums: np.ndarray) -> np.ndarray:
    """Mean over reward systems of R^2, from moments by layout (..., L, 4 R); a constant system does not count."""
    totals = sums.sum(axis=-2)
    count, y, squares, errors = np.moveaxis(totals.reshape(*totals.shape[:-1], 4, -1), -2, 0)
    spread = squares - y**2 / np.maximum(count, 1)
    defined = spread > 1e-9 * np.maximum(squares, 1)
    r2 = np.where(defined, 1 - errors / np.where(defined, spread, 1), 0)
    return r2.sum(axis=-1) / np.where(defined.any(axis=-1), defined.sum(axis=-1), np.nan)


def _learning_curve(train: Table, test: Table, settings: Settings, root_seed: int) -> pd.DataFrame:
    """Scores of the run's model on policies not stuck, against the number of layouts it was fitted on."""
    names = np.unique(train.layouts)
    moving = test.rows(~test.stuck)
    groups = candidate_groups(moving)
    rows = []
    for count in sorted({*(count for count in _CURVE if count < len(names)), len(names)}):
        for draw in range(_DRAWS if count < len(names) else 1):
            rng = stream(root_seed, "learning curve", count, draw)
            part = train.rows(np.isin(train.layouts, rng.choice(names, count, replace=False)))
            model = fit(part, settings)
            found = scores(moving, predict_all(model, moving), groups)
            baseline = scores(moving, model.medians.predict(moving)[STRONGEST], [])["nmae"]
            rows.append((count, draw, found["nmae"], baseline, found["r2"], found["spearman"]))
    return pd.DataFrame(rows, columns=["layouts", "draw", "nmae", "baseline_nmae", "r2", "spearman"]).round(6)


def _systems(test: Table, predicted: np.ndarray, baseline: np.ndarray) -> pd.DataFrame:
    """Where R^2 comes from: each reward system by itself, policies not stuck."""
    mask = ~test.stuck
    y, error = test.returns[mask], (test.returns - predicted)[mask]
    spread = ((y - y.mean(axis=0)) ** 2).sum(axis=0)
    return pd.DataFrame(
        {
            "setup": [system.name for system in test.systems],
            "r2": 1 - (error**2).sum(axis=0) / np.where(spread > 1e-9, spread, np.nan),
            "mae": np.abs(error).mean(axis=0),
            "baseline_mae": np.abs(y - baseline[mask]).mean(axis=0),
            "spread": y.std(axis=0),
            "worst_error": np.abs(error).max(axis=0),
        }
    ).round(6)


def transfer_rows(test: Table, models: dict[str, tuple[Predictor, int]], own: str) -> pd.DataFrame:
    """How models of other grid sizes do on these layouts, beside the model of this size; policies not stuck.

    A path is about as long as the grid is wide, and so is whatever adds up along it. `scaled` says whether that was
    used: successor features were brought to the model's size, and the counts of steps, bumps and hazards passed back.

    Args:
        test: of layouts that none of the models saw.
        models: by spec they were fitted for, with its grid size.
        own: which of them is of this size.
    """
    moving = test.rows(~test.stuck)
    groups = candidate_groups(moving)
    baseline = scores(moving, models[own][0].medians.predict(moving)[STRONGEST], [])["nmae"]
    along = np.isin(EVENTS, ("bump", "step", "hazard_neighbour"))
    rows = []
    for name, (model, size) in models.items():
        for scaled in (False, True) if name != own else (False,):
            ratio = models[own][1] / size if scaled else 1.0
            counts = model.forest.predict(inputs_of(moving.embedded) / np.float32(ratio))
            predicted = read_out(np.where(along, counts * ratio, counts), moving.systems)
            found = scores(moving, predicted, groups)
            rows.append((name, name == own, scaled, found["nmae"], baseline, found["r2"], found["spearman"]))
    columns = ["fitted_on", "own", "scaled", "nmae", "baseline_nmae", "r2", "spearman"]
    return pd.DataFrame(rows, columns=columns).round(6)
