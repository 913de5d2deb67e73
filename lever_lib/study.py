"""What takes many layouts: the regressor that runs use, how well it does, and the experiment on layouts of its own.

`./run_all.sh study` calls this. Training is cheap, so a study trains libraries on `study.training_layouts` layouts, to
fit the regressor on, and on `study.layouts` others, to judge it and to ask every question of the experiment there. None
of them is a layout of the spec. What it writes is small and stays: the model under `model/`, tables for notebooks to
read under `study/`.

It works a few layouts at a time and keeps what is finished, so that it can be interrupted.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields, replace
from pathlib import Path

import pandas as pd

from lever_lib import behaviour, experiment, generalisation, index, library, pi2vec, regressor
from lever_lib.artifacts import (
    DEEP,
    LADDER,
    MODEL,
    SCALE,
    STUDY,
    Outputs,
    damaged_files,
    file_hash,
    json_hash,
    shown,
    source_hash,
)
from lever_lib.behaviour import Behaviour
from lever_lib.columns import as_described, read_described, write_tables
from lever_lib.deep import run_deep
from lever_lib.envs.features import feature_count
from lever_lib.envs.gridworld import make_layout, seed_name
from lever_lib.envs.rewards import REWARD_SYSTEMS, RewardSystem, reward_system
from lever_lib.errors import LeverError, MissingArtifactError, OneLineParser, exit_code
from lever_lib.experiment import Tables, check_shares, experiment_jobs, read_table, run_experiment, search_settings
from lever_lib.generalisation import Findings, joined, load_table, save_table
from lever_lib.ladder import check_changes, run_ladder
from lever_lib.locks import RUN, hold
from lever_lib.needs import check_needs
from lever_lib.params import Params, available_specs, load_params, resolved
from lever_lib.regressor import ALL_LAYOUTS, MODEL_FILE, TRAINING, Regressor, Table, training_table
from lever_lib.report import SUMMARY_FILES, Summary, read_summary, summarise_tables
from lever_lib.scaling import measure_costs
from lever_lib.search import Retriever
from lever_lib.search_scale import run_scale
from lever_lib.unfinished import new_draft, parts_of, publish, whole, work_folder

_COSTS, _ROWS, _TRANSFER = "costs_timings.csv", "results.parquet", "transfer.csv"
_FINDINGS = tuple(f"{field.name}.csv" for field in fields(Findings))
_BEHAVIOUR = tuple(f"{field.name}.csv" for field in fields(Behaviour))
_FILES = (*SUMMARY_FILES, *_FINDINGS, *_BEHAVIOUR, _ROWS, _COSTS, _TRANSFER)
# Of the rows, what summaries cannot give back.
_ROW_COLUMNS = [
    *("library", "seed", "query_class", "setup", "strategy", "method", "return", "optimum", "support_return"),
    *("scratch_return", "best_single_return", "predicted_return", "stuck"),
]
_READ = ("grid", "seeds", "root_seed", "libraries", "sarsa", "pi2vec", "regressor", "search", "study")
_MODEL_READ = ("grid", "root_seed", "libraries", "sarsa", "pi2vec")
_TABLE, _LEARNED = "table.npz", "learned.npz"


@dataclass(frozen=True)
class Study:
    """What a study found.

    Attributes:
        folder: of its files.
        layouts: how many questions were asked on.
        summary: the same tables as `results/` holds for the spec's own layouts.
        findings: how well the regressor does on these layouts.
        behaviour: how well embeddings are learned and what they are for.
        transfer: how models of other grid sizes do here.
        costs: seconds of a query against grid size, library size and candidates.
    """

    folder: Path
    layouts: int
    summary: Summary
    findings: Findings
    behaviour: Behaviour
    transfer: pd.DataFrame
    costs: pd.DataFrame


def study_files(outputs: Outputs) -> list[Path]:
    """Files of a spec's study: the run's own, else those that came with the repository; none if there is none.

    A study that was run with other params is not of this spec.

    Raises:
        MissingArtifactError: if one of them is damaged.
    """
    folder = outputs.lasting(STUDY, _FILES, _key(outputs.params))
    return [] if folder is None else [folder / name for name in sorted(_FILES)]


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
    for name, table in zip(SUMMARY_FILES, vars(summary).values(), strict=True):
        as_described(table, folder / name)
    layouts = summary.shares["layouts"]
    if layouts.empty or layouts.dtype.kind != "i":
        raise MissingArtifactError(f"{shown(folder / SUMMARY_FILES[0])}: must say on how many layouts")
    findings = Findings(*(read_described(folder / name, dtype={"split": str}) for name in _FINDINGS))
    behaviours = Behaviour(*(read_described(folder / name, dtype={"value": str}) for name in _BEHAVIOUR))
    tables = (read_described(folder / name) for name in (_TRANSFER, _COSTS))
    return Study(folder, int(layouts.max()), summary, findings, behaviours, *tables)


def absent(outputs: Outputs) -> str:
    """What to say where there is no study."""
    return (
        f"no study of {outputs.spec} with these params (./run_all.sh study {outputs.spec} makes one): "
        f"shown are the {len(outputs.params.seeds)} layouts of this run"
    )


def _key(params: Params, read: tuple[str, ...] = _READ) -> str:
    """Hash of the params that a study depends on. Code may change without a study of half an hour being void."""
    settings = {name: value for name, value in resolved(params).items() if name in read}
    del settings["pi2vec"]["device"]  # where something is computed changes nothing
    if params.pi2vec.method == "exact":
        del settings["pi2vec"]["learner"]  # nothing is learned
    if "search" in settings:
        settings["search"] = search_settings(params)
    return json_hash(settings)


def check_seeds(params: Params) -> None:
    """Refuse layouts that would not be new to the spec, or cannot be drawn, before anything is trained.

    Raises:
        LeverError: naming them.
    """
    for seeds in (params.study.test_seeds, params.study.training_seeds):
        if set(seeds) & set(params.seeds):
            raise LeverError(
                f"study: its seeds {seeds[0]} to {seeds[-1]} must not be among seeds = {list(params.seeds)}: "
                "they stand for other layouts"
            )
        for seed in seeds:
            make_layout(params.grid, seed)


# ---- the model


def fit_model(outputs: Outputs) -> None:
    """Fit the regressor that runs with `regressor.source: study` use, unless it is up to date.

    Raises:
        LeverError: if one of its layouts is one of the spec's own, or cannot be drawn.
    """
    params = outputs.params
    check_seeds(params)
    seeds = params.study.training_seeds
    facts = regressor.model_facts(params)
    made_of = json_hash([_key(params, _MODEL_READ), facts, list(seeds), source_hash("lever_lib.study")])
    entry = outputs.manifest().get(MODEL)
    if entry and entry.get("made_of") == made_of and not damaged_files(outputs.folder, entry):
        return
    work = work_folder(outputs, MODEL, made_of)
    parts = parts_of(outputs, list(seeds), work, (_TABLE,), _train_part)
    table = joined([load_table(part / _TABLE, _systems(params)) for part in parts])
    sys.stderr.write(f"{outputs.spec}: fitting the regressor on {len(seeds)} layouts\n")
    model = regressor.fit_calibrated(table, params.regressor)
    draft = new_draft(work)
    about = facts | {"layouts": [seed_name(seed) for seed in seeds]}
    regressor.write_models({ALL_LAYOUTS: model}, about, draft / MODEL_FILE)
    save_table(table, draft / TRAINING)
    publish(outputs, MODEL, work, {"key": _key(params, _MODEL_READ), "made_of": made_of})


def _train_part(outputs: Outputs, draft: Path) -> None:
    """Train and embed a few layouts; the library is thrown away, what a regressor learns from is kept."""
    policies = library.build_library(outputs.params, outputs)
    save_table(training_table(policies, pi2vec.build_embeddings(policies, outputs)), draft / _TABLE)


def _systems(params: Params) -> tuple[RewardSystem, ...]:
    return tuple(reward_system(name, params.grid.legacy_gold_exit) for name in REWARD_SYSTEMS)


# ---- the study


def run_study(outputs: Outputs) -> Study:
    """Run the study of a spec, or what an interrupted one has left to do; nothing if it is up to date.

    The model comes first, and where `regressor.source` is `library` the spec's own library, embeddings and regressor.

    Raises:
        LeverError: if one of its layouts is one of the spec's own, or cannot be drawn.
    """
    params = outputs.params
    if up_to_date(outputs):
        return find_study(outputs)
    fit_model(outputs)
    models, judge = _judge(outputs)
    others = _other_models(outputs)
    made_of = _made_of(params, judge)
    work = work_folder(outputs, STUDY, made_of)

    def ask(part: Outputs, draft: Path) -> None:
        """Everything that is asked of a few layouts; pi2vec itself is studied on the first ones."""
        _ask_part(part, models, draft, part.params.seeds[0] == params.study.first_seed)

    parts = parts_of(outputs, list(params.study.test_seeds), work, (*experiment.STAGE.files, _TABLE, _LEARNED), ask)
    found = [Tables(*(read_table(part / name) for name in experiment.STAGE.files)) for part in parts]
    tables = Tables(*(pd.concat([vars(part)[name] for part in found], ignore_index=True) for name in vars(found[0])))
    draft = new_draft(work)
    write_tables(summarise_tables(tables, outputs.spec, params.root_seed), draft)
    tables.results[_ROW_COLUMNS].round(4).to_parquet(draft / _ROWS, index=False)
    measure_costs(params).to_csv(draft / _COSTS, index=False)
    for name in _BEHAVIOUR:
        shutil.copy(parts[0] / name, draft / name)
    test, learned = (
        joined([load_table(part / name, _systems(params)) for part in parts]) for name in (_TABLE, _LEARNED)
    )
    _write_findings(outputs, test, learned, others, draft)
    publish(outputs, STUDY, work, {"key": _key(params), "made_of": made_of})
    return find_study(outputs)


def up_to_date(outputs: Outputs) -> bool:
    """Whether the study of a spec is whole, and was made by this code with the regressor that is there now."""
    entry, source = outputs.manifest().get(STUDY, {}), outputs.params.regressor.source
    judge = outputs.folder / (f"{MODEL}/{MODEL_FILE}" if source == "study" else f"regressor/{regressor.STAGE.files[0]}")
    if not whole(find_study, outputs) or not judge.is_file():
        return False
    return entry.get("made_of") == _made_of(outputs.params, judge)


def _made_of(params: Params, judge: Path) -> str:
    """Hash of everything that a study comes from; models of other specs, which are tried on its layouts, apart."""
    return json_hash([_key(params), file_hash(judge), source_hash("lever_lib.study")])


def _judge(outputs: Outputs) -> tuple[Regressor, Path]:
    """The regressor that ranks candidates and chooses combinations, and the file it is in."""
    if outputs.params.regressor.source == "study":
        model = regressor.load_model(outputs)
        nothing = pd.DataFrame()
        return Regressor({ALL_LAYOUTS: model.predictor}, nothing, nothing), model.path
    own = library.build_library(outputs.params, outputs)
    models = regressor.build_regressor(own, pi2vec.build_embeddings(own, outputs), outputs)
    return models, outputs.folder / regressor.STAGE.name / regressor.STAGE.files[0]


def _other_models(outputs: Outputs) -> dict[str, tuple[Path, int]]:
    """Models of other grid sizes that see policies as this spec's does, by spec: file and grid size."""
    found = {}
    for spec in available_specs():
        try:
            other = Outputs(spec, load_params(spec), outputs.folder.parent)
            model = regressor.load_model(other) if spec != outputs.spec else None
        except LeverError:  # no model, or none of its params: nothing to compare with
            continue
        sizes = [settings.grid.size for settings in (other.params, outputs.params)]
        if model and sizes[0] != sizes[1] and feature_count(sizes[0]) == feature_count(sizes[1]):
            found[spec] = model.path, other.params.grid.size
    return found


