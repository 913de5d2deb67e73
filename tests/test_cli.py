import io
import json
import os
import shutil
import subprocess
import sys
from contextlib import nullcontext
from itertools import pairwise

import jsonschema
import numpy as np
import pytest

from lever_lib import load_policy
from lever_lib.__main__ import main
from lever_lib.api import open_library
from lever_lib.artifacts import ROOT, Outputs, file_hash, json_hash
from lever_lib.experiment import load_results
from lever_lib.params import load_params
from tests.llm_server import LLMServer, says


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
        timeout=1200,  # of what hangs; on a machine that does other things too, a pipeline takes long
    )


@pytest.fixture(scope="module")
def built(smoke, smoke_outputs):
    return smoke_outputs.folder.parent


@pytest.fixture
def run_in(monkeypatch, capsys):
    """Runs a command in this process, because imports take seconds."""

    def run(outputs, *arguments, typed=None):
        monkeypatch.setenv("LEVER_OUTPUTS", str(outputs))
        monkeypatch.chdir(outputs)
        if typed is not None:
            monkeypatch.setattr("sys.stdin", typed)
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as error:  # of the argument parser
            code = error.code
        said, complained = capsys.readouterr()
        return subprocess.CompletedProcess(arguments, code, said, complained)

    return run


@pytest.fixture
def said(built, run_in):
    """What a command that goes well prints."""

    def run(*arguments, outputs=built, typed=None):
        result = run_in(outputs, *arguments, typed=typed)
        assert result.returncode == 0, result.stderr
        return result.stdout

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
    path.write_bytes("\r\n".join(queries).encode() + b"\r\n")
    result = lever("decompose", "--file", str(path), "--json")
    assert result.returncode == 0, result.stderr
    answers = [json.loads(line) for line in result.stdout.splitlines()]
    assert [answer["query"] for answer in answers] == queries
    assert [answer["objectives"] for answer in answers] == [["path", "gold"], [], [], ["hazard", "lever"]]
    assert [answer["confidence"] > 0.5 for answer in answers] == [True, False, False, True]
    evidence = {found["objective"]: found["words"] for found in answers[0]["evidence"]}
    assert evidence == {"path": ["quickly"], "gold": ["gold"]}
    assert {answer["answered_by"] for answer in answers} == {"offline"}
    assert "gold" in lever("decompose", "find coins").stdout


