"""What the README promises to people who add something of their own."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import gymnasium
import numpy as np
import pandas as pd
import pytest

from lever_lib import composition, load_policy
from lever_lib.api import OpenLibrary, best_episode, open_library
from lever_lib.artifacts import ROOT, Outputs
from lever_lib.composition import register
from lever_lib.envs.gridworld import layout_from_text
from lever_lib.envs.layouts import EXIT, GOLD, START
from lever_lib.errors import LeverError
from lever_lib.experiment import experiment_jobs, run_job
from lever_lib.jobs import run_jobs
from lever_lib.library import check_layout
from lever_lib.params import PARAMS_FOLDER, Execution, load_params
from lever_lib.planning import plan
from lever_lib.policies.base import CellPolicy, Episode, PolicyRecord, greedy_actions
from lever_lib.rollout import evaluate
from lever_lib.search import Filters
from tests.conftest import build_everything

MAP = """
S . G . . .
. # . . x .
. . L . . .
G . . # . .
. x . . G .
. . . . . E
"""


@pytest.fixture(scope="module")
def opened(smoke, smoke_params):
    return OpenLibrary(smoke_params, smoke)


def best_q_table(opened, setup, seed):
    """A Q-table that acts by the exact optimum's path."""
    layout = opened.library.layout(seed)
    rewards = layout.rewards(opened.library.system(setup))
    best = plan(layout.transitions, rewards)
    outcome = evaluate(best, layout, opened.library.system(setup))
    q_table = np.zeros((layout.cells.size, 4))
    q_table[outcome.cells[:-1], outcome.actions] = 1.0
    return q_table, outcome


def test_a_new_grid_size_is_a_file_dropped_in(monkeypatch, tmp_path):
    text = (PARAMS_FOLDER / "smoke.yaml").read_text().replace("size: 6", "size: 12").replace("workers: 2", "workers: 1")
    (tmp_path / "12x12.yaml").write_text(text)
    monkeypatch.setattr("lever_lib.params.PARAMS_FOLDER", tmp_path)
    params = load_params("12x12")
    assert params.grid.size == 12
    retriever = build_everything(params, Outputs("12x12", params, tmp_path / "outputs"))
    answer = OpenLibrary(params, retriever).ask("fast exit with gold")
    assert answer.layout.cells.shape == (12, 12)
    assert answer.return_ <= answer.optimum
    env = gymnasium.make("lever/GridWorld-v0", spec="12x12")
    assert env.observation_space.shape == (12, 12)


# Runs in a process of its own, in which the reward table has one entry more than in the file.
WITH_ENTRY = """
import importlib.util, sys
import lever_lib
spec = importlib.util.find_spec("lever_lib.envs.rewards")
table = "COMPONENTS: dict[str, Component] = {"
text = open(spec.origin).read()
assert table in text
entry = '"stroll": Component("Take a long walk before the exit.", {"step": 2.0, "exit": 10.0}, words="stroll|walk"),'
module = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = module
exec(compile(text.replace(table, table + entry), spec.origin, "exec"), module.__dict__)

import json
from dataclasses import replace
from pathlib import Path
from lever_lib.api import OpenLibrary
from lever_lib.artifacts import Outputs
from lever_lib.params import Execution, load_params
from tests.conftest import build_everything

params = replace(load_params("smoke"), execution=Execution(workers=1))
opened = OpenLibrary(params, build_everything(params, Outputs("smoke", params, Path(sys.argv[1]))))
answer = opened.ask("a walk with gold", method="exnonzero")
policies = opened.library.policies.query("setup == 'stroll'")
print(json.dumps({
    "objectives": answer.objectives, "setup": answer.setup, "return": answer.return_, "optimum": answer.optimum,
    "policies": len(policies), "good": bool((policies["return"] > 10).any()), "steps": len(answer.cells) - 1,
    "sub_queries": answer.sub_queries,
}))
"""


