import json
import os
import shutil
import subprocess
import sys

import pytest

from lever_lib import load_policy
from lever_lib.__main__ import main
from lever_lib.artifacts import ROOT, file_hash
from lever_lib.experiment import load_results


def lever(*arguments, outputs=None, module="lever_lib", cwd=None, answer=""):
    """Run the command line as a user would."""
    environment = dict(os.environ)
    if outputs:
        environment["LEVER_OUTPUTS"] = str(outputs)
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        capture_output=True,
        text=True,
        input=answer,
        env=environment,
        cwd=cwd or outputs or ROOT,
        check=False,
        timeout=300,
    )


@pytest.fixture(scope="module")
def built(smoke, smoke_outputs):
    return smoke_outputs.folder.parent


@pytest.fixture
def said(built, monkeypatch, capsys):
    """What a command that goes well prints; in this process, because loading the encoder takes seconds."""

    def run(*arguments):
        monkeypatch.setenv("LEVER_OUTPUTS", str(built))
        assert main(list(arguments)) == 0
        return capsys.readouterr().out

    return run


def assert_refused(result, *parts):
    assert result.returncode == 2, result.stderr
    assert result.stdout == ""
    assert len(result.stderr.strip().splitlines()) == 1, result.stderr
    for part in parts:
        assert part in result.stderr


def test_optimum_needs_no_library(tmp_path):
    result = lever("optimum", "--spec", "16x16", "--seed", "0003", "--setup", "path-gold", "--json", outputs=tmp_path)
    answer = json.loads(result.stdout)
    assert answer["optimum"] == pytest.approx(123.79)
    assert answer["path"][0] == [0, 0]
    assert answer["path"][-1] == [15, 15]
    newer = lever(
        "optimum", "--spec", "16x16", "--seed", "3", "--setup", "path-gold", "--json", "--no-legacy-gold-exit"
    )
    assert json.loads(newer.stdout)["optimum"] > answer["optimum"]
    assert "optimum 123.79" in lever("optimum", "--spec", "16x16", "--seed", "3", "--setup", "gold-path").stdout
    assert list(tmp_path.iterdir()) == []


def test_decompose_gives_a_line_per_query(tmp_path):
    queries = ["collect gold quickly", "", "bake a cake", "avoid traps and pull the lever"]
    path = tmp_path / "queries.txt"
    path.write_text("\n".join(queries) + "\n")
    answers = [json.loads(line) for line in lever("decompose", "--file", str(path), "--json").stdout.splitlines()]
    assert [answer["query"] for answer in answers] == queries
    assert [answer["objectives"] for answer in answers] == [["path", "gold"], [], [], ["hazard", "lever"]]
    assert [answer["confidence"] for answer in answers] == [1.0, 0.0, 0.0, 1.0]
    assert "gold" in lever("decompose", "find coins").stdout


def test_search_answers_in_words_and_in_json(built):
    arguments = ["search", "fast exit with gold", "--spec", "smoke", "--seed", "2", "--library", "X5"]
    answer = json.loads(lever(*arguments, "--json", outputs=built).stdout)
    assert answer["objectives"] == ["path", "gold"]
    assert answer["seed"] == "0002"
    assert answer["setup"] == "path-gold"
    assert answer["return"] <= answer["optimum"]
    assert len(answer["sub_queries"]) == 2
    assert len(answer["policies"]) == 2
    words = lever(*arguments, outputs=built)
    assert words.returncode == 0
    assert f"return {answer['return']:.2f}, optimum {answer['optimum']:.2f}" in words.stdout
    assert "[S]" in words.stdout


def test_search_agrees_with_the_experiment(said, smoke_outputs):
    """The same question, asked from the command line and in the results table, has the same answer."""
    text = "Find the fastest exit and collect as much gold as possible"
    which = ["--spec", "smoke", "--seed", "1", "--library", "X1", "--strategy", "exhaustive", "--method", "qsum"]
    answer = json.loads(said("search", text, *which, "--json"))
    results = load_results(smoke_outputs).results
    row = results.query(
        "query == @text and seed == '0001' and library == 'X1' and strategy == 'exhaustive' and method == 'qsum'"
    ).iloc[0]
    assert answer["return"] == pytest.approx(row["return"])
    assert "+".join(answer["policies"]) == row["policies"]
    assert answer["predicted_return"] == pytest.approx(row["predicted_return"])


