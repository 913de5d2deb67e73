"""The one place where independent jobs are spread over cores or machines. Results come in the order of the jobs.

A job names its random stream instead of holding one, and a function of `lever_lib` does it, so it may run anywhere, and
twice if a machine is lost. Jobs are objects that travel with their task: joblib would store a bare array on one worker
of a cluster, and the task could not be repeated once that worker is gone.
"""

from __future__ import annotations

import hashlib
import os
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from threading import Thread
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urlsplit

from joblib import Parallel, delayed, parallel_config
from tqdm import tqdm

from lever_lib.artifacts import SOURCES
from lever_lib.errors import LeverError
from lever_lib.params import Execution

if TYPE_CHECKING:
    from distributed import Client

Job = TypeVar("Job")
Result = TypeVar("Result")
# Hash of all sources of `lever_lib` as this process has loaded them: processes that share it compute the same.
CODE = hashlib.sha256(b"\0".join(SOURCES.values())).hexdigest()
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
            yield from pool(delayed(_do)(CODE, function, job) for job in jobs)
    elif execution.workers == 1:
        yield from map(function, jobs)
    else:
        pool = Parallel(n_jobs=execution.workers, return_as="generator", prefer="threads" if threads else "processes")
        yield from pool(delayed(_do_here)(os.getpid(), function, job) for job in jobs)


def _do_here(asker: int, function: Callable[[Job], Result], job: Job) -> Result:
    """Do a job, in a process of its own perhaps, which then ends with the one that asked for it."""
    if os.getpid() != asker:
        _end_with(asker)
    return function(job)


@cache
def _end_with(parent: int) -> None:
    """End this process soon after its parent: one that is killed cannot tell its workers, whose jobs may take long."""

    def watch() -> None:
        """Look once a second."""
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    Thread(target=watch, name="parent", daemon=True).start()


def _do(code: str, function: Callable[[Job], Result], job: Job) -> Result:
    """Do a job on a worker, which may have joined after the others were asked what they run."""
    if code != CODE:
        raise LeverError("a worker of the cluster runs another version of lever_lib than this machine")
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
    except (OSError, ValueError):
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
        ValueError: if something else does. A message of Dask begins with its length, and the first one is short.
    """
    place = urlsplit(address)
    if place.scheme == "tcp":
        with socket.create_connection((place.hostname, place.port), timeout=_PATIENCE) as connection:
            length = connection.recv(8)
        if len(length) < 8 or int.from_bytes(length, "little") > _FIRST_MESSAGE:
            raise ValueError


def loaded_code() -> str:
    """Hash of the `lever_lib` that this process runs."""
    return CODE
