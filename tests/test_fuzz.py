"""Whatever comes in: success, or exit code 2 with one line; never a traceback, and nothing written by halves.

All of it within three gigabytes on top of what the tests began with.

`HYPOTHESIS_EXAMPLES=2000` tries many.
"""

import io
import json
import os
import resource
import shutil
from contextlib import chdir, redirect_stderr, redirect_stdout
from dataclasses import replace
from unittest.mock import patch

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lever_lib import llm
from lever_lib.__main__ import main
from lever_lib.artifacts import ROOT, Outputs, file_hash
from lever_lib.decompose import decompose
from lever_lib.errors import LeverError, ParamsError, exit_code
from lever_lib.llm import Settings, _Recording
from lever_lib.notebooks import main as run_notebooks
from lever_lib.params import LanguageModel, Params, available_specs, load_params, parse_params
from tests.checkout import PLANTED_KEY as KEY
from tests.conftest import at_most, memory_in_use
from tests.llm_server import LLMServer, completion, says, sends

SMOKE = (ROOT / "params" / "smoke.yaml").read_text()
slow = settings(max_examples=max(1, settings.default.max_examples // 2), suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module", autouse=True)
def bounded():
    with at_most(resource.RLIMIT_AS, memory_in_use() + 3 * 2**30):
        yield


def run(root, arguments, entry=main):
    """Exit code, stdout and stderr of a command in this process; what it raises is a failure."""
    said, complained = io.StringIO(), io.StringIO()
    environment = patch.dict(os.environ, {"LEVER_OUTPUTS": str(root)})
    typed = patch("sys.stdin", io.StringIO())
    with environment, typed, chdir(root), redirect_stdout(said), redirect_stderr(complained):
        try:
            code = entry(arguments)
        except SystemExit as error:  # of the argument parser
            code = error.code
    return code, said.getvalue(), complained.getvalue()


def assert_orderly(code, complained, *parts):
    assert code in (0, 2), complained
    if code == 2:
        assert len(complained.strip().splitlines()) == 1, complained
        for part in parts:
            assert part in complained
    assert "Traceback" not in complained


def tree(root):
    return {path.relative_to(root).as_posix() for path in root.rglob("*") if not path.name.startswith(".sentences")}


@pytest.fixture(scope="module")
def copy(smoke, smoke_outputs, tmp_path_factory):
    """A run to harm, and where nothing may appear."""
    root = tmp_path_factory.mktemp("fuzz") / "outputs"
    shutil.copytree(smoke_outputs.folder, root / "smoke")
    return root


words = st.one_of(
    st.text(max_size=20),
    st.sampled_from(
        ["gold", "smoke", "0", "0001", "9999", "-1", "1e309", "nan", "X5", "path-gold", "../../etc", "/", ""]
    ),
    st.sampled_from(
        ["gpi", "qsum", "hybrid", "exhaustive", "3", "policy.npz", "a/b.png", "\0", "--", "-x", "é\n", "*"]
    ),
)
options = st.sampled_from([
    "--spec", "--seed", "--setup", "--library", "--strategy", "--method", "--top-k", "--json", "--no-decompose",
    "--like", "--filter-energy", "--show-all", "--decompose", "--exclude-own", "--most-energy", "--least-return",
    "--file", "--policy-id", "--description", "--save", "--figure", "--legacy-gold-exit",
])  # fmt: skip
commands = st.sampled_from(["search", "decompose", "optimum", "view", "verify", "add", "remove"])


@slow
@given(command=commands, query=words, pairs=st.lists(st.tuples(options, words), max_size=4), smoke_first=st.booleans())
def test_any_command_line(copy, command, query, pairs, smoke_first):
    arguments = [
        command,
        query,
        *(["--spec", "smoke"] if smoke_first else []),
        *(part for pair in pairs for part in pair),
    ]
    before, around = tree(copy / "smoke"), set(copy.parent.iterdir())
    code, _, complained = run(copy, arguments)
    if command == "verify":
        assert code in (0, 1, 2)
        code = min(code, 0) if code == 1 else code
    assert_orderly(code, complained)
    assert tree(copy / "smoke") == before or command in ("add", "remove")
    assert set(copy.parent.iterdir()) == around


scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=10),
    st.dates(),
    st.just("9" * 5000),
    st.just([[[]]]),
)
KEYS = [(section, key) for section, keys in yaml.safe_load(SMOKE).items() if isinstance(keys, dict) for key in keys]


@given(
    place=st.sampled_from(KEYS), value=st.recursive(scalars, lambda inner: st.lists(inner, max_size=3), max_leaves=5)
)
def test_any_value_of_any_key(place, value):
    content = yaml.safe_load(SMOKE)
    content[place[0]][place[1]] = value
    check_params(yaml.safe_dump(content, allow_unicode=True))