def test_a_reward_component_is_one_table_entry(tmp_path):
    result = subprocess.run(
        [sys.executable, "-c", WITH_ENTRY, str(tmp_path)],
        capture_output=True, text=True, cwd=ROOT, env=dict(os.environ), check=False, timeout=1200,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    answer = json.loads(result.stdout.splitlines()[-1])
    assert answer["objectives"] == ["stroll", "gold"]
    assert answer["setup"] == "stroll-gold"
    assert "Take a long walk before the exit." in answer["sub_queries"]
    assert answer["policies"] == 3 * 2 * 5, "layouts x budgets x snapshots"
    assert answer["good"], "its policies earn by walking"
    assert answer["return"] == pytest.approx(answer["optimum"])
    assert answer["steps"] == 10, "the longest way through a 6 x 6 grid"


@pytest.fixture
def average():
    """A method of somebody's own, gone again afterwards."""

    @register("average", rung=0)
    def average(view):
        return CellPolicy(greedy_actions(view.q_tables.mean(axis=0)))

    yield "average"
    del composition.METHODS["average"]


def test_a_composition_method_is_one_registered_function(opened, average):
    mine = opened.ask("fast exit with gold", method=average, strategy="targeted")
    same = opened.ask("fast exit with gold", method="qsum", strategy="targeted")
    assert mine.return_ == same.return_, "the mean acts like the sum"
    assert mine.recipe.method == "average"


@pytest.mark.parametrize("workers", [1, 2])
def test_the_experiment_takes_a_registered_method_along(opened, average, workers):
    jobs = experiment_jobs(opened.retriever)[:2]
    parts = run_jobs(run_job, jobs, Execution(workers=workers), "test", threads=False)
    rows = [row for part in parts for row in part["results"]]
    methods = {row["method"] for row in rows}
    assert methods == {method.name for method in composition.everyday_methods()}
    assert "average" in methods
    by_key = {(row["seed"], row["library"], row["setup"], row["strategy"], row["query_class"], row["method"]): row
              for row in rows}  # fmt: skip
    for (*key, method), row in by_key.items():
        if method == "average" and row["strategy"] == "targeted":
            assert row["return"] == by_key[*key, "qsum"]["return"]
        assert row["composition_regret"] >= -1e-9, "what a registered method does belongs to the support"


def test_a_method_may_not_take_a_built_in_name():
    with pytest.raises(LeverError, match="'gpi': is built in"):
        register("gpi", rung=0)(lambda view: None)
    assert composition.METHODS["gpi"].rung == 1


@pytest.mark.parametrize(
    "actions",
    [np.zeros(5, np.int8), np.full(36, 7), np.full(36, -1), np.zeros(36), None, np.zeros((36, 4), int)],
    ids=["too few", "unknown", "negative", "no numbers", "none", "a table"],
)
def test_a_method_whose_actions_cannot_be_followed_is_named(opened, actions):
    register("broken", rung=0)(lambda view: CellPolicy(actions))
    try:
        with pytest.raises(
            LeverError, match="method 'broken': its actions must be an array of whole numbers from 0 to 3"
        ):
            opened.ask("gold and the lever", method="broken")
    finally:
        del composition.METHODS["broken"]


@pytest.mark.parametrize(
    ("returned", "found"), [(np.zeros((36, 4)), "ndarray"), (CellPolicy, "the class CellPolicy itself")], ids=str
)
def test_a_method_that_returns_no_policy_is_named(opened, returned, found):
    register("broken", rung=0)(lambda view: returned)
    try:
        with pytest.raises(LeverError, match=f"method 'broken': must return a policy, .*, returned {found}"):
            opened.ask("gold", method="broken")
    finally:
        del composition.METHODS["broken"]


def test_a_layout_of_your_own_joins_a_library(opened):
    mine = opened.with_layout("mine", MAP)
    assert "mine" not in opened.library.layouts
    assert len(mine.library.policies) == len(opened.library.policies) + 8 * 2 * 5
    answer = mine.ask("fast exit with gold", seed="mine")
    assert answer.layout.name == "mine"
    assert 0 < answer.return_ <= answer.optimum
    assert set(answer.policy_ids) <= set(mine.library.policies.query("seed == 'mine'")["policy_id"])
    assert mine.ask("gold", seed=1).return_ == opened.ask("gold", seed=1).return_, "old layouts answer as before"
    again = opened.with_layout("mine", MAP)
    assert again.ask("fast exit with gold", seed="mine").policy_ids == answer.policy_ids
    assert np.array_equal(again.retriever.embeddings.embeddings, mine.retriever.embeddings.embeddings)


@pytest.mark.parametrize(
    ("name", "drawing", "part"),
    [
        ("0007", MAP, "not a number"),
        (7, MAP, "must be new"),
        (" ", MAP, "must be new"),
        ("mine", 7, "drawn as text"),
        ("", MAP, "must be new"),
        ("mine", "S .\n. E", "2 x 2"),
        ("mine", MAP.replace("G", "?"), "unknown symbol"),
        ("mine", MAP.replace("E", "."), "exit"),
    ],
)
def test_a_layout_that_does_not_fit_is_refused(opened, name, drawing, part):
    with pytest.raises(LeverError, match=part):
        opened.with_layout(name, drawing)


def test_a_q_table_of_your_own_joins_a_library_and_is_found(opened):
    q_table, outcome = best_q_table(opened, "path-gold", 1)
    mine = opened.with_policy("tuned", q_table, setup="gold", seed=1, description="Dance from coin to coin.")
    row = mine.library.policies.query("policy_id == 'tuned'").iloc[0]
    assert (row["source"], row["seed"], row["stuck"]) == ("own", "0001", False)
    assert (
        row["return"]
        == evaluate(
            CellPolicy(greedy_actions(q_table)), opened.library.layout(1), opened.library.system("gold")
        ).return_
    )
    found = mine.ask("Dance from coin to coin.", seed=1, how="none").candidates[0]
    assert found["policy_id"].iloc[0] == "tuned"
    assert found["cosine"].iloc[0] == pytest.approx(1.0, abs=1e-5)
    everything = mine.ask("fast exit with gold", seed=1, strategy="library")
    assert "tuned" in everything.policy_ids
    assert everything.return_ == pytest.approx(outcome.return_), "gpi is never below its best member"
    assert "tuned" not in mine.ask("fast exit with gold", seed=2, strategy="library").policy_ids


def test_a_policy_for_a_reward_nobody_trained_is_found_too(opened):
    q_table, _ = best_q_table(opened, "gold-lever", 1)
    mine = opened.with_policy("rich", q_table, setup="lever-gold", seed=1, description="Gold first, lever second.")
    answer = mine.ask("Gold first, lever second.", seed=1, how="none")
    assert answer.setup == "gold-lever"
    assert "rich" in set(answer.candidates[0]["policy_id"])
    assert "rich" in mine.ask("fast exit with gold", seed=1, strategy="library").policy_ids


def test_missing_energy_comes_last_and_never_crashes(opened):
    q_table, _ = best_q_table(opened, "gold", 1)
    sentence = "Collect as much gold as possible before exiting."
    mine = opened.with_policy("unmetered", q_table, setup="gold", seed=1)
    for wanted in (True, False):
        table = mine.ask(sentence, seed=1, how="none", top_k=40, filter_energy=wanted).candidates[0]
        tied = table[table["cosine"] > 0.9999]
        assert "unmetered" in set(tied["policy_id"])
        if wanted:
            assert tied["policy_id"].iloc[-1] == "unmetered"
            assert tied["energy_label"].iloc[-1] == "unknown"
            assert tied["energy_joules"].iloc[:-1].is_monotonic_increasing


def test_what_nobody_measured_passes_no_limit_of_energy(opened):
    q_table, _ = best_q_table(opened, "gold", 1)
    mine = opened.with_policy("unmetered", q_table, setup="gold", seed=1)
    for filters, there in ((Filters(setups=("gold",)), True), (Filters(most_joules=1e9), False)):
        table = mine.ask("collect gold", seed=1, top_k=40, filters=filters).candidates[0]
        assert ("unmetered" in set(table["policy_id"])) == there


def test_a_copy_behaves_like_its_original(opened):
    row = opened.library.policies.query("seed == '0001' and setup == 'lever'").index[-1]
    mine = opened.with_policy("0 copy", opened.library.q_tables[row], setup="path", seed=1)
    original = opened.library.policies["policy_id"][row]
    nearest = mine.like(original, 1).iloc[0]
    assert nearest["policy_id"] == "0 copy"
    assert nearest["distance"] == pytest.approx(0, abs=1e-5)
    assert set(mine.library.policies["seed"].iloc[mine.like(original, 1000)["row"]]) == {"0001"}
    budgets = mine.library.policies["library"].iloc[mine.like(original, 1000, library="X1")["row"]]
    assert set(budgets) == {"X1"}
    assert "0 copy" not in set(mine.like(original, 1000, Filters(setups=("lever",)))["policy_id"])


@pytest.mark.parametrize("wrong", [{"count": 0}, {"count": 2.5}, {"library": "X99"}, {"policy_id": None}])
def test_a_likeness_that_cannot_be_asked_for_is_refused(opened, wrong):
    name = opened.library.policies["policy_id"][0]
    with pytest.raises(LeverError, match=r"count|X99|None"):
        opened.like(**{"policy_id": name, "count": 3} | wrong)


def test_a_policy_alone_in_its_world_is_like_no_other(opened):
    donor = opened.with_layout("alone", MAP)
    row = next(donor.library.policies.query("seed == 'alone'").itertuples())
    record = record_of_another_source(donor, row, donor.library.q_tables[row.Index])
    with pytest.raises(LeverError, match="is alone in its layout"):
        opened.with_records([record], [layout_from_text(MAP, "alone")]).like(record.policy_id)


def test_a_filter_holds_for_the_whole_answer(opened):
    answer = opened.ask("fast exit with gold", seed=1, strategy="library", filters=Filters(setups=("path", "gold")))
    setups = opened.library.policies.set_index("policy_id").loc[list(answer.policy_ids), "setup"]
    assert set(setups) == {"path", "gold"}
    assert all(set(table["row"]) for table in answer.candidates)
    own = opened.ask("fast exit with gold", seed=1, filters=Filters(setups=("path-gold",)))
    setups = opened.library.policies.set_index("policy_id").loc[list(own.policy_ids), "setup"]
    assert set(setups) == {"path-gold"}, "also what was trained for more than one objective"


@pytest.mark.parametrize("strategy", ["targeted", "library"])
def test_the_interval_holds_the_prediction(opened, strategy):
    answer = opened.ask("fast exit with gold", seed=1, strategy=strategy)
    low, high = answer.predicted_interval
    assert low < answer.predicted_return < high
    half = opened.retriever.regressor.for_layout("0001").half_width(answer.recipe.system)
    assert (low, high) == pytest.approx((answer.predicted_return - half, answer.predicted_return + half))


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"q_table": np.zeros((36, 3))}, r"q_table: must be finite numbers of shape \(36, 4\)"),
        ({"q_table": "text"}, "q_table"),
        ({"q_table": np.full((36, 4), np.nan)}, "finite"),
        ({"q_table": np.full((36, 4), 1e300)}, "finite numbers .* 1e.100 at most"),
        ({"visits": np.full((36, 4), -1)}, "visits .* negative"),
        ({"visits": np.full((36, 4), np.nan)}, "visits: must be finite"),
        ({"policy_id": "X1-0000-path-20"}, "must be new"),
        ({"setup": "coins"}, "'coins'"),
        ({"seed": 77}, "seed 77"),
        ({"library": "X99"}, "X99"),
        ({"q_table": [[1.0], [2.0, 3.0]]}, "q_table: must be finite numbers"),
        ({"q_table": np.full((36, 4), 1j)}, "complex"),
        ({"q_table": np.full((36, 4), "a")}, "q_table: must be finite numbers"),
        ({"visits": np.full((36, 4), 0.5)}, "counts"),
        ({"policy_id": 5}, "policy_id 5"),
        ({"policy_id": "a+b"}, "without"),
        ({"description": " "}, "description"),
        ({"setup": None}, "setup None"),
    ],
)
def test_a_policy_that_does_not_fit_is_refused(opened, change, part):
    settings = {"policy_id": "mine", "q_table": np.zeros((36, 4)), "setup": "gold", "seed": 1} | change
    with pytest.raises(LeverError, match=part):
        opened.with_policy(**settings)


