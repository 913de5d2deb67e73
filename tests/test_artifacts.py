import json
import os
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import replace
from fnmatch import fnmatchcase

import pytest

from lever_lib import artifacts, regressor
from lever_lib.api import MEMORY
from lever_lib.artifacts import (
    ROOT,
    WRITTEN,
    Outputs,
    Stage,
    clear,
    examine,
    file_hash,
    is_published,
    lasting_files,
    outputs_root,
    read_manifest,
    source_hash,
    write_whole,
)
from lever_lib.errors import LeverError, MissingArtifactError
from lever_lib.locks import PUBLISH, hold
from lever_lib.notebooks import STAGES
from lever_lib.params import Energy, Execution, Grid, Pi2Vec, Regressor, Sarsa, Search, Study, load_params
from tests.conftest import build_everything

FIRST = Stage("first", "01_first", ("a.txt",), ("grid",), (), "lever_lib.seeding")
ALL = {"library", "pi2vec", "regressor", "search", "composition", "results"}
SECOND = Stage("second", "02_second", ("b.txt",), ("search.top_k",), (FIRST,), "lever_lib.seeding")


@pytest.fixture
def outputs(tmp_path):
    return Outputs("smoke", load_params("smoke"), tmp_path)


def build(outputs, stage, text="x"):
    with outputs.writing(stage) as folder:
        (folder / stage.files[0]).write_text(text)


def test_a_stage_is_fresh_once_written(outputs):
    assert not outputs.fresh(FIRST)
    build(outputs, FIRST)
    assert outputs.fresh(FIRST)
    assert (outputs.require(FIRST) / "a.txt").read_text() == "x"
    entry = json.loads((outputs.folder / "manifest.json").read_text())["stages"]["first"]
    assert entry["files"] == {"first/a.txt": file_hash(outputs.folder / "first" / "a.txt")}
    assert (outputs.folder / "params.yaml").is_file()
    assert sorted(path.name for path in outputs.folder.iterdir()) == ["first", "manifest.json", "params.yaml"]


def test_a_missing_stage_names_its_notebook(outputs):
    with pytest.raises(MissingArtifactError, match=r"first is not built; run notebook 01_first"):
        outputs.require(FIRST)
    with pytest.raises(MissingArtifactError, match="01_first"), outputs.writing(SECOND):
        pytest.fail("a stage must not start without what it reads")


@pytest.mark.parametrize("harm", ["flip", "truncate", "delete"])
def test_a_damaged_file_is_named(outputs, harm):
    with outputs.writing(FIRST) as folder:
        (folder / "a.txt").write_text("abc")
        (folder / "beside.txt").write_text("whole")
    path = outputs.folder / "first" / "a.txt"
    {"flip": lambda: path.write_text("abd"), "truncate": lambda: path.write_text("a"), "delete": path.unlink}[harm]()
    assert not outputs.fresh(FIRST)
    with pytest.raises(MissingArtifactError, match=r"a\.txt is missing or damaged"):
        outputs.require(FIRST)


def test_a_stage_without_any_of_its_files_is_not_built(outputs):
    build(outputs, FIRST)
    shutil.rmtree(outputs.folder / "first")
    with pytest.raises(MissingArtifactError, match="first is not built; run notebook 01_first"):
        outputs.require(FIRST)


def test_changed_upstream_makes_what_follows_stale(outputs):
    build(outputs, FIRST)
    build(outputs, SECOND)
    assert outputs.fresh(SECOND)
    build(outputs, FIRST, "other")
    assert not outputs.fresh(SECOND)
    build(outputs, FIRST)
    assert outputs.fresh(SECOND), "same bytes upstream, nothing to do"


def test_only_the_params_that_a_stage_reads_count(outputs, tmp_path):
    build(outputs, FIRST)
    build(outputs, SECOND)
    params = outputs.params
    other_k = Outputs("smoke", replace(params, search=replace(params.search, top_k=2)), tmp_path)
    assert other_k.fresh(FIRST)
    assert not other_k.fresh(SECOND)
    other_gate = Outputs("smoke", replace(params, search=replace(params.search, cosine_gate=0.1)), tmp_path)
    assert other_gate.fresh(SECOND)


def test_what_is_no_file_is_not_replaced(tmp_path):
    pipe = tmp_path / "pipe.npz"
    os.mkfifo(pipe)
    for path in (pipe, tmp_path, tmp_path / "a\0b"):
        with pytest.raises(LeverError, match="cannot be written: is no name of a file"):
            write_whole(path, "x")
    assert pipe.is_fifo()


