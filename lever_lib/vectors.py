"""Nearest neighbours by inner product over unit vectors: exact while that is quick, approximate above.

Three kinds of FAISS index hold the same vectors. `flat` compares a query with every one of them. `hnsw` walks a graph
of near neighbours (Malkov and Yashunin, 2018). `ivf` looks into the lists whose centres are nearest (Sivic and
Zisserman, 2003). An index only proposes: what it proposes is scored by one formula and put in order by falling cosine,
then rising id, so that kinds which find the same vectors give the same answer. Where few ids may be found, all of them
are scored: a graph walk would pass them by.

Vectors are best distinct: a graph links copies of a vector to each other and to little else.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

if sys.platform == "darwin":
    # torch and faiss each ship an OpenMP runtime there; loading both aborts the process without this.
    os.environ.setdefault("KMP_DUPLICATE_LIB_OK", "TRUE")
import faiss

from lever_lib.errors import LeverError

KINDS = ("flat", "hnsw", "ivf")
_FLAT_LIMIT = 20_000  # a query of 384 numbers is compared with as many in 2 ms, and a graph has to be built
_CHUNK = 50_000  # vectors added at once: 77 MB of 384 numbers each
_BLOCK = 256  # vectors of an `ivf` index copied and scored at once: 0.4 MB, which the cache of a core holds
# Few ids are all scored. An id of `hnsw` costs 0.2 us; walking the graph costs 0.4 ms / s, where s is the share of the
# vectors that may be found: more, at a million, until that is a twentieth. An id of `ivf` costs 0.5 us, as its vector
# is copied out of its list; looking into lists costs 0.02 ms / s.
_FEW, _SMALL_SHARE = 10_000, 0.05
_FEW_IVF = 5_000
_MANY_WANTED = 0.05  # of what may be found; all is scored then, too
_SPARE = 64  # proposals beyond those asked for, so that ties at the last place go by id

_LINKS = 32  # per vector of a graph, twice as many on its lowest level
_BUILD_WIDTH = 40  # candidates kept while a vector is linked
_SEARCH_WIDTH = 256  # candidates kept while a graph is walked
_ALLOWED_WIDTH = 128  # that many of them, about, may be found
_LISTS_PER_ROOT = 4  # lists of an `ivf` index per square root of its vectors
_LEAST_PER_LIST = 39  # vectors; fewer make centres of noise
_SAMPLE_PER_LIST = 64  # vectors that centres are fitted to
_ITERATIONS = 6  # of k-means: lists have to be good, not the best
_PROBES = 64  # lists looked into
_ALLOWED_PROBES = 8  # that many lists' worth of vectors, at least, that may be found

_TYPES = {"flat": faiss.IndexFlatIP, "hnsw": faiss.IndexHNSWFlat, "ivf": faiss.IndexIVFFlat}
# How files of these types begin, after faiss/impl/index_write.cpp; two numbers between count and trained are unused.
_HEADER = np.dtype(
    [("type", "S4"), ("width", "<i4"), ("count", "<i8"), ("", "V16"), ("trained", "u1"), ("metric", "<i4")]
)
_FILE_TYPES = {b"IxFI": "flat", b"IHNf": "hnsw", b"IwFl": "ivf"}
_TOLERANCE = 1e-3  # of the length of a unit vector: half precision is good enough


def kind_for(count: int) -> str:
    """The kind of index that `auto` stands for, given the number of vectors."""
    return "flat" if count <= _FLAT_LIMIT else "hnsw"


def build(vectors: np.ndarray, kind: str = "auto", seed: int = 0) -> faiss.Index:
    """Index vectors; ids are their row numbers.

    The same vectors and seed give the same bytes of `faiss.serialize_index`, however many threads build it (since FAISS
    1.15: a graph of an older one depends on them). Memory: the index, and a chunk of the vectors where they are a
    memory-mapped file.

    Args:
        vectors: unit vectors, float32 (n, W), n >= 1.
        kind: one of `KINDS`, or `auto`.
        seed: of the levels of a graph and of the sample that centres are fitted to, non-negative.

    Raises:
        LeverError: if the vectors are no unit vectors or the kind is unknown.
    """
    _check_vectors("vectors", vectors)
    if kind not in ("auto", *KINDS):
        raise LeverError(f"kind = {kind!r}: must be one of auto, {', '.join(KINDS)}")
    count, width = vectors.shape
    kind = kind_for(count) if kind == "auto" else kind
    if kind == "ivf":
        index = _trained(vectors, seed)
    elif kind == "hnsw":
        index = faiss.IndexHNSWFlat(width, _LINKS, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = _BUILD_WIDTH
    else:
        index = faiss.IndexFlatIP(width)
    _add(index, vectors, seed)
    return index


def _trained(vectors: np.ndarray, seed: int) -> faiss.IndexIVFFlat:
    """An empty `ivf` index whose centres are fitted to a sample."""
    count, width = vectors.shape
    lists = max(1, min(int(_LISTS_PER_ROOT * count**0.5), count // _LEAST_PER_LIST))
    index = faiss.IndexIVFFlat(faiss.IndexFlatIP(width), width, lists, faiss.METRIC_INNER_PRODUCT)
    index.cp.spherical, index.cp.niter, index.cp.seed = True, _ITERATIONS, seed
    index.cp.min_points_per_centroid = 1  # or it warns on stderr about a handful of vectors
    sample = np.random.default_rng(seed).choice(count, min(count, lists * _SAMPLE_PER_LIST), replace=False)
    index.train(np.ascontiguousarray(vectors[np.sort(sample)]))
    index.make_direct_map()  # from id to vector, to score chosen ones
    return index


def _add(index: faiss.Index, vectors: np.ndarray, seed: int) -> None:
    """Add vectors behind those that are there."""
    if isinstance(index, faiss.IndexHNSWFlat):
        # A file does not say how far the generator was: without this, what is added would depend on saving in between.
        index.hnsw.rng = faiss.RandomGenerator(seed + index.ntotal)
    _make_room(index, len(vectors))
    for start in range(0, len(vectors), _CHUNK):
        chunk = np.ascontiguousarray(vectors[start : start + _CHUNK])
        _check_lengths("vectors", chunk, start)
        index.add(chunk)


def _make_room(index: faiss.Index, count: int) -> None:
    """Allocate what `count` more vectors take: an array that grows bit by bit is held twice each time it is moved."""
    storage = _storage(index)
    if storage is not None:
        storage.codes.resize((index.ntotal + count) * storage.code_size)
        storage.codes.resize(index.ntotal * storage.code_size)  # shrinks what counts, not what is allocated


def _storage(index: faiss.Index) -> faiss.IndexFlat | None:
    """Where the vectors of an index lie one after the other; None for `ivf`, which has them list by list."""
    if isinstance(index, faiss.IndexHNSWFlat):
        return faiss.downcast_index(index.storage)
    return index if isinstance(index, faiss.IndexFlat) else None


def appended(index: faiss.Index, vectors: np.ndarray) -> faiss.Index:
    """A copy of an index with further vectors behind its own; the index itself stays as it is.

    Both are in memory for a while. The centres of an `ivf` index stay where they are.

    Args:
        index: from `build`, `load` or here.
        vectors: unit vectors, float32 (n, W), n >= 1.

    Raises:
        LeverError: if they are no unit vectors, or of another width.
    """
    _check_vectors("vectors", vectors, index.d)
    copy = faiss.clone_index(index)
    _add(copy, vectors, seed=0)
    return copy


def nearest(
    index: faiss.Index, queries: np.ndarray, k: int, allowed: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The k vectors of greatest cosine to each query, among those that may be found.

    Exact for `flat`, and for every kind where few ids may be found or many of them are wanted.

    Args:
        index: from `build`, `load` or `appended`.
        queries: unit vectors, float32 (M, W).
        k: how many, at least 1.
        allowed: ids that may be found, int64 (A,), rising; None: all.

    Returns:
        Cosines, float32 (M, k), falling, and ids, int64 (M, k), rising where cosines are equal. Where fewer than k may
        be found, cosines -inf and ids -1 fill the end.

    Raises:
        LeverError: if an argument breaks these rules.
    """
    _check_vectors("queries", queries, index.d)
    queries = np.ascontiguousarray(queries)
    _check_lengths("queries", queries)
    allowed = _checked_ids(allowed, index.ntotal)
    if k < 1:
        raise LeverError(f"k = {k}: must be at least 1")
    cosines = np.full((len(queries), k), -np.inf, dtype=np.float32)
    ids = np.full((len(queries), k), -1, dtype=np.int64)
    for row, (query, found) in enumerate(zip(queries, _proposals(index, queries, k, allowed), strict=True)):
        scores = _scores(index, query, found)
        best = _first(scores, found, k)
        cosines[row, : len(best)], ids[row, : len(best)] = scores[best], found[best]
    return cosines, ids


