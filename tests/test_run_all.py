"""The script that starts everything, where something is missing: it says what to do and exits with 2."""

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from lever_lib.artifacts import ROOT


@pytest.fixture
def checkout(tmp_path):
    """A checkout without its library, in a path with a space; nothing can be installed from anywhere."""
    folder = tmp_path / "a checkout"
    folder.mkdir()
    for name in ("run_all.sh", "requirements.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, folder)
    return folder


def run(checkout, *arguments, python=sys.executable, **more):
    offline = {"PIP_NO_INDEX": "1", "PIP_RETRIES": "0", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    environment = os.environ | offline | {"PYTHON": str(python)} | more
    return subprocess.run(
        [str(checkout / "run_all.sh"), *arguments],
        env=environment,
        cwd=checkout.parent,
        capture_output=True,
        text=True,
        check=False,
    )


def says(result, *parts):
    assert result.returncode == 2, result.stderr
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("run_all.sh: "), result.stderr
    for part in parts:
        assert part in last


def test_no_python(checkout):
    says(run(checkout, python="python-that-nobody-has"), "no python-that-nobody-has found", "3.11")
    assert not (checkout / ".venv").exists()


def test_an_old_python(checkout):
    old = checkout / "python3"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo Python 3.9.2 && exit 0\nexit 3\n')
    old.chmod(0o755)
    says(run(checkout, python=old), "Python 3.9.2 is too old; needs 3.11 or newer")
    assert not (checkout / ".venv").exists()


def test_a_python_that_does_not_start(checkout):
    says(run(checkout, PYTHONHOME="/nowhere"), "does not start", "PYTHONHOME")
    assert not (checkout / ".venv").exists()


def test_an_interrupt_before_anything_started(checkout):
    """Ctrl-C goes to all that are in the foreground."""
    slow = checkout / "python3"
    slow.write_text("#!/bin/sh\nsleep 10\n")
    slow.chmod(0o755)
    process = subprocess.Popen(
        [str(checkout / "run_all.sh"), "smoke"],
        env=os.environ | {"PYTHON": str(slow)},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    time.sleep(0.5)
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=5)
    assert process.returncode == 130
    assert said == "run_all.sh: interrupted; run the same command again to go on\n"


@pytest.mark.parametrize("before", ["nothing", "half made", "of another place"])
def test_without_a_network_it_says_so_and_starts_over_next_time(checkout, before):
    """A `.venv` that was left half made is neither used nor in the way."""
    environment = checkout / ".venv"
    if before != "nothing":
        (environment / "bin").mkdir(parents=True)
        (environment / "left over").write_text("")
    if before == "of another place":
        (environment / "bin" / "python").symlink_to(sys.executable)
        (environment / "requirements.sha256").write_text("0" * 64)
    result = run(checkout, "smoke")
    assert "setting up .venv" in result.stderr
    says(result, "installing requirements.txt failed", "network", "Run the same command again")
    assert not (environment / "left over").exists()
    assert not (environment / "requirements.sha256").exists(), "the next run sets up again"


def test_the_environment_of_another_checkout_is_let_alone(checkout):
    other = checkout.with_name("other")
    other.mkdir()
    (other / "theirs").write_text("")
    (checkout / ".venv").symlink_to(other)
    says(run(checkout, "smoke"), "installing requirements.txt failed")
    assert [path.name for path in other.iterdir()] == ["theirs"]
    assert not (checkout / ".venv").is_symlink()
    assert (checkout / ".venv" / "bin" / "python").exists()


def test_a_file_in_the_place_of_the_environment_is_named(checkout):
    (checkout / ".venv").write_text("mine")
    says(run(checkout, "smoke"), f"{checkout}/.venv is no folder; move it away")
    assert (checkout / ".venv").read_text() == "mine"


def test_an_error_in_the_sources_is_none_of_the_environment(checkout):
    package = checkout / "lever_lib"
    package.mkdir()
    (package / "__init__.py").write_text("oops(")
    environment = checkout / ".venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True)
    (place,) = environment.glob("lib/*/site-packages")
    (place / "here.pth").write_text(f"{checkout}\n")
    wanted = b"".join((checkout / name).read_bytes() for name in ("requirements.txt", "pyproject.toml"))
    (environment / "requirements.sha256").write_text(hashlib.sha256(wanted).hexdigest() + "\n")
    result = run(checkout, "smoke")
    assert "oops(" in result.stderr
    assert "setting up" not in result.stderr
    assert (place / "here.pth").is_file()


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--fast"], ["unknown option --fast", "--help"]),
        (["--from"], ["--from needs the two digits"]),
        (["--from", "five"], ["--from needs the two digits"]),
        (["--from=5"], ["--from needs the two digits"]),
        (["test", "8x8"], ["test takes no further words"]),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_is_installed(checkout, arguments, parts):
    says(run(checkout, *arguments), *parts)
    assert not (checkout / ".venv").exists()


def test_help_needs_nothing(checkout):
    result = run(checkout, "--help", python="python-that-nobody-has")
    assert result.returncode == 0
    assert "./run_all.sh smoke" in result.stdout


def test_it_is_the_checkout_that_was_asked_for(checkout):
    """From another folder, by a relative path or a link, whatever `cd` would make of it."""
    decoy = checkout.parent / "elsewhere" / checkout.name
    decoy.mkdir(parents=True)
    (checkout.parent / "link").symlink_to(checkout / "run_all.sh")
    asks = checkout / "python3"  # where it is
    asks.write_text("#!/bin/sh\npwd >&2\nexit 1\n")
    asks.chmod(0o755)
    for command in (f"./{checkout.name}/run_all.sh", f"{checkout.name}/run_all.sh", "./link"):
        script = ["bash", command]
        environment = os.environ | {"CDPATH": str(decoy.parent), "PYTHON": "python-that-nobody-has"}
        helped = subprocess.run(
            [*script, "--help"], env=environment, cwd=checkout.parent, capture_output=True, text=True, check=False
        )
        assert (helped.returncode, helped.stderr) == (0, ""), command
        result = subprocess.run(
            [*script, "smoke"],
            env=environment | {"PYTHON": str(asks)},
            cwd=checkout.parent,
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == 2
        assert result.stderr.splitlines()[0] == str(checkout), command


def test_two_first_calls_at_once_do_not_disturb_each_other(checkout):
    """The second one waits for the first, and finds all done."""
    (checkout / "requirements.txt").write_text("")
    (checkout / "lever_lib").mkdir()
    (checkout / "lever_lib" / "__init__.py").write_text("")
    (checkout / "lever_lib" / "start.py").write_text("print('started')")
    slow = checkout / "python3"  # for the other one to come in between
    slow.write_text(
        f'#!/bin/sh\n"{sys.executable}" "$@" || exit\n[ "$2" = venv ] || exit 0\nsleep 1\n'
        'for place in .venv/lib/*/site-packages; do pwd >"$place/here.pth"; done\n'
    )
    slow.chmod(0o755)
    elsewhere = checkout.parent / "elsewhere" / "lever_lib"
    elsewhere.mkdir(parents=True)
    (elsewhere / "__init__.py").write_text("raise SystemExit('of another checkout')")
    environment = os.environ | {"PYTHON": str(slow), "PIP_NO_INDEX": "1", "PYTHONPATH": str(elsewhere.parent)}
    processes = [
        subprocess.Popen(
            [str(checkout / "run_all.sh"), "smoke"],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    said = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    assert [out for out, _ in said] == ["started\n"] * 2
    assert sorted("setting up" in errors for _, errors in said) == [False, True]
    assert [errors for _, errors in said if "setting up" not in errors] == [
        "waiting for the process that sets up .venv\n"
    ]


@pytest.mark.parametrize("more", [{"PYTHONINSPECT": "1"}, {"BASH_FUNC_exec%%": "() { echo fake; }"}], ids=str)
def test_what_the_environment_may_hold_misleads_nobody(checkout, more):
    result = run(checkout, "--help", **more)
    assert result.returncode == 0
    assert result.stdout.startswith("Reproduce everything")
    result = run(checkout, **more)
    says(result, "installing requirements.txt failed")


def test_another_shell_hands_over(checkout):
    result = subprocess.run(["sh", checkout / "run_all.sh", "--help"], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith("Reproduce everything")


def test_what_steers_a_terminal_is_not_said_again_by_the_script(checkout):
    result = run(checkout, "--fro\x1b[31mm")
    says(result, "unknown option --fro [31mm")


def test_requirements_are_for_the_python_that_the_project_names():
    text = (ROOT / "requirements.txt").read_text()
    assert "torch==2.13.0" in text
    assert text.rstrip().endswith("-e .")