@given(at=st.integers(0, 5000), cut=st.integers(0, 30), text=st.text(max_size=20))
def test_any_text_of_a_params_file(at, cut, text):
    at %= len(SMOKE)
    check_params(SMOKE[:at] + text + SMOKE[at + cut :])


@given(st.binary(max_size=200))
def test_any_bytes_as_a_params_file(content):
    check_params(content)


def check_params(text):
    try:
        assert isinstance(parse_params(text, "params/x.yaml"), Params)
    except ParamsError as error:
        said = str(error)
        assert said.startswith("params/x.yaml: ")
        assert "\n" not in said.strip()


@pytest.mark.parametrize(
    "text", ["grid: !!bool maybe", 'grid: !!int ""', 'grid: !!float ""', '!!int "": 3', 'a: "\\UFFFFFFFF"']
)
def test_what_yaml_stumbles_over(text):
    with pytest.raises(ParamsError, match="params: not readable as YAML"):
        parse_params(text)


def test_references_cannot_blow_up():
    laughs = "a: &a [x, x, x, x, x, x, x, x, x]\n"
    for name, inner in zip("bcdefghij", "abcdefghi", strict=True):
        laughs += f"{name}: &{name} [{', '.join([f'*{inner}'] * 9)}]\n"
    with pytest.raises(ParamsError, match=r"params: not readable as YAML: .*\*a"):
        parse_params(laughs)


@given(spec=words)
def test_any_spec_of_a_run(tmp_path_factory, spec):
    root = tmp_path_factory.getbasetemp()
    with patch("lever_lib.notebooks.run_spec", lambda spec, start: None):
        code, _, complained = run(root, ["--from", "01", "--", spec], run_notebooks)
    assert_orderly(code, complained)


FILES = [
    "library/policies.parquet",
    "library/timings.parquet",
    "library/q_tables.npy",
    "library/visits.npy",
    "library/episodes.npz",
    "library/layouts.npz",
    "pi2vec/canonical_states.npz",
    "pi2vec/embeddings.npy",
    "regressor/models.safetensors",
    "regressor/predictions.parquet",
    "search/index.faiss",
    "search/postings.parquet",
    "search/gate.json",
    "manifest.json",
    "params.yaml",
]
harms = st.one_of(
    st.tuples(st.just("flip"), st.integers(0, 10**6), st.binary(min_size=1, max_size=30)),
    st.tuples(st.just("head"), st.integers(0, 300), st.binary(min_size=1, max_size=8)),
    st.tuples(st.just("cut"), st.integers(0, 10**6), st.just(b"")),
    st.tuples(st.just("other"), st.integers(0, len(FILES) - 1), st.binary(max_size=100)),
)
QUESTIONS = [["view"], ["search", "gold and the lever"], ["search", "gold", "--method", "exnonzero", "--json"]]


def harmed(content, harm, root):
    kind, at, data = harm
    if kind == "other":
        return data if len(data) > 50 else (root / "smoke" / FILES[at]).read_bytes()
    at %= len(content) if kind != "head" else min(len(content), 300)
    return content[:at] if kind == "cut" else content[:at] + data + content[at + len(data) :]


@slow
@given(
    name=st.sampled_from(FILES),
    harm=harms,
    entered=st.booleans(),
    question=st.sampled_from(QUESTIONS),
)
def test_any_content_of_any_file(copy, name, harm, entered, question):
    """As damage, which a checksum finds, or made up together with its checksum."""
    path, manifest = copy / "smoke" / name, copy / "smoke" / "manifest.json"
    content, entries = path.read_bytes(), manifest.read_bytes()
    outputs = Outputs("smoke", load_params("smoke"), copy)
    stage = name.split("/")[0]
    try:
        path.write_bytes(harmed(content, harm, copy))
        if entered and "/" in name:
            entry = outputs.manifest()[stage]
            entry["files"][name] = file_hash(path)
            outputs.enter(stage, entry)
        code, said, complained = run(copy, [*question, "--spec", "smoke"])
        assert_orderly(code, complained)
        if not entered and "/" in name and path.read_bytes() != content and stage == "library":
            assert code == 2, said
            assert path.name in complained
    finally:
        path.write_bytes(content)
        manifest.write_bytes(entries)


RECORDING = (ROOT / "lever_lib" / "data" / "exchanges.jsonl").read_bytes()