def test_half_letters_of_a_question_are_no_reason_to_fail(opened):
    for how in ("none", "offline"):
        assert opened.ask("collect gold \ud800", seed=1, how=how).policy_ids


def test_records_that_could_never_be_found_are_refused(opened):
    row = next(opened.library.policies.itertuples())
    record = record_of_another_source(opened, row, opened.library.q_tables[0])
    for change, part in (
        ({"library": "X99"}, "X99"),
        ({"setup": "gold-path"}, "is called 'path-gold'"),
        ({"seed": "0009"}, "no layout '0009'"),
        ({"q_table": [[1.0]]}, "q_table"),
    ):
        with pytest.raises(LeverError, match=part):
            opened.with_records([replace(record, **change)])
    with pytest.raises(LeverError, match="at least one"):
        opened.with_records([])
    with pytest.raises(LeverError, match="comes without a policy"):
        opened.with_records([record], [layout_from_text(MAP, "empty")])
    with pytest.raises(LeverError, match="each name may be used once"):
        opened.with_records([record], [layout_from_text(MAP, "twice"), layout_from_text(MAP, "twice")])


def test_counts_too_large_for_the_files_are_kept_at_the_largest(opened):
    row = next(opened.library.policies.itertuples())
    record = record_of_another_source(opened, row, opened.library.q_tables[0])
    joined = opened.library.joined([replace(record, visits=np.full((36, 4), 2**40))])
    assert (joined.visits[-1] == np.iinfo(np.int32).max).all()