def test_a_linked_folder_is_reset_like_another(outputs, tmp_path):
    build(outputs, FIRST)
    elsewhere = tmp_path / "elsewhere"
    outputs.folder.rename(elsewhere)
    outputs.folder.symlink_to(elsewhere)
    clear(outputs.folder)
    assert not os.path.lexists(outputs.folder)
    assert not list(elsewhere.iterdir())


def test_a_link_to_another_spec_is_not_reset(outputs):
    build(outputs, FIRST)
    link = outputs.folder.with_name("other")
    link.symlink_to(outputs.folder.name)
    with pytest.raises(LeverError, match="is of spec 'smoke', not 'other'"):
        clear(link)
    assert outputs.fresh(FIRST)


def test_what_is_somebodys_own_outlives_a_reset(outputs):
    build(outputs, FIRST)
    (outputs.folder / "my notes.txt").write_text("mine")
    (outputs.folder / "my plots").mkdir()
    clear(outputs.folder)
    assert sorted(path.name for path in outputs.folder.iterdir()) == ["my notes.txt", "my plots"]
    assert examine(outputs.folder) == {}


def test_runs_are_known_by_what_they_write():
    assert {*(stage.name for stage in STAGES.values()), "figures", "notebooks"} <= set(WRITTEN)
    assert fnmatchcase(MEMORY, next(pattern for pattern in WRITTEN if "sqlite" in pattern))


def test_a_folder_in_the_place_of_a_file_is_damage_and_makes_way(outputs):
    build(outputs, FIRST)
    for name in ("first/a.txt", "params.yaml"):
        (outputs.folder / name).unlink()
        (outputs.folder / name).mkdir()
        assert any(state.missing or state.damaged for state in examine(outputs.folder).values()), name
        assert outputs.fresh(FIRST) is (name == "params.yaml")
        build(outputs, FIRST)
        assert not any(state.missing or state.damaged for state in examine(outputs.folder).values()), name
    (outputs.folder / "manifest.json").unlink()
    (outputs.folder / "manifest.json").mkdir()
    assert list(examine(outputs.folder)) == ["manifest"]
    with pytest.raises(MissingArtifactError, match="not a readable manifest"):
        outputs.fresh(FIRST)
    clear(outputs.folder)
    assert [path.name for path in outputs.folder.iterdir()] == ["first"], "nothing tells whose that is"


def test_what_cannot_be_read_is_damaged_and_named_among_others(outputs, monkeypatch):
    build(outputs, FIRST)
    build(outputs, SECOND)
    (outputs.folder / "second" / "b.txt").write_text("other")

    def unreadable(path):
        if path.name == "a.txt":
            raise PermissionError(13, "Permission denied", str(path))
        return file_hash(path)

    monkeypatch.setattr(artifacts, "file_hash", unreadable)
    damaged = [path.name for state in examine(outputs.folder).values() for path in state.damaged]
    assert damaged == ["a.txt", "b.txt"]


def test_a_linked_stage_is_replaced_and_what_it_leads_to_left_alone(outputs, tmp_path):
    build(outputs, FIRST)
    elsewhere = tmp_path / "elsewhere"
    (outputs.folder / "first").rename(elsewhere)
    (outputs.folder / "first").symlink_to(elsewhere)
    for text in ("new", "newer"):
        build(outputs, FIRST, text)
    assert (outputs.require(FIRST) / "a.txt").read_text() == "newer"
    assert (elsewhere / "a.txt").read_text() == "x"
    assert not [path.name for path in outputs.folder.iterdir() if path.name.startswith(".")]


def test_a_name_may_be_as_long_as_the_system_allows(tmp_path):
    path = tmp_path / f"{'a' * 251}.npz"
    write_whole(path, b"x")
    assert [found.name for found in tmp_path.iterdir()] == [path.name]