def _write_findings(
    outputs: Outputs, test: Table, learned: Table, others: dict[str, tuple[Path, int]], draft: Path
) -> None:
    """How the spec's model, the other candidates and the models of other specs do on the test layouts."""
    params = outputs.params
    sys.stderr.write(f"{outputs.spec}: judging regressors on {params.study.layouts} layouts\n")
    own = regressor.load_model(outputs).predictor
    train = load_table(outputs.folder / MODEL / TRAINING, test.systems)
    findings = generalisation.find_out(train, test, learned, own, params.regressor, params.root_seed)
    write_tables(findings, draft)
    models = {
        spec: (regressor.read_models(path, params)[0][ALL_LAYOUTS], size) for spec, (path, size) in others.items()
    }
    models[outputs.spec] = own, params.grid.size
    generalisation.transfer_rows(test, models, outputs.spec).to_csv(draft / _TRANSFER, index=False)


def _ask_part(outputs: Outputs, models: Regressor, draft: Path, first: bool) -> None:
    """Train, embed and ask a few layouts; the library is thrown away, the tables are kept."""
    policies = library.build_library(outputs.params, outputs)
    embeddings = pi2vec.build_embeddings(policies, outputs)
    if first:
        write_tables(behaviour.study_behaviour(policies, embeddings), draft)
    texts = index.build_index(policies, outputs)
    retriever = Retriever(policies, embeddings, models, texts)
    table = training_table(policies, embeddings)
    save_table(table, draft / _TABLE)
    save_table(replace(table, embedded=behaviour.learned(policies, embeddings)), draft / _LEARNED)
    run_experiment(experiment_jobs(retriever), outputs.params.execution, "composing").write(draft)