def test_more_gold_than_the_features_hold_is_refused():
    crowded = layout_from_text("\n".join(["S" + "G" * 7, *["G" * 8] * 6, "G" * 7 + "E"]), "crowded")
    eight = SimpleNamespace(spec="8x8", layouts={}, params=load_params("8x8"))
    with pytest.raises(LeverError, match="62 golds, at most 50"):
        check_layout(crowded, eight)


def test_a_policy_that_joins_is_embedded_like_the_library(opened):
    q_table = np.random.default_rng(3).normal(size=(36, 4))
    mine = opened.with_policy("tuned", q_table, setup="gold", seed=1)
    embedder = opened.retriever.embeddings.embedder(opened.library.layout(1))
    expected = embedder.embed([CellPolicy(greedy_actions(q_table))])
    assert np.array_equal(mine.retriever.embeddings.embeddings[-1], expected.mean[0])
    assert np.array_equal(mine.retriever.embeddings.start[-1], expected.start[0])
    again = opened.with_layout("mine", MAP).library
    assert len(again.episodes) == len(again.policies) == len(again.q_tables) == len(again.visits) == len(again.timings)


def test_the_questions_own_policies_take_no_part(opened):
    answer = opened.ask("fast exit with gold", strategy="library")
    setups = opened.library.policies.set_index("policy_id").loc[list(answer.policy_ids), "setup"]
    assert "path-gold" not in set(setups)
    assert len(set(setups)) == 7