def test_search_without_decomposition(said):
    answer = json.loads(said("search", "collect gold", "--spec", "smoke", "--no-decompose", "--json"))
    assert [part["query"] for part in answer["sub_queries"]] == ["collect gold"]
    assert answer["setup"] == "gold"


def test_view(built):
    rows = json.loads(
        lever("view", "--spec", "smoke", "--seed", "1", "--setup", "gold", "--json", outputs=built).stdout
    )
    assert len(rows) == 10
    assert {row["seed"] for row in rows} == {"0001"}
    assert "240 policies" in lever("view", "--spec", "smoke", outputs=built).stdout


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["search", "bake a cake", "--spec", "smoke"], ["bake a cake", "no objective recognised", "gold"]),
        (["search", "gold", "--spec", "smoke", "--seed", "9"], ["seed '9'", "0000, 0001, 0002"]),
        (["search", "gold", "--spec", "smoke", "--library", "X10"], ["'X10'", "X1, X5"]),
        (["search", "gold", "--spec", "smoke", "--method", "magic"], ["'magic'", "gpi"]),
        (["search", "gold", "--spec", "smoke", "--strategy", "magic"], ["'magic'", "hybrid"]),
        (["search", "gold", "--spec", "smoke", "--top-k", "0"], ["top_k = 0"]),
        (["search", "gold", "--spec", "smoke", "--top-k", "x"], ["--top-k", "'x'"]),
        (["search", "gold", "--spec", "nope"], ["'nope'", "smoke"]),
        (["search", "gold", "--spec", "../etc"], ["'../etc'"]),
        (["search", "gold", "--spec", "8x8"], ["8x8", "not built", "01_generation"]),
        (["search"], ["query"]),
        (["optimum", "--spec", "8x8", "--seed", "x", "--setup", "path"], ["seed 'x'"]),
        (["optimum", "--spec", "8x8", "--seed", "1", "--setup", "coins"], ["'coins'", "path, gold, hazard, lever"]),
        (["decompose", "--file", "nowhere.txt"], ["nowhere.txt"]),
        (["view", "--spec", "smoke", "--setup", "gold-lever"], ["gold-lever"]),
        (["search", "gold", "--spec", "smoke", "--save", "policy.pkl"], ["--save", "policy.pkl", ".npz"]),
        (["search", "gold", "--spec", "smoke", "--save", "nowhere/policy.npz"], ["--save", "lies in none"]),
        (["search", "gold", "--spec", "smoke", "--figure", "answer.doc"], ["--figure", ".png or .pdf"]),
        (["verify", "--spec", "nope"], ["'nope'"]),
        (["reset", "--yes"], ["--spec"]),
        (["reset", "--spec", "../etc", "--yes"], ["'../etc'"]),
        (["dance"], ["dance"]),
    ],
)
def test_a_user_error_is_one_line_and_exit_code_2(built, arguments, parts):
    assert_refused(lever(*arguments, outputs=built), *parts)


def test_a_line_is_a_query_whatever_it_holds(tmp_path):
    path = tmp_path / "queries.txt"
    path.write_bytes("\ufeffgold\x0cand\u2028silver\r\n\nlever".encode())
    answers = [json.loads(line) for line in lever("decompose", "--file", str(path), "--json").stdout.splitlines()]
    assert [answer["objectives"] for answer in answers] == [["gold"], [], ["lever"]]


def test_a_damaged_manifest_is_one_line(built, tmp_path):
    (tmp_path / "smoke").mkdir()
    (tmp_path / "smoke" / "manifest.json").write_text('{"stages": []}')
    assert_refused(lever("search", "gold", "--spec", "smoke", outputs=tmp_path), "manifest.json")


@pytest.fixture
def copied(built, tmp_path):
    """A run to harm."""
    shutil.copytree(built / "smoke", tmp_path / "smoke")
    return tmp_path


def test_search_saves_the_policy_and_draws_it(said, tmp_path):
    saved, drawn = tmp_path / "policy.npz", tmp_path / "answer.png"
    arguments = ["search", "gold and the lever", "--spec", "smoke", "--save", str(saved), "--figure", str(drawn)]
    answer = json.loads(said(*arguments, "--json"))
    recipe = load_policy(saved)
    outcome = recipe.outcome()
    assert outcome.return_ == answer["return"]
    assert [list(divmod(int(cell), recipe.layout.size)) for cell in outcome.cells] == answer["path"]
    assert list(recipe.policy_ids) == answer["policies"]
    assert drawn.read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["answer.png", "policy.npz"]


