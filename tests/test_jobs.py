import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import distributed
import numpy as np
import pytest

from lever_lib import jobs as seam
from lever_lib.artifacts import Outputs
from lever_lib.envs.gridworld import make_layout
from lever_lib.errors import _AGAIN, LeverError, exit_code
from lever_lib.jobs import run_jobs
from lever_lib.library import build_library, training_jobs
from lever_lib.params import Budget, Execution
from lever_lib.policies.tabular import train
from tests.conftest import build_everything
from tests.test_experiment import digests


@pytest.mark.parametrize(("workers", "threads"), [(1, True), (2, True), (2, False)])
def test_results_come_in_the_order_of_the_jobs(workers, threads):
    jobs = [[3, 1], [2], [], [5, 5]]
    assert list(run_jobs(sum, jobs, Execution(workers=workers), "adding", threads)) == [4, 2, 0, 10]


def test_no_more_workers_start_than_there_are_jobs(monkeypatch):
    asked, parallel = [], seam.Parallel
    monkeypatch.setattr(seam, "Parallel", lambda **settings: asked.append(settings["n_jobs"]) or parallel(**settings))
    assert list(run_jobs(sum, [[1], [2]], Execution(workers=1000), "adding", threads=True)) == [1, 2]
    assert list(run_jobs(sum, [[1]], Execution(workers=1000), "adding", threads=True)) == [1]
    assert list(run_jobs(sum, [], Execution(workers=1000), "adding", threads=True)) == []
    assert asked == [2]


def test_ctrl_c_that_a_library_makes_another_error_of_is_still_ctrl_c(capsys):
    def swallow():
        try:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(10)
        except KeyboardInterrupt:
            raise ValueError("not a valid buffer format") from None

    assert exit_code(lambda: exit_code(swallow, "stopped"), "outside") == 130
    assert capsys.readouterr().err == "lever: stopped\n"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    with pytest.raises(ValueError, match="of its own"):
        exit_code(lambda: int("of its own"), "stopped")


def test_ctrl_c_that_cannot_be_raised_is_told_by_nobody(monkeypatch):
    """As in a callback of a C library; what else goes wrong there is told as ever."""
    told = []
    tell = told.append
    monkeypatch.setattr(sys, "unraisablehook", tell)

    class Callback:
        def __init__(self, error):
            self.error = error

        def __del__(self):
            raise self.error

    def run():
        Callback(KeyboardInterrupt())
        Callback(ZeroDivisionError())

    assert exit_code(run, "stopped") == 0
    assert [problem.exc_type for problem in told] == [ZeroDivisionError]
    assert sys.unraisablehook is tell


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
def test_workers_end_with_who_asked_for_them(how):
    """Their jobs may take long, and nobody wants to know any more."""
    asks = (
        "import time; from lever_lib.jobs import run_jobs; from lever_lib.params import Execution; "
        "jobs = run_jobs(time.sleep, [0, 0, 60, 60], Execution(workers=2), 'sleeping', threads=False); "
        "next(jobs); print('at work', flush=True); list(jobs)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", asks], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdout.readline() == "at work\n"
    time.sleep(1)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    workers = [place for child in children if b"Loky" in ((place := Path("/proc", child)) / "cmdline").read_bytes()]
    assert len(workers) == 2
    process.send_signal(how)
    process.wait(10)
    deadline = time.monotonic() + 5
    while any(place.exists() for place in workers):
        assert time.monotonic() < deadline, "they go on"
        time.sleep(0.1)


def test_ctrl_c_that_a_library_swallows_is_said_again(capsys):
    tidied = []

    def swallow():
        try:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(10)
        except KeyboardInterrupt:
            pass
        try:
            time.sleep(10)
        finally:
            time.sleep(2 * _AGAIN)
            tidied.append(True)

    started = time.monotonic()
    assert exit_code(swallow, "stopped") == 130
    assert time.monotonic() - started < 9
    assert tidied, "what is put in order on the way is not disturbed"
    assert capsys.readouterr().err == "lever: stopped\n"
    time.sleep(2 * _AGAIN)  # it is over


def test_ctrl_c_is_heard_once_while_workers_start():
    """It goes to all that are in the foreground, and workers load for seconds."""
    asks = (
        "import sys, time; from lever_lib.errors import exit_code; from lever_lib.jobs import run_jobs; "
        "from lever_lib.params import Execution; "
        "jobs = run_jobs(time.sleep, [60, 60], Execution(workers=2), 'sleeping', threads=False); "
        "sys.exit(exit_code(lambda: next(jobs), 'stopped'))"
    )
    process = subprocess.Popen([sys.executable, "-c", asks], stderr=subprocess.PIPE, text=True, start_new_session=True)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    while len(children.read_text().split()) < 3:  # the first one keeps their accounts
        time.sleep(0.01)
    time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 130
    assert said.splitlines()[-1] == "lever: stopped"
    assert "Traceback" not in said