def test_an_undivided_question_is_judged_by_a_policy_of_its_own_world(opened):
    mine = opened
    for setup, seed in (("gold", 0), ("lever", 1)):
        q_table, _ = best_q_table(opened, setup, seed)
        mine = mine.with_policy(f"dancer {seed}", q_table, setup=setup, seed=seed, description="Dance to the exit.")
    answer = mine.ask("Dance to the exit.", seed=1, how="none", strategy="targeted")
    assert (answer.setup, answer.policy_ids) == ("lever", ("dancer 1",))


@pytest.mark.parametrize("question", [{"query": None}, {"top_k": 2.5}, {"top_k": "3"}, {"seed": [1]}, {"how": "magic"}])
def test_a_question_that_cannot_be_asked_is_refused(opened, question):
    with pytest.raises(LeverError):
        opened.ask(**({"query": "gold"} | question))


def record_of_another_source(donor, row, q_table):
    return PolicyRecord(
        policy_id=f"other-{row.policy_id}", source="other", setup=row.setup, library=row.library, seed=row.seed,
        snapshot=row.snapshot, episodes=row.episodes, description=row.description, q_table=q_table,
        visits=donor.library.visits[row.Index], episode=donor.library.episodes[row.Index], train_seconds=1.0,
    )  # fmt: skip


