"""Killed at any moment, run again: what comes out is what would have come out."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lever_lib import unfinished
from lever_lib.artifacts import Outputs, Stage, examine, file_hash, json_hash
from lever_lib.errors import LeverError
from lever_lib.params import load_params
from lever_lib.unfinished import new_draft, parts_of, publish, work_folder
from tests.checkout import ENDED_BY_CTRL_C

FIRST = Stage("first", "01_first", ("a.txt",), ("grid",), (), "lever_lib.seeding")
SECOND = Stage("second", "02_second", ("b.txt", "c.txt"), ("seeds",), (FIRST,), "lever_lib.seeding")
MADE_OF = json_hash("it")
MARKS = ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir")


def make_part(outputs, draft):
    with outputs.writing(FIRST) as folder:  # a library of its own, to be thrown away
        (folder / "a.txt").write_text("large")
    (draft / "part.csv").write_text("1")


def run(outputs):
    """Two stages and a study, as long as they are not there; what is old is replaced."""
    outputs.sweep()
    for stage in (FIRST, SECOND):
        if not outputs.fresh(stage):
            with outputs.writing(stage) as folder:
                for name in stage.files:
                    (folder / name).write_text(f"{stage.name} {name} {outputs.params.grid.size}")
    if outputs.made_of("study") != MADE_OF:
        work = work_folder(outputs, "study", MADE_OF)
        parts = parts_of(outputs, [1, 2, 3], work, ("part.csv",), make_part)
        draft = new_draft(work)
        (draft / "all.csv").write_text("".join((part / "part.csv").read_text() for part in parts))
        publish(outputs, "study", work, {"key": "k", "made_of": MADE_OF})
    outputs.restore_params()


def killed_at(moment, outputs):
    """Run in a process that is killed just before it touches the outputs for the `moment`-th time; whether it was."""
    child = os.fork()
    if child == 0:
        left = [moment]

        def watch(event, arguments):
            if event in MARKS and str(arguments[0]).startswith(str(outputs.folder.parent)):
                if event == "open" and not (arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)):
                    return
                if left[0] == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                left[0] -= 1

        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        try:
            sys.addaudithook(watch)
            run(outputs)
            os._exit(0)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


def contents(folder):
    return {
        path.relative_to(folder).as_posix(): file_hash(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and ".locks" not in path.parts
    }


@pytest.mark.parametrize("before", ["nothing", "the same", "other params"])
def test_a_run_that_is_killed_before_any_write_is_finished_by_the_next(tmp_path, before):
    params = load_params("smoke")
    whole = Outputs("smoke", params, tmp_path / "whole")
    run(whole)
    expected = contents(whole.folder)
    moment, killed = 0, True
    while killed:
        outputs = Outputs("smoke", params, tmp_path / str(moment))
        if before == "other params":
            run(Outputs("smoke", load_params("8x8"), tmp_path / str(moment)))
            outputs.forget("study")
        elif before == "the same":
            run(outputs)
            (outputs.folder / "first" / "a.txt").write_text("damaged")
        killed = killed_at(moment, outputs)
        for name, state in examine(outputs.folder).items():
            assert not state.damaged or name in ("params", "first"), "what is entered is whole"
        run(outputs)
        assert contents(outputs.folder) == expected, f"killed at write {moment}"
        moment += 1
    assert moment > 20


@pytest.mark.parametrize("place", ["other", "work", "parts", "part", "draft", "its library"])
@pytest.mark.parametrize("kind", ["file", "link"])
def test_whatever_stands_where_unfinished_work_belongs_makes_way(tmp_path, place, kind):
    outputs = Outputs("smoke", load_params("smoke"), tmp_path / "outputs")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    work = work_folder(outputs, "study", MADE_OF)
    found = {
        "other": outputs.folder / ".study-0000000000000000",
        "work": work,
        "parts": work / "parts",
        "part": work / "parts" / "0001-0003",
        "draft": work / "parts" / ".0001-0003.writing",
        "its library": work / "0001-0003",
    }[place]
    if found.is_dir():
        shutil.rmtree(found)
    if kind == "file":
        found.write_text("x")
    else:
        found.symlink_to(elsewhere)
    run(outputs)
    assert (outputs.folder / "study" / "all.csv").read_text() == "1"
    assert elsewhere.is_dir()
    assert not [path.name for path in outputs.folder.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("damage", ["cut off", "another file", "of others", "a folder", "without checksums"])
def test_unfinished_work_that_is_damaged_is_done_again(tmp_path, monkeypatch, capsys, damage):
    monkeypatch.setattr(unfinished, "_CHUNK", 3)
    outputs = Outputs("smoke", load_params("smoke"), tmp_path)
    made = []

    def make(part, draft):
        part.folder.mkdir(parents=True)  # a library of its own, to be thrown away
        made.append(part.params.seeds)
        (draft / "part.csv").write_text(f"of {part.params.seeds}")
        (draft / "more.csv").write_text("that not all parts have")

    work = work_folder(outputs, "study", MADE_OF)
    first, second, _ = parts_of(outputs, list(range(9)), work, ("part.csv",), make)
    if damage == "cut off":
        (first / "part.csv").write_text("of")
    elif damage == "another file":
        (first / "more.csv").unlink()
    elif damage == "of others":
        shutil.rmtree(first)
        shutil.copytree(second, first)
    elif damage == "a folder":
        (first / "part.csv").unlink()
        (first / "part.csv").mkdir()
    else:
        (first / "checksums.json").unlink()
    parts_of(outputs, list(range(9)), work, ("part.csv",), make)
    assert made == [(0, 1, 2), (3, 4, 5), (6, 7, 8), (0, 1, 2)]
    assert (first / "part.csv").read_text() == "of (0, 1, 2)"
    assert "0000-0002 is damaged" in capsys.readouterr().err


def test_long_work_whose_code_or_data_changed_meanwhile_is_not_kept(tmp_path, monkeypatch):
    """Though it may have changed back: who knows what the work has read."""
    monkeypatch.setattr(unfinished, "_CHUNK", 3)
    outputs = Outputs("smoke", load_params("smoke"), tmp_path)
    work = work_folder(outputs, "study", MADE_OF)

    def make(part, draft):
        part.folder.mkdir(parents=True)
        (draft / "part.csv").write_text("1")

    part = parts_of(outputs, [1, 2, 3], work, ("part.csv",), make)[0]
    monkeypatch.setattr("lever_lib.artifacts.DATA", {})
    with pytest.raises(LeverError, match="lever_lib was changed while this run went on"):
        parts_of(outputs, [1, 2, 3, 4, 5, 6], work, ("part.csv",), make)
    assert [path for path in (work / "parts").iterdir() if not path.name.startswith(".")] == [part]
    (new_draft(work) / "all.csv").write_text("1")
    with pytest.raises(LeverError, match="lever_lib was changed while this run went on"):
        publish(outputs, "study", work, {"key": "k", "made_of": MADE_OF})
    assert not (outputs.folder / "study").exists()


def test_a_run_is_interrupted_without_a_word_too_many(tmp_path):
    """As Ctrl-C does it: to the process in the foreground, while a kernel is at work."""
    process = subprocess.Popen(
        [sys.executable, "-m", "lever_lib.start", "notebooks", "smoke"],
        env=os.environ | {"LEVER_OUTPUTS": str(tmp_path)},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while not (tmp_path / "smoke").is_dir():
        assert process.poll() is None
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode in ENDED_BY_CTRL_C, said
    assert said.splitlines()[-1] == (
        "lever: interrupted; finished stages are kept, run the same command again to go on"
    )
    assert "Traceback" not in said
    assert "Error" not in said
    assert not list(tmp_path.glob("smoke/notebooks/*"))


def test_a_reader_sees_old_or_new_but_never_half(tmp_path):
    """A process rebuilds two stages over and over while this one reads them."""
    params = {name: load_params(name) for name in ("smoke", "8x8")}
    run(Outputs("smoke", params["smoke"], tmp_path))
    child = os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        try:
            for turn in range(300):
                outputs = Outputs("smoke", params["8x8" if turn % 2 else "smoke"], tmp_path)
                with outputs.writing(FIRST) as folder:
                    (folder / "a.txt").write_text(str(outputs.params.grid.size) * 2000)
            os._exit(0)
        finally:
            os._exit(1)
    outputs, seen = Outputs("smoke", params["smoke"], tmp_path), set()
    while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0):
        with outputs.reading():
            folder = outputs.require_files(FIRST)
            text = Path(folder / "a.txt").read_text()
        seen.add(text)
    sizes = {str(found.grid.size) * 2000 for found in params.values()}
    assert seen - {f"first a.txt {params['smoke'].grid.size}"} <= sizes
    assert seen & sizes
    assert ended == (child, 0)
