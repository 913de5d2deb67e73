"""Text search at sizes that no library here has: what is found, how fast, in how much memory.

Sentences are made up: unit vectors that lie to each other as sentence embeddings do. `./run_all.sh study` measures for
specs whose params give `scale.vectors`. What it writes is small and stays: `scale/recall.csv`, which comes out the same
each time, and `scale/recall_timings.csv`. Each index is built in a process of its own and searched in another, so that
its memory is its own.
"""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pandas as pd
from tqdm import tqdm

from lever_lib.artifacts import ROOT, SCALE, Outputs, json_hash, source_hash
from lever_lib.columns import read_described
from lever_lib.errors import LeverError
from lever_lib.files import write_array
from lever_lib.params import Params, resolved
from lever_lib.seeding import stream
from lever_lib.unfinished import whole
from lever_lib.vectors import KINDS, build, load, nearest, save

WIDTH = 384  # numbers a sentence, as the default encoder gives
FILTERS = ("none", "1 %", "one_layout")
_SHARED = (1, 15)  # policies a sentence; 15: three budgets of five snapshots
_SHARE = 0.01  # of the policies that may be found
_QUERIES, _WARM = 200, 5
_K = 10
# Sentences gather around centres, centres around topics. At a million the nearest one has a cosine of 0.74, the tenth
# 0.67.
_TOPICS, _CENTRES_PER_TOPIC = 40, 50
_BASES, _SUBSPACE = 8, 32  # sentences of a centre differ in one of eight subspaces of 32 dimensions
_NOISE = 0.3  # length of what lies outside of it
_CHUNK = 10_000  # drawn at once, from a stream of its own: fewer sentences are the first of more

_FILES = ("recall.csv", "recall_timings.csv")
_READ = ("root_seed", "scale")
_KEYS = ["policies", "sentences", "policies_per_sentence", "kind", "filter"]
_FOUND = ["recall_at_10", "index_bytes"]
_TIMED = ["build_seconds", "load_seconds", "build_peak_bytes", "search_peak_bytes", "p50_ms", "p99_ms"]