def test_records_of_another_source_may_cover_some_objectives_only(opened):
    """A source that trains one objective on a world of its own is a library like any other."""
    layout = layout_from_text(MAP, "elsewhere")
    donor = opened.with_layout("elsewhere", MAP)
    rows = donor.library.policies.query("seed == 'elsewhere' and setup == 'path' and library == 'X5'")
    q_tables = donor.library.q_tables
    records = [record_of_another_source(donor, row, q_tables[row.Index]) for row in rows.itertuples()]
    few = opened.with_records(records, [layout])
    answer = few.ask("be quick", seed="elsewhere", library="X5")
    assert answer.return_ <= answer.optimum
    with pytest.raises(LeverError, match=r"Collect as much gold .* no policy has a cosine"):
        few.ask("collect gold", seed="elsewhere", library="X5")


def test_the_answer_is_drawn_and_saved(opened, tmp_path):
    answer = opened.ask("gold and the lever, avoid traps", seed=2, method="exnonzero")
    figure = answer.plot()
    assert "gold-hazard-lever on layout 0002" in figure.axes[0].get_title()
    labels = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    assert any("optimum" in label for label in labels)
    assert any("exnonzero" in label for label in labels)
    for method in ("qsum", "gpi", "exnonzero"):
        answer = opened.ask("gold and the lever, avoid traps", seed=2, method=method)
        answer.save(tmp_path / "policy.npz")
        recipe = load_policy(tmp_path / "policy.npz")
        assert recipe.policy_ids == answer.policy_ids
        assert recipe.outcome().cells.tolist() == answer.cells.tolist()
        assert recipe.outcome().return_ == answer.return_


def test_a_method_that_is_another_one_here_is_noticed_though_it_returns_the_same(opened, tmp_path, average):
    opened.ask("fast exit with gold", seed=2, method="average").save(tmp_path / "policy.npz")
    with np.load(tmp_path / "policy.npz") as stored:
        parts = dict(stored)
    assert load_policy(tmp_path / "policy.npz").method == "average"
    for name in ("cells", "actions"):
        np.savez(tmp_path / "other.npz", **parts | {name: parts[name][::-1]})
        with pytest.raises(LeverError, match="goes another way here than where it was saved"):
            load_policy(tmp_path / "other.npz")


HARM = {
    "walk": ("cells", np.array([None])),
    "short": ("q_tables", np.zeros((1, 9, 4))),
    "nan": ("q_tables", np.full((3, 36, 4), np.nan)),
    "negative": ("visits", np.full((3, 36, 4), -1)),
    "alpha": ("alpha", -3.0),
    "codes": ("layout", np.full((6, 6), 256)),
    "method": ("method", "magic"),
    "objects": ("alpha", np.array(None, dtype=object)),
}


