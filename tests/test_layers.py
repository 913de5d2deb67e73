"""A module imports only modules of its own or a lower layer."""

import ast
from pathlib import Path

import pytest

import lever_lib

ROOT = Path(lever_lib.__file__).parent
LAYERS = [
    {
        "errors",
        "params",
        "seeding",
        "artifacts",
        "jobs",
        "energy",
        "looks",
        "columns",
        "pictures",
        "llm",
        "vectors",
        "locks",
        "files",
        "bounded",
        "threads",
    },
    {"envs", "envs.layouts", "envs.rewards", "envs.gridworld", "envs.features", "envs.environment"},
    {
        "policies",
        "policies.base",
        "policies.tabular",
        "policies.black_box",
        "policies.dqn",
        "policies.ppo",
        "rollout",
        "planning",
        "timed_planning",
    },
    {
        "library",
        "psi_network",
        "pi2vec",
        "forest",
        "text",
        "index",
        "regressor",
        "decompose",
        "queries",
        "recognise",
        "grammar",
        "understanding",
        "additions",
        "minilm",
        "reader",
    },
    {"needs", "search", "composition", "certificate", "integer_bounds", "recipe"},
    {"strategies", "experiment"},
    {"stats", "plots", "report", "generalisation", "behaviour", "selection"},
    {
        "api",
        "answers",
        "search_scale",
        "study",
        "ladder",
        "unfinished",
        "deep",
        "scaling",
        "notebooks",
        "__main__",
        "start",
        "__init__",
    },
]
LAYER = {name: layer for layer, names in enumerate(LAYERS) for name in names}
FILES = {
    path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".").removesuffix(".__init__"): path
    for path in ROOT.rglob("*.py")
}


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("name", FILES)
def test_imports_point_downwards(name):
    assert name in LAYER, "give the new module a layer"
    for found in imported(FILES[name]):
        target = found.removeprefix("lever_lib.")
        if found != target and target in LAYER:
            assert LAYER[target] <= LAYER[name], f"{name} imports {target}"


def test_statistics_and_figures_know_no_world_and_no_policy():
    for name in ("stats", "plots"):
        for found in imported(FILES[name]):
            assert not found.startswith(("lever_lib.envs", "lever_lib.policies", "lever_lib.library"))
