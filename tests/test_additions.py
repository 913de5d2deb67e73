import io
import logging
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from lever_lib import additions, api, artifacts, pi2vec
from lever_lib.additions import Added, remove
from lever_lib.api import OpenLibrary, open_library
from lever_lib.artifacts import ROOT, clear, examine, file_hash
from lever_lib.envs.rewards import COMPONENTS, Component
from lever_lib.errors import LeverError
from lever_lib.policies.base import greedy_actions
from tests.test_extension import MAP

DANCE = "Dance from coin to coin."


@pytest.fixture
def root(smoke, smoke_outputs, tmp_path):
    """A run to add to."""
    shutil.copytree(smoke_outputs.folder, tmp_path / "smoke")
    return tmp_path


@pytest.fixture
def opened(root):
    return open_library("smoke", root)


@pytest.fixture
def q_table():
    return np.random.default_rng(0).normal(size=(36, 4))


def checksums(folder):
    return {path.relative_to(folder): file_hash(path) for path in folder.rglob("*") if path.is_file()}


def batches(root):
    return sorted(artifacts.batches(root / "smoke"))


def test_what_is_kept_is_there_when_the_library_is_opened_again(opened, root, q_table):
    mine = opened.with_policy("tuned", q_table, setup="gold", seed=1, description=DANCE, visits=np.full((36, 4), 3))
    kept = mine.keep()
    again = open_library("smoke", root)
    assert kept.stored == again.stored == len(again.library.policies) == 241
    assert again.library.policies.iloc[-1].to_dict() == mine.library.policies.iloc[-1].to_dict()
    assert np.array_equal(again.library.q_tables[-1], q_table)
    assert (again.library.visits[-1] == 3).all()
    for ours, theirs in zip(again.library.episodes[-1], mine.library.episodes[-1], strict=True):
        assert np.array_equal(ours, theirs)
    assert np.isnan(again.library.timings["train_seconds"].iloc[-1])
    assert np.array_equal(again.retriever.embeddings.embeddings, mine.retriever.embeddings.embeddings)


def test_what_was_added_answers_a_question(opened, root, q_table):
    opened.with_policy("tuned", q_table, setup="gold", seed=1, description=DANCE).keep()
    answer = open_library("smoke", root).ask(DANCE, seed=1, how="none", strategy="targeted")
    assert answer.policy_ids == ("tuned",)
    assert answer.candidates[0]["cosine"].iloc[0] == pytest.approx(1, abs=1e-5)
    assert np.array_equal(greedy_actions(answer.recipe.q_tables[0]), greedy_actions(q_table))


def test_a_world_of_your_own_is_kept_with_its_policies(opened, root):
    mine = opened.with_layout("mine", MAP).keep()
    again = open_library("smoke", root)
    assert np.array_equal(again.library.layouts["mine"].cells, mine.library.layouts["mine"].cells)
    answer = again.ask("fast exit with gold", seed="mine")
    assert answer.policy_ids == mine.ask("fast exit with gold", seed="mine").policy_ids
    times, ours = (one.library.timings["train_seconds"].iloc[-80:] for one in (again, mine))
    assert np.array_equal(times, ours)


QUESTIONS = ("fast exit with gold", "pull the lever and stay safe", "collect gold, avoid hazards", "get out quickly")


@pytest.mark.parametrize("batches", [1, 2])
def test_what_is_opened_again_answers_as_what_was_kept(opened, root, q_table, batches):
    mine = opened.with_layout("mine", MAP)
    mine = mine.keep() if batches == 2 else mine
    mine = mine.with_policy("late", q_table, setup="gold", seed="mine").with_policy("b", q_table, "path", 1).keep()
    again = open_library("smoke", root)
    assert again.library.policies.equals(mine.library.policies)
    assert np.array_equal(again.retriever.embeddings.embeddings, mine.retriever.embeddings.embeddings)
    for question in QUESTIONS:
        ours, theirs = (one.ask(question, seed="mine", method="qsum") for one in (mine, again))
        assert ours.policy_ids == theirs.policy_ids
        assert ours.predicted_return == theirs.predicted_return