def test_failure_leaves_no_trace(outputs):
    build(outputs, FIRST, "old")

    def interrupted():
        with outputs.writing(FIRST) as folder:
            (folder / "a.txt").write_text("new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert outputs.fresh(FIRST)
    assert (outputs.require(FIRST) / "a.txt").read_text() == "old"
    assert not [path for path in outputs.folder.iterdir() if path.name.startswith(".")]


def test_a_promised_file_must_be_written(outputs):
    with pytest.raises(MissingArtifactError, match=r"did not write a\.txt"), outputs.writing(FIRST):
        pass
    assert not outputs.fresh(FIRST)


def test_timings_do_not_count_as_input(outputs):
    timed = Stage("first", "01_first", ("timings.csv",), (), (), "lever_lib.seeding")
    after = Stage("second", "02_second", ("b.txt",), (), (timed,), "lever_lib.seeding")
    build(outputs, timed, "1.0 s")
    build(outputs, after)
    build(outputs, timed, "2.0 s")
    assert outputs.fresh(after)


def test_sources_are_followed_through_imports(monkeypatch, tmp_path):
    package = tmp_path / "lever_lib"
    package.mkdir()
    (package / "top.py").write_text("from lever_lib.middle import x")
    (package / "middle.py").write_text("from lever_lib import bottom\nimport numpy")
    (package / "bottom.py").write_text("y = 1")
    (package / "aside.py").write_text("z = 1")
    monkeypatch.setattr("lever_lib.artifacts._PACKAGE", package)

    def fingerprint():
        """As a process finds it that starts now."""
        monkeypatch.setattr("lever_lib.artifacts.SOURCES", {path: path.read_bytes() for path in package.glob("*.py")})
        source_hash.cache_clear()
        return source_hash("lever_lib.top")

    try:
        before = fingerprint()
        (package / "aside.py").write_text("z = 2")
        assert fingerprint() == before
        (package / "bottom.py").write_text("y = 2")
        assert fingerprint() != before
        (package / "bottom.py").write_text("y = 3")
        source_hash.cache_clear()
        edited = source_hash("lever_lib.top")
        assert edited != fingerprint(), "an edit while a process runs is not what it runs"
    finally:
        source_hash.cache_clear()


def test_what_an_editor_puts_beside_a_source_is_none(tmp_path):
    shutil.copytree(ROOT / "lever_lib", tmp_path / "lever_lib", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "lever_lib" / ".#library.py").symlink_to("me@host.1:1")
    command = [sys.executable, "-m", "lever_lib", "verify", "--spec", "smoke"]
    said = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "params" in said.stderr, "it has none"
    assert len(said.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"stages": []}', '{"stages": {"first": {}}}', '{"stages": {"first": {"key": 1, "files": {}}}}']
)
def test_an_unreadable_manifest_is_an_error_not_a_crash(outputs, text):
    build(outputs, FIRST)
    (outputs.folder / "manifest.json").write_text(text)
    with pytest.raises(MissingArtifactError, match=r"manifest\.json"):
        outputs.fresh(FIRST)


@pytest.mark.parametrize(
    "entries",
    [
        {"./victim": {"key": "k", "files": {}, "made_of": "0" * 64}},
        {"../victim": {"key": "k", "files": {}}},
        {"study": {"key": "k", "files": {}, "made_of": "/../../victim*"}},
        {"study": {"key": "k", "files": {}, "made_of": 5}},
        {"study": {"key": "k", "files": {"/etc/passwd": "0" * 64}}},
        {"study": {"key": "k", "files": {"study/../../x": "0" * 64}}},
    ],
)
def test_a_manifest_that_leads_elsewhere_is_refused(outputs, entries):
    """Even if somebody took the trouble to make up its checksum."""
    victim = outputs.folder.parent / "victim-0000000000000000"
    victim.mkdir()
    outputs.folder.mkdir()
    for name, entry in entries.items():
        outputs.enter(name, entry)
    for use in (outputs.manifest, outputs.sweep, lambda: outputs.lasting("study", ())):
        with pytest.raises(MissingArtifactError, match=r"manifest\.json: not a readable manifest"):
            use()
    assert victim.is_dir()


def test_a_reset_does_not_leave_what_nothing_tells_of(outputs):
    """As a study by a process that was killed before it entered it."""
    build(outputs, FIRST)
    orphan = outputs.folder / "study"
    orphan.mkdir()
    (orphan / "results.parquet").write_text("{}")
    clear(outputs.folder)
    assert sorted(path.name for path in outputs.folder.iterdir()) == ["manifest.json", "study"]
    outputs.check_manifest()
    (outputs.folder / "manifest.json").unlink()
    with pytest.raises(MissingArtifactError, match="is missing, and nothing else tells what study holds"):
        clear(outputs.folder)


def test_a_renamed_run_is_not_taken_for_another(outputs, tmp_path):
    build(outputs, FIRST)
    outputs.folder.rename(tmp_path / "other")
    other = Outputs("other", outputs.params, tmp_path)
    with pytest.raises(MissingArtifactError, match=rf"manifest.json: is of spec '{outputs.spec}', not 'other'"):
        other.manifest()
    assert examine(other.folder)["manifest"].damaged == [other.folder / "manifest.json"]


