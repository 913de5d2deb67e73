"""The README's promises that can be checked."""

import re
import shlex
from dataclasses import replace

import matplotlib
import pandas as pd
import pytest

matplotlib.use("Agg")

from lever_lib import composition, index, library, pi2vec, regressor
from lever_lib.__main__ import _parser
from lever_lib.artifacts import ROOT, Outputs
from lever_lib.experiment import read_table
from lever_lib.notebooks import numbered_notebooks
from lever_lib.params import Execution, load_params, parse_params
from lever_lib.report import overall, pooled_averages
from lever_lib.understanding import answer_offline, evaluate, load_queries
from tests.trust import __main__ as trust

TEXT = (ROOT / "README.md").read_text()


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)


def test_its_python_runs(monkeypatch, tmp_path, capsys):
    params = replace(load_params("8x8"), execution=Execution(workers=1))
    outputs = Outputs("8x8", params, tmp_path)
    policies = library.build_library(params, outputs)
    embeddings = pi2vec.build_embeddings(policies, outputs)
    regressor.build_regressor(policies, embeddings, outputs)
    index.build_index(policies, outputs)
    monkeypatch.setenv("LEVER_OUTPUTS", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    names = {}
    try:
        for block in blocks("python"):
            exec(block, names)
    finally:
        composition.METHODS.pop("vote", None)
    assert names["again"].outcome().return_ == names["answer"].return_
    assert names["richer"].library.policies["policy_id"].iloc[-1] == "random walk"
    assert names["observation"].shape == (8, 8)
    assert (tmp_path / "answer.png").is_file()
    assert "random walk" in capsys.readouterr().out


def test_what_stands_alone_imports_what_it_needs():
    worlds = [block for block in blocks("python") if "gymnasium.make" in block]
    assert len(worlds) == 1
    assert worlds[0].index("import lever_lib") < worlds[0].index("gymnasium.make")


def test_the_first_python_example_is_about_ten_lines():
    assert len([line for line in blocks("python")[0].splitlines() if line]) <= 10


def test_its_commands_are_understood():
    commands = [
        line for block in blocks("bash") for line in block.splitlines() if line.startswith("python -m lever_lib")
    ]
    assert len(commands) == 9
    for line in commands:
        command, _, comment = line.partition("#")
        flags = [] if "--figure" not in comment else shlex.split(comment)
        _parser().parse_args(shlex.split(command)[3:] + flags)


def test_its_params_are_valid():
    parse_params(blocks("yaml")[0])


def test_every_notebook_is_listed_and_every_link_leads_somewhere():
    targets = re.findall(r"\]\(([^)#\s]+)\)", TEXT)
    for target in targets:
        assert target.startswith("https://arxiv.org/") or (ROOT / target).exists(), target
    for path in numbered_notebooks():
        assert f"notebooks/{path.name}" in targets


def test_every_promise_names_tests_that_exist():
    section = TEXT.split("## What you can rely on")[1].split("## ")[0]
    rows = [row for row in section.splitlines() if row.startswith("| ")][1:]
    assert len(rows) >= 8
    for row in rows:
        assert re.search(r"\]\(tests/[\w/]+\.py\)", row), row
    assert re.findall(r"`(\w+)`: ", section) == [
        "kill",
        "interrupt",
        "workers",
        "order",
        "damage",
        "room",
        "secrets",
        "install",
    ]
    assert set(trust._TASKS) == set(re.findall(r"`(\w+)`: ", section))


def test_every_dependency_has_its_reason():
    wanted = set(re.findall(r"^([\w.-]+)==", (ROOT / "requirements.txt").read_text(), re.MULTILINE))
    section = TEXT.split("## Dependencies")[1].split("## ")[0]
    rows = re.findall(r"^\| ([^|]+) \| ([^|]+) \|$", section, re.MULTILINE)[1:]
    assert sorted(name.strip() for name, _ in rows) == sorted(wanted), "a row each"


FILES = ("published_averages", "shares")
SPECS = ["8x8", "16x16", "32x32"]


def told(start):
    """The cells of the README's table row that begins so."""
    line = next(line for line in TEXT.splitlines() if line.startswith(f"| {start}"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def shares(folder, strategy, method):
    """Mean share of the optimum with its interval, as the README writes it, of each grid."""
    cells = []
    for spec in SPECS:
        table = overall(pd.read_csv(ROOT / "outputs" / spec / folder / "shares.csv"))
        mine = table.query("strategy == @strategy and method == @method").iloc[0]
        assert mine["layouts"] == 50
        cells.append(f"{mine['share']:.3f} [{mine['low']:.3f}, {mine['high']:.3f}]")
    return cells


@pytest.mark.parametrize(("row", "strategy", "method"), [
    ("`qsum`, hybrid", "hybrid", "qsum"), ("`gpi`, hybrid", "hybrid", "gpi"), ("`gpi`, library", "library", "gpi"),
    ("`exnonzero`, hybrid", "hybrid", "exnonzero"), ("best single", "hybrid", "best single"),
    ("SARSA trained", "hybrid", "scratch"),
])  # fmt: skip
def test_its_shares_are_those_of_the_committed_studies(row, strategy, method):
    assert told(row)[2:] == shares("study", strategy, method)


@pytest.mark.parametrize("strategy", ["targeted", "hybrid", "exhaustive", "scratch"])
def test_its_published_shares_are_those_of_the_committed_comparison(strategy):
    cells = []
    for spec in SPECS[1:]:
        tables = (read_table(ROOT / "outputs" / spec / "results" / f"{name}.csv") for name in FILES)
        mine = pooled_averages(*tables).loc["qsum", strategy]
        cells += [f"{mine['published_share']:.2f}", f"{mine['share']:.2f} [{mine['low']:.2f}, {mine['high']:.2f}]"]
    assert told(f"{strategy} |")[1:] == cells


def test_all_540_published_returns_agree_in_the_committed_comparison():
    rows = [read_table(ROOT / "outputs" / spec / "results" / "published_comparison.csv") for spec in SPECS[1:]]
    assert [len(table) for table in rows] == [270, 270]
    assert all(table["agrees"].all() for table in rows)


@pytest.mark.parametrize(("row", "target"), [
    ("error over that of the best constant", "nmae_over_baseline"),
    ("R² within a reward", "r2"),
    ("rank correlation", "spearman"),
    ("coverage of the 90 % intervals", "coverage"),
])  # fmt: skip
def test_its_targets_are_those_of_the_committed_studies(row, target):
    cells = []
    for spec in SPECS:
        mine = pd.read_csv(ROOT / "outputs" / spec / "study" / "targets.csv").set_index("target").loc[target]
        assert mine["layouts"] == 50
        cells.append(f"{mine['value']:.3f} [{mine['low']:.3f}, {mine['high']:.3f}]")
    assert told(row)[2:] == cells


@pytest.mark.parametrize("learner", ["published", "improved"])
def test_its_embeddings_are_those_of_the_committed_studies(learner):
    cells = []
    for spec in SPECS:
        folder = ROOT / "outputs" / spec / "study"
        results = pd.read_csv(folder / "agreement.csv").set_index("learner").loc[learner]
        costs = pd.read_csv(folder / "agreement_timings.csv").set_index("learner").loc[learner]
        speed = f"{costs['policies_per_second']:.3g}"
        cells.append(f"{results['relative_error']:.1%}, {results['nearest']:.0%}, {speed}")
    assert told(f"ψ learned, {learner}")[1:] == cells


@pytest.mark.parametrize(("row", "strategy", "method"), [
    ("rung 0, `qsum`", "hybrid", "qsum"), ("rung 0, `softmax`", "hybrid", "softmax"),
    ("rung 1, `gpi`, h", "hybrid", "gpi"), ("rung 1, `gpi`, whole", "library", "gpi"),
    ("rung 2, `switch`", "library", "switch"),
    ("rung 3, `exnonzero-1000`", "library", "exnonzero-1000"), ("rung 3, `exnonzero`", "library", "exnonzero"),
])  # fmt: skip
def test_its_ladder_is_that_of_the_committed_tables(row, strategy, method):
    assert told(row)[2:] == shares("ladder", strategy, method)


@pytest.mark.parametrize("moves", ["forward", "cardinal"])
@pytest.mark.parametrize(
    ("row", "method"), [("`gpi`, whole library", "gpi"), ("SARSA on the question itself", "scratch")]
)
def test_its_tables_by_state_are_those_of_the_committed_ladder(moves, row, method):
    found = pd.read_csv(ROOT / "outputs" / "8x8" / "ladder" / "library.csv", dtype={"value": str})
    mine = found.query("change == 'moves' and method == @method").set_index("value")
    cells = [mine.loc[f"{moves}, {state}"] for state in ("cell", "augmented")]
    assert [cell["layouts"] for cell in cells] == [50, 50]
    expected = [f"{cell['share']:.3f} [{cell['low']:.3f}, {cell['high']:.3f}]" for cell in cells]
    assert told(f"{moves} moves: {row}")[1:] == expected


def test_what_it_says_of_trainings_that_were_stopped_early_is_in_the_tables():
    shares = {"gpi": [], "scratch": []}
    for spec in ("8x8", "16x16", "32x32"):
        found = pd.read_csv(ROOT / "outputs" / spec / "ladder" / "library.csv", dtype={"value": str})
        after = found.query("change == 'stopped' and value == '0.1'").set_index("method")["share"]
        for method, known in shares.items():
            known.append(f"{after[method]:.3f}")
    text = " ".join(TEXT.split())
    assert "`gpi` makes {}, {} and {}".format(*shares["gpi"]) in text
    assert "the question itself is at {}, {} and {}".format(*shares["scratch"]) in text


def test_its_understood_questions_are_those_of_the_evaluation_set():
    scores = evaluate(load_queries("test"), answer_offline).with_overall()
    rows = ["one objective", "two", "three", "all four", "none of them", "something else altogether", "all of these"]
    for start, (_, mine) in zip(rows, scores.iterrows(), strict=True):
        told_of = told(f"{start} |")[1:3]
        share = f"{mine['exact']:.3f} [{mine['low']:.3f}, {mine['high']:.3f}]"
        assert told_of == [str(int(mine["questions"])), f"**{share}**" if start == "all of these" else share]
