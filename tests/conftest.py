"""Worlds small enough to solve on paper, and one toy-size run that the slower tests share."""

from __future__ import annotations

import os
import re
import resource
import signal
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import settings

from lever_lib import experiment, index, library, pi2vec, regressor, report
from lever_lib.artifacts import Outputs
from lever_lib.envs.gridworld import layout_from_text
from lever_lib.params import Execution, Params, load_params
from lever_lib.search import Retriever

# Compiling a kernel may take longer than any deadline. CI tries the same examples each time, people try new ones;
# HYPOTHESIS_EXAMPLES=2000 tries many.
settings.register_profile(
    "lever",
    deadline=None,
    derandomize="CI" in os.environ,
    max_examples=int(os.environ.get("HYPOTHESIS_EXAMPLES", "100")),
)
settings.load_profile("lever")

# What a shell starts in the background is deaf to Ctrl-C, and hands that on to whatever it starts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


# A Python without these, which are large and not built for each of its versions, runs the tests that need none of them.
ABSENT = [name for name in ("torch", "sentence_transformers", "stable_baselines3") if find_spec(name) is None]
collect_ignore = ["test_deep.py", "test_psi_network.py", "test_understanding.py"] if ABSENT else []


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Skip what fails for want of an absent package, if only its fixture or a process of its own wanted it."""
    report = yield
    if ABSENT and report.failed and re.search(rf"No module named \\?'({'|'.join(ABSENT)})\b", report.longreprtext):
        path, line, _ = item.location
        report.outcome, report.longrepr = "skipped", (path, line, f"needs {', '.join(ABSENT)}")
    return report


@pytest.fixture
def corridor():
    """Three ways out: along the top (gold), down the left side (lever), through the middle (hazard beside it)."""
    return layout_from_text(
        """
        S . G .
        . # x .
        L . . .
        . . G E
        """,
        "corridor",
    )


@contextmanager
def at_most(what, size):
    """This process gets no more than `size` bytes of something meanwhile."""
    before = resource.getrlimit(what)
    resource.setrlimit(what, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(what, before)


def memory_in_use():
    """Bytes that this process may address."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def build_everything(params: Params, outputs: Outputs) -> Retriever:
    """All stages of a spec, without notebooks."""
    policies = library.build_library(params, outputs)
    embeddings = pi2vec.build_embeddings(policies, outputs)
    models = regressor.build_regressor(policies, embeddings, outputs)
    texts = index.build_index(policies, outputs)
    retriever = Retriever(policies, embeddings, models, texts)
    experiment.build_results(retriever, outputs)
    report.build_report(outputs)
    return retriever


@pytest.fixture(scope="session")
def smoke_params():
    return replace(load_params("smoke"), execution=Execution(workers=1))


@pytest.fixture(scope="session")
def smoke_outputs(smoke_params, tmp_path_factory):
    """Where the shared toy-size run lies; built by `smoke`."""
    return Outputs("smoke", smoke_params, tmp_path_factory.mktemp("outputs"))


@pytest.fixture(scope="session")
def smoke(smoke_params, smoke_outputs):
    """The shared toy-size run, for reading."""
    return build_everything(smoke_params, smoke_outputs)
