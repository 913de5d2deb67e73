import pytest

from lever_lib.jobs import run_jobs
from lever_lib.params import Execution


@pytest.mark.parametrize(("workers", "threads"), [(1, True), (2, True), (2, False)])
def test_results_come_in_the_order_of_the_jobs(workers, threads):
    jobs = [[3, 1], [2], [], [5, 5]]
    assert list(run_jobs(sum, jobs, Execution(workers=workers), "adding", threads)) == [4, 2, 0, 10]