def test_outputs_are_not_where_tables_cannot_be_read(outputs, tmp_path):
    with pytest.raises(LeverError, match="must be a name in UTF-8"):
        Outputs("smoke", outputs.params, tmp_path / os.fsdecode(b"o\xff"))


def test_what_is_published_meanwhile_is_not_damaged(outputs, monkeypatch):
    """`verify` that has read the old manifest, and reads the new files, looks again when it is over."""
    build(outputs, FIRST)
    file = outputs.folder / FIRST.name / FIRST.files[0]
    old = file.read_bytes()
    file.write_bytes(b"new")
    entered = threading.Event()

    def publish():
        with hold(outputs.folder, PUBLISH):
            entered.set()
            time.sleep(0.3)
            file.write_bytes(old)

    publisher = threading.Thread(target=publish)
    publisher.start()
    entered.wait()
    assert not any(state.damaged or state.missing for state in examine(outputs.folder).values())
    publisher.join()


def test_a_folder_that_must_not_be_read_is_damaged(outputs, monkeypatch):
    build(outputs, FIRST)

    def unreadable(folder):
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr(artifacts, "_read_manifest", unreadable)
    assert examine(outputs.folder)["folder"].damaged == [outputs.folder]


def test_a_reset_that_is_cut_short_forgets_no_study(outputs, monkeypatch):
    build(outputs, replace(FIRST, name="library"))
    with outputs.writing_folder("study", {"key": "k", "made_of": "0" * 64}) as draft:
        (draft / "a.csv").write_text("a\n")

    def cut_short(path):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", cut_short)
        with pytest.raises(KeyboardInterrupt):
            clear(outputs.folder)
    assert list(outputs.manifest()) == ["study"]
    clear(outputs.folder)
    assert sorted(path.name for path in outputs.folder.iterdir()) == ["manifest.json", "study"]
    assert [state.damaged + state.missing for state in examine(outputs.folder).values()] == [[]]
    (outputs.folder / "manifest.json").write_text("{")
    with pytest.raises(MissingArtifactError, match="not a readable manifest; take it from git"):
        clear(outputs.folder)
    assert (outputs.folder / "study" / "a.csv").is_file()


def test_the_environment_moves_all_outputs(monkeypatch, tmp_path):
    monkeypatch.setenv("LEVER_OUTPUTS", str(tmp_path))
    assert outputs_root() == tmp_path
    monkeypatch.delenv("LEVER_OUTPUTS")
    assert outputs_root().name == "outputs"


@pytest.mark.parametrize(
    ("change", "stale"),
    [
        ({"execution": Execution(workers=2)}, set()),
        ({"study": Study(layouts=9)}, set()),
        ({"grid": Grid(6, 4, 2, 1)}, ALL),
        ({"energy": Energy(watts_per_core=30.0)}, ALL),
        ({"sarsa": Sarsa(gamma=0.98)}, ALL),
        ({"root_seed": 9}, ALL),
        ({"pi2vec": Pi2Vec(gamma=0.9)}, {"pi2vec", "regressor", "composition", "results"}),
        ({"regressor": Regressor(trees=5)}, {"regressor", "composition", "results"}),
        ({"search": Search(candidates=4)}, {"composition", "results"}),
    ],
)
def test_one_changed_key_makes_stale_just_what_depends_on_it(smoke, smoke_outputs, smoke_params, change, stale):
    changed = Outputs("smoke", replace(smoke_params, **change), smoke_outputs.folder.parent)
    assert {stage.name for stage in STAGES.values() if not changed.fresh(stage)} == stale


def test_another_encoder_makes_stale_just_what_depends_on_it(smoke, smoke_outputs, smoke_params):
    search = replace(smoke_params.search)
    object.__setattr__(search, "encoder", "another")  # there is only one to choose so far
    params = replace(smoke_params)
    object.__setattr__(params, "search", search)
    changed = Outputs("smoke", params, smoke_outputs.folder.parent)
    assert {stage.name for stage in STAGES.values() if not changed.fresh(stage)} == {"search", "composition", "results"}


def test_every_stage_lists_what_it_reads():
    """A stage whose module imports the loader of another stage depends on that stage."""
    upstream = {name: {up.name for up in stage.upstream} for name, stage in ((s.name, s) for s in STAGES.values())}
    assert upstream == {
        "library": set(),
        "pi2vec": {"library"},
        "search": {"library"},
        "regressor": {"library", "pi2vec"},
        "composition": {"library", "pi2vec", "regressor", "search"},
        "results": {"composition"},
    }