@given(at=st.integers(0, 10**6), cut=st.integers(0, 50), data=st.binary(max_size=50))
def test_any_content_of_a_recording(tmp_path_factory, at, cut, data):
    path = tmp_path_factory.getbasetemp() / "exchanges.jsonl"
    at %= len(RECORDING)
    path.write_bytes(RECORDING[:at] + data + RECORDING[at + cut :])
    said = "exchanges.jsonl"
    try:
        _Recording(replace(Settings(), replay=path))
    except LeverError as error:
        said = str(error)
    assert "exchanges.jsonl" in said
    assert "\n" not in said


@given(st.one_of(scalars, words, st.lists(words, max_size=2), st.dictionaries(words, words, max_size=1)))
def test_any_parameter_of_a_notebook(spec):
    """As the first call of every notebook gets it."""
    try:
        load_params(spec)
    except ParamsError as error:
        said = str(error)
        assert said.startswith("spec ")
        assert "\n" not in said
    else:
        assert spec in available_specs()


POOL = ("Collect the gold.", "Pull the lever.", "Take the shortest path.")
json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=10), st.sampled_from(POOL)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.sampled_from(["sentences", "choices", "message", "content", "x"]), inner, max_size=3),
    ),
    max_leaves=8,
)
chosen = st.one_of(st.lists(st.sampled_from(POOL), max_size=3), json_values)
objects = st.fixed_dictionaries({"sentences": chosen}, optional={"x": json_values})
contents = st.one_of(json_values, objects.map(json.dumps), st.text(max_size=50))
bodies = st.one_of(
    st.binary(max_size=100),
    json_values.map(json.dumps).map(str.encode),
    st.tuples(contents, json_values, st.text(max_size=9)).map(
        lambda parts: json.dumps(completion(parts[0], parts[2], parts[1], refusal=None)).encode()
    ),
    st.tuples(objects, st.integers(0, 300), st.binary(max_size=5)).map(
        lambda parts: harmed(json.dumps(completion(json.dumps(parts[0]))).encode(), ("flip", *parts[1:]), None)
    ),
    st.text(max_size=20).map(lambda text: json.dumps({"error": {"message": f"{text}{KEY}"}}).encode()),
)
words_of_a_header = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=12)
answers = st.one_of(
    contents.map(says),
    st.builds(
        sends,
        st.sampled_from([200, 200, 200, 204, 302, 400, 401, 404, 429, 500, 599]),
        bodies,
        words_of_a_header,
        retry_after=words_of_a_header,
        content_encoding=st.sampled_from(["", "gzip", "identity", "br", "x"]),
        location=words_of_a_header,
    ),
)


@pytest.fixture(scope="module")
def model():
    """A language model that says whatever it is told to."""
    with LLMServer() as server, patch.object(llm, "_BACKOFF", 0.01), patch.object(llm, "_find_access") as access:
        access.return_value = llm._Access("127.0.0.1", server.url, KEY, None)
        yield server


@slow
@given(script=st.lists(answers, min_size=1, max_size=3))
def test_any_answer_of_a_language_model(model, script, caplog):
    model.script, model.requests[:] = script, []
    found, complained = [], io.StringIO()
    settings = LanguageModel(timeout_s=2.0, tries=len(script))
    with redirect_stderr(complained), caplog.at_level("DEBUG", "lever_lib"):
        code = exit_code(lambda: found.append(decompose("gold", POOL, "llm", settings)), interrupted="")
    assert_orderly(code, complained.getvalue())
    assert code == 2 or set(found[0].sub_queries) <= set(POOL)
    assert KEY not in complained.getvalue() + caplog.text + repr(found)


files = st.tuples(st.sampled_from([".npy", ".npz", ""]), st.sampled_from(["array", "archive", "junk"]), harms)


@slow
@given(file=files, name=words)
def test_any_file_as_a_policy_of_ones_own(copy, file, name):
    ending, kind, harm = file
    buffer = io.BytesIO()
    table = np.random.default_rng(0).normal(size=(36, 4))
    {"array": lambda: np.save(buffer, table), "archive": lambda: np.savez(buffer, q_table=table)}.get(kind, bool)()
    path = copy.parent / f"mine{ending}"
    path.write_bytes(harmed(buffer.getvalue() or b"junk", harm, copy))
    before = tree(copy / "smoke")
    try:
        arguments = ["add", str(path), "--spec", "smoke", f"--policy-id={name}", "--setup", "gold", "--seed", "1"]
        code, _, complained = run(copy, arguments)
        assert_orderly(code, complained)
        if code == 0:
            assert run(copy, ["remove", "--spec", "smoke", "--", name])[0] == 0
        assert tree(copy / "smoke") - {"added"} == before - {"added"}
    finally:
        path.unlink()