def test_a_worker_that_is_killed_is_one_line():
    jobs = run_jobs(_ends_itself, [0, 0, 1, 0], Execution(workers=2), "ending", threads=False)
    with pytest.raises(LeverError, match="a worker process ended before its job was done"):
        list(jobs)


def _ends_itself(job):
    if job:
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture(scope="module")
def cluster():
    """Two worker processes on this machine."""
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, host="127.0.0.1"
    ) as cluster:
        yield cluster


def on(cluster):
    return Execution(workers=1, scheduler=cluster.scheduler_address)


def test_a_cluster_gives_the_same_bytes(cluster, smoke, smoke_outputs, smoke_params, tmp_path):
    params = replace(smoke_params, execution=on(cluster))
    build_everything(params, Outputs("smoke", params, tmp_path))
    assert digests(tmp_path / "smoke") == digests(smoke_outputs.folder)


def test_nothing_is_lost_when_a_worker_is_killed_half_way(cluster, smoke_params):
    params = replace(smoke_params, libraries={"X1": Budget(1_000_000, 0.9999)})
    jobs = training_jobs(params, [make_layout(params.grid, seed) for seed in range(2)])
    here = [records for records, _ in map(train, jobs)]
    victim = next(iter(cluster.workers.values()))
    there = []
    for records, _ in run_jobs(train, jobs, on(cluster), "training", threads=True):
        there.append(records)
        if len(there) == 2:
            assert cluster.scheduler.workers[victim.worker_address].processing, "there must be something to lose"
            os.kill(victim.pid, signal.SIGKILL)
    assert len(there) == len(jobs)
    for mine, theirs in zip(here, there, strict=True):
        for one, other in zip(mine, theirs, strict=True):
            assert one.policy_id == other.policy_id
            assert np.array_equal(one.q_table, other.q_table)
            assert np.array_equal(one.visits, other.visits)


NO_DASK = [
    *(b"", b"SSH-2.0-OpenSSH_9.2p1\r\n", b"HTTP/1.1 400 Bad Request\r\n\r\n"),
    *(struct.pack("<Q", 5) + b"hello", struct.pack("<4Q", 0, 0, 0, 0), struct.pack("<3Q", 16, 1, 10**12)),
]


@pytest.mark.parametrize("says", NO_DASK, ids=range(len(NO_DASK)))
def test_what_is_no_scheduler_is_not_waited_for(monkeypatch, says):
    monkeypatch.setattr(seam, "_PATIENCE", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"tcp://127.0.0.1:{server.getsockname()[1]}"

        def answer():
            connection, _ = server.accept()
            connection.sendall(says)
            time.sleep(1)
            connection.close()

        threading.Thread(target=answer, daemon=True).start()
        started = time.monotonic()
        with pytest.raises(LeverError, match=f"{address}'?: no Dask scheduler answers there"), seam._cluster(address):
            pytest.fail("there is none")
        assert time.monotonic() - started < 5


def test_energy_of_a_cluster_is_estimated(cluster, smoke_params, tmp_path, monkeypatch):
    monkeypatch.setattr("lever_lib.library.Meter.joules", 1e6)
    here = build_library(smoke_params, Outputs("smoke", smoke_params, tmp_path / "here"))
    assert set(here.timings["energy_label"]) == {"measured"}
    params = replace(smoke_params, execution=on(cluster))
    there = build_library(params, Outputs("smoke", params, tmp_path / "there"))
    assert set(there.timings["energy_label"]) == {"estimated"}


def test_workers_with_other_code_are_refused(cluster, monkeypatch):
    monkeypatch.setattr(seam, "CODE", "of a later edit")
    with pytest.raises(LeverError, match=r"worker tcp://.* runs another version of lever_lib"):
        list(run_jobs(sum, [[1]], on(cluster), "adding", threads=True))


def test_workers_that_join_late_are_asked_too():
    assert seam._do(seam.loaded_code(), None, sum, [1, 2]) == 3
    with pytest.raises(LeverError, match="another version of lever_lib"):
        seam._do("of a later edit", None, sum, [1, 2])


def test_workers_that_cannot_even_answer_are_one_line(cluster, monkeypatch):
    monkeypatch.setattr(seam, "loaded_code", broken)
    with pytest.raises(LeverError, match=r"a worker cannot run this code: no such thing here"):
        list(run_jobs(sum, [[1]], on(cluster), "adding", threads=True))


def broken():
    """What a worker with another lever_lib may raise."""
    raise AttributeError("no such thing here")


def test_where_nobody_listens_it_is_said(monkeypatch):
    monkeypatch.setattr(seam, "_PATIENCE", 1)
    nobody = Execution(scheduler="tcp://127.0.0.1:9")
    with pytest.raises(LeverError, match=r"tcp://127\.0\.0\.1:9': no Dask scheduler answers"):
        list(run_jobs(sum, [[1]], nobody, "adding", threads=True))


def test_without_dask_it_is_said_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(LeverError, match=r"pip install -e '\.\[dask\]'"):
        list(run_jobs(sum, [[1]], Execution(scheduler="tcp://127.0.0.1:9"), "adding", threads=True))
