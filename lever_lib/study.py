"""The experiment once more on many layouts that nothing was fitted on, and what a query costs as things grow.

`./run_all.sh study` calls this. Five layouts, as in the published study, say little about other layouts; training is
cheap, so a study adds fifty. Its candidates are ranked, and its combinations chosen, by the regressor of the spec's own
library, which never saw them. What it writes is small and stays: summaries for notebooks to read.

It works a few layouts at a time and keeps what is finished, so that it can be interrupted.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from lever_lib import experiment, index, library, pi2vec, regressor
from lever_lib.artifacts import (
    ROOT,
    STUDY,
    Outputs,
    damaged_files,
    file_hash,
    read_manifest,
    replace_folder,
    shown,
    source_hash,
)
from lever_lib.envs.gridworld import make_layout
from lever_lib.errors import LeverError, MissingArtifactError, exit_code
from lever_lib.experiment import Tables, experiment_jobs, read_table, run_experiment
from lever_lib.params import Params, load_params, resolved
from lever_lib.regressor import Regressor
from lever_lib.report import SUMMARY_FILES, Summary, read_summary, summarise_tables
from lever_lib.scaling import measure_costs
from lever_lib.search import Retriever

_CHUNK = 10  # layouts that are trained and asked before their results are put away
_COSTS = "costs_timings.csv"
# Of the rows, what summaries cannot give back.
_ROWS = "results.csv"
_FILES = (*SUMMARY_FILES, _ROWS, _COSTS)
_ROW_COLUMNS = [
    *("library", "seed", "query_class", "setup", "strategy", "method", "return", "optimum", "support_return"),
    *("scratch_return", "best_single_return", "predicted_return", "stuck"),
]
_READ = ("grid", "seeds", "root_seed", "libraries", "sarsa", "pi2vec", "regressor", "search", "study")


@dataclass(frozen=True)
class Study:
    """What a study found.

    Attributes:
        folder: of its files.
        layouts: how many.
        summary: the same tables as `results/` holds for the spec's own layouts.
        costs: seconds of a query against grid size, library size and candidates.
    """

    folder: Path
    layouts: int
    summary: Summary
    costs: pd.DataFrame


def study_files(outputs: Outputs) -> list[Path]:
    """Files of a spec's study: the run's own, else those that came with the repository; none if there is none.

    A study that was run with other params is not of this spec.

    Raises:
        MissingArtifactError: if one of them is damaged.
    """
    for folder in (outputs.folder, ROOT / "outputs" / outputs.spec):
        entry = read_manifest(folder).get(STUDY)
        if entry is None or entry["key"] != _key(outputs.params):
            continue
        if not {f"{STUDY}/{name}" for name in _FILES} <= set(entry["files"]):
            continue  # by other code
        damaged = damaged_files(folder, entry)
        if damaged:
            raise MissingArtifactError(
                f"{shown(damaged[0])} is missing or damaged; run ./run_all.sh study {outputs.spec}, or take it from git"
            )
        return [folder / name for name in entry["files"]]
    return []


def find_study(outputs: Outputs) -> Study | None:
    """The study of a spec, or None if none was run with these params.

    Raises:
        MissingArtifactError: if one of its files is damaged.
    """
    files = study_files(outputs)
    if not files:
        return None
    folder = files[0].parent
    summary = read_summary(folder)
    return Study(folder, int(summary.shares["layouts"].max()), summary, pd.read_csv(folder / _COSTS))


def absent(outputs: Outputs) -> str:
    """What to say where there is no study."""
    return (
        f"no study of {outputs.spec} with these params (./run_all.sh study {outputs.spec} makes one): "
        f"shown are the {len(outputs.params.seeds)} layouts of this run"
    )


def _key(params: Params) -> str:
    """Hash of the params that a study depends on. Code may change without a study of half an hour being void."""
    read = {name: value for name, value in resolved(params).items() if name in _READ}
    return hashlib.sha256(json.dumps(read, sort_keys=True).encode()).hexdigest()


def run_study(outputs: Outputs) -> Study:
    """Run the study of a spec, or what an interrupted one has left to do; nothing if it is up to date.

    The spec's own library, embeddings and regressor are built first where they are not there.

    Raises:
        LeverError: if one of its layouts is one of the spec's own, or cannot be drawn.
    """
    params = outputs.params
    seeds = params.study.first_seed + np.arange(params.study.layouts)
    if set(seeds) & set(params.seeds):
        raise LeverError(
            f"study: its seeds {seeds[0]} to {seeds[-1]} must not be among seeds = {list(params.seeds)}: "
            "they stand for layouts that nothing was fitted on"
        )
    for seed in seeds:
        make_layout(params.grid, int(seed))
    published = outputs.came_along(library.STAGE)
    own = library.build_library(params, outputs)
    models = regressor.build_regressor(own, pi2vec.build_embeddings(own, outputs), outputs)
    for name in set(published) - {stage.name for stage in (library.STAGE, pi2vec.STAGE, regressor.STAGE)}:
        outputs.forget(name)
    made_of = _made_of(outputs)
    known, entry = find_study(outputs), outputs.manifest().get(STUDY, {})
    if known and entry.get("made_of") == made_of:
        return known
    work = _work_folder(outputs, made_of)
    parts = []
    for chunk in np.array_split(seeds, -(-len(seeds) // _CHUNK)):
        part = work / "parts" / f"{chunk[0]:04d}-{chunk[-1]:04d}"
        if not all((part / name).is_file() for name in experiment.STAGE.files):
            _run_part(replace(params, seeds=tuple(chunk.tolist())), outputs.spec, models, part, work)
        parts.append(Tables(*(read_table(part / name) for name in experiment.STAGE.files)))
    tables = Tables(*(pd.concat([vars(part)[name] for part in parts], ignore_index=True) for name in vars(parts[0])))
    draft = work / "draft"
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    summarise_tables(tables, outputs.spec, params.root_seed).write(draft)
    tables.results[_ROW_COLUMNS].round(4).to_csv(draft / _ROWS, index=False)
    measure_costs(params).to_csv(draft / _COSTS, index=False)
    files = {f"{STUDY}/{path.name}": file_hash(path) for path in sorted(draft.iterdir())}
    outputs.forget(STUDY)
    replace_folder(draft, outputs.folder / STUDY)
    entry = {"key": _key(params), "made_of": made_of, "root_seed": params.root_seed, "files": files}
    outputs.enter(STUDY, entry)
    done = work.with_name(f"{work.name}.done")  # half deleted it must not be taken for work to go on with
    work.rename(done)
    shutil.rmtree(done)
    return find_study(outputs)


def _made_of(outputs: Outputs) -> str:
    """Hash of everything that a study comes from: params, models and code."""
    models = file_hash(outputs.folder / regressor.STAGE.name / "models.npz")
    depends = _key(outputs.params) + models + source_hash("lever_lib.study")
    return hashlib.sha256(depends.encode()).hexdigest()


def _work_folder(outputs: Outputs, made_of: str) -> Path:
    """Where unfinished work is kept; work of other params, models or code is thrown away."""
    work = outputs.folder / f".study-{made_of[:16]}"
    for old in outputs.folder.glob(".study-*"):
        if old != work:
            shutil.rmtree(old)
    (work / "parts").mkdir(parents=True, exist_ok=True)
    return work


def _run_part(params: Params, spec: str, models: Regressor, part: Path, work: Path) -> None:
    """Train, embed and ask a few layouts; the library is thrown away, the tables are kept."""
    title = f"{spec}: layouts {part.name}"
    sys.stderr.write(f"{title}\n")
    outputs = Outputs(spec, params, work / part.name)
    policies = library.build_library(params, outputs)
    retriever = Retriever(
        policies,
        pi2vec.build_embeddings(policies, outputs),
        models,
        index.build_index(policies, outputs),
        params.search.cosine_gate,
    )
    tables = run_experiment(experiment_jobs(retriever), params.execution, "composing")
    draft = part.with_name(f".{part.name}.writing")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    tables.write(draft)
    shutil.rmtree(part, ignore_errors=True)
    draft.rename(part)
    shutil.rmtree(work / part.name)


def main(arguments: list[str] | None = None) -> int:
    """`python -m lever_lib.study SPEC...`; returns the exit code."""
    parser = argparse.ArgumentParser(prog="run_all.sh study", description="Run the experiment on further layouts.")
    parser.add_argument("specs", nargs="+", metavar="SPEC")
    options = parser.parse_args(arguments)

    def run() -> None:
        """Check all specs, then study one after the other."""
        for outputs in [Outputs(spec, load_params(spec)) for spec in options.specs]:
            study = run_study(outputs)
            sys.stdout.write(f"{outputs.spec}: study of {study.layouts} layouts in {shown(study.folder)}\n")

    return exit_code(run, interrupted="interrupted; finished layouts are kept, run the same command again to go on")


if __name__ == "__main__":
    sys.exit(main())