def test_how_a_policy_was_embedded_is_kept(opened, root, q_table):
    records = opened.with_policy("a", q_table, setup="gold", seed=1).library.records([240])
    twin = replace(records[0], policy_id="b")
    mine = opened.with_records(records).with_records([twin], embedding="network").keep()
    again = open_library("smoke", root)
    ours, theirs = (one.retriever.embeddings for one in (mine, again))
    assert theirs.joined == (None, "network")
    np.testing.assert_allclose(theirs.embeddings, ours.embeddings, rtol=1e-9)
    assert not np.allclose(theirs.embeddings[-1], theirs.embeddings[-2])


def test_canonical_states_are_drawn_again_if_there_are_to_be_others(opened, root):
    opened.with_layout("mine", MAP).keep()
    again = open_library("smoke", root)
    settings = replace(again.params.pi2vec, canonical_states=7)
    fewer = replace(opened.retriever.embeddings, settings=settings)
    policies = replace(opened.library, params=replace(opened.params, pi2vec=settings))
    more = additions.added(opened.library, opened.outputs)
    grown = pi2vec.extend(fewer, policies.joined(more.records, more.layouts), more.methods, more.canonical)
    assert len(more.canonical["mine"].cells) == opened.params.pi2vec.canonical_states
    assert len(grown.canonical["mine"].cells) == 7


OTHER_MAP = MAP[::-1].replace("S", "e").replace("E", "S").replace("e", "E")


def test_two_worlds_do_not_go_by_one_name(opened, root, q_table):
    opened.with_layout("mine", MAP).keep().with_policy("tuned", q_table, setup="gold", seed="mine").keep()
    before = open_library("smoke", root).library
    with pytest.raises(
        LeverError, match="layout 'mine': another one of that name was added to spec smoke, with policy"
    ):
        opened.with_layout("mine", OTHER_MAP).keep()
    assert remove(before.policies.query("seed == 'mine'")["policy_id"].iloc[0], opened.outputs) == 80
    with pytest.raises(LeverError, match="with policy 'tuned'; choose another name, or remove that"):
        opened.with_layout("mine", OTHER_MAP).keep()
    assert np.array_equal(open_library("smoke", root).library.layouts["mine"].cells, before.layouts["mine"].cells)
    remove("tuned", opened.outputs)
    opened.with_layout("mine", OTHER_MAP).keep()
    assert not np.array_equal(open_library("smoke", root).library.layouts["mine"].cells, before.layouts["mine"].cells)


def test_of_two_worlds_by_one_name_the_first_counts(opened, root, q_table, caplog, monkeypatch):
    opened.with_layout("mine", MAP).keep()
    with monkeypatch.context() as patch:
        patch.setattr(additions, "_look", lambda folder: {"number": 1, "policies": [], "worlds": {}})
        record = (
            opened.with_layout("mine", OTHER_MAP).with_policy("tuned", q_table, "gold", "mine").library.records([320])
        )
        layout = opened.with_layout("mine", OTHER_MAP).library.layouts["mine"]
        additions.keep(Added(record, [layout]), opened.library, opened.outputs)
    with caplog.at_level(logging.WARNING):
        again = open_library("smoke", root)
    assert "policy tuned is left out, as the world is another one now" in caplog.text
    assert len(again.library.policies) == 320


def test_a_run_takes_no_notice_of_what_was_added(opened, root, q_table):
    opened.with_layout("mine", MAP).with_policy("tuned", q_table, setup="gold", seed=1).keep()
    plain = open_library("smoke", root, added=False)
    assert plain.library.policies.equals(opened.library.policies)
    assert list(plain.library.layouts) == list(opened.library.layouts)
    notebooks = sorted((ROOT / "notebooks").glob("*.ipynb"))
    calls = [call for path in notebooks for call in re.findall(r"open_library\(([^)]*)\)", path.read_text())]
    assert len(calls) == 3
    assert all("added=False" in call for call in calls)