@pytest.mark.parametrize("harm", ["absent", "text", "empty", "other", *HARM])
def test_a_file_that_is_no_policy_is_refused(opened, tmp_path, harm):
    path = tmp_path / "policy.npz"
    opened.ask("gold", seed=2).save(path)
    with np.load(path) as stored:
        parts = dict(stored)
    if harm == "absent":
        path.unlink()
    elif harm == "text":
        path.write_text("no numbers")
    elif harm == "empty":
        path.write_bytes(b"")
    elif harm == "other":
        np.savez(path, a=1)
    else:
        name, value = HARM[harm]
        np.savez(path, **parts | {name: value[: len(parts["policy_ids"])] if np.ndim(value) == 3 else value})
    with pytest.raises(LeverError, match=r"policy\.npz"):
        load_policy(path)


@pytest.mark.parametrize(
    ("size", "golds", "reason"),
    [(20, 25, "states to plan for"), (200, 0, "at most 128 can be"), (40, 60, "60 golds; at most 50 can be")],
)
def test_a_world_that_nobody_can_plan_for_is_refused_before_memory_is_taken(opened, tmp_path, size, golds, reason):
    path = tmp_path / "policy.npz"
    opened.ask("gold", seed=2).save(path)
    with np.load(path) as stored:
        parts = dict(stored)
    cells = np.zeros((size, size), np.int8)
    cells[0, 0], cells[-1, -1] = START, EXIT
    cells[1, 1 : 1 + min(golds, size - 1)] = GOLD
    cells[2, 1 : 1 + max(0, golds - size + 1)] = GOLD
    tables = np.zeros((1, size**2, 4))
    np.savez_compressed(
        path,
        **parts
        | {"layout": cells, "moves": "cardinal", "policy_ids": ["a"], "q_tables": tables}
        | {"visits": tables.astype(int), "method": "exnonzero"},
    )
    with pytest.raises(LeverError, match=reason):
        load_policy(path)


ODD = [
    {"library": []},
    {"method": []},
    {"filters": "gold"},
    {"filter_energy": "no"},
    {"top_k": True},
    {"how": ""},
    {"seed": "9" * 5000},
    {"strategy": np.array(["hybrid", "targeted"])},
    {"strategy": pd.NA},
    {"how": np.array(["offline", "none"])},
    {"library": pd.Series(["X1", "X10"])},
]


@pytest.mark.parametrize("odd", ODD, ids=lambda odd: next(iter(odd)))
def test_an_odd_argument_is_an_error_that_names_it(opened, odd):
    name = {"how": "decompose"}.get(next(iter(odd)), next(iter(odd)))
    with pytest.raises(LeverError, match=name) as refused:
        opened.ask("gold", **odd)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("flag", ["no", 1, None, np.array([True, False]), [True], {}], ids=repr)
def test_a_flag_is_true_or_false(flag):
    with pytest.raises(LeverError, match=r"^added = .*: must be True or False$"):
        open_library("smoke", added=flag)
    with pytest.raises(LeverError, match=r"^by_behaviour = .*: must be True or False$"):
        register("mine", rung=0, by_behaviour=flag)
    if flag is not None:  # as params say
        with pytest.raises(LeverError, match=r"^legacy_gold_exit = .*: must be True or False$"):
            best_episode("smoke", 0, "gold", flag)


@pytest.mark.parametrize(("name", "value"), [("rung", True), ("rung", 1.0), ("least_visits", True)])
def test_a_count_is_a_number(name, value):
    with pytest.raises(LeverError, match=f"^{name} = {value}: must be"):
        register("mine", **({"rung": 0} | {name: value}))


def test_an_endless_question_is_refused(opened):
    with pytest.raises(LeverError, match=r"has 5,000,000 letters, at most 10,000 are read"):
        opened.ask("gold " * 10**6)


class Hostile:
    """What becomes no array."""

    def __array__(self, *_, **__):
        raise RuntimeError("not me")


