"""Every kind of index against a plain loop; what is damaged is refused; the same input gives the same bytes."""

import faiss
import numpy as np
import pytest

from lever_lib import vectors
from lever_lib.errors import LeverError
from lever_lib.vectors import KINDS, appended, build, kind_for, load, nearest, save

COUNT, WIDTH = 1_500, 24


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def rows():
    """Vectors around 30 centres; the last 20 are copies of the first."""
    rng = np.random.default_rng(0)
    found = unit(rng.normal(size=(30, WIDTH))[rng.integers(30, size=COUNT)] + 0.6 * rng.normal(size=(COUNT, WIDTH)))
    found[-20:] = found[:20]
    return found


@pytest.fixture(scope="module")
def queries(rows):
    rng = np.random.default_rng(1)
    return np.vstack([rows[:3], unit(rows[100:110] + 0.1 * rng.normal(size=(10, WIDTH)))])


@pytest.fixture(scope="module")
def indexes(rows):
    return {kind: build(rows, kind) for kind in KINDS}


@pytest.fixture
def approximate(monkeypatch):
    """Let small indexes be searched as large ones are."""
    for name in ("_FEW", "_FEW_IVF"):
        monkeypatch.setattr(vectors, name, 20)
    monkeypatch.setattr(vectors, "_SMALL_SHARE", 0.02)


def brute(rows, queries, k, allowed=None):
    """What `nearest` promises, one query and one vector after the other."""
    cosines, ids = np.full((len(queries), k), -np.inf, np.float32), np.full((len(queries), k), -1)
    for place, query in enumerate(queries):
        pairs = [(-faiss.fvec_inner_product(*map(faiss.swig_ptr, (query, rows[row])), WIDTH), row) for row in allowed]
        for column, (negative, row) in enumerate(sorted(pairs)[:k]):
            cosines[place, column], ids[place, column] = -negative, row
    return cosines, ids


SUBSETS = {
    "nothing": np.array([], dtype=np.int64),
    "one": np.array([1490]),
    "few": np.array([0, 3, 7, 700, 1480, 1483]),
    "contiguous": np.arange(90, 130),
    "many": np.arange(0, COUNT, 2),
    "all": np.arange(COUNT),
}


def same(found, expected):
    assert (found[1] == expected[1]).all()
    assert (found[0] == expected[0]).all()
    assert (found[0].dtype, found[1].dtype) == (np.float32, np.int64)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("subset", SUBSETS)
def test_equals_brute_force_under_any_filter(indexes, rows, queries, kind, subset):
    for k in (1, 10):
        same(nearest(indexes[kind], queries, k, SUBSETS[subset]), brute(rows, queries, k, SUBSETS[subset]))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("subset", [None, "all", "many", "contiguous"])
def test_so_does_what_only_looks_at_a_part(indexes, rows, queries, kind, subset, approximate):
    allowed = None if subset is None else SUBSETS[subset]
    everything = SUBSETS["all"] if allowed is None else allowed
    same(nearest(indexes[kind], queries, 5, allowed), brute(rows, queries, 5, everything))


@pytest.mark.parametrize("kind", KINDS)
def test_ties_go_by_id(indexes, rows, kind, approximate):
    cosines, ids = nearest(indexes[kind], rows[:20], 2)
    assert ids.tolist() == [[row, COUNT - 20 + row] for row in range(20)]
    assert (cosines[:, 0] == cosines[:, 1]).all()
    _, alone = nearest(indexes[kind], rows[:20], 1, SUBSETS["all"])
    assert alone[:, 0].tolist() == list(range(20))


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_there_is_minus_one(indexes, queries, kind):
    cosines, ids = nearest(indexes[kind], queries, 9, SUBSETS["few"])
    assert (ids[:, 6:] == -1).all()
    assert (cosines[:, 6:] == -np.inf).all()
    assert (np.sort(ids[:, :6]) == SUBSETS["few"]).all()
    assert nearest(indexes[kind], queries, COUNT + 1)[1].min(axis=0).tolist()[-1] == -1


def test_a_walk_that_finds_too_little_is_made_good(indexes, rows, queries, approximate, monkeypatch):
    """Ids far from the queries: the graph is left before they are reached."""
    monkeypatch.setattr(vectors, "_SEARCH_WIDTH", 1)
    monkeypatch.setattr(vectors, "_ALLOWED_WIDTH", 0)
    monkeypatch.setattr(vectors, "_SPARE", 0)
    far = np.sort(np.argsort(rows @ queries[0])[:200])
    hits = indexes["hnsw"].search(
        queries[:1], 3, params=faiss.SearchParametersHNSW(efSearch=1, sel=faiss.IDSelectorBatch(far))
    )[1]
    assert (hits == -1).any(), "or this test tests nothing"
    same(nearest(indexes["hnsw"], queries[:1], 3, far), brute(rows, queries[:1], 3, far))