def test_a_batch_brings_the_worlds_that_it_needs(opened, root, q_table):
    opened.with_layout("mine", MAP).keep().with_policy("late", q_table, setup="gold", seed="mine").keep()
    assert len(batches(root)) == 2
    first = open_library("smoke", root).library.policies.query("seed == 'mine' and policy_id != 'late'")
    assert remove(first["policy_id"].iloc[0], opened.outputs) == len(first) == 80
    left = open_library("smoke", root)
    assert left.library.policies.query("seed == 'mine'")["policy_id"].tolist() == ["late"]


def test_nothing_that_was_there_is_written_again(opened, root, q_table):
    before = checksums(root)
    opened.with_policy("tuned", q_table, setup="gold", seed=1).keep()
    after = checksums(root)
    changed = {path for path in after if after[path] != before.get(path) and path.parts[0] != ".locks"}
    assert {path.parts[:2] for path in changed if path not in before} == {("smoke", "added")}
    assert not changed & before.keys()
    assert before.keys() <= after.keys()
    assert {name: state for name, state in examine(root / "smoke").items() if state.missing or state.damaged} == {}


def test_what_was_kept_is_not_kept_again(opened, root, q_table):
    first = opened.with_policy("one", q_table, setup="gold", seed=1).keep()
    assert first.keep() is first
    first.with_policy("two", q_table, setup="gold", seed=2).keep()
    assert len(batches(root)) == 2
    assert remove("one", opened.outputs) == 1
    assert open_library("smoke", root).library.policies["policy_id"].iloc[240:].tolist() == ["two"]


@pytest.mark.parametrize(
    "about", ["[]", "5", "{", "[" * 100_000, {}, {"policies": 5}, {"policies": ["tuned"], "layouts": [], "number": "a"}]
)
def test_a_made_up_batch_is_named_and_can_be_removed(opened, root, q_table, about):
    batch = opened.with_policy("tuned", q_table, setup="gold", seed=1).keep() and batches(root)[0]
    path = root / "smoke" / batch / "about.json"
    path.write_text(about if isinstance(about, str) else "")
    if isinstance(about, dict):
        artifacts.write_about(path.parent, about)
    with pytest.raises(LeverError, match=r"added/"):
        open_library("smoke", root)
    assert remove(batch, opened.outputs) >= 1
    assert len(open_library("smoke", root).library.policies) == 240


def test_a_library_that_lies_nowhere_cannot_keep(smoke, smoke_params, q_table):
    mine = OpenLibrary(smoke_params, smoke).with_policy("tuned", q_table, setup="gold", seed=1)
    with pytest.raises(LeverError, match="not opened from disk"):
        mine.keep()


def test_the_policies_of_a_run_are_not_removed(opened, root, q_table):
    opened.with_policy("tuned", q_table, setup="gold", seed=1).keep()
    for name in (opened.library.policies["policy_id"][0], "nobody", "added/nothing", "library"):
        with pytest.raises(LeverError, match="was not added to spec smoke"):
            remove(name, opened.outputs)
    assert remove("tuned", opened.outputs) == 1
    with pytest.raises(LeverError, match="was not added"):
        remove("tuned", opened.outputs)
    assert open_library("smoke", root).library.policies.equals(opened.library.policies)
    assert not (root / "smoke" / "added").exists()


@pytest.fixture
def kept(opened, root, q_table):
    """The one batch of a run."""
    opened.with_policy("tuned", q_table, setup="gold", seed=1).keep()
    (name,) = batches(root)
    return root / "smoke" / name


