import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from lever_lib.artifacts import Outputs, clear
from lever_lib.errors import LeverError
from lever_lib.locks import BUILD, PUBLISH, RUN, hold, owner, run_beside
from lever_lib.notebooks import main
from lever_lib.params import load_params

HOLDER = """
import sys, time
from pathlib import Path
from lever_lib.locks import hold
with hold(Path(sys.argv[1]), sys.argv[2]):
    print("held", flush=True)
    sys.stdin.readline()
"""


class Holder:
    """Another process that holds a lock until it is told to let go, or killed."""

    def __init__(self, folder, what):
        command = [sys.executable, "-c", HOLDER, str(folder), what]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __enter__(self):
        assert self.process.stdout.readline() == "held\n"
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "smoke"


def test_a_second_one_is_refused_with_owner_and_age(folder):
    with Holder(folder, RUN) as other:
        who = rf"process {other.process.pid} on this machine, for \d+ s"
        with pytest.raises(LeverError, match=f"spec smoke: a run is going on already.*{who}"), hold(folder, RUN, False):
            pytest.fail("two runs at once")
        assert run_beside(folder).startswith(f"process {other.process.pid}")
    assert run_beside(folder) is None


def test_the_lock_of_a_killed_process_is_free_at_once(folder):
    with Holder(folder, RUN) as other:
        os.kill(other.process.pid, signal.SIGKILL)
        other.process.wait()
        with hold(folder, RUN, wait=False):
            assert owner(folder, RUN).startswith(f"process {os.getpid()} ")


def test_one_waits_for_the_other_and_says_for_whom(folder, capfd):
    with Holder(folder, BUILD) as other:
        threading.Timer(1.5, other.process.kill).start()
        started = time.perf_counter()
        with hold(folder, BUILD):
            assert time.perf_counter() - started > 1
    assert f"waiting until process {other.process.pid} on this machine" in capfd.readouterr().err


def test_who_holds_a_lock_may_take_it_again_but_another_thread_may_not(folder):
    with hold(folder, PUBLISH), hold(folder, PUBLISH, wait=False):
        assert run_beside(folder) is None
        refused = []

        def other():
            with pytest.raises(LeverError), hold(folder, PUBLISH, wait=False):
                pytest.fail("two at once")
            refused.append(True)

        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        assert refused
    with hold(folder, PUBLISH, wait=False):
        pass


def test_two_ways_to_a_folder_lead_to_one_lock(tmp_path):
    (tmp_path / "disk" / "smoke").mkdir(parents=True)
    link = tmp_path / "smoke"
    link.symlink_to(tmp_path / "disk" / "smoke")
    going_on = pytest.raises(LeverError, match="a run is going on already")
    with Holder(link, RUN), going_on, hold(tmp_path / "disk" / "smoke", RUN, wait=False):
        pytest.fail("two runs at once")


@pytest.mark.parametrize("name", ["outputs/smoke", "outputs", "outputs/loop"])
def test_a_link_that_leads_nowhere_is_named(tmp_path, name):
    link = tmp_path / name
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(link if link.name == "loop" else tmp_path / "gone" / "smoke")
    folder = link / "smoke" if name == "outputs" else link
    with pytest.raises(LeverError, match=f"{link}: is a link"), hold(folder, RUN):
        pass
    assert not (tmp_path / "gone").exists()


def test_specs_do_not_wait_for_each_other(tmp_path):
    with Holder(tmp_path / "8x8", RUN), hold(tmp_path / "16x16", RUN, wait=False):
        pass


@pytest.mark.parametrize("content", ["", "{", "[]", '{"process": 1}', "[" * 9000])
def test_an_unreadable_lock_file_is_no_obstacle(folder, content):
    (folder.parent / ".locks").mkdir()
    (folder.parent / ".locks" / "smoke.run").write_text(content)
    assert owner(folder, RUN) == "an unknown process"
    assert run_beside(folder) is None
    with hold(folder, RUN, wait=False):
        assert json.loads((folder.parent / ".locks" / "smoke.run").read_text())["process"] == os.getpid()


def test_a_second_run_of_a_spec_is_refused_before_anything_is_done(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("LEVER_OUTPUTS", str(tmp_path))
    monkeypatch.setattr("lever_lib.notebooks.run_notebook", lambda *_: pytest.fail("it runs"))
    with Holder(tmp_path / "smoke", RUN):
        assert main(["smoke"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "a run is going on already" in said
    assert not (tmp_path / "smoke").exists()


def test_what_a_run_is_writing_is_not_reset(tmp_path):
    (tmp_path / "smoke" / "library").mkdir(parents=True)
    with Holder(tmp_path / "smoke", RUN), pytest.raises(LeverError, match="a run is going on already"):
        clear(tmp_path / "smoke")
    assert (tmp_path / "smoke" / "library").is_dir()
    clear(tmp_path / "smoke")
    assert not (tmp_path / "smoke").exists()


def test_entries_of_two_processes_are_all_kept(tmp_path):
    """What is read, changed and written back by two at once would lose one of them."""
    code = """
import sys
from pathlib import Path
from lever_lib.artifacts import Outputs
from lever_lib.params import load_params
outputs = Outputs("smoke", load_params("smoke"), Path(sys.argv[1]))
outputs.folder.mkdir(exist_ok=True)
for number in range(40):
    outputs.enter(f"{sys.argv[2]}/{number}", {"key": "k", "files": {}})
"""
    both = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path), name]) for name in ("one", "two")]
    assert [process.wait() for process in both] == [0, 0]
    assert len(Outputs("smoke", load_params("smoke"), tmp_path).manifest()) == 80
