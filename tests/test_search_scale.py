"""The measurement at toy size, in this process; then that processes of their own do the same, and what stays."""

import json
import shutil
from dataclasses import replace

import faiss
import numpy as np
import pandas as pd
import pytest

from lever_lib import artifacts, search_scale
from lever_lib.artifacts import Outputs, is_published, read_manifest
from lever_lib.errors import LeverError, MissingArtifactError
from lever_lib.params import Scale
from lever_lib.search_scale import FILTERS, Size, find_scale, made_up_queries, measure, run_scale, write_vectors
from lever_lib.vectors import KINDS

COUNTS = (300, 600)
KEYS = ["policies", "sentences", "policies_per_sentence", "kind", "filter"]


def here(task, **job):
    """What `_apart` does, without its process."""
    return json.loads(json.dumps(search_scale._TASKS[task](**job)))


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search_scale, "_apart", here)
        folder = tmp_path_factory.mktemp("vectors")
        tables = measure(COUNTS, folder, 0)
    assert list(folder.iterdir()) == [], "nothing is left there"
    return tables


def test_columns_and_rows(measured):
    table, timings = measured
    assert list(table) == [*KEYS, "recall_at_10", "index_bytes"]
    times = ["build_seconds", "load_seconds", "build_peak_bytes", "search_peak_bytes", "p50_ms", "p99_ms"]
    assert list(timings) == [*KEYS, *times]
    assert table[KEYS].equals(timings[KEYS])
    assert len(table) == len(COUNTS) * 2 * len(KINDS) * len(FILTERS)
    assert not table.duplicated(KEYS).any()
    sizes = table[["policies", "policies_per_sentence", "sentences"]].drop_duplicates()
    assert sizes.to_numpy().tolist() == [[300, 1, 300], [300, 15, 20], [600, 1, 600], [600, 15, 40]]


def test_values_are_possible(measured):
    table, timings = measured
    assert (table.query("kind == 'flat'")["recall_at_10"] == 1).all()
    assert table["recall_at_10"].between(0.5, 1).all()
    assert (table["index_bytes"] > 4 * 384 * table["sentences"]).all()
    assert (timings["p99_ms"] >= timings["p50_ms"]).all()
    assert (timings.drop(columns=["kind", "filter"]) > 0).all().all()
    assert timings["search_peak_bytes"].between(10**7, 10**11).all()


def test_the_same_table_twice(measured, monkeypatch, tmp_path):
    monkeypatch.setattr(search_scale, "_apart", here)
    pd.testing.assert_frame_equal(measure(COUNTS, tmp_path, 0)[0], measured[0])


def test_fewer_sentences_are_the_first_of_more(tmp_path, monkeypatch):
    monkeypatch.setattr(search_scale, "_CHUNK", 200)
    for count in (300, 700):
        write_vectors(tmp_path / f"{count}.npy", count, 0)
    some, more = (np.load(tmp_path / f"{count}.npy") for count in (300, 700))
    assert (some == more[:300]).all()
    assert len(np.unique(more, axis=0)) == 700
    np.testing.assert_allclose(np.linalg.norm(more, axis=1), 1, atol=1e-6)
    write_vectors(tmp_path / "other.npy", 300, 1)
    assert (np.load(tmp_path / "other.npy") != some).any()


def test_questions_are_like_sentences_and_none_of_them(tmp_path):
    write_vectors(tmp_path / "vectors.npy", 20_000, 0)
    cosines = np.sort(made_up_queries(0) @ np.load(tmp_path / "vectors.npy").T)[:, ::-1]
    assert cosines[:, 0].max() < 0.99
    assert 0.58 < cosines[:, 0].mean() < 0.68, "0.74 at a million"
    assert abs(cosines.mean()) < 0.05, "most sentences are about something else"