def test_a_damaged_batch_is_named_and_can_be_removed(kept, opened, root):
    files = sorted(kept.iterdir())
    assert len(files) >= 2
    for file in files:
        whole = file.read_bytes()
        for harm in (whole[: len(whole) // 2], None):
            file.unlink() if harm is None else file.write_bytes(harm)
            with pytest.raises(LeverError, match=f"{file.name} is missing or damaged; remove .*{kept.name}"):
                open_library("smoke", root)
            file.write_bytes(whole)
        assert examine(root / "smoke")[f"added/{kept.name}"].built
    file.write_bytes(b"")
    assert examine(root / "smoke")[f"added/{kept.name}"].damaged == [file]
    remove(f"added/{kept.name}", opened.outputs)
    assert len(open_library("smoke", root).library.policies) == 240


def test_what_belongs_to_another_world_is_left_out_and_named(opened, root, q_table, caplog):
    mine = opened.with_policy("lost", q_table, setup="gold", seed=1)
    record = mine.library.records([240])[0]
    elsewhere = SimpleNamespace(layouts=opened.library.layouts | {"0001": opened.library.layout(2)})
    additions.keep(Added([record]), elsewhere, opened.outputs)
    additions.keep(Added([replace(record, policy_id="poor", library="X99")]), opened.library, opened.outputs)
    with caplog.at_level(logging.WARNING):
        again = open_library("smoke", root)
    assert again.library.policies.equals(opened.library.policies)
    for name, reason in (
        ("lost", "the world is another one now"),
        ("poor", "there is no training budget 'X99' any more"),
    ):
        assert f"policy {name} is left out, as {reason}" in caplog.text
        assert remove(name, opened.outputs) == 1


def test_what_fits_no_more_is_left_out_and_named(opened, root, q_table, caplog):
    """As after a change of grid or states: whoever searches must not be kept from it."""
    opened.with_layout("mine", MAP).with_policy("tuned", q_table, setup="gold", seed=1).keep()
    params = replace(opened.params, grid=replace(opened.params.grid, size=7))
    larger = replace(opened.library, params=params)
    assert [one.policy_id for one in additions.added(larger, opened.outputs).records] == ["tuned"]
    assert " and 79 more are left out, as layout 'mine': " in caplog.text
    augmented = replace(opened.library)
    vars(augmented).update(q_tables=np.zeros((240, 144, 4)))
    assert additions.added(augmented, opened.outputs).records == ()
    assert "and 80 more are left out, as Q-tables have shape (144, 4) now, not (36, 4)" in caplog.text


def test_what_was_trained_for_a_reward_that_is_gone_is_left_out(opened, root, q_table, caplog, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setitem(COMPONENTS, "stroll", Component("Take a long walk before the exit.", {"step": 2.0}, "stroll"))
        opened.with_policy("walker", q_table, setup="stroll", seed=1).keep()
    with caplog.at_level(logging.WARNING):
        assert open_library("smoke", root).library.policies.equals(opened.library.policies)
    assert (
        "policy walker is left out, as there is no reward 'stroll' any more; take out what was added with `remove`"
        in caplog.text
    )


def test_rewards_may_come_in_another_order(opened, root, q_table, monkeypatch):
    monkeypatch.setitem(COMPONENTS, "stroll", Component("Take a long walk before the exit.", {"step": 2.0}, "stroll"))
    (record,) = opened.with_policy("walker", q_table, setup="path-stroll", seed=1).library.records([240])
    additions.keep(Added([replace(record, setup="stroll-path")]), opened.library, opened.outputs)  # as it was then
    policies = open_library("smoke", root).library.policies
    assert policies.set_index("policy_id")["setup"]["walker"] == "path-stroll"


def test_of_two_policies_by_one_name_the_first_counts(opened, root, q_table, caplog, tmp_path):
    """As when the additions of two machines come together."""
    other = tmp_path / "other" / "smoke"
    shutil.copytree(root / "smoke", other)
    opened.with_policy("a", q_table, setup="gold", seed=1).keep()
    elsewhere = open_library("smoke", other.parent)
    elsewhere.with_policy("a", -q_table, setup="gold", seed=1).with_policy("b", q_table, setup="gold", seed=1).keep()
    shutil.copytree(other / "added", root / "smoke" / "added", dirs_exist_ok=True)
    with caplog.at_level(logging.WARNING):
        again = open_library("smoke", root)
    assert sorted(again.library.policies["policy_id"].iloc[240:]) == ["a", "b"]
    assert "policy a is left out, as another batch has one of that name; take out" in caplog.text


@pytest.mark.parametrize("kind", ["file", "link"])
@pytest.mark.parametrize("place", ["batch", "added"])
def test_what_stands_in_a_batchs_place_is_named_and_can_be_removed(kept, opened, root, kind, place):
    path = kept if place == "batch" else kept.parent
    shutil.rmtree(path)
    path.write_text("mine") if kind == "file" else path.symlink_to("nowhere")
    name = str(path.relative_to(root / "smoke"))
    state = examine(root / "smoke")[name]
    assert state.missing or state.damaged
    with pytest.raises(LeverError, match=f"{path.name}.* is missing or damaged; remove .*{name}"):
        open_library("smoke", root)
    remove(name, opened.outputs)
    assert len(open_library("smoke", root).library.policies) == 240
    assert batches(root) == []


@pytest.mark.parametrize("kind", [np.uint64, ">i4", np.int64])
def test_what_was_kept_can_be_read_again_whatever_numbers_it_came_with(opened, root, q_table, kind):
    record = opened.with_policy("tuned", q_table, setup="gold", seed=1).library.records([240])[0]
    episode = record.episode._replace(
        cells=record.episode.cells.astype(kind), actions=record.episode.actions.astype(kind)
    )
    odd = replace(
        record,
        episode=episode,
        q_table=record.q_table.astype(np.longdouble),
        visits=np.full(record.visits.shape, np.uint64(2**63)),
        snapshot=np.float32(0.5),
        episodes=np.int64(7),
    )
    grown = opened.with_records(one for one in [odd]).keep()
    assert grown.library.q_tables.dtype == np.float64
    (again,) = open_library("smoke", root).library.records([240])
    assert (again.snapshot, again.episodes) == (0.5, 7)
    for mine, theirs in zip(again.episode, record.episode, strict=True):
        assert mine.dtype == theirs.dtype
        assert np.array_equal(mine, theirs)


def test_what_has_a_name_of_the_librarys_own_is_left_out(opened, root, q_table, caplog):
    """As when a layout that is added to the spec brings policies by the names of those that were there before."""
    record = opened.with_policy("mine", q_table, setup="gold", seed=1).library.records([240])[0]
    taken = opened.library.policies["policy_id"].iloc[0]
    additions.keep(Added([replace(record, policy_id=taken)]), opened.library, opened.outputs)
    with caplog.at_level(logging.WARNING):
        assert open_library("smoke", root).library.policies.equals(opened.library.policies)
    assert f"policy {taken} is left out, as the library has one of that name itself" in caplog.text
    assert remove(taken, opened.outputs) == 1


def test_the_last_one_that_is_removed_leaves_nothing_behind(opened, root, q_table):
    before = {path.name for path in (root / "smoke").iterdir()}
    opened.with_policy("one", q_table, setup="gold", seed=1).keep()
    opened.with_policy("two", q_table, setup="gold", seed=1).keep()
    remove("one", opened.outputs)
    assert (root / "smoke" / "added").is_dir()
    remove("two", opened.outputs)
    assert {path.name for path in (root / "smoke").iterdir()} == before


def test_half_a_batch_is_no_batch(kept, root):
    shutil.copytree(kept, root / "smoke" / ".added.0123456789abcdef.writing")
    half = kept.with_name(".0123456789abcdef.old")
    half.mkdir()
    (half / next(kept.iterdir()).name).write_bytes(b"half")
    kept.with_name("my notes").mkdir()
    again = open_library("smoke", root)
    assert len(again.library.policies) == 241
    assert len(batches(root)) == 1
    again.outputs.sweep()
    assert sorted(path.name for path in kept.parent.iterdir()) == [kept.name, "my notes"]


WRITER = """
import sys
import numpy as np
from lever_lib.api import open_library

opened = open_library("smoke", sys.argv[1])
print("ready", flush=True)
for number in range(12):
    for part in "ab":
        opened = opened.with_policy(f"{number:02}{part}", np.eye(36, 4), setup="gold", seed=1)
    opened = opened.keep()
"""


def test_a_reader_sees_whole_batches_while_they_are_written(root):
    arguments = [sys.executable, "-c", WRITER, str(root)]
    with subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout.readline() == "ready\n"
        seen = []
        while writer.poll() is None:
            own = open_library("smoke", root).library.policies["policy_id"].iloc[240:]
            seen.append(sorted(own))
    assert writer.returncode == 0
    everything = [f"{number:02}{part}" for number in range(12) for part in "ab"]
    assert all(names == everything[: len(names)] and len(names) % 2 == 0 for names in seen)
    assert sorted(open_library("smoke", root).library.policies["policy_id"].iloc[240:]) == everything
    assert len({len(names) for names in seen}) > 1, "it read while they were written"


def test_a_batch_outlives_the_run(kept, root, opened):
    clear(root / "smoke")
    assert kept.is_dir()
    assert batches(root) == [f"added/{kept.name}"]
    assert not (root / "smoke" / "library").exists()


def test_no_manifest_that_git_brings_back_makes_it_forgotten(opened, root, q_table):
    manifest = root / "smoke" / "manifest.json"
    before = manifest.read_bytes()
    opened.with_policy("tuned", q_table, setup="gold", seed=1).keep()
    manifest.write_bytes(before)
    assert open_library("smoke", root).library.policies["policy_id"].iloc[-1] == "tuned"
    assert examine(root / "smoke")[batches(root)[0]] == (True, [], [])
    manifest.write_text("damaged")
    assert examine(root / "smoke").keys() == {"manifest", *batches(root)}


def test_who_keeps_more_on_an_older_handle_is_told_what_to_do(opened, root, q_table):
    first = opened.with_policy("one", q_table, setup="gold", seed=1)
    first.keep()
    with pytest.raises(LeverError, match="'one': was added to spec smoke before; go on with what `keep` returned"):
        first.with_policy("two", q_table, setup="gold", seed=1).keep()


STILL = """
S # . G . .
. . . . x .
. . . . L .
. G . . . .
. . . x . G
G . . . . E
"""


def test_where_nothing_moves_there_is_nothing_to_embed_at(opened, root, caplog):
    """As when the policies went that came with a layout, and other states are to be drawn."""
    at_a_block = np.eye(4)[np.zeros(36, int)]
    opened.with_layout("mine", STILL).keep().with_policy("still", at_a_block, setup="gold", seed="mine").keep()
    params = replace(opened.params, pi2vec=replace(opened.params.pi2vec, canonical_states=7))
    fewer = replace(opened.library, params=params)
    assert len(additions.added(fewer, opened.outputs).records) == 81
    assert remove("X5-mine-gold-100", opened.outputs) == 80
    assert [one.policy_id for one in additions.added(opened.library, opened.outputs).records] == ["still"]
    assert additions.added(fewer, opened.outputs).records == ()
    assert "policy still is left out, as no policy of its layout takes a step to embed it at" in caplog.text


def test_a_sentence_is_encoded_again_by_other_code(opened, monkeypatch):
    asked, encode = [], api.encode
    monkeypatch.setattr(api, "encode", lambda sentences, **more: asked.append(sentences) or encode(sentences, **more))
    for version in ("1", "1", "2"):
        monkeypatch.setattr(api, "code_version", lambda version=version: version)
        opened.ask("grab lots of gold before leaving", seed=1, how="none", strategy="targeted")
    assert len(asked) == 2


def test_a_name_that_looks_like_a_formula_is_drawn_as_it_is(opened):
    answer = opened.with_layout("a$^$b", MAP).ask("collect gold", seed="a$^$b")
    answer.plot().savefig(io.BytesIO())


@pytest.mark.parametrize("name", ["setup", "policy_id"])
def test_words_of_a_batch_that_are_none_are_named(kept, opened, root, name):
    (file,) = kept.glob("policies_*.npz")
    with np.load(file) as parts:
        np.savez(file, **{**parts, name: np.array([b"gold"])})
    about = artifacts.read_about(kept)
    artifacts.write_about(kept, {key: value for key, value in about.items() if key != "files"})
    with pytest.raises(LeverError, match=r"no policies can be read from it .*must hold words"):
        open_library("smoke", root)
