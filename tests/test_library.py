import shutil

import numpy as np
import pytest

from lever_lib.artifacts import Outputs, file_hash
from lever_lib.errors import LeverError, MissingArtifactError
from lever_lib.library import load_library
from lever_lib.planning import optimum
from lever_lib.policies.base import CellPolicy
from lever_lib.rollout import evaluate
from tests.oracle import follow

COLUMNS = [
    "policy_id",
    "spec",
    "source",
    "setup",
    "library",
    "seed",
    "snapshot",
    "episodes",
    "description",
    "return",
    "optimum",
    "stuck",
    "q_index",
]


def test_one_row_per_run_and_snapshot(smoke):
    table = smoke.library.policies
    assert table.columns.tolist() == COLUMNS
    assert len(table) == 2 * 3 * 8 * 5
    assert table["policy_id"].is_unique
    assert table["q_index"].tolist() == list(range(len(table)))
    assert set(table["seed"]) == {"0000", "0001", "0002"}
    assert smoke.library.q_tables.shape == smoke.library.visits.shape == (240, 36, 4)
    timings = smoke.library.timings
    assert timings.columns.tolist() == ["policy_id", "train_seconds", "energy_joules", "energy_label"]
    assert set(timings["energy_label"]) == {"estimated"}


def test_returns_and_optima_are_exact(smoke):
    library = smoke.library
    for row in library.policies.sample(20, random_state=0).itertuples():
        layout, system = library.layout(row.seed), library.system(row.setup)
        value, stuck = follow(layout, library.actions[row.q_index], system.components)
        assert row._10 == pytest.approx(value, abs=1e-6)
        assert row.stuck == stuck
        assert row.optimum == optimum(layout, system).return_


def test_every_policy_under_every_reward_system(smoke):
    library = smoke.library
    assert library.returns.shape == (240, 8)
    own = [list(library.systems).index(setup) for setup in library.policies["setup"]]
    assert (library.returns[np.arange(240), own] == library.policies["return"]).all()
    again = evaluate(CellPolicy(library.actions[7]), library.layout(0), library.system("hazard-lever"))
    assert library.returns[7, list(library.systems).index("hazard-lever")] == again.return_


def test_episodes_survive_the_file(smoke):
    library = smoke.library
    assert len(library.episodes) == 240
    for row, episode in zip(library.policies.itertuples(), library.episodes, strict=True):
        layout = library.layout(row.seed)
        assert episode.cells[0] == 0
        assert episode.golds.shape == (len(episode.cells), len(layout.golds))
        assert len(episode.actions) == len(episode.cells) - 1
        moved = layout.transitions.next_cell[episode.cells[:-1], episode.actions]
        assert (moved == episode.cells[1:]).all()
        assert episode.golds[0].all()


def test_layouts_survive_the_file(smoke, smoke_outputs):
    with np.load(smoke_outputs.folder / "library" / "layouts.npz") as stored:
        assert stored["seeds"].tolist() == ["0000", "0001", "0002"]
        flags = [smoke.library.layout(int(seed)).lever_then_exit for seed in stored["seeds"]]
        assert stored["lever_then_exit"].tolist() == flags


def test_what_is_not_there_is_named(smoke, smoke_params, tmp_path):
    with pytest.raises(LeverError, match="seeds: 0000, 0001, 0002"):
        smoke.library.layout(7)
    with pytest.raises(LeverError, match="X1, X5"):
        smoke.library.check_library("X10")
    with pytest.raises(MissingArtifactError, match="notebook 01_generation"):
        load_library(smoke_params, Outputs("smoke", smoke_params, tmp_path))


@pytest.mark.parametrize(
    ("file", "value", "rule"), [("q_tables.npy", np.nan, "must be finite"), ("visits.npy", -1, "must be counts")]
)
def test_tables_that_no_training_makes_are_refused(smoke, smoke_outputs, smoke_params, tmp_path, file, value, rule):
    """Made up together with their checksums."""
    shutil.copytree(smoke_outputs.folder, tmp_path / "smoke")
    outputs = Outputs("smoke", smoke_params, tmp_path)
    path = outputs.folder / "library" / file
    table = np.load(path)
    table[7, 3, 1] = value
    np.save(path, table)
    entry = outputs.manifest()["library"]
    outputs.enter("library", entry | {"files": entry["files"] | {f"library/{file}": file_hash(path)}})
    with pytest.raises(MissingArtifactError, match=f"{file}: {rule}; run notebook 01_generation"):
        load_library(smoke_params, outputs)