def test_a_filter_is_one_percent_of_the_policies():
    alone, shared = Size(3000, 1), Size(3000, 15)
    assert shared.sentences == 200
    assert Size(3001, 15).sentences == 201
    assert alone.allowed("none", 0) is None
    assert alone.allowed("one_layout", 0).tolist() == list(range(1500, 1530))
    assert shared.allowed("one_layout", 0).tolist() == [100, 101]
    drawn = alone.allowed("1 %", 0)
    assert len(drawn) == 30
    assert (np.diff(drawn) > 0).all()
    assert shared.allowed("1 %", 0).tolist() == np.unique(drawn // 15).tolist()
    assert (alone.allowed("1 %", 1) != drawn).any()


def test_recall_counts_what_there_is():
    true = np.array([[4, 5, -1, -1], [6, 7, 8, 9]])
    assert search_scale._recall(np.array([[5, 1, -1, -1], [9, 8, 7, 6]]), true) == 5 / 6


def test_threads_are_given_back():
    before = faiss.omp_get_max_threads()
    with search_scale._one_thread():
        assert faiss.omp_get_max_threads() == 1
    assert faiss.omp_get_max_threads() == before


def test_a_process_of_its_own_says_the_same_and_what_goes_wrong(tmp_path):
    write_vectors(tmp_path / "vectors.npy", 100, 0)
    job = {"vectors": str(tmp_path / "vectors.npy"), "count": 100, "kind": "hnsw", "seed": 0}
    apart = search_scale._apart("build", index=str(tmp_path / "one"), **job)
    assert apart["build_peak_bytes"] > 10**7
    here("build", index=str(tmp_path / "other"), **job)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "other").read_bytes()
    with pytest.raises(LeverError, match=r"search at scale: build .* failed: .*No such file") as caught:
        search_scale._apart("build", index="nowhere", **job | {"vectors": "absent.npy"})
    assert "\n" not in str(caught.value)


@pytest.fixture
def run(smoke_params, tmp_path, monkeypatch, measured):
    """Outputs of a spec that asks for a measurement, which is not done again here."""
    asked = []

    def instead(counts, folder, seed):
        asked.append((counts, seed))
        assert folder.is_dir()
        return measured

    monkeypatch.setattr(search_scale, "measure", instead)
    outputs = Outputs("smoke", replace(smoke_params, scale=Scale(vectors=COUNTS)), tmp_path / "own")
    return outputs, run_scale(outputs), asked


def test_it_stays_and_is_not_done_twice(run, measured, smoke_params):
    outputs, found, asked = run
    for table, expected in zip(found, measured, strict=True):
        pd.testing.assert_frame_equal(table, expected.round(6))
    assert asked == [(COUNTS, smoke_params.root_seed)]
    entry = read_manifest(outputs.folder)["scale"]
    assert sorted(entry["files"]) == ["scale/recall.csv", "scale/recall_timings.csv"]
    assert all(is_published(name) for name in entry["files"])
    run_scale(outputs)
    assert len(asked) == 1
    run_scale(Outputs("smoke", replace(outputs.params, root_seed=7), outputs.folder.parent))
    assert len(asked) == 2, "another seed"


def test_nothing_is_done_where_nobody_asks(smoke_params, tmp_path):
    outputs = Outputs("smoke", replace(smoke_params, scale=Scale()), tmp_path)
    assert run_scale(outputs) is None
    assert find_scale(outputs) is None
    assert not outputs.folder.exists()


def test_another_root_reads_it_from_the_repository(run, monkeypatch, tmp_path):
    outputs, found, _ = run
    shutil.copytree(outputs.folder, tmp_path / "outputs" / "smoke")
    monkeypatch.setattr(artifacts, "ROOT", tmp_path)
    elsewhere = Outputs("smoke", outputs.params, tmp_path / "elsewhere")
    assert find_scale(elsewhere)[0].equals(found[0])
    (tmp_path / "outputs" / "smoke" / "scale" / "recall.csv").write_text("harmed\n")
    with pytest.raises(MissingArtifactError, match=r"recall\.csv is missing or damaged; run"):
        find_scale(elsewhere)
