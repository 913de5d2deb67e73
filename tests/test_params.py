import pytest

from lever_lib.errors import ParamsError
from lever_lib.params import (
    PARAMS_FOLDER,
    Execution,
    available_specs,
    load_params,
    parse_params,
    resolved,
    snapshot_episodes,
)

SMOKE = (PARAMS_FOLDER / "smoke.yaml").read_text()


@pytest.mark.parametrize("spec", available_specs())
def test_every_params_file_loads(spec):
    params = load_params(spec)
    assert snapshot_episodes(params, next(iter(params.libraries)))[-1] == next(iter(params.libraries.values())).episodes


def test_published_settings():
    for spec, legacy in (("16x16", True), ("32x32", False)):
        params = load_params(spec)
        assert (params.grid.golds, params.grid.blocks, params.grid.hazards) == (50, 25, 30)
        assert params.grid.legacy_gold_exit is legacy
        assert [budget.episodes for budget in params.libraries.values()] == [30_000, 150_000, 300_000]
    assert [budget.epsilon_decay for budget in load_params("8x8").libraries.values()] == [0.99954, 0.99991, 0.99995]


@pytest.mark.parametrize(
    ("old", "new", "parts"),
    [
        ("size: 6", "siez: 6", ["grid.siez: ", "not a known key", "did you mean 'size'"]),
        ("size: 6", "size: six", ["grid.size", "'six'", "integer"]),
        ("size: 6", "size: 2", ["grid.size", "2", "greater than or equal to 3"]),
        ("size: 6", "size: true", ["grid.size", "True", "integer"]),
        ("golds: 4", "golds: 40", ["grid", "47", "36 cells"]),
        ("golds: 4", "golds: 60", ["grid", "golds = 60", "at most 50"]),
        ("alpha: 0.1", "alpha: 1:30", ["sarsa.alpha", "'1:30'", "number"]),
        ("alpha: 0.1", "alpha: .nan", ["sarsa.alpha", "nan"]),
        ("[0, 1, 2]", "[0, 0, 1]", ["seeds", "[0, 0, 1]", "different"]),
        ("[0, 1, 2]", "[0, 1.5, 2]", ["seeds.1", "1.5", "integer"]),
        ("top_k: 3", "top_k: 9", ["search", "top_k = 9", "candidates = 5"]),
        ("[0.2, 0.4, 0.6, 0.8, 1.0]", "[0.5]", ["sarsa", "snapshots = [0.5]", "1.0"]),
        ("episodes: 500, ", "", ["libraries.X1.episodes", "missing"]),
        ("root_seed: 0", "seeds: [1, 2, 3]", ["'seeds'", "given twice"]),
        ("root_seed: 0", "7: 0", ["key 7 on line", "is not a name; put it in quotes"]),
        ("record: null", 'record: "a\\0b"', ["llm.record"]),
        ("scheduler: null", "scheduler: localhost", ["execution", "'localhost'", "null or an address like tcp://host"]),
        ("scheduler: null", "scheduler: 8786", ["execution.scheduler", "8786", "string"]),
        ("layouts: 4", "layouts: 2", ["study.layouts", "2", "greater than or equal to 3"]),
        ("encoder: minilm", "encoder: ''", ["search.encoder", "''", "at least 1 character"]),
        ("decompose: offline", "decompose: magic", ["search.decompose", "'magic'", "'offline', 'llm' or 'none'"]),
        ("index: auto", "index: tree", ["search.index", "'tree'", "'flat'"]),
        ("cosine_gate: null", "cosine_gate: 2", ["search.cosine_gate", "2", "less than or equal to 0.9"]),
        (
            "X1: {episodes: 500,",
            "X1: {episodes: 50000,",
            ["['X1', 'X5']", "order of their episodes: ['X5', 'X1']"],
        ),
        ("X1: {", "all: {", ["libraries = ['all', 'X5']", "other than 'all'"]),
        ("[0.2, 0.4, 0.6, 0.8, 1.0]", "[0.9999996, 1.0]", ["snapshots = [0.9999996, 1.0]", "first six digits"]),
        ("model: gpt-5-nano", "modle: gpt-5-nano", ["llm.modle", "not a known key", "did you mean 'model'"]),
        ("timeout_s: 60.0", "timeout_s: 0", ["llm.timeout_s", "0", "greater than 0"]),
        ("tries: 3", "tries: 0", ["llm.tries", "0", "greater than or equal to 1"]),
        ("fallback: error", "fallback: never", ["llm.fallback", "'never'", "'error' or 'offline'"]),
        ("record: null", "record: 7", ["llm.record", "7", "string"]),
        ("root_seed: 0", "root_seed: 0\nscale: {vectors: [10]}", ["scale.vectors.0", "10", "equal to 100"]),
        ("root_seed: 0", "root_seed: [", ["not readable as YAML"]),
        ("root_seed: 0", "2020-01-01: 1", ["2020-01-01", "not a known key"]),
        ("root_seed: 0", "root_seed: 2026-11-15", ["root_seed", "'2026-11-15'", "integer"]),
        ("root_seed: 0", "root_seed: !!int x", ["not readable as YAML"]),
        ("root_seed: 0", "root_seed: &a [*a]", ["not readable as YAML"]),
        ("root_seed: 0", f"root_seed: {'9' * 5000}", ["params/mine.yaml"]),
        ("root_seed: 0", "root_seed: !!binary aGk=", ["b'hi'", "no text, number"]),
        ("root_seed: 0", "root_seed: 0x10", ["root_seed", "'0x10'", "integer"]),
        ("model: gpt-5-nano", 'model: "\\ud800"', ["surrogates"]),
        ("root_seed: 0", "root_seed: 0\n<<: {a: 1}", ["<<", "not a known key"]),
        ("root_seed: 0", "root_seed: !!python/object/apply:os.system [ls]", ["not readable as YAML"]),
    ],
)
def test_a_wrong_value_is_one_line_with_file_key_value_and_rule(old, new, parts):
    assert old in SMOKE
    with pytest.raises(ParamsError) as caught:
        parse_params(SMOKE.replace(old, new, 1), "params/mine.yaml")
    message = str(caught.value)
    assert message.startswith("params/mine.yaml: ")
    assert "\n" not in message
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    "line",
    ["OPENAI_API_KEY: sk-secret-1234", "llm: {api_key: sk-secret-1234}", "key: sk-secret-1234: x", "[sk-secret-1234"],
)
def test_what_is_in_the_wrong_place_is_not_repeated(line):
    """It may be a key, and errors end up in the logs of a CI."""
    text = "\n".join(row for row in SMOKE.splitlines() if not row.startswith("llm")) + f"\n{line}\n"
    with pytest.raises(
        ParamsError, match=r"not a known key|not readable as YAML: .* on line \d+, column \d+"
    ) as caught:
        parse_params(text)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("written", "seeds", "alpha"),
    [
        ("[0010, 0011, 0018]", (10, 11, 18), "1e-1"),
        ("[1_0, +1, 08]", (10, 1, 8), ".1"),
        ("[00, 1, 2]", (0, 1, 2), "1.0E-01"),
    ],
)
def test_numbers_are_decimal(written, seeds, alpha):
    read = parse_params(SMOKE.replace("[0, 1, 2]", written).replace("alpha: 0.1", f"alpha: {alpha}"))
    assert (read.seeds, read.sarsa.alpha) == (seeds, 0.1)


@pytest.mark.parametrize("spec", ["../../etc", "", "nope", "a/b", ".hidden", "study"])
def test_a_spec_is_a_plain_name_of_a_file_that_exists(spec):
    with pytest.raises(ParamsError, match="spec"):
        load_params(spec)


def test_an_address_of_a_cluster():
    for address in ("tcp://10.0.0.1:8786", "tcp://scheduler.lab:8786"):
        assert Execution(scheduler=address).scheduler == address


def test_resolved_params_load_again():
    import yaml

    params = load_params("smoke")
    assert parse_params(yaml.safe_dump(resolved(params))) == params
