"""The one place where independent jobs are spread over cores. Results come back in the order of the jobs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from joblib import Parallel, delayed
from tqdm import tqdm

from lever_lib.params import Execution

Job = TypeVar("Job")
Result = TypeVar("Result")


def run_jobs(
    function: Callable[[Job], Result], jobs: Sequence[Job], execution: Execution, label: str, threads: bool
) -> Iterator[Result]:
    """Yield `function(job)` for each job, in order, with a progress bar.

    Args:
        function: importable from `lever_lib`, so that another process can find it.
        jobs: independent of each other.
        execution: how many workers.
        label: of the progress bar.
        threads: whether the jobs spend their time in kernels that release the interpreter lock, so that threads
            will do; else they run in processes.
    """
    bar = tqdm(total=len(jobs), desc=label, unit="job", leave=True)
    with bar:
        if execution.workers == 1:
            results = map(function, jobs)
        else:
            pool = Parallel(
                n_jobs=execution.workers, return_as="generator", prefer="threads" if threads else "processes"
            )
            results = pool(delayed(function)(job) for job in jobs)
        for result in results:
            bar.update()
            yield result
