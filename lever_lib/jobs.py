"""The one place where independent jobs are spread over cores or machines. Results come in the order of the jobs.

A job names its random stream instead of holding one, and a function of `lever_lib` does it, so it may run anywhere, and
twice if a machine is lost. Jobs are objects that travel with their task: joblib would store a bare array on one worker
of a cluster, and the task could not be repeated once that worker is gone.
"""

from __future__ import annotations

import os
import signal
import socket
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import cache
from multiprocessing import resource_tracker
from threading import Thread
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urlsplit

from joblib import Parallel, delayed, parallel_config
from tqdm import tqdm

from lever_lib.artifacts import CODE
from lever_lib.errors import LeverError
from lever_lib.params import Execution

if TYPE_CHECKING:
    from distributed import Client

Job = TypeVar("Job")
Result = TypeVar("Result")
_FIRST_MESSAGE = 10_000  # bytes at most
_PATIENCE = 10  # seconds to wait for a scheduler, and for its first worker


def run_jobs(
    function: Callable[[Job], Result], jobs: Sequence[Job], execution: Execution, label: str, threads: bool
) -> Iterator[Result]:
    """Yield `function(job)` for each job, in order, with a progress bar.

    Args:
        function: importable from `lever_lib`, so that another process can find it.
        jobs: independent of each other.
        execution: how many workers of this machine, or the address of a Dask scheduler whose workers do it all.
        label: of the progress bar.
        threads: whether the jobs spend their time in kernels that release the interpreter lock, so that threads
            will do; else they run in processes. A Dask cluster has its own ways.

    Raises:
        LeverError: if there is no cluster at the address, or its workers run other code.
    """
    with tqdm(total=len(jobs), desc=label, unit="job", leave=True) as bar:
        for result in _results(function, jobs, execution, threads):
            bar.update()
            yield result


def _results(
    function: Callable[[Job], Result], jobs: Sequence[Job], execution: Execution, threads: bool
) -> Iterator[Result]:
    if execution.scheduler is not None:
        with _cluster(execution.scheduler) as client:
            with parallel_config(backend="dask", client=client):
                pool = Parallel(return_as="generator")
            yield from pool(delayed(_do)(CODE, None, function, job) for job in jobs)
    elif (workers := min(execution.workers, len(jobs))) <= 1:
        yield from map(function, jobs)
    else:
        pool = Parallel(n_jobs=workers, return_as="generator", prefer="threads" if threads else "processes")
        try:
            with _deaf():
                results = pool(delayed(_do)(CODE, os.getpid(), function, job) for job in jobs)
            yield from results
        except BrokenProcessPool:
            raise LeverError(
                "a worker process ended before its job was done: killed, perhaps for want of memory, or lever_lib was "
                "changed; run the same command again"
            ) from None


@contextmanager
def _deaf() -> Iterator[None]:
    """Processes that start in this block do not hear Ctrl-C: who started them hears it, and ends them."""
    resource_tracker.ensure_running()  # when it starts, it lets signals through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@cache
def _end_with(parent: int) -> None:
    """End this process soon after its parent: one that is killed cannot tell its workers, whose jobs may take long."""

    def watch() -> None:
        """Look once a second."""
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    Thread(target=watch, name="parent", daemon=True).start()


def _do(code: str, asker: int | None, function: Callable[[Job], Result], job: Job) -> Result:
    """Do a job on a worker, which may have been started after the others.

    Args:
        code: that whoever asks runs.
        asker: process to end with, if this is another one of the same machine.
        function: to call.
        job: what to call it with.

    Raises:
        LeverError: if this worker runs other code.
    """
    if code != CODE:
        raise LeverError("a worker runs another version of lever_lib than who asked for it; was it changed meanwhile?")
    if asker is not None and os.getpid() != asker:
        _end_with(asker)
    return function(job)


@contextmanager
def _cluster(address: str) -> Iterator[Client]:
    """A connection to a Dask cluster whose workers run the very code that runs here."""
    try:
        from distributed import Client
    except ImportError:
        raise LeverError(
            f"execution.scheduler = {address!r}: needs dask, which is not installed: pip install -e '.[dask]'"
        ) from None
    try:
        _look(address)
        client = Client(address, timeout=_PATIENCE, set_as_default=False)
    except Exception:  # whatever else answers there may lead its reader to anything
        raise LeverError(f"execution.scheduler = {address!r}: no Dask scheduler answers there") from None
    with client:
        try:
            client.wait_for_workers(1, timeout=_PATIENCE)
        except TimeoutError:
            raise LeverError(
                f"execution.scheduler = {address!r}: the cluster has no worker; start dask worker"
            ) from None
        try:
            found = client.run(loaded_code)
        except Exception as error:  # whatever a worker raises that has another lever_lib, or none
            reason = " ".join(str(error).split())
            raise LeverError(f"execution.scheduler = {address!r}: a worker cannot run this code: {reason}") from None
        other = sorted(worker for worker, code in found.items() if code != CODE)
        if other:
            raise LeverError(
                f"execution.scheduler = {address!r}: worker {other[0]} runs another version of lever_lib than this "
                "machine; its results would not be those of this code"
            )
        yield client


def _look(address: str) -> None:
    """See whether what answers at a TCP address may be Dask: its client waits long for others, or takes them at word.

    Raises:
        OSError: if nothing answers in time.
        ValueError: if something else does. The first message of Dask is short, and says how long each part of it is.
    """
    place = urlsplit(address)
    if place.scheme == "tcp":
        with socket.create_connection((place.hostname, place.port), timeout=_PATIENCE) as connection:
            length = int.from_bytes(_received(connection, 8), "little")
            if not 16 <= length <= _FIRST_MESSAGE:
                raise ValueError
            message = _received(connection, length)
        words = struct.unpack(f"<{length // 8}Q", message[: length // 8 * 8])
        parts = words[0] + 1  # how many parts there are, how long each is, and the parts
        if parts > len(words) or 8 * parts + sum(words[1:parts]) != length:
            raise ValueError


def _received(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = connection.recv(size - len(data))
        if not more:
            raise ValueError
        data += more
    return data


def check_cluster(address: str) -> None:
    """See that a Dask cluster answers whose workers run this code.

    Raises:
        LeverError: if not.
    """
    with _cluster(address):
        pass


def loaded_code() -> str:
    """Hash of the `lever_lib` that this process runs."""
    return CODE