def test_damage_is_named_in_the_log(outputs, caplog):
    build(outputs, FIRST, "abc")
    (outputs.folder / "first" / "a.txt").write_text("x")
    assert not outputs.fresh(FIRST)
    assert "a.txt is missing or damaged; building it again" in caplog.text


def test_a_copied_run_is_as_good_as_the_original(smoke, smoke_outputs, smoke_params, tmp_path):
    shutil.copytree(smoke_outputs.folder, tmp_path / "smoke")
    assert Outputs("smoke", smoke_params, tmp_path).fresh(regressor.STAGE)


@pytest.fixture(scope="module")
def copy(smoke, smoke_outputs, smoke_params, tmp_path_factory):
    """A run to harm."""
    root = tmp_path_factory.mktemp("harmed")
    shutil.copytree(smoke_outputs.folder, root / "smoke")
    return Outputs("smoke", smoke_params, root)


@pytest.mark.parametrize("stage", STAGES.values(), ids=lambda stage: stage.name)
def test_what_was_harmed_is_built_again_and_nothing_else(copy, monkeypatch, stage):
    """What follows is made of the same bytes as before, so it is still true."""
    entries, built, writing = copy.manifest(), [], Outputs.writing
    for number, name in enumerate(sorted(entries[stage.name]["files"])):
        content = (copy.folder / name).read_bytes()
        harmed = [b"", content[:-1], content[1:] + b"\0", bytes([content[0] ^ 1]) + content[1:]][number % 4]
        (copy.folder / name).write_bytes(harmed)
    monkeypatch.setattr(Outputs, "writing", lambda self, stage: built.append(stage.name) or writing(self, stage))
    build_everything(copy.params, copy)
    assert built == [stage.name]
    rebuilt = copy.manifest()
    assert rebuilt.keys() == entries.keys()
    for name, entry in rebuilt.items():
        assert lasting_files(entry["files"]) == lasting_files(entries[name]["files"])
    assert not any(state.damaged or state.missing for state in examine(copy.folder).values())


PUBLISHED_SPECS = ["8x8", "16x16", "32x32"]


@pytest.mark.parametrize("spec", PUBLISHED_SPECS)
@pytest.mark.parametrize("name", [
    *(f"{stage.name}/{file}" for stage in STAGES.values() for file in stage.files),
    "figures/05_share_of_optimum.png", "notebooks/06_results.ipynb", "study/shares.csv",
])  # fmt: skip
def test_git_keeps_just_what_counts_as_published(name, spec):
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    ignored = subprocess.run(["git", "check-ignore", "-q", f"outputs/{spec}/{name}"], cwd=ROOT, check=False).returncode
    assert is_published(name) == (ignored == 1)


@pytest.mark.parametrize("spec", PUBLISHED_SPECS)
def test_a_fresh_clone_is_whole_as_far_as_it_goes(spec):
    """What is committed agrees with its manifest; what is not is simply not built."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    tracked = subprocess.run(
        ["git", "ls-files", f"outputs/{spec}"], cwd=ROOT, check=False, capture_output=True, text=True
    ).stdout.splitlines()
    entries = read_manifest(ROOT / "outputs" / spec)
    wanted = {f"outputs/{spec}/{name}" for entry in entries.values() for name in entry["files"] if is_published(name)}
    assert {"composition", "results", "study"} <= set(entries)
    assert wanted == set(tracked) - {f"outputs/{spec}/manifest.json", f"outputs/{spec}/params.yaml"}
    assert not [state for state in examine(ROOT / "outputs" / spec).values() if state.missing or state.damaged]


WRITER = """
import sys
from pathlib import Path
from lever_lib.artifacts import write_whole
for number in range(300):
    write_whole(Path(sys.argv[1]), sys.argv[2] * (200_000 + number))
"""


def test_two_who_write_one_file_leave_it_whole(tmp_path):
    file = tmp_path / "a file"
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, str(file), letter], cwd=ROOT) for letter in "ab"]
    while any(writer.poll() is None for writer in writers):
        if file.exists():
            content = file.read_text()
            assert len(content) >= 200_000
            assert len(set(content)) == 1
    assert [writer.returncode for writer in writers] == [0, 0]
    assert list(tmp_path.iterdir()) == [file]
