"""Run the numbered notebooks of a spec, one after the other; skip those whose inputs have not changed.

`run_all.sh` calls this. An executed notebook is an artefact: it is kept under `outputs/<spec>/notebooks/` and entered
in the manifest together with the figures it drew.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import shutil
import sys
import time
from pathlib import Path, PurePosixPath
from typing import Any

import nbformat

from lever_lib import experiment, index, library, pi2vec, regressor, report
from lever_lib.artifacts import (
    CODE,
    CODE_WANTED,
    DRAWN,
    LADDER,
    ROOT,
    SCALE,
    Outputs,
    Stage,
    check_code,
    clear,
    damaged_files,
    delete,
    file_hash,
    is_plain,
    json_hash,
    lasting_files,
    make_way,
    read_manifest,
    shown,
    source_hash,
    studies,
    write_whole,
)
from lever_lib.decompose import recording_hash
from lever_lib.envs.gridworld import check_bump, make_layout
from lever_lib.envs.rewards import REWARD_SYSTEMS, reward_system
from lever_lib.errors import LeverError, MissingArtifactError, OneLineParser, exit_code, writing_to
from lever_lib.locks import PUBLISH, RUN, hold
from lever_lib.needs import check_needs
from lever_lib.params import PARAMS_FOLDER, Params, load_params, resolved
from lever_lib.pictures import shrink_outputs
from lever_lib.study import study_files
from lever_lib.timed_planning import check_plannable

FOLDER = ROOT / "notebooks"
_SHOWN = {LADDER: "lever_lib.ladder", SCALE: "lever_lib.search_scale"}  # what notebooks show besides `study`
STAGES: dict[str, Stage] = {
    stage.notebook: stage
    for stage in (library.STAGE, pi2vec.STAGE, regressor.STAGE, index.STAGE, experiment.STAGE, report.STAGE)
}


def numbered_notebooks(start: str = "01") -> list[Path]:
    """The notebooks of the main pipeline, in order, from number `start` on.

    Raises:
        LeverError: if there is none with that number, or one has a name that cannot be told again.
    """
    paths = sorted(FOLDER.glob("0[0-9]_*.ipynb"))
    for path in paths:
        if not is_plain(path.name):
            raise LeverError(f"notebook {path.name!r}: must have a name in letters that can be read")
    numbers = [path.name[:2] for path in paths]
    if start not in numbers:
        raise LeverError(f"--from {start}: no such notebook; numbers: {', '.join(numbers)}")
    return paths[numbers.index(start) :]


def run_notebook(path: Path, spec: str, outputs: Outputs) -> bool:
    """Execute one notebook for a spec, unless its executed copy is up to date.

    Returns:
        Whether it ran.

    Raises:
        LeverError: if a cell fails; the partly executed notebook is kept for reading.
    """
    entry_name = f"notebooks/{path.stem}"
    stage = STAGES.get(path.stem)
    whole = stage is None or outputs.fresh(stage)
    cells = _cells(path)  # an edit that is made from now on is for the next run
    data = _data(outputs)
    if whole and _is_up_to_date(path, cells, outputs, data):
        return False
    target = outputs.folder / "notebooks" / path.name
    figures, drawings = outputs.folder / "figures", outputs.folder / ".figures.writing"
    for folder in (target.parent, figures):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except FileExistsError:
            raise LeverError(f"{shown(folder)}: is no folder, and a run is to write there; delete it") from None
    seen = _seen(spec, outputs)
    draft, failed = target.with_suffix(".running.ipynb"), target.with_suffix(".failed.ipynb")
    try:
        with writing_to(shown(target)):
            delete(drawings)
            failed.unlink(missing_ok=True)
            make_way(target)
            try:
                _execute(path, draft, failed, spec, drawings)
            except LeverError:  # for which a change may be to blame
                _check_unchanged(path, spec, outputs, seen)
                raise
            _strip_traces(draft)
        _check_unchanged(path, spec, outputs, seen)
        with hold(outputs.folder, PUBLISH), writing_to(shown(target)):
            drawn = sorted(drawings.iterdir()) if drawings.is_dir() else []
            _delete_figures(entry_name, {f"figures/{drawing.name}" for drawing in drawn}, outputs)
            outputs.forget(entry_name)
            for drawing in drawn:
                _move(drawing, figures / drawing.name)
            draft.replace(target)
            written = [target, *(figures / drawing.name for drawing in drawn)]
            files = {file.relative_to(outputs.folder).as_posix(): file_hash(file) for file in written}
            entry = {"key": _key(path, cells, outputs, data), "root_seed": outputs.params.root_seed, "files": files}
            outputs.enter(entry_name, entry)
    finally:
        draft.unlink(missing_ok=True)
        shutil.rmtree(drawings, ignore_errors=True)
    return True


def _seen(spec: str, outputs: Outputs) -> tuple[Params, int, dict[str, Any]]:
    """What a notebook may read besides stages, and when the params were written: they may change and change back."""
    params = load_params(spec)
    return params, (PARAMS_FOLDER / f"{spec}.yaml").stat().st_mtime_ns, _data(outputs)


def _check_unchanged(path: Path, spec: str, outputs: Outputs, before: tuple[Params, int, dict[str, Any]]) -> None:
    check_code()
    now = _seen(spec, outputs)
    if now[:2] != before[:2]:
        changed = f"params/{spec}.yaml"
    elif now != before:
        changed = str(outputs.params.llm.replay)
    else:
        return
    raise LeverError(f"{changed}: was changed while notebook {path.name} ran; run the same command again")


def _delete_figures(entry_name: str, drawn: set[str], outputs: Outputs) -> None:
    """Delete figures of an earlier run of a notebook that this one did not draw; others there are somebody's own."""
    stages = outputs.manifest()
    before = stages.pop(entry_name, {"files": {}})["files"]
    others = {file for entry in stages.values() for file in entry["files"]}
    for file in before.keys() - drawn - others:
        if file.startswith("figures/"):
            (outputs.folder / file).unlink(missing_ok=True)