def test_auto_is_flat_while_that_is_quick(rows):
    assert [kind_for(count) for count in (1, 20_000, 20_001, 10**6)] == ["flat", "flat", "hnsw", "hnsw"]
    assert isinstance(build(rows), faiss.IndexFlatIP)


@pytest.mark.parametrize("kind", KINDS)
def test_same_input_same_bytes_with_any_number_of_threads_and_from_a_file(rows, kind, tmp_path, monkeypatch):
    monkeypatch.setattr(vectors, "_CHUNK", 400)
    np.save(tmp_path / "rows.npy", rows)
    mapped = np.load(tmp_path / "rows.npy", mmap_mode="r")
    threads = faiss.omp_get_max_threads()
    try:
        content = []
        for count, source in ((1, rows), (2, rows), (3, mapped)):
            faiss.omp_set_num_threads(count)
            content.append(faiss.serialize_index(build(source, kind)).tobytes())
    finally:
        faiss.omp_set_num_threads(threads)
    assert content[0] == content[1] == content[2]
    assert (faiss.serialize_index(build(rows, kind, seed=1)).tobytes() != content[0]) == (kind != "flat")


@pytest.mark.parametrize("kind", KINDS)
def test_appending_leaves_the_old_one_as_it_was(rows, queries, kind, tmp_path):
    old = build(rows[:1000], kind)
    before = faiss.serialize_index(old).tobytes()
    new = appended(old, rows[1000:])
    assert faiss.serialize_index(old).tobytes() == before
    assert (old.ntotal, new.ntotal) == (1000, COUNT)
    same(nearest(new, queries, 10), brute(rows, queries, 10, SUBSETS["all"]))
    save(old, tmp_path / "old.faiss")
    later = appended(load(tmp_path / "old.faiss"), rows[1000:])
    assert faiss.serialize_index(later).tobytes() == faiss.serialize_index(new).tobytes(), "a file in between"


@pytest.mark.parametrize("kind", KINDS)
def test_an_index_survives_its_file(indexes, rows, queries, kind, tmp_path, approximate):
    save(indexes[kind], tmp_path / "index.faiss")
    again = load(tmp_path / "index.faiss")
    assert type(again) is type(indexes[kind])
    same(nearest(again, queries, 5), nearest(indexes[kind], queries, 5))
    same(nearest(again, queries, 5, SUBSETS["few"]), nearest(indexes[kind], queries, 5, SUBSETS["few"]))


@pytest.mark.parametrize("kind", KINDS)
def test_a_handful_of_vectors(rows, kind, capfd):
    for count in (1, 2, 40):
        assert nearest(build(rows[:count], kind), rows[:1], 1)[1].tolist() == [[0]]
    assert capfd.readouterr() == ("", "")