def test_decompose_says_what_is_waved_away(said):
    answer = json.loads(said("decompose", "pull the lever, never mind the gold", "--json"))
    assert answer["objectives"] == ["lever"]
    (away,) = answer["waved_away"]
    assert (away["objective"], away["words"]) == ("gold", ["gold"])
    assert "not asked for: gold" in said("decompose", "pull the lever, never mind the gold")


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
        (["search", "bake a cake", "--spec", "smoke"], ["bake a cake", "asks for nothing", "gold"]),
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
        (["decompose", " "], ["query ' '", "must be words"]),
        (["view", "--spec", "smoke", "--setup", "gold-lever"], ["gold-lever"]),
        (["search", "gold", "--spec", "smoke", "--save", "policy.pkl"], ["--save", "policy.pkl", ".npz"]),
        (["search", "gold", "--spec", "smoke", "--save", "nowhere/policy.npz"], ["--save", "lies in none"]),
        (["search", "gold", "--spec", "smoke", "--figure", "answer.doc"], ["--figure", ".png or .pdf"]),
        (["verify", "--spec", "nope"], ["'nope'"]),
        (["reset", "--yes"], ["--spec"]),
        (["reset", "--spec", "../etc", "--yes"], ["'../etc'"]),
        (["dance"], ["dance"]),
        (["search", "never mind the gold", "--spec", "smoke"], ["speaks of gold", "does not ask for it"]),
        (["search", "gold", "--like", "x", "--spec", "smoke"], ["wants one of a query, --like"]),
        (["search", "gold", "--interactive", "--spec", "smoke"], ["wants one of a query, --like"]),
        (["search", "--like", "nobody", "--spec", "smoke"], ["'nobody'", "no such policy"]),
        (["search", "--like", "X5-0001-gold-l0", "--spec", "smoke"], ["did you mean 'X5-0001-gold-"]),
        (["search", "--like", "X5-0001-gold-100", "--spec", "smoke", "--top-k", "0"], ["count = 0"]),
        (["search", "--like", "X5-0001-gold-100", "--spec", "smoke", "--library", "X9"], ["'X9'"]),
        (["search", "--interactive", "--spec", "smoke", "--save", "policy.npz"], ["--save", "belong to a query"]),
        (["search", "gold", "--spec", "smoke", "--decompose", "magic"], ["'magic'", "offline"]),
        (["search", "gold", "--spec", "smoke", "--decompose", "none", "--no-decompose"], ["cannot go together"]),
        (["search", "gold", "--spec", "smoke", "--setup", "coins"], ["'coins'"]),
        (["search", "gold", "--spec", "smoke", "--setup", "path"], ["no policy", "Collect as much gold"]),
        (["search", "gold", "--spec", "smoke", "--setup", "gold", "--exclude-own"], ["exclude_own (gold)"]),
        (["search", "gold", "--spec", "smoke", "--most-energy", "x"], ["--most-energy", "'x'"]),
        (["search", "gold", "--spec", "smoke", "--most-energy", "nan"], ["most_joules", "nan"]),
        (["search", "gold", "--spec", "smoke", "--most-energy", "0"], ["most_joules = 0"]),
        (["search", "gold", "--spec", "smoke", "--least-return", "1e9"], ["least_return = 1e+09"]),
        (["remove", "nobody", "--spec", "smoke"], ["'nobody'", "was not added"]),
        (["remove", "X5-0001-gold-100", "--spec", "smoke"], ["only what was added is removed"]),
        (["remove", "nobody", "--spec", "nope"], ["'nope'"]),
    ],
)
def test_a_user_error_is_one_line_and_exit_code_2(built, run_in, arguments, parts):
    assert_refused(run_in(built, *arguments), *parts)


def test_what_steers_a_terminal_is_not_said_again(run_in, built, tmp_path):
    escape = "\x1b[31m"
    for arguments in (
        ["search", "gold", f"--bogus{escape}"],
        ["optimum", f"--spec=smoke{escape}", "--seed", "0", "--setup", "gold"],
        ["decompose", f"collect{escape} gold"],
        ["search", "gold", "--spec", "smoke", "--save", str(tmp_path / f"a{escape}.npz")],
    ):
        result = run_in(built, *arguments)
        assert "\x1b" not in result.stdout + result.stderr
        assert "[31m" in result.stdout + result.stderr


def test_it_is_the_same_in_a_process_of_its_own(built):
    assert_refused(lever("search", "bake a cake", "--spec", "smoke", outputs=built), "asks for nothing")
    assert_refused(lever("dance", outputs=built), "dance")


def test_a_line_is_a_query_whatever_it_holds(tmp_path):
    path = tmp_path / "queries.txt"
    path.write_bytes("\ufeffgold\x0cand\u2028silver\r\n\nlever".encode())
    result = lever("decompose", "--file", str(path), "--json")
    assert result.returncode == 0, result.stderr
    answers = [json.loads(line) for line in result.stdout.splitlines()]
    assert [answer["objectives"] for answer in answers] == [["gold"], [], ["lever"]]


@pytest.mark.parametrize("file", ["/dev/zero", "/", "/nowhere"])
def test_questions_are_read_from_files(file):
    result = lever("decompose", "--file", file)
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1
    assert file in result.stderr