def _proposals(index: faiss.Index, queries: np.ndarray, k: int, allowed: np.ndarray | None) -> list[np.ndarray]:
    """Ids among which the nearest of each query are looked for, int64."""
    count = index.ntotal if allowed is None else len(allowed)
    if count <= _few(index) or k > _MANY_WANTED * count:
        return [_everything(index, allowed)] * len(queries)
    selector = None if allowed is None else _selector(allowed, index.ntotal)
    wide = k + _SPARE
    parameters = _parameters(index, wide, count / index.ntotal, selector)
    rows = [row[row >= 0] for row in index.search(queries, wide, params=parameters)[1]]
    # A walk that is cut off from what may be found comes back with less than there is.
    return [row if len(row) >= k else _everything(index, allowed) for row in rows]


def _few(index: faiss.Index) -> float:
    """Up to how many ids are all scored: that is quick, and exact."""
    if isinstance(index, faiss.IndexIVFFlat):
        return _FEW_IVF
    return max(_FEW, _SMALL_SHARE * index.ntotal) if isinstance(index, faiss.IndexHNSWFlat) else np.inf


def _everything(index: faiss.Index, allowed: np.ndarray | None) -> np.ndarray:
    return np.arange(index.ntotal, dtype=np.int64) if allowed is None else allowed