def refused(path, message):
    with pytest.raises(LeverError, match=message) as caught:
        load(path)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(str(path))


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_cut_off_is_refused(indexes, kind, tmp_path):
    save(indexes[kind], tmp_path / "index.faiss")
    whole = (tmp_path / "index.faiss").read_bytes()
    for length in (0, 3, 36, 37, 45, 1_000, len(whole) // 2, len(whole) - 1):
        (tmp_path / "index.faiss").write_bytes(whole[:length])
        refused(tmp_path / "index.faiss", "must hold a FAISS index|cannot be in its|cut off or damaged")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("place", [4, 8, 14, 37, 44])
def test_absurd_sizes_are_refused_before_memory_is_taken(indexes, kind, place, tmp_path):
    save(indexes[kind], tmp_path / "index.faiss")
    harmed = bytearray((tmp_path / "index.faiss").read_bytes())
    harmed[place] ^= 0x7F
    (tmp_path / "index.faiss").write_bytes(harmed)
    refused(tmp_path / "index.faiss", "cannot be in its|cut off or damaged")
    assert faiss.get_deserialization_vector_byte_limit() == 1 << 40, "limits are as before"


def test_other_files_are_refused(rows, tmp_path):
    path = tmp_path / "index.faiss"
    path.write_bytes(b"nothing of the kind" * 10)
    refused(path, "must hold a FAISS index of kind flat, hnsw, ivf")
    for other in (
        faiss.IndexFlatL2(WIDTH),
        faiss.IndexHNSWSQ(WIDTH, faiss.ScalarQuantizer.QT_8bit, 8, faiss.METRIC_INNER_PRODUCT),
        faiss.IndexIDMap(faiss.IndexFlatIP(WIDTH)),
    ):
        other.train(rows)
        faiss.write_index(other, str(path))
        refused(path, "must hold a FAISS index of kind flat, hnsw, ivf")
    faiss.write_index(faiss.IndexHNSWFlat(WIDTH, 8), str(path))
    refused(path, "must be one by inner product")
    with pytest.raises(OSError, match="absent"):
        load(tmp_path / "absent")
    with pytest.raises(OSError, match="absent"):
        save(faiss.IndexFlatIP(WIDTH), tmp_path / "absent" / "index.faiss")


def test_an_ivf_index_from_elsewhere_is_taken_unless_its_ids_are_no_rows(rows, queries, tmp_path):
    path = tmp_path / "index.faiss"
    index = faiss.IndexIVFFlat(faiss.IndexFlatIP(WIDTH), WIDTH, 4, faiss.METRIC_INNER_PRODUCT)
    index.train(rows)
    index.add(rows)
    faiss.write_index(index, str(path))
    same(nearest(load(path), queries, 5), brute(rows, queries, 5, SUBSETS["all"]))
    index.set_direct_map_type(faiss.DirectMap.Array)
    index.direct_map.array.at(3)  # it is there
    places = faiss.vector_to_array(index.direct_map.array)
    faiss.copy_array_to_vector(places + (10**6 << 32), index.direct_map.array)  # and leads nowhere
    faiss.write_index(index, str(path))
    same(nearest(load(path), queries, 5), brute(rows, queries, 5, SUBSETS["all"]))
    index.set_direct_map_type(faiss.DirectMap.NoMap)
    index.add_with_ids(rows[:1], np.array([10**9]))
    faiss.write_index(index, str(path))
    refused(path, "cut off or damaged")


def test_bad_arguments_are_named(indexes, rows, queries):
    with pytest.raises(LeverError, match="kind = 'lsh': must be one of auto, flat, hnsw, ivf"):
        build(rows, "lsh")
    for wrong in (rows.astype(np.float64), rows[0], rows[:0], rows[:, :0]):
        with pytest.raises(LeverError, match=r"vectors: float.* must be float32"):
            build(wrong)
    longer = rows.copy()
    longer[7] *= 1.01
    longer[8] = np.nan
    with pytest.raises(LeverError, match=r"vectors: row 7 has length 1\.01: must be unit vectors"):
        build(longer)
    with pytest.raises(LeverError, match=r"vectors: row 1 has length nan"):
        appended(indexes["flat"], longer[[0, 8]])
    flat = indexes["flat"]
    with pytest.raises(LeverError, match=r"vectors: .* must be float32 \(n, 24\)"):
        appended(flat, unit(np.ones((2, 5))))
    with pytest.raises(LeverError, match=r"queries: .* must be float32 \(n, 24\)"):
        nearest(flat, unit(np.ones((2, 5))), 1)
    with pytest.raises(LeverError, match="k = 0: must be at least 1"):
        nearest(flat, queries, 0)
    for wrong in ([3, 2], [2, 2], [-1, 2], [5, COUNT], [[1, 2]]):
        with pytest.raises(LeverError, match="allowed: must be rising ids from 0 to 1499"):
            nearest(flat, queries, 1, np.array(wrong))


@pytest.mark.parametrize("kind", ["flat", "hnsw"])
def test_an_index_that_says_it_is_not_trained_is_refused(indexes, kind, tmp_path):
    save(indexes[kind], tmp_path / "index")
    content = bytearray((tmp_path / "index").read_bytes())
    content[32] = 0
    (tmp_path / "index").write_bytes(content)
    with pytest.raises(LeverError, match="cut off or damaged"):
        load(tmp_path / "index")


def test_an_ivf_index_in_which_an_id_is_missing_is_refused(rows, tmp_path):
    index = faiss.clone_index(build(rows, "ivf"))
    index.set_direct_map_type(faiss.DirectMap.NoMap)
    index.reset()
    ids = np.arange(len(rows))
    ids[5] = 4
    index.add_with_ids(rows, ids)
    save(index, tmp_path / "index")
    with pytest.raises(LeverError, match="cut off or damaged"):
        load(tmp_path / "index")