@dataclass(frozen=True)
class Size:
    """A library to search in.

    Attributes:
        policies: how many.
        policies_per_sentence: that share a sentence; their ids follow each other.
    """

    policies: int
    policies_per_sentence: int

    @property
    def sentences(self) -> int:
        """How many distinct ones the index holds."""
        return -(-self.policies // self.policies_per_sentence)

    def allowed(self, name: str, seed: int) -> np.ndarray | None:
        """Sentences of the policies that a filter lets through, int64, rising; None: all.

        Args:
            name: one of `FILTERS`: `1 %` of the policies, drawn, or as many that follow each other, as those of a
                layout do.
            seed: root seed.
        """
        if name == "none":
            return None
        count = max(1, int(_SHARE * self.policies))
        if name == "1 %":
            rng = stream(seed, "search at scale", name, self.policies)
            policies = rng.choice(self.policies, count, replace=False)
        else:
            policies = self.policies // 2 + np.arange(count)
        return np.unique(policies // self.policies_per_sentence)


# ---- made-up sentences


def write_vectors(path: Path, count: int, seed: int) -> None:
    """Write made-up sentences, unit vectors, float32 (count, WIDTH), as `.npy`."""
    mixture = _mixture(seed)
    target = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(count, WIDTH))
    for start in range(0, count, _CHUNK):
        rng = stream(seed, "search at scale", "sentences", start)
        target[start : start + _CHUNK] = _drawn(mixture, _CHUNK, rng)[: count - start]
    target.flush()


def made_up_queries(seed: int) -> np.ndarray:
    """Questions like the sentences, but none of them: unit vectors, float32 (200, WIDTH)."""
    return _drawn(_mixture(seed), _QUERIES, stream(seed, "search at scale", "queries"))


def _mixture(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Centres, float32 (2000, WIDTH), and bases of subspaces, float32 (8, 32, WIDTH)."""
    rng = stream(seed, "search at scale", "mixture")
    topics = _unit(rng.standard_normal((_TOPICS, WIDTH), dtype=np.float32))
    offsets = _unit(rng.standard_normal((_TOPICS * _CENTRES_PER_TOPIC, WIDTH), dtype=np.float32))
    bases = rng.standard_normal((_BASES, _SUBSPACE, WIDTH), dtype=np.float32) / np.float32(_SUBSPACE * WIDTH) ** 0.5
    return _unit(np.repeat(topics, _CENTRES_PER_TOPIC, axis=0) + offsets), bases


def _drawn(mixture: tuple[np.ndarray, np.ndarray], count: int, rng: np.random.Generator) -> np.ndarray:
    """Unit vectors, float32 (count, WIDTH); some centres are more popular than others."""
    centres, bases = mixture
    near = (len(centres) * rng.random(count) ** 2).astype(np.int64)
    vectors = centres[near] + _NOISE * WIDTH**-0.5 * rng.standard_normal((count, WIDTH), dtype=np.float32)
    within = rng.standard_normal((count, _SUBSPACE), dtype=np.float32)
    for base in range(_BASES):
        rows = near % _BASES == base
        vectors[rows] += within[rows] @ bases[base]
    return _unit(vectors)


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


# ---- what a process of its own does


def _build(vectors: str, count: int, kind: str, index: str, seed: int) -> dict[str, float]:
    """Index the first `count` vectors and write the index."""
    source = np.load(vectors, mmap_mode="r")[:count]
    started = time.perf_counter()
    built = build(source, kind, seed)
    seconds = time.perf_counter() - started
    save(built, Path(index))
    return {"build_seconds": seconds, "build_peak_bytes": _peak_bytes()}


def _truth(index: str, policies: int, policies_per_sentence: int, truth: str, seed: int) -> dict[str, float]:
    """Find what is nearest by FAISS alone, comparing with everything, and write it: int64 (filters, 200, 10)."""
    flat, queries, size = faiss.read_index(index), made_up_queries(seed), Size(policies, policies_per_sentence)
    found = []
    for name in FILTERS:
        allowed = size.allowed(name, seed)
        selector = None if allowed is None else faiss.IDSelectorBatch(allowed)
        found.append(flat.search(queries, _K, params=faiss.SearchParameters(sel=selector))[1])
    write_array(Path(truth), np.stack(found))
    return {}


def _search(index: str, policies: int, policies_per_sentence: int, truth: str, seed: int) -> dict[str, Any]:
    """Load an index and ask one question after the other, on one thread; seconds are CPU seconds."""
    started = time.perf_counter()
    loaded = load(Path(index))
    seconds = time.perf_counter() - started
    queries, size = made_up_queries(seed), Size(policies, policies_per_sentence)
    rows = []
    with _one_thread():
        for name, true in zip(FILTERS, np.load(truth), strict=True):
            found, took = _asked(loaded, queries, size.allowed(name, seed))
            p50, p99 = np.quantile(took, [0.5, 0.99]) * 1e3
            rows.append({"recall_at_10": _recall(found, true), "p50_ms": p50, "p99_ms": p99})
    return {"load_seconds": seconds, "search_peak_bytes": _peak_bytes(), "filters": rows}


def _asked(index: faiss.Index, queries: np.ndarray, allowed: np.ndarray | None) -> tuple[np.ndarray, list[float]]:
    """Ids, int64 (200, 10), and CPU seconds per question."""
    nearest(index, queries[:_WARM], _K, allowed)
    found, seconds = [], []
    for row in range(len(queries)):
        started = time.thread_time()
        ids = nearest(index, queries[row : row + 1], _K, allowed)[1]
        seconds.append(time.thread_time() - started)
        found.append(ids[0])
    return np.stack(found), seconds


def _recall(found: np.ndarray, true: np.ndarray) -> float:
    """Share of the true ids, where there are any, that were found."""
    hits = [len(set(row) & set(other) - {-1}) for row, other in zip(found.tolist(), true.tolist(), strict=True)]
    return sum(hits) / int((true >= 0).sum())


@contextmanager
def _one_thread() -> Iterator[None]:
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


def _peak_bytes() -> int:
    """The most memory that this process has held, pages of mapped files included."""
    status = Path("/proc/self/status")
    if status.is_file():  # Linux, where getrusage begins with what the parent held
        return 1024 * int(status.read_text().split("VmHWM:")[1].split()[0])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


_TASKS: dict[str, Callable[..., dict[str, Any]]] = {"build": _build, "truth": _truth, "search": _search}


def _apart(task: str, **job: str | int) -> dict[str, Any]:
    """Do a task in a fresh process.

    Raises:
        LeverError: if the process fails, for instance for want of memory.
    """
    command = [sys.executable, "-m", "lever_lib.search_scale", task, json.dumps(job)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise LeverError(f"search at scale: {task} {job} failed: {reason}")
    return json.loads(done.stdout)


# ---- the measurement


def measure(counts: tuple[int, ...], folder_for_vectors: Path, seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Measure every kind of index on made-up sentences, without a filter and with two of one percent.

    Args:
        counts: of policies, at least one; for each the policies have sentences of their own, and share them.
        folder_for_vectors: with room for 3.5 GB a million policies; left as it was.
        seed: root seed.

    Returns:
        Columns `policies, sentences, policies_per_sentence, kind, filter`, and
        of the first table `recall_at_10, index_bytes`: share of the ten nearest sentences that were found, the same
        each time;
        of the second `build_seconds, load_seconds` (wall), `build_peak_bytes` (pages of the mapped vectors included),
        `search_peak_bytes`, `p50_ms, p99_ms` (CPU time of a question on one thread).

    Raises:
        LeverError: if one of the processes fails.
    """
    sizes = [Size(policies, shared) for policies in counts for shared in _SHARED]
    stages = 1 + len(sizes) * (2 * len(KINDS) + 1)
    with _work_folder(folder_for_vectors) as work, tqdm(total=stages, desc="search at scale", unit="stage") as bar:
        write_vectors(work / "vectors.npy", max(size.sentences for size in sizes), seed)
        bar.update()
        rows = pd.DataFrame([row for size in sizes for row in _rows(size, work, seed, bar)])
    return rows[_KEYS + _FOUND], rows[_KEYS + _TIMED]


@contextmanager
def _work_folder(folder: Path) -> Iterator[Path]:
    """A folder for gigabytes; what a killed measurement left in it is thrown away."""
    work = folder.resolve() / f".{SCALE}.work"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    try:
        yield work
    finally:
        shutil.rmtree(work)


def _rows(size: Size, work: Path, seed: int, bar: tqdm) -> Iterator[dict[str, Any]]:
    """One row per kind of index and filter."""
    index, truth = work / "index.faiss", str(work / "truth.npy")
    about = {"policies": size.policies, "policies_per_sentence": size.policies_per_sentence}
    asked = {"index": str(index), "truth": truth, "seed": seed} | about
    for kind in KINDS:
        source = {"vectors": str(work / "vectors.npy"), "count": size.sentences}
        built = _apart("build", kind=kind, index=str(index), seed=seed, **source)
        bar.update()
        if kind == "flat":
            _apart("truth", **asked)
            bar.update()
        searched = _apart("search", **asked)
        bar.update()
        common = about | {"sentences": size.sentences, "kind": kind, "index_bytes": index.stat().st_size}
        index.unlink()
        for name, row in zip(FILTERS, searched.pop("filters"), strict=True):
            yield common | built | searched | {"filter": name} | row


# ---- what stays


def find_scale(outputs: Outputs) -> tuple[pd.DataFrame, pd.DataFrame] | None:
    """What was measured for a spec, by a run of its own or by the one that came with the repository; None if nothing.

    Raises:
        MissingArtifactError: if one of the files is damaged.
    """
    folder = outputs.lasting(SCALE, _FILES, _key(outputs.params))
    return None if folder is None else tuple(read_described(folder / name) for name in _FILES)


def run_scale(outputs: Outputs) -> tuple[pd.DataFrame, pd.DataFrame] | None:
    """Measure text search at scale, unless that was done; None where the params ask for none.

    Returns:
        As from `measure`.

    Raises:
        LeverError: if one of the processes fails.
    """
    params = outputs.params
    if not params.scale.vectors:
        return None
    made_of = json_hash([_key(params), source_hash("lever_lib.search_scale")])
    known = whole(find_scale, outputs)
    if known and outputs.made_of(SCALE) == made_of:
        return known
    outputs.folder.mkdir(parents=True, exist_ok=True)
    sys.stderr.write(f"{outputs.spec}: text search at scale\n")
    tables = measure(params.scale.vectors, outputs.folder, params.root_seed)
    with outputs.writing_folder(SCALE, {"key": _key(params), "made_of": made_of}) as draft:
        for name, table in zip(_FILES, tables, strict=True):
            table.round(6).to_csv(draft / name, index=False)
    return find_scale(outputs)


def _key(params: Params) -> str:
    return json_hash({name: value for name, value in resolved(params).items() if name in _READ})


if __name__ == "__main__":
    sys.stdout.write(json.dumps(_TASKS[sys.argv[1]](**json.loads(sys.argv[2]))))
