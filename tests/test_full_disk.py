"""A disk that is full, or must not be written to: one line says so, and nothing is half written or lost."""

import os
import resource
import shutil
import subprocess
import sys
from functools import partial

import pytest

from lever_lib.__main__ import main
from lever_lib.artifacts import Outputs, examine
from lever_lib.errors import LeverError, exit_code
from lever_lib.notebooks import STAGES
from tests.conftest import at_most, build_everything
from tests.test_interrupted import contents
from tests.test_interrupted import run as run_toy

STAGE_NAMES = [stage.name for stage in STAGES.values()]
room_for = partial(at_most, resource.RLIMIT_FSIZE)


def fails(action, size):
    """The one line that an action ends with for want of room."""
    with pytest.raises(LeverError, match="cannot be written: ") as caught, room_for(size):
        action()
    line = str(caught.value)
    assert "\n" not in line
    assert "File too large" in line or "is the disk full?" in line
    return line


@pytest.mark.parametrize("before", ["nothing", "damaged"])
def test_a_run_without_room_says_so_and_the_next_one_finishes(smoke_params, tmp_path, before):
    whole = Outputs("smoke", smoke_params, tmp_path / "whole")
    run_toy(whole)
    expected, failures = contents(whole.folder), 0
    for size in (0, 1, 10, 100, 500, 1000, 1500, 2000):
        outputs = Outputs("smoke", smoke_params, tmp_path / str(size))
        if before == "damaged":
            run_toy(outputs)
            (outputs.folder / "first" / "a.txt").write_text("damaged")
        with room_for(size):
            failures += exit_code(lambda: run_toy(outputs), interrupted="") == 2  # noqa: B023  called at once
        for name, state in examine(outputs.folder).items():
            assert not state.damaged or name in ("params", "first"), "what is entered is whole"
        run_toy(outputs)
        assert contents(outputs.folder) == expected
    assert failures >= 4


@pytest.fixture(scope="module")
def copy(smoke, smoke_outputs, tmp_path_factory):
    """A run of which stages are to be built again."""
    root = tmp_path_factory.mktemp("full disk") / "outputs"
    shutil.copytree(smoke_outputs.folder, root / "smoke")
    return Outputs("smoke", smoke_outputs.params, root)


@pytest.mark.parametrize("name", STAGE_NAMES)
def test_a_stage_without_room_for_its_largest_file_leaves_things_as_they_were(copy, name):
    folder = copy.folder / name
    size = max(path.stat().st_size for path in folder.iterdir())
    entry = copy.manifest()[name]
    copy.enter(name, entry | {"key": "of other code"})
    before = contents(copy.folder)
    assert f"{folder}: cannot be written: " in fails(lambda: build_everything(copy.params, copy), size - 1)
    assert contents(copy.folder) == before
    assert not list(copy.folder.glob(".*.writing"))
    copy.enter(name, entry)


@pytest.mark.parametrize(("ending", "size"), [("npz", 2000), ("png", 9000)])
def test_what_somebody_wants_to_keep_is_there_whole_or_not_at_all(copy, monkeypatch, capsys, tmp_path, ending, size):
    monkeypatch.setenv("LEVER_OUTPUTS", str(copy.folder.parent))
    path = tmp_path / f"kept.{ending}"
    option = {"npz": "--save", "png": "--figure"}[ending]
    with room_for(size):
        assert main(["search", "gold and the lever", "--spec", "smoke", option, str(path)]) == 2
    assert capsys.readouterr().err == f"lever: {path}: cannot be written: File too large\n"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("kilobytes", "file"), [(2, "notebooks/01_generation.ipynb"), (64, "library")])
def test_a_whole_run(tmp_path, kilobytes, file):
    process = start(f"ulimit -f {kilobytes}; ", "lever_lib.start", "notebooks", "smoke", LEVER_OUTPUTS=str(tmp_path))
    assert process.returncode == 2, process.stderr
    assert f"{tmp_path}/smoke/{file}: cannot be written: " in process.stderr.splitlines()[-1]
    assert "Traceback" not in process.stderr
    left = [path.name for path in tmp_path.glob("smoke/**/*") if path.is_file()]
    assert left in ([], ["01_generation.failed.ipynb"])


def test_a_program_that_cannot_say_anything_says_so_by_its_exit_code():
    process = start("exec >/dev/full; ", "lever_lib", "optimum", "--spec", "smoke", "--seed", "0", "--setup", "gold")
    assert process.returncode == 2
    assert process.stderr.startswith("lever: No space left on device (where the output goes, or for compiled kernels")
    assert process.stderr.count("\n") == 1
    assert start("exec 2>/dev/full; ", "lever_lib", "view", "--spec", "nowhere").returncode == 2


def start(before, *arguments, **environment):
    """Run `python -m ARGUMENTS` after some words to the shell."""
    return subprocess.run(
        ["bash", "-c", f'{before}exec "$0" -m "$@"', sys.executable, *arguments],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def as_somebody(arguments, root):
    """Run a command, if this is root's process then without its right to write everywhere."""
    powerless = ["setpriv", "--bounding-set", "-dac_override"] if os.getuid() == 0 else []
    environment = os.environ | {"LEVER_OUTPUTS": str(root)}
    return subprocess.run([*powerless, *arguments], env=environment, capture_output=True, text=True, check=False)


def test_outputs_that_must_not_be_written_to_can_be_read(copy):
    root = copy.folder.parent
    (root / ".locks").mkdir(exist_ok=True)
    places = [root, *(path for path in root.rglob("*") if path.is_dir())]
    modes = {path: path.stat().st_mode for path in [*places, *root.rglob("*")]}
    before = contents(copy.folder)
    try:
        for path, mode in modes.items():
            path.chmod(mode & ~0o222)
        found = as_somebody([sys.executable, "-m", "lever_lib", "search", "gold", "--spec", "smoke"], root)
        assert (found.returncode, found.stderr) == (0, "")
        run = as_somebody([sys.executable, "-m", "lever_lib.start", "notebooks", "smoke"], root)
        assert (run.returncode, run.stderr) == (2, f"lever: {root}/.locks/smoke.run: Permission denied\n")
        assert contents(copy.folder) == before
    finally:
        for path, mode in modes.items():
            path.chmod(mode)


def test_errors_of_the_system_are_one_line(capsys):
    def trouble():
        raise OSError(28, "No space\nleft", "a\nfile")

    assert exit_code(trouble, interrupted="") == 2
    assert capsys.readouterr().err == "lever: a file: No space left\n"