def main(arguments: list[str] | None = None) -> int:
    """`python -m lever_lib.study SPEC...`; returns the exit code."""
    parser = OneLineParser(prog="run_all.sh study", description="Run the experiment on further layouts.")
    parser.add_argument("specs", nargs="+", metavar="SPEC")
    options = parser.parse_args(arguments)

    def run() -> None:
        """Check all specs, fit all models, so that each is there to be tried on the others, then study each."""
        specs = [Outputs(spec, load_params(spec)) for spec in options.specs]
        for outputs in specs:
            check_seeds(outputs.params)
            check_changes(outputs.params)
        with ExitStack() as held:
            for outputs in specs:
                held.enter_context(hold(outputs.folder, RUN, wait=False))
            for outputs in specs:
                check_needs(outputs.params)
                check_shares(outputs, "study", outputs.params.study.test_seeds)
            study_all(specs)

    return exit_code(run, interrupted="interrupted; finished layouts are kept, run the same command again to go on")


def study_all(specs: Sequence[Outputs]) -> None:
    """Every study of some specs, saying where each is."""
    for outputs in specs:
        outputs.check_manifest()
        outputs.sweep()
    for outputs in specs:
        if not up_to_date(outputs):
            fit_model(outputs)
    for outputs in specs:
        study = run_study(outputs)
        sys.stdout.write(f"{outputs.spec}: study of {study.layouts} layouts in {shown(study.folder)}\n")
    for outputs in specs:
        run_ladder(outputs, fit_model)
        sys.stdout.write(f"{outputs.spec}: the information ladder in {shown(outputs.folder / LADDER)}\n")
    for outputs in specs:
        if run_deep(outputs):
            sys.stdout.write(f"{outputs.spec}: deep policies in {shown(outputs.folder / DEEP)}\n")
        if run_scale(outputs):
            sys.stdout.write(f"{outputs.spec}: search at scale in {shown(outputs.folder / SCALE)}\n")


if __name__ == "__main__":
    sys.exit(main())