@pytest.mark.parametrize(
    ("closed", "arguments"),
    [
        ("<&-", ["reset", "--spec", "smoke"]),
        ("<&-", ["search", "--interactive", "--spec", "smoke"]),
        (">&-", ["search", "--interactive", "--spec", "smoke"]),
        ("2>&-", ["optimum", "--spec", "nowhere", "--seed", "3", "--setup", "gold"]),
    ],
)
def test_closed_streams_are_an_error_like_others(built, closed, arguments):
    result = subprocess.run(
        ["bash", "-c", f'"$0" -m lever_lib "$@" {closed}', sys.executable, *arguments],
        env=os.environ | {"LEVER_OUTPUTS": str(built)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 2, result.stderr
    assert len(result.stderr.splitlines()) == (closed != "2>&-")


def test_a_run_that_nobody_listens_to_is_one_like_others(built, tmp_path):
    shutil.copytree(built, tmp_path / "outputs")
    result = subprocess.run(
        ["bash", "-c", '"$0" -m lever_lib.start notebooks --from 06 smoke <&- >&- 2>&-', sys.executable],
        env=os.environ | {"LEVER_OUTPUTS": str(tmp_path / "outputs")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0
    assert (tmp_path / "outputs" / "smoke" / "notebooks" / "06_results.ipynb").is_file()


def test_what_is_started_has_a_name():
    for words in ([], ["magic"]):
        result = lever(*words, module="lever_lib.start")
        assert (result.returncode, result.stdout) == (2, "")
        assert result.stderr.endswith("must be one of notebooks, study\n")


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


def test_a_figure_that_cannot_be_finished_leaves_the_old_one(run_in, built, tmp_path):
    drawn = tmp_path / "answer.svg"
    drawn.write_text("old")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "pathlib.Path.replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left", "answer.svg"))
        )
        patch.setattr("lever_lib.artifacts.Outputs.reading", lambda self: nullcontext())
        assert_refused(run_in(built, "search", "gold", "--spec", "smoke", "--figure", str(drawn)), "No space left")
    assert drawn.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["answer.svg"]


def test_what_no_encoding_can_say_is_said_in_another_way(tmp_path):
    environment = os.environ | {"PYTHONIOENCODING": "ascii:strict"}
    for query in ("gold \udcff", "gold é"):
        result = subprocess.run(
            [sys.executable, "-m", "lever_lib", "decompose", os.fsencode(query)], env=environment, capture_output=True
        )
        assert result.returncode == 0, result.stderr
        assert b"gold" in result.stdout


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


def test_verify_looks_at_outputs_whose_params_are_gone(copied):
    shutil.copytree(copied / "smoke", copied / "gone")
    other = copied / "gone" / "manifest.json"
    content = json.loads(other.read_text())
    del content["checksum"]
    content["spec"] = "gone"
    other.write_text(json.dumps({"checksum": json_hash(content)} | content))
    (copied / "gone" / "library" / "q_tables.npy").write_bytes(b"")
    result = lever("verify", outputs=copied)
    assert result.returncode == 1
    assert "gone/library/q_tables.npy is damaged" in result.stdout


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
    outputs = Outputs("smoke", load_params("smoke"), copied)
    outputs.enter("study", {"key": "k", "root_seed": 0, "files": {"study/long.csv": file_hash(study / "long.csv")}})
    assert "nothing was deleted" in lever("reset", "--spec", "smoke", outputs=copied, answer="n\n").stdout
    assert "nothing was deleted" in lever("reset", "--spec", "smoke", outputs=copied, answer="\n").stdout
    assert (copied / "smoke" / "manifest.json").is_file()
    (copied / "smoke" / "my notes.txt").write_text("somebody's own\n")
    said = lever("reset", "--spec", "smoke", outputs=copied, answer="y\n")
    assert said.returncode == 0
    assert "(left: my notes.txt, study)" in said.stdout
    (copied / "smoke" / "my notes.txt").unlink()
    assert sorted(path.name for path in (copied / "smoke").iterdir()) == ["manifest.json", "study"]
    assert list(outputs.manifest()) == ["study"], "and they are still known"
    assert lever("verify", "--spec", "smoke", outputs=copied).returncode == 0
    (copied / "smoke" / "manifest.json").unlink()
    assert (copied / "other").is_dir()
    shutil.rmtree(study)
    assert json.loads(lever("reset", "--spec", "smoke", "--yes", "--json", outputs=copied).stdout)["deleted"]
    assert not (copied / "smoke").exists()
    assert "not there" in lever("reset", "--spec", "smoke", "--yes", outputs=copied).stdout


# ---- search in other ways


def test_an_answer_is_as_the_schema_says(said):
    schema = json.loads((ROOT / "lever_lib" / "data" / "search.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    for arguments in (
        ["fast exit with gold, never mind the lever"],
        ["pull the lever", "--no-decompose", "--strategy", "targeted", "--method", "qsum"],
        ["fast exit with gold", "--strategy", "library", "--method", "exnonzero", "--seed", "2", "--filter-energy"],
    ):
        answer = json.loads(said("search", *arguments, "--spec", "smoke", "--json"))
        jsonschema.validate(answer, schema, jsonschema.Draft202012Validator)
    broken = answer | {"return": "much"}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(broken, schema)


def test_the_interval_and_what_was_understood_are_told(said):
    arguments = ["search", "grab the coins, forget the lever", "--spec", "smoke"]
    answer = json.loads(said(*arguments, "--json"))
    low, high = answer["predicted_interval"]
    assert low < answer["predicted_return"] < high
    for candidate in answer["sub_queries"][0]["candidates"]:
        assert candidate["low"] < candidate["predicted"] < candidate["high"]
    assert [found["words"] for found in answer["understood"]["evidence"]] == [["coins"]]
    words = said(*arguments)
    assert "not asked for: lever ('lever')" in words
    assert f"({low:.0f} to {high:.0f})" in words


@pytest.fixture
def ask_gold(said):
    """All that is found for a word, whatever it was trained for."""
    question = ["search", "gold", "--no-decompose", "--spec", "smoke", "--seed", "1", "--top-k", "80", "--json"]
    return lambda *more: json.loads(said(*question, *more))["sub_queries"][0]["candidates"]


@pytest.mark.parametrize(
    ("arguments", "fits"),
    [
        (["--setup", "gold"], lambda found: found["setup"] == "gold"),
        (["--setup", "gold", "--setup", "lever"], lambda found: found["setup"] in ("gold", "lever")),
        (["--exclude-own"], lambda found: found["setup"] != "gold"),
        (["--least-return", "20"], lambda found: found["return"] >= 20),
    ],
)
def test_candidates_pass_the_filters(ask_gold, arguments, fits):
    everything, found = ask_gold(), ask_gold(*arguments)
    assert 0 < len(found) < len(everything)
    assert [one["policy_id"] for one in found] == [one["policy_id"] for one in everything if fits(one)]


def test_candidates_take_no_more_energy_than_they_may(ask_gold):
    joules = sorted(one["energy_joules"] for one in ask_gold())
    gaps = [after - before for before, after in pairwise(joules)]
    few = gaps.index(max(gaps)) + 1  # measured seconds may be nearly equal; here they are furthest apart
    limit = repr((joules[few - 1] + joules[few]) / 2)
    assert sorted(one["energy_joules"] for one in ask_gold("--most-energy", limit)) == joules[:few]


def test_like_lists_policies_that_behave_alike(said):
    arguments = ["search", "--like", "X5-0001-gold-100", "--spec", "smoke"]
    answer = json.loads(said(*arguments, "--json"))
    assert answer["like"] == "X5-0001-gold-100"
    assert len(answer["policies"]) == 10
    assert {found["seed"] for found in answer["policies"]} == {"0001"}
    assert "X5-0001-gold-100" not in {found["policy_id"] for found in answer["policies"]}
    distances = [found["distance"] for found in answer["policies"]]
    assert distances == sorted(distances)
    fewer = json.loads(said(*arguments, "--top-k", "2", "--library", "X1", "--exclude-own", "--json"))["policies"]
    assert len(fewer) == 2
    assert {found["library"] for found in fewer} == {"X1"}
    assert "gold" not in {found["setup"] for found in fewer}
    words = said(*arguments)
    assert all(found["policy_id"] in words for found in answer["policies"])


QUESTIONS = "gold\n\nbake a cake\n  pull the lever\n"


def test_a_conversation_goes_on_after_an_error(said):
    arguments = ["search", "--interactive", "--spec", "smoke"]
    lines = said(*arguments, "--json", typed=io.StringIO(QUESTIONS)).splitlines()
    first, second, third = map(json.loads, lines)
    assert (first["query"], first["setup"]) == ("gold", "gold")
    assert second["query"] == "bake a cake"
    assert "asks for nothing" in second["error"]
    assert third["query"] == "pull the lever"
    alone = json.loads(said("search", "pull the lever", "--spec", "smoke", "--json"))
    for answer in (third, alone):
        del answer["seconds"], answer["understood"]["seconds"]
    assert third == alone, "as if it had been asked alone"
    words = said(*arguments, typed=io.StringIO(QUESTIONS))
    assert words.count("understood: ") == 2
    assert words.count("asks for nothing") == 1
    assert ">" not in words, "nobody is there to be prompted"
    assert said(*arguments, typed=io.StringIO()) == ""


def test_a_line_that_is_too_long_is_one_question(said):
    typed = io.StringIO("gold " * 4001 + "\ngold\n")
    first, second = map(
        json.loads, said("search", "--interactive", "--spec", "smoke", "--json", typed=typed).splitlines()
    )
    assert "at most 10,000 are read" in first["error"]
    assert second["query"] == "gold"


class Terminal(io.StringIO):
    """Somebody who types."""

    def isatty(self):
        return True


def test_people_are_prompted_and_an_empty_line_ends(said):
    words = said("search", "--interactive", "--spec", "smoke", typed=Terminal("gold\n\npull the lever\n"))
    assert "240 policies" in words.splitlines()[0]
    assert words.count("> ") == 2
    assert words.count("understood: ") == 1
    answer = said("search", "--interactive", "--spec", "smoke", "--json", typed=Terminal("gold\n"))
    assert json.loads(answer)["query"] == "gold", "nothing but JSON"


def test_a_language_model_may_split_the_question(said, monkeypatch):
    chosen = {"sentences": ["Activate the lever before reaching the exit."]}
    question = ["search", "do what the magpie would not", "--spec", "smoke", "--decompose", "llm"]
    with LLMServer(says(json.dumps(chosen))) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        answer = json.loads(said(*question, "--json"))
        assert "10 tokens" in said(*question)
    assert (answer["setup"], answer["understood"]["tokens"]) == ("lever", 10)
    assert answer["understood"]["answered_by"] == "gpt-5-nano at 127.0.0.1"


# ---- policies of one's own


@pytest.fixture
def q_table(tmp_path):
    """A file with action values that go right first, then down."""
    path = tmp_path / "q_table.npy"
    np.save(path, np.tile([1.0, 0.5, 0.0, 0.0], (36, 1)))
    return path


def test_a_policy_is_added_found_and_removed(said, copied, q_table):
    about = ["--spec", "smoke", "--policy-id", "mine", "--setup", "gold", "--seed", "1", "--library", "X1"]
    answer = json.loads(said("add", q_table, *about, "--json", outputs=copied))
    assert answer["policy_id"] == "mine"
    assert answer["return"] <= answer["optimum"]
    near = json.loads(said("search", "--like", "mine", "--spec", "smoke", "--json", outputs=copied))
    assert len(near["policies"]) == 10
    question = ["search", "gold", "--spec", "smoke", "--seed", "1", "--library", "X1", "--top-k", "40", "--json"]
    found = json.loads(said(*question, outputs=copied))["sub_queries"][0]["candidates"]
    (mine,) = [one for one in found if one["policy_id"] == "mine"]
    assert (mine["source"], mine["return"], mine["energy_label"]) == ("own", answer["return"], "unknown")
    assert "whole" in said("verify", "--spec", "smoke", outputs=copied)
    assert json.loads(said("remove", "mine", "--spec", "smoke", "--json", outputs=copied)) == {"removed": 1}
    found = json.loads(said(*question, outputs=copied))["sub_queries"][0]["candidates"]
    assert "mine" not in {one["policy_id"] for one in found}


def test_a_policy_is_added_with_visits_and_a_sentence(said, copied, tmp_path):
    path = tmp_path / "mine.npz"
    np.savez(path, q_table=np.ones((36, 4)), visits=np.full((36, 4), 7))
    about = ["--spec", "smoke", "--policy-id", "mine", "--setup", "gold", "--seed", "0002"]
    words = said("add", path, *about, "--description", "Dance from coin to coin.", outputs=copied)
    assert words.startswith("added mine: as gold on layout 0002 its return is ")
    question = ["search", "Dance from coin to coin.", "--no-decompose", "--spec", "smoke", "--seed", "2", "--json"]
    best = json.loads(said(*question, outputs=copied))["sub_queries"][0]["candidates"][0]
    assert best["policy_id"] == "mine"
    assert (open_library("smoke", copied).library.visits[-1] == 7).all()
    assert said("remove", "mine", "--spec", "smoke", outputs=copied) == "removed mine\n"


class Code:
    """What a pickle can run."""

    def __reduce__(self):
        return open, ("pickle-was-run", "w")


FILES = {
    "text.npy": lambda path: path.write_text("no numbers"),
    "empty.npy": lambda path: path.write_bytes(b""),
    "empty.npz": lambda path: path.write_bytes(b""),
    "short.npy": lambda path: np.save(path, np.ones((9, 4))),
    "nan.npy": lambda path: np.save(path, np.full((36, 4), np.nan)),
    "other.npz": lambda path: np.savez(path, weights=np.ones((36, 4))),
    "code.npy": lambda path: np.save(path, np.array([Code()], dtype=object)),
    "code.npz": lambda path: np.savez(path, q_table=np.array([Code()], dtype=object)),
    "folder.npy": lambda path: path.mkdir(),
}


@pytest.mark.parametrize("name", ["absent.npy", *FILES])
def test_a_file_that_holds_no_action_values_is_refused(run_in, built, tmp_path, name):
    path = tmp_path / name
    FILES.get(name, lambda path: None)(path)
    about = ["--spec", "smoke", "--policy-id", "mine", "--setup", "gold", "--seed", "1"]
    assert_refused(run_in(built, "add", path, *about))
    assert not (built / "pickle-was-run").exists()
    assert not (built / "smoke" / "added").exists()


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"--policy-id": "X5-0001-gold-100"}, ["'X5-0001-gold-100'", "must be new"]),
        ({"--policy-id": "a+b"}, ["'a+b'"]),
        ({"--setup": "coins"}, ["'coins'"]),
        ({"--seed": "77"}, ["seed '77'"]),
        ({"--library": "X99"}, ["'X99'", "X1, X5"]),
        ({"--spec": "nope"}, ["'nope'"]),
        ({"--description": " "}, ["description"]),
    ],
)
def test_a_policy_that_does_not_fit_is_not_added(run_in, built, q_table, change, parts):
    about = {"--spec": "smoke", "--policy-id": "mine", "--setup": "gold", "--seed": "1"} | change
    pairs = [word for pair in about.items() for word in pair]
    assert_refused(run_in(built, "add", q_table, *pairs), *parts)
    assert not (built / "smoke" / "added").exists()