def _move(draft: Path, target: Path) -> None:
    """Give a whole file its name, though its folder may be a link to another disk."""
    make_way(target)
    try:
        draft.replace(target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        write_whole(target, draft.read_bytes())


def _is_up_to_date(path: Path, cells: list[tuple[str, str]], outputs: Outputs, data: dict[str, Any]) -> bool:
    """Whether the executed copy of a notebook shows what is there now."""
    entry = outputs.manifest().get(f"notebooks/{path.stem}")
    return bool(entry and entry["key"] == _key(path, cells, outputs, data) and not damaged_files(outputs.folder, entry))


def _has_work(outputs: Outputs, start: str) -> bool:
    """Whether a run would execute any notebook."""
    data = _data(outputs)
    try:
        for path in numbered_notebooks(start):
            stage = STAGES.get(path.stem)
            if (stage and outputs.problem(stage)) or not _is_up_to_date(path, _cells(path), outputs, data):
                return True
    except MissingArtifactError:
        return True
    return False


def _execute(path: Path, draft: Path, failed: Path, spec: str, drawings: Path) -> None:
    import papermill
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    logging.getLogger("papermill").setLevel(logging.CRITICAL)  # what it has to say comes as an exception too
    prefer_own_kernel()
    os.environ |= {CODE_WANTED: f"{CODE} {ROOT / 'lever_lib'}", DRAWN: str(drawings.absolute())}
    try:
        papermill.execute_notebook(
            _as_it_is(path),
            _as_it_is(draft),
            parameters={"spec": spec},
            kernel_name="python3",
            cwd=str(FOLDER),
            progress_bar=False,
            shutdown_kernel="immediate",  # what a stage has not published yet it will never publish
            extra_arguments=["--log-level=ERROR"],  # one that just starts when a run is interrupted ends in silence
            stderr_file=sys.stderr if sys.stderr.isatty() else None,  # the notebook's own progress bars
        )
    except PapermillExecutionError as error:
        draft.replace(failed)
        reason = f"{error.ename}: {error.evalue}".splitlines()[0]
        raise LeverError(f"notebook {path.name} failed for spec {spec}: {reason}; read {shown(failed)}") from None
    except DeadKernelError:
        draft.replace(failed)
        raise LeverError(
            f"notebook {path.name} failed for spec {spec}: its kernel died, perhaps for want of memory"
        ) from None
    except RuntimeError as error:  # of nbclient and jupyter_client
        reason = " ".join(str(error).split())
        raise LeverError(f"notebook {path.name} failed for spec {spec}: its kernel did not start: {reason}") from None
    except OSError:
        raise
    except Exception as error:  # of whoever reads what is nearly a notebook
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise LeverError(f"{shown(path)}: no notebook that can be run ({reason})") from None
    except KeyboardInterrupt:
        logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # of tasks that nobody waits for any more
        raise
    finally:
        for name in (CODE_WANTED, DRAWN):
            os.environ.pop(name)


def _as_it_is(path: Path) -> str:
    """A path for papermill, which fills in what stands in braces."""
    return str(path).replace("{", "{{").replace("}", "}}")


def prefer_own_kernel() -> None:
    """Let `python3`, of all kernels that may be called so, be the one of this very Python."""
    places = [str(Path(sys.prefix, "share", "jupyter")), *filter(None, [os.environ.get("JUPYTER_PATH")])]
    os.environ["JUPYTER_PATH"] = os.pathsep.join(dict.fromkeys(places))


def _strip_traces(path: Path) -> None:
    """Take out what is no result: notes about this machine and this hour, and progress bars (they go to stderr).

    Pictures shrink, since executed notebooks of published specs are kept in git.
    """
    notebook = nbformat.read(path, as_version=4)
    for holder in (notebook, *notebook.cells):
        for note in ("papermill", "execution"):
            holder.metadata.pop(note, None)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    shrink_outputs(notebook)
    nbformat.write(notebook, path)


def _cells(path: Path) -> list[tuple[str, str]]:
    """Kind and source of a notebook's cells.

    Raises:
        LeverError: if it is damaged.
    """
    try:
        return [(cell["cell_type"], "".join(cell["source"])) for cell in json.loads(path.read_bytes())["cells"]]
    except (ValueError, LookupError, TypeError, RecursionError):
        raise LeverError(f"{shown(path)}: is damaged, no notebook can be read there; take it from git") from None


def _data(outputs: Outputs) -> dict[str, Any]:
    """Checksums of files of the package, and of a recording, that notebooks read."""
    folder = ROOT / "lever_lib" / "data"
    files = sorted([*folder.glob("*.csv"), *folder.glob("*.jsonl")])
    return {"data": {path.name: file_hash(path) for path in files}, "recording": recording_hash(outputs.params)}


def _key(path: Path, cells: list[tuple[str, str]], outputs: Outputs, data: dict[str, Any]) -> str:
    """Hash of all that an executed notebook shows: its cells, the params, the code, the stages, the studies."""
    code = "\n".join(source for kind, source in cells if kind == "code")
    stages = {name: lasting_files(entry["files"]) for name, entry in outputs.manifest().items() if "/" not in name}
    upstream = _upstream(STAGES.get(path.stem))
    imported = re.findall(r"^from (lever_lib[\w.]*) import", code, re.MULTILINE)
    parts: dict[str, Any] = {
        "cells": cells,
        "params": resolved(outputs.params),
        "sources": {name: source_hash(name) for name in imported},
        **data,
        "study": [file_hash(file) for file in study_files(outputs)] if "lever_lib.study" in imported else [],
        **{name: _lasting(name, outputs) for name, module in _SHOWN.items() if module in imported},
        "stages": {name: files for name, files in stages.items() if not upstream or name in upstream},
    }
    return json_hash(parts)


def _lasting(name: str, outputs: Outputs) -> list[dict[str, str]]:
    """Checksums of what a notebook may show: this run's own, or what came with the repository."""
    specs = (outputs.spec, "8x8") if name == SCALE else (outputs.spec,)  # where there is none of its own, that of 8x8
    folders = [root / spec for spec in specs for root in (outputs.folder.parent, ROOT / "outputs")]
    return [lasting_files(read_manifest(folder).get(name, {}).get("files", {})) for folder in folders]


def _upstream(stage: Stage | None) -> set[str]:
    """Names of a stage and of everything before it."""
    return {stage.name}.union(*(_upstream(up) for up in stage.upstream)) if stage else set()


def check_spec(spec: str) -> None:
    """Refuse a spec that cannot be run, before anything is written: its params, rewards, and a layout for every seed.

    Raises:
        LeverError: naming file, key, value and rule.
    """
    params = load_params(spec)
    try:
        for setup in REWARD_SYSTEMS:
            check_bump(reward_system(setup, params.grid.legacy_gold_exit), params.grid.moves)
        for seed in params.seeds:
            check_plannable(make_layout(params.grid, seed))
    except LeverError as error:
        raise LeverError(f"params/{spec}.yaml: grid: {error}") from None


def run_spec(spec: str, start: str) -> None:
    """Run the notebooks of one spec and say where the results are; another run of it is waited for."""
    with hold(Outputs(spec, load_params(spec)).folder, RUN):
        check_spec(spec)  # it may have been changed while another run was waited for
        outputs = Outputs(spec, load_params(spec))
        _recover(outputs)
        outputs.sweep()
        gone = [name for name in outputs.manifest() if name.startswith("notebooks/") and not _source(name).is_file()]
        outputs.forget(*gone)  # no run would write them again
        _run(outputs, start)
        outputs.restore_params()


def _source(entry_name: str) -> Path:
    """The notebook of an entry."""
    return FOLDER / f"{PurePosixPath(entry_name).name}.ipynb"


def _recover(outputs: Outputs) -> None:
    """Throw away what nobody can vouch for, as the manifest is damaged.

    Raises:
        MissingArtifactError: if there are studies among it, which take long; the manifest may be in git.
    """
    try:
        outputs.check_manifest()
    except MissingArtifactError as error:
        if studies(outputs.folder):
            raise
        sys.stderr.write(f"{outputs.spec}: {error}; starting over\n")
        clear(outputs.folder)


def _run(outputs: Outputs, start: str) -> None:
    spec = outputs.spec
    notebooks = numbered_notebooks(start)
    for path in notebooks:
        title = f"{spec}: {path.stem} ..."
        bars_follow = sys.stderr.isatty()
        sys.stderr.write(title + ("\n" if bars_follow else " "))
        sys.stderr.flush()
        started, result = time.perf_counter(), "not finished"
        try:
            _check_params(outputs)
            ran = run_notebook(path, spec, outputs)
            result = f"{time.perf_counter() - started:.1f} s" if ran else "up to date"
        finally:
            sys.stderr.write(f"{title} {result}\n" if bars_follow else f"{result}\n")
    _check_params(outputs)
    folder = shown(outputs.folder)
    sys.stdout.write(
        f"{spec}: results in {folder}/results and {folder}/composition/results.csv, figures in {folder}/figures, "
        f"executed notebooks in {folder}/notebooks\n"
    )


def _check_params(outputs: Outputs) -> None:
    """See that a run still does what the params say."""
    if load_params(outputs.spec) != outputs.params:
        raise LeverError(f"params/{outputs.spec}.yaml: was changed while this run goes on; run the same command again")


def run_specs(specs: list[str], start: str) -> None:
    """Check all specs, then run them one after the other."""
    numbered_notebooks(start)
    for spec in specs:
        check_spec(spec)
        outputs = Outputs(spec, load_params(spec))
        with hold(outputs.folder, RUN, wait=False):
            pass  # one that is going on now is not waited for; one that starts while other specs run is
        if _has_work(outputs, start):
            check_needs(outputs.params)
            experiment.check_shares(outputs, "seeds", outputs.params.seeds)
    for spec in specs:
        run_spec(spec, start)


def main(arguments: list[str] | None = None) -> int:
    """`python -m lever_lib.notebooks [--from NN] SPEC...`; returns the exit code."""
    parser = OneLineParser(prog="run_all.sh", description="Run the numbered notebooks.")
    parser.add_argument("specs", nargs="+", metavar="SPEC")
    parser.add_argument("--from", dest="start", default="01", metavar="NN", help="notebook to start at")
    options = parser.parse_args(arguments)
    return exit_code(
        lambda: run_specs(options.specs, options.start),
        interrupted="interrupted; finished stages are kept, run the same command again to go on",
    )


if __name__ == "__main__":
    sys.exit(main())