def _selector(allowed: np.ndarray, count: int) -> faiss.IDSelectorBitmap:
    mask = np.zeros(count, dtype=bool)
    mask[allowed] = True
    return faiss.IDSelectorBitmap(np.packbits(mask, bitorder="little"))


def _parameters(
    index: faiss.Index, wide: int, share: float, selector: faiss.IDSelector | None
) -> faiss.SearchParameters:
    """How far an index searches: the smaller the share of ids that may be found, the farther."""
    if isinstance(index, faiss.IndexIVFFlat):
        probes = min(index.nlist, max(_PROBES, int(_ALLOWED_PROBES / share)))
        return faiss.SearchParametersIVF(nprobe=probes, sel=selector)
    return faiss.SearchParametersHNSW(efSearch=max(_SEARCH_WIDTH, wide, int(_ALLOWED_WIDTH / share)), sel=selector)


def _scores(index: faiss.Index, query: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Inner products of a query with chosen vectors, float32 (n,): for equal vectors equal to the last bit.

    A matrix product would not do: it rounds by the place of a vector in its block.
    """
    scores = np.empty(len(ids), dtype=np.float32)
    if len(ids) == 0:  # which FAISS refuses
        return scores
    storage = _storage(index)
    if storage is not None:
        storage.compute_distance_subset(1, *_pointers(query), len(ids), *_pointers(scores, ids))
        return scores
    places = np.arange(_BLOCK, dtype=np.int64)
    block = np.empty((_BLOCK, index.d), dtype=np.float32)
    for start in range(0, len(ids), _BLOCK):
        part = scores[start : start + _BLOCK]
        index.reconstruct_batch(ids[start : start + _BLOCK], x=block[: len(part)])
        faiss.fvec_inner_products_by_idx(*_pointers(part, query, block, places), index.d, 1, len(part))
    return scores


def _pointers(*arrays: np.ndarray) -> list[object]:
    return [faiss.swig_ptr(array) for array in arrays]


def _first(scores: np.ndarray, ids: np.ndarray, k: int) -> np.ndarray:
    """Places of the k greatest scores by falling score, then rising id."""
    places = np.arange(len(scores))
    if k < len(scores):
        places = np.flatnonzero(scores >= np.partition(scores, -k)[-k])
    return places[np.lexsort((ids[places], -scores[places]))][:k]


def save(index: faiss.Index, path: Path) -> None:
    """Write an index.

    Raises:
        OSError: if it cannot be written there.
    """
    with path.open("wb") as file:  # FAISS by itself would not say why it cannot
        faiss.write_index(index, faiss.PyCallbackIOWriter(file.write))


def load(path: Path) -> faiss.Index:
    """Read what `save` wrote.

    A file that is cut off or none of ours is refused before memory is allocated for it. Changed numbers inside are not
    noticed: a checksum is for that. Not for two threads at once: limits that FAISS keeps for all of a process are set.

    Raises:
        LeverError: naming the file and what is wrong with it.
        OSError: if it is not there or must not be read.
    """
    kind = _check_header(path)
    try:
        with _limits(path.stat().st_size):
            index = faiss.read_index(str(path))
        if isinstance(index, faiss.IndexIVFFlat):
            index.set_direct_map_type(faiss.DirectMap.NoMap)
            index.make_direct_map()  # one from elsewhere may lack it, or have one that leads nowhere
    except (RuntimeError, MemoryError):
        raise LeverError(f"{path}: the index in it is cut off or damaged") from None
    if not isinstance(index, _TYPES[kind]) or not _is_whole(index):
        raise LeverError(f"{path}: the index in it is cut off or damaged")
    return index


def _check_header(path: Path) -> str:
    """The kind of index that a file claims to hold; its size fits the vectors it claims."""
    with path.open("rb") as file:
        start = file.read(_HEADER.itemsize)
    if len(start) < _HEADER.itemsize or start[:4] not in _FILE_TYPES:
        raise LeverError(f"{path}: must hold a FAISS index of kind {', '.join(KINDS)}")
    header = np.frombuffer(start, dtype=_HEADER)[0]
    width, count, size = int(header["width"]), int(header["count"]), path.stat().st_size
    if header["metric"] != faiss.METRIC_INNER_PRODUCT:
        raise LeverError(f"{path}: the index in it must be one by inner product")
    if width < 1 or count < 0 or width * count * 4 > size:
        raise LeverError(f"{path}: {count} vectors of {width} numbers cannot be in its {size} bytes")
    return _FILE_TYPES[start[:4]]


@contextmanager
def _limits(size: int) -> Iterator[None]:
    """Keep FAISS from allocating more for one array, or looping longer, than a file of `size` bytes can ask for."""
    settings = ("vector_byte_limit", "loop_limit")
    before = [getattr(faiss, f"get_deserialization_{name}")() for name in settings]
    for name in settings:
        getattr(faiss, f"set_deserialization_{name}")(size)
    try:
        yield
    finally:
        for name, value in zip(settings, before, strict=True):
            getattr(faiss, f"set_deserialization_{name}")(value)


def _is_whole(index: faiss.Index) -> bool:
    """Whether the parts of an index that was read fit each other."""
    if isinstance(index, faiss.IndexIVFFlat):
        places = index.direct_map
        mapped = places.type == faiss.DirectMap.Array and places.array.size() == index.ntotal
        mapped = mapped and bool((faiss.vector_to_array(places.array) >= 0).all())  # each id has a vector
        return mapped and index.is_trained and index.quantizer.ntotal == index.nlist
    storage = _storage(index)
    if not isinstance(storage, faiss.IndexFlat) or storage.metric_type != faiss.METRIC_INNER_PRODUCT:
        return False
    trained = index.is_trained and storage.is_trained
    return trained and (storage.d, storage.ntotal) == (index.d, index.ntotal)


def _check_vectors(name: str, vectors: np.ndarray, width: int | None = None) -> None:
    rule = f"must be float32 (n, {'W' if width is None else width}), n >= 1"
    if vectors.dtype != np.float32 or vectors.ndim != 2 or 0 in vectors.shape or width not in (None, vectors.shape[1]):
        raise LeverError(f"{name}: {vectors.dtype} {vectors.shape}: {rule}")


def _check_lengths(name: str, vectors: np.ndarray, first: int = 0) -> None:
    """Refuse what is not of length 1, counting rows from `first`."""
    lengths = np.sqrt(np.einsum("nw,nw->n", vectors, vectors))
    wrong = np.flatnonzero(~(np.abs(lengths - 1) <= _TOLERANCE))
    if len(wrong):
        raise LeverError(f"{name}: row {first + wrong[0]} has length {lengths[wrong[0]]:.3g}: must be unit vectors")


def _checked_ids(allowed: np.ndarray | None, count: int) -> np.ndarray | None:
    if allowed is None:
        return None
    ids = np.ascontiguousarray(allowed, dtype=np.int64)
    if ids.ndim != 1 or (len(ids) and (ids[0] < 0 or ids[-1] >= count or (np.diff(ids) <= 0).any())):
        raise LeverError(f"allowed: must be rising ids from 0 to {count - 1}, one row of them")
    return ids