def test_tables_that_are_none_are_refused(opened):
    shape = opened.library.q_tables.shape[1:]
    masked = np.ma.masked_array(np.zeros(shape), np.arange(4) == 0 * np.ones(shape))
    for table, reason in (
        (Hostile(), r"cannot be read as an array \(RuntimeError: not me\)"),
        (masked, "none of them masked"),
    ):
        with pytest.raises(LeverError, match=f"q_table: must be finite numbers.*{reason}"):
            opened.with_policy("mine", table, "gold", 0)


ODD_RECORDS = {
    "snapshot": [None, "x", np.nan, 0, 5, True],
    "episodes": [None, "x", -1, 2**70, 1.5],
    "train_seconds": [None, "x", -1, np.inf, 10**400],
    "source": [None, ["x"], "", "a\nb"],
    "seed": [[], None],
    "episode": [
        None,
        (),
        Episode(*[[]] * 5),
        Episode(*[None] * 5),
        Episode([[0], [1, 2]], *[[]] * 4),
        Episode([0, 1], [7], [[True] * 4] * 2, [False] * 2, [0] * 2),
    ],
    "q_table": [Hostile(), None],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in ODD_RECORDS.items() for value in values])
def test_odd_records_are_refused_by_name(opened, name, value):
    q_table = np.zeros(opened.library.q_tables.shape[1:])
    (record,) = opened.with_policy("mine", q_table, "gold", 0).library.records([len(opened.library.policies)])
    with pytest.raises(LeverError, match={"seed": "layout"}.get(name, name)):
        opened.with_records([replace(record, **{name: value})])


@pytest.mark.parametrize(
    ("records", "layouts"), [(5, ()), (None, ()), (["x"], ()), ([], ()), ([], None), ([], ["mine"])]
)
def test_what_are_no_records_or_layouts_is_refused(opened, records, layouts):
    with pytest.raises(LeverError, match=r"^(records|layouts): "):
        opened.with_records(records, layouts)


def test_the_byte_order_of_actions_does_not_matter(opened, monkeypatch):
    monkeypatch.setitem(composition.METHODS, "backwards", None)

    @register("backwards", rung=0)
    def backwards(view):
        return CellPolicy(view.q_tables.sum(axis=0).argmax(axis=-1).astype(">i4"))

    mine, own = (opened.ask("gold and a fast exit", seed=2, method=method) for method in ("backwards", "qsum"))
    assert mine.return_ == own.return_


def test_a_table_of_another_shape_is_refused_before_anything_is_made_of_it(opened):
    with pytest.raises(LeverError, match=r"q_table: must be finite numbers .*, is float16 of shape \(1000000000000,\)"):
        opened.with_policy("mine", np.broadcast_to(np.float16(0), 10**12), "gold", 0)


def test_a_table_of_more_than_a_float_can_say_is_refused_in_one_line(opened, recwarn):
    shape = opened.library.q_tables.shape[1:]
    with pytest.raises(LeverError, match="q_table: must be finite numbers"):
        opened.with_policy("mine", np.full(shape, np.longdouble("1e4000")), "gold", 0)
    assert not recwarn.list


def test_a_damaged_file_is_read_or_refused_but_never_crashes(opened, tmp_path):
    path = tmp_path / "policy.npz"
    opened.ask("gold", seed=2).save(path)
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(300):
        harmed = bytearray(whole)
        harmed[rng.integers(len(harmed))] ^= 1 << int(rng.integers(8))
        path.write_bytes(harmed[: rng.integers(len(harmed))] if rng.random() < 0.2 else harmed)
        try:
            load_policy(path)
        except LeverError:
            refused += 1
    assert refused > 100


def test_a_policy_that_cannot_be_written_leaves_nothing(opened, tmp_path):
    answer = opened.ask("gold")
    with pytest.raises(LeverError, match=r"nowhere/policy.npz: cannot be written: .*No such file or directory"):
        answer.save(tmp_path / "nowhere" / "policy.npz")
    assert list(tmp_path.iterdir()) == []