def test_show_all_and_filter_energy(said):
    arguments = ["search", "gold", "--spec", "smoke", "--strategy", "targeted", "--show-all", "--json"]
    plain = json.loads(said(*arguments))["sub_queries"][0]["candidates"]
    thrifty = json.loads(said(*arguments, "--filter-energy"))
    candidates = thrifty["sub_queries"][0]["candidates"]
    joules = [candidate["energy_joules"] for candidate in candidates]
    assert joules == sorted(joules)
    assert {candidate["energy_label"] for candidate in plain} <= {"measured", "estimated"}
    assert {"description", "episodes", "source", "train_seconds", "q_table_shape"} <= set(plain[0])
    assert thrifty["policies"] == [candidates[0]["policy_id"]], "the choice follows"
    words = said("search", "gold", "--spec", "smoke", "--show-all")
    assert "Collect as much gold as possible" in words
    assert "36 x 4" in words


def test_verify_finds_what_is_wrong_and_names_it(copied):
    assert lever("verify", outputs=copied).returncode == 0
    assert "smoke: library: whole" in lever("verify", "--spec", "smoke", outputs=copied).stdout
    (copied / "smoke" / "library" / "visits.npy").write_bytes(b"broken")
    (copied / "smoke" / "pi2vec" / "embeddings.npy").unlink()
    result = lever("verify", "--spec", "smoke", outputs=copied)
    assert result.returncode == 1
    assert "library/visits.npy is damaged" in result.stdout
    assert "pi2vec/embeddings.npy is missing" in result.stdout
    report = json.loads(lever("verify", "--json", outputs=copied).stdout)["smoke"]
    assert len(report["library"]["damaged"]) == 1
    assert report["search"] == {"built": True, "missing": [], "damaged": []}


def test_verify_knows_a_fresh_clone_from_a_loss(copied):
    for stage in ("library", "pi2vec", "regressor", "search"):
        shutil.rmtree(copied / "smoke" / stage)
    result = lever("verify", outputs=copied)
    assert result.returncode == 0, result.stdout
    assert "library: not built" in result.stdout
    assert "composition: whole" in result.stdout
    (copied / "smoke" / "composition" / "results.csv").unlink()
    result = lever("verify", outputs=copied)
    assert result.returncode == 1
    assert "composition/results.csv is missing" in result.stdout


def test_verify_of_nothing_and_of_a_broken_or_lost_manifest(copied, tmp_path_factory):
    empty = tmp_path_factory.mktemp("empty")
    result = lever("verify", outputs=empty)
    assert (result.returncode, result.stderr) == (0, "")
    manifest = copied / "smoke" / "manifest.json"
    manifest.write_text("{")
    broken = lever("verify", outputs=copied)
    assert broken.returncode == 1
    assert "manifest.json is damaged" in broken.stdout
    manifest.unlink()
    assert "manifest.json is missing" in lever("verify", "--spec", "smoke", outputs=copied).stdout


def test_reset_asks_and_keeps_studies(copied):
    study = copied / "smoke" / "study"
    study.mkdir()
    (study / "long.csv").write_text("hours\n")
    (copied / "other").mkdir()
    assert_refused(lever("reset", "--spec", "smoke", outputs=copied), "--yes")
    manifest = copied / "smoke" / "manifest.json"
    content = json.loads(manifest.read_text())
    content["stages"]["study"] = {
        "key": "k",
        "root_seed": 0,
        "files": {"study/long.csv": file_hash(study / "long.csv")},
    }
    manifest.write_text(json.dumps(content))
    assert "nothing was deleted" in lever("reset", "--spec", "smoke", outputs=copied, answer="n\n").stdout
    assert "nothing was deleted" in lever("reset", "--spec", "smoke", outputs=copied, answer="\n").stdout
    assert (copied / "smoke" / "manifest.json").is_file()
    assert lever("reset", "--spec", "smoke", outputs=copied, answer="y\n").returncode == 0
    assert sorted(path.name for path in (copied / "smoke").iterdir()) == ["manifest.json", "study"]
    assert list(json.loads(manifest.read_text())["stages"]) == ["study"], "and they are still known"
    assert lever("verify", "--spec", "smoke", outputs=copied).returncode == 0
    manifest.unlink()
    assert (copied / "other").is_dir()
    shutil.rmtree(study)
    assert json.loads(lever("reset", "--spec", "smoke", "--yes", "--json", outputs=copied).stdout)["deleted"]
    assert not (copied / "smoke").exists()
    assert "not there" in lever("reset", "--spec", "smoke", "--yes", outputs=copied).stdout
