"""How fast things are: `python -m tests.benchmarks [SPEC...] [--notebooks]`, from the repository's root.

Prints medians over repeats: CPU seconds of one thread unless it says wall. `--notebooks` also runs all notebooks of the
specs in a temporary folder (minutes). Figures vary with the machine: compare runs made side by side, not numbers from
another day.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

from lever_lib.artifacts import Outputs
from lever_lib.composition import everyday_methods
from lever_lib.envs.gridworld import make_layout
from lever_lib.errors import exit_code
from lever_lib.index import TextIndex
from lever_lib.jobs import run_jobs
from lever_lib.library import training_jobs
from lever_lib.notebooks import numbered_notebooks, run_notebook
from lever_lib.params import Execution, Search, load_params
from lever_lib.planning import optimum
from lever_lib.policies.base import CellPolicy
from lever_lib.policies.tabular import train
from lever_lib.queries import QUERIES
from lever_lib.scaling import hard_question, indifferent, median_seconds
from lever_lib.strategies import STRATEGIES, choose, combinations
from lever_lib.text import encode
from lever_lib.vectors import build

REPEATS = 7


def report(what, value, unit):
    sys.stdout.write(f"{what:<64}{value:>12.4g} {unit}\n")


def training(spec, params, repeats):
    """Steps per second of training the whole library, on one core and on two."""
    jobs = training_jobs(params, [make_layout(params.grid, seed) for seed in params.seeds])
    list(run_jobs(train, jobs[:1], Execution(workers=1), "warm", threads=True))
    for workers in (1, 2):
        seconds = []
        for _ in range(repeats):
            started = time.perf_counter()
            runs = list(run_jobs(train, jobs, Execution(workers=workers), "training", threads=True))
            seconds.append(time.perf_counter() - started)
        steps = sum(int(records[-1].visits.sum()) for records, _ in runs)
        speed = steps / statistics.median(seconds) / 1e6
        report(f"{spec}: training the library, {workers} core(s)", speed, "million steps / wall s")


def query(spec, params, repeats):
    """Embedding, planning, and the hardest question with every strategy and method."""
    pool, embedder, candidates = hard_question(params, params.sarsa.snapshots)
    policies = [CellPolicy(actions) for actions in pool.actions]
    seconds = median_seconds(lambda: embedder.embed(policies), repeats)
    report(f"{spec}: embedding", len(policies) / seconds, "policies / s")
    seconds = median_seconds(lambda: optimum(pool.layout, pool.system), repeats)
    report(f"{spec}: exact optimum", seconds * 1e3, "ms")
    predictor = indifferent(params.grid.size)
    everything = range(len(pool.q_tables) - len(params.sarsa.snapshots))  # trained on the question itself: the last
    for method in everyday_methods():
        for strategy in STRATEGIES:
            combos = combinations(strategy, candidates, params.search.top_k, everything)
            question = (method, combos, embedder, predictor)
            seconds = median_seconds(lambda q=question: choose(pool.fresh(), *q), repeats)
            name = f"{spec}: {strategy} {method.name}, {len(combos)} combination(s)"
            report(name, seconds, f"s / query ({len(combos) / seconds:,.0f} combinations / s)")


def text(repeats):
    """The sentence encoder and the index."""
    sentences = [query.text for query in QUERIES]
    report("encoding a sentence", median_seconds(lambda: encode(sentences[:1]), repeats) * 1e3, "ms")
    vectors = np.random.default_rng(0).normal(size=(100_000, 384)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    for count in (8, 1_000, 100_000):
        index = TextIndex(build(vectors[:count], "flat"), pd.DataFrame(), Search(), gate=0.0)
        allowed = np.arange(min(count, 1_000))
        seconds = median_seconds(lambda i=index, a=allowed: i.search(vectors[:1], a), repeats)
        report(f"searching {len(allowed)} of {count} sentences", seconds * 1e3, "ms")


def notebooks(spec, params):
    """Wall seconds per notebook."""
    with tempfile.TemporaryDirectory() as root:
        os.environ["LEVER_OUTPUTS"] = root
        outputs = Outputs(spec, params)
        for path in numbered_notebooks():
            started = time.perf_counter()
            run_notebook(path, spec, outputs)
            report(f"{spec}: notebook {path.stem}", time.perf_counter() - started, "wall s")
        size = sum(path.stat().st_size for path in Path(root).rglob("*") if path.is_file())
        report(f"{spec}: outputs", size / 1e6, "MB")


def main(arguments):
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description="Print how fast things are.")
    parser.add_argument("specs", nargs="*", default=["8x8", "16x16", "32x32"], metavar="SPEC")
    parser.add_argument("--notebooks", action="store_true", help="also run and time all notebooks")
    parser.add_argument("--repeats", type=int, default=REPEATS)
    options = parser.parse_args(arguments)
    text(options.repeats)
    for spec in options.specs:
        params = load_params(spec)
        training(spec, params, max(1, options.repeats // 3))
        query(spec, params, options.repeats)
        if options.notebooks:
            notebooks(spec, params)


if __name__ == "__main__":
    sys.exit(exit_code(lambda: main(sys.argv[1:]), interrupted="interrupted"))
