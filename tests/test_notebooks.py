import hashlib
import json
import os
import re
import shutil
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import nbformat
import pytest
from jupyter_client.kernelspec import KernelSpecManager

import lever_lib
from lever_lib import artifacts, library, notebooks
from lever_lib.artifacts import ROOT, Outputs, examine
from lever_lib.errors import LeverError
from lever_lib.notebooks import STAGES, main, numbered_notebooks, run_notebook
from lever_lib.params import PARAMS_FOLDER, load_params
from lever_lib.plots import save_figure
from lever_lib.queries import QUERY_CLASSES
from tests.llm_server import LLMServer, says
from tests.test_cli import lever

NOTEBOOKS = numbered_notebooks()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_committed_notebook_is_a_page_to_read(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    parameters = [cell for cell in code if "parameters" in cell.metadata.get("tags", [])]
    assert len(parameters) == 1
    assert 'spec = "8x8"' in parameters[0].source
    outputs = [output for cell in code for output in cell.outputs]
    for cell in code:
        if "save_figure(" in cell.source:
            assert any("image/png" in output.get("data", {}) for output in cell.outputs), "a figure that is not shown"
    assert any("image/png" in output.get("data", {}) for output in outputs), "a figure"
    assert not any(output.output_type == "error" for output in outputs)
    assert not any(output.get("name") == "stderr" for output in outputs)
    assert any("assert " in cell.source for cell in code), "a check"
    assert not any(line.startswith("def ") for cell in code for line in cell.source.splitlines())
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    assert "**Question.**" in text
    assert "**Takeaway.**" in text
    assert str(ROOT.parent) + "/" not in path.read_text()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_only_timings_and_progress_are_not_compared(path):
    """What nbval leaves out says how long something takes, or holds nothing but a progress bar."""
    for cell in nbformat.read(path, as_version=4).cells:
        if "nbval-ignore-output" in cell.metadata.get("tags", []):
            assert not cell.outputs or re.search("timings|seconds", cell.source), cell.source
        assert "NBVAL_" not in cell.source
    sanitised = (ROOT / "tests" / "nbval_sanitize.cfg").read_text().splitlines()
    assert [line for line in sanitised if line.startswith("regex")] == [r"regex: \d+\.\d+ s\b"]


def test_every_stage_has_its_notebook():
    assert set(STAGES) <= {path.stem for path in NOTEBOOKS}


def test_the_whole_pipeline_runs_at_toy_size_and_is_not_repeated(tmp_path):
    first = lever("smoke", outputs=tmp_path, module="lever_lib.notebooks")
    assert first.returncode == 0, first.stderr
    assert "up to date" not in first.stderr
    assert "composition/results.csv" in first.stdout
    folder = tmp_path / "smoke"
    manifest = json.loads((folder / "manifest.json").read_text())["stages"]
    for path in NOTEBOOKS:
        executed = (folder / "notebooks" / path.name).read_text()
        assert 'spec = \\"smoke\\"' in executed
        assert str(ROOT) not in executed
        assert str(tmp_path) not in executed
        assert '"stderr"' not in executed, "progress bars are no result"
        files = manifest[f"notebooks/{path.stem}"]["files"]
        assert f"notebooks/{path.name}" in files
        assert any(name.startswith(f"figures/{path.name[:2]}_") for name in files)
    assert not list(folder.glob("**/*.running.ipynb"))

    again = lever("--from", "03", "smoke", outputs=tmp_path, module="lever_lib.notebooks")
    assert again.stderr.count("up to date") == len(NOTEBOOKS) - 2

    (folder / "search" / "index.faiss").write_bytes(b"broken")
    outputs = Outputs("smoke", load_params("smoke"), tmp_path)
    assert outputs.fresh(STAGES["03_regressor"])
    assert not outputs.fresh(STAGES["05_composition"])
    assert (
        lever("smoke", outputs=tmp_path, module="lever_lib.notebooks").stderr.count("up to date") == len(NOTEBOOKS) - 1
    )
    assert outputs.fresh(STAGES["05_composition"])


def test_a_notebook_without_its_inputs_says_which_to_run_first(tmp_path):
    outputs = Outputs("smoke", load_params("smoke"), tmp_path)
    published = {"key": "k", "root_seed": 0, "files": {}}
    outputs.folder.mkdir()
    outputs.enter("notebooks/02_pi2vec", published)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LEVER_OUTPUTS", str(tmp_path))
        with pytest.raises(LeverError, match=r"02_pi2vec.*run notebook 01_generation"):
            run_notebook(NOTEBOOKS[1], "smoke", outputs)
    assert outputs.manifest()["notebooks/02_pi2vec"] == published, "what was there before is still there"
    assert (tmp_path / "smoke" / "notebooks" / "02_pi2vec.failed.ipynb").is_file()
    assert not (tmp_path / "smoke" / "notebooks" / "02_pi2vec.ipynb").exists()


def test_the_results_can_be_read_without_training_anything(smoke, smoke_outputs, smoke_params, tmp_path):
    outputs = Outputs("smoke", smoke_params, tmp_path)
    shutil.copytree(smoke_outputs.folder / "composition", outputs.folder / "composition")
    shutil.copy(smoke_outputs.folder / "manifest.json", outputs.folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LEVER_OUTPUTS", str(tmp_path))
        assert run_notebook(NOTEBOOKS[-1], "smoke", outputs)
    assert (outputs.folder / "results" / "table.tex").is_file()
    assert "library is not built" in (outputs.folder / "notebooks" / NOTEBOOKS[-1].name).read_text()
    assert not (outputs.folder / "library").exists()


def test_a_run_from_the_start_of_a_clone_replaces_what_came_with_it(smoke_params, tmp_path):
    """Finished tables of another machine must not pass for this one's, nor be lost before there are others."""
    outputs = Outputs("smoke", smoke_params, tmp_path)
    outputs.folder.mkdir()
    stale = {"key": "k", "root_seed": 0, "files": {"composition/results.csv": "0" * 64}}
    outputs.enter("composition", stale)
    outputs.enter("notebooks/05_composition", stale)
    with pytest.raises(KeyboardInterrupt), outputs.writing(library.STAGE):
        raise KeyboardInterrupt
    assert "composition" in outputs.manifest()
    library.build_library(smoke_params, outputs)
    assert set(outputs.manifest()) == {"library"}
    outputs.enter("composition", stale)
    library.build_library(smoke_params, outputs, overwrite=True)
    assert "composition" in outputs.manifest(), "once the library is there, the checksums decide"


def test_another_study_is_shown_anew(smoke, smoke_outputs, monkeypatch, tmp_path):
    """Notebook 06 reads the study, 05 what is of the ladder, 04 what is of search at scale."""

    def keys(outputs):
        data = notebooks._data(outputs)
        return {path.stem[:2]: notebooks._key(path, notebooks._cells(path), outputs, data) for path in NOTEBOOKS}

    def changed(outputs, before):
        return {number for number, key in keys(outputs).items() if key != before[number]}

    shutil.copytree(smoke_outputs.folder, tmp_path / "smoke")
    outputs = Outputs("smoke", smoke_outputs.params, tmp_path)
    before = keys(outputs)
    (tmp_path / "shares.csv").write_text("share\n")
    with monkeypatch.context() as patch:
        patch.setattr(notebooks, "study_files", lambda outputs: [tmp_path / "shares.csv"])
        assert changed(outputs, before) == {"02", "03", "06"}
    for name, shown_by in (("ladder", "05"), ("scale", "04")):
        with outputs.writing_folder(name, {"key": "k", "made_of": "0" * 64}) as draft:
            (draft / "a.csv").write_text("a\n")
        assert changed(outputs, before) == {shown_by}
        outputs.forget(name)


def shortened(monkeypatch, tmp_path, code):
    """A notebook of one cell, and outputs for it."""
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell('spec = "8x8"', metadata={"tags": ["parameters"]})]
    )
    notebook.cells.append(nbformat.v4.new_code_cell(code))
    notebook.metadata.language_info = {"name": "python"}
    path = tmp_path / "07_short.ipynb"
    nbformat.write(notebook, path)
    monkeypatch.setenv("LEVER_OUTPUTS", str(tmp_path))
    (tmp_path / "smoke" / "figures").mkdir(parents=True, exist_ok=True)
    return path, Outputs("smoke", load_params("smoke"), tmp_path)


def drawing(*names, height=1):
    """Code of a notebook that draws figures of these names, and says what is among the figures by then."""
    saved = "; ".join(f"save_figure(figure, outputs, {name!r})" for name in names)
    return f"""
import os
import matplotlib.pyplot as plt
from lever_lib.artifacts import Outputs
from lever_lib.params import load_params
from lever_lib.plots import save_figure
outputs = Outputs("smoke", load_params("smoke"))
figure, axes = plt.subplots(figsize=(1, 1))
axes.set_ylim(0, {height})
{saved}
print(sorted(os.listdir(outputs.folder / "figures")))
"""


@pytest.mark.parametrize("linked", [False, True])
def test_only_figures_that_a_run_drew_are_its_own(monkeypatch, tmp_path, linked):
    path, outputs = shortened(monkeypatch, tmp_path, drawing("07_new", "07_größer (1)"))
    figures = outputs.folder / "figures"
    if linked:
        figures.rmdir()
        (tmp_path / "paper").mkdir()
        figures.symlink_to(tmp_path / "paper")
    own = {"07_introduction.tex", "06_other.png", ".git"}
    for name in own - {".git"}:
        (figures / name).write_text("somebody's own")
    (figures / ".git").mkdir()
    outputs.sweep()
    assert run_notebook(path, "smoke", outputs)
    drawn = {f"07_{name}.{ending}" for name in ("new", "größer (1)") for ending in ("png", "pdf")}
    assert {file.name for file in figures.iterdir()} == own | drawn
    executed = nbformat.read(outputs.folder / "notebooks" / path.name, as_version=4)
    assert "07_new" not in executed.cells[-1].outputs[0].text, "figures come with the notebook, not before"
    files = outputs.manifest()["notebooks/07_short"]["files"]
    assert set(files) == {"notebooks/07_short.ipynb", *(f"figures/{name}" for name in drawn)}
    shortened(monkeypatch, tmp_path, drawing("07_new", height=2))
    assert run_notebook(path, "smoke", outputs)
    assert {file.name for file in figures.iterdir()} == own | {"07_new.png", "07_new.pdf"}
    assert not any(state.damaged or state.missing for state in examine(outputs.folder).values())


@pytest.mark.parametrize("linked", [False, True])
def test_what_stands_where_a_folder_should_is_named(monkeypatch, tmp_path, linked):
    path, outputs = shortened(monkeypatch, tmp_path, "x = 1")
    figures = outputs.folder / "figures"
    figures.rmdir()
    if linked:
        figures.symlink_to(tmp_path / "nowhere")
    else:
        figures.write_text("no folder")
    with pytest.raises(LeverError, match="smoke/figures: is no folder, and a run is to write there; delete it"):
        run_notebook(path, "smoke", outputs)


def test_a_figure_is_of_the_notebook_that_drew_it_last(monkeypatch, tmp_path):
    path, outputs = shortened(monkeypatch, tmp_path, drawing("07_new"))
    copy = path.with_name("07_short-Copy1.ipynb")
    shutil.copy(path, copy)
    for _ in range(2):
        for notebook in (copy, path):
            run_notebook(notebook, "smoke", outputs)
        shortened(monkeypatch, tmp_path, drawing("07_new", height=2))
    assert not run_notebook(copy, "smoke", outputs)
    assert not any(state.damaged or state.missing for state in examine(outputs.folder).values())


@pytest.mark.parametrize("name", ["../x", "a/b", ".hidden", "", "a\nb", "half \ud800"])
def test_a_figure_has_the_name_of_a_file(smoke_params, tmp_path, name):
    with pytest.raises(LeverError, match="must be the name of a file"):
        save_figure(None, Outputs("smoke", smoke_params, tmp_path), name)
    assert not list(tmp_path.iterdir())


def test_a_notebook_has_a_name_that_can_be_told(monkeypatch, tmp_path):
    monkeypatch.setattr(notebooks, "FOLDER", tmp_path)
    for name in ("01_größer (1).ipynb", "01_a.ipynb"):
        (tmp_path / name).write_text("{}")
    assert len(numbered_notebooks()) == 2
    (tmp_path / "02_a\nb.ipynb").write_text("{}")
    with pytest.raises(LeverError, match="must have a name in letters"):
        numbered_notebooks()


def test_a_notebook_that_is_gone_is_forgotten(monkeypatch, tmp_path, smoke_params):
    outputs = Outputs("smoke", smoke_params, tmp_path)
    outputs.folder.mkdir()
    for name in ("notebooks/01_generation", "notebooks/01_gone", "notebooks/11_deep_policies", "library"):
        outputs.enter(name, {"key": "k", "files": {f"{name}.x": "0" * 64}})
    monkeypatch.setenv("LEVER_OUTPUTS", str(tmp_path))
    monkeypatch.setattr(notebooks, "_run", lambda *_: None)
    notebooks.run_spec("smoke", "01")
    assert outputs.manifest().keys() == {"notebooks/01_generation", "notebooks/11_deep_policies", "library"}


@pytest.mark.parametrize("when", ["while it waits", "while it runs"])
def test_params_that_change_are_not_passed_over(monkeypatch, tmp_path, when):
    (tmp_path / "params").mkdir()
    path = tmp_path / "params" / "mine.yaml"
    path.write_text(SMOKE)
    monkeypatch.setattr("lever_lib.params.PARAMS_FOLDER", tmp_path / "params")
    monkeypatch.setenv("LEVER_OUTPUTS", str(tmp_path / "outputs"))
    hold, ran = notebooks.hold, []

    def change(*_):
        path.write_text(SMOKE.replace("golds: 4", "golds: 3"))

    @contextmanager
    def waited(*arguments, **options):
        with hold(*arguments, **options):
            change()
            yield

    def run_notebook(path, spec, outputs):
        ran.append(outputs.params.grid.golds)
        change()

    monkeypatch.setattr(notebooks, "run_notebook", run_notebook)
    if when == "while it waits":
        monkeypatch.setattr(notebooks, "hold", waited)
        notebooks.run_spec("mine", "01")
        assert set(ran) == {3}
    else:
        with pytest.raises(LeverError, match=r"params/mine\.yaml: was changed while this run goes on"):
            notebooks.run_spec("mine", "01")
        assert ran == [4]


def test_a_notebook_that_is_edited_while_it_runs_runs_again(monkeypatch, tmp_path):
    path, outputs = shortened(monkeypatch, tmp_path, "x = 1")
    execute = notebooks._execute

    def edit(*arguments):
        execute(*arguments)
        path.write_text(path.read_text().replace("x = 1", "x = 2"))

    monkeypatch.setattr(notebooks, "_execute", edit)
    assert run_notebook(path, "smoke", outputs)
    monkeypatch.setattr(notebooks, "_execute", execute)
    assert run_notebook(path, "smoke", outputs)
    assert not run_notebook(path, "smoke", outputs)


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("what", ["data", "params", "recording"])
def test_what_changes_while_a_notebook_runs_stops_it_though_it_changes_back(monkeypatch, tmp_path, what, fails):
    """As by `git stash`, and `git stash pop` before the notebook is finished."""
    path, outputs = shortened(monkeypatch, tmp_path, "1 / 0" if fails else "x = 1")
    monkeypatch.setattr(notebooks, "PARAMS_FOLDER", tmp_path / "params")
    recording = outputs.params.llm.__class__(**vars(outputs.params.llm) | {"replay": "answers.jsonl"})
    outputs = Outputs("smoke", replace(outputs.params, llm=recording), tmp_path)
    for folder in ("package", "params"):
        shutil.copytree(PARAMS_FOLDER, tmp_path / folder / "data" if folder == "package" else tmp_path / folder)
    monkeypatch.setattr("lever_lib.artifacts._PACKAGE", tmp_path / "package")
    monkeypatch.setattr("lever_lib.artifacts.SOURCES", {})
    monkeypatch.setattr("lever_lib.artifacts.DATA", artifacts._stamps())
    recorded = ["before"]
    monkeypatch.setattr(notebooks, "_data", lambda _: {"recording": recorded[0]})
    execute = notebooks._execute

    def edit(*arguments):
        if what == "recording":
            recorded[0] = "after"
        else:
            file = tmp_path / ("package/data" if what == "data" else "params") / "smoke.yaml"
            file.write_bytes(file.read_bytes())
        execute(*arguments)

    monkeypatch.setattr(notebooks, "_execute", edit)
    said = {"data": "lever_lib was", "params": r"params/smoke.yaml: was", "recording": r"answers.jsonl: was"}
    with pytest.raises(LeverError, match=f"{said[what]} changed while"):
        run_notebook(path, "smoke", outputs)
    assert "notebooks/07_short" not in outputs.manifest()


@pytest.mark.parametrize("odd", ["decompose: none", "cosine_gate: -1.0", "decompose: llm"])
def test_search_is_shown_for_whatever_params_allow(smoke, smoke_outputs, monkeypatch, tmp_path, odd):
    """Also for a model that does not understand what is waved away."""
    monkeypatch.setattr("lever_lib.llm.ROOT", tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    sentences = [*QUERY_CLASSES["trivial"].pool[:3]]
    with LLMServer(says(json.dumps({"sentences": sentences}))) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        _show_search(smoke_outputs, monkeypatch, tmp_path, odd)


def _show_search(smoke_outputs, monkeypatch, tmp_path, odd):
    name = odd.split(":")[0]
    text = re.sub(rf"{name}: \w+", odd, (PARAMS_FOLDER / "smoke.yaml").read_text())
    assert odd in text
    shutil.copy(PARAMS_FOLDER / "8x8.yaml", tmp_path)
    (tmp_path / "smoke.yaml").write_text(text)
    monkeypatch.setattr("lever_lib.params.PARAMS_FOLDER", tmp_path)
    monkeypatch.setenv("LEVER_OUTPUTS", str(tmp_path))
    shutil.copytree(smoke_outputs.folder, tmp_path / "smoke")
    cells = [source for kind, source in notebooks._cells(notebooks.FOLDER / "04_search.ipynb") if kind == "code"]
    shown = {"display": lambda *_: None}
    exec("\n".join(cells).replace('spec = "8x8"', 'spec = "smoke"'), shown)
    assert len(shown["answer"].candidates) == {"decompose: none": 1, "decompose: llm": 3}.get(odd, 2)


@pytest.mark.parametrize("text", ["", "[]", '{"cells": [{"cell_type": "code"}]}', '{"cells": ['])
def test_a_damaged_notebook_is_one_line(smoke_params, tmp_path, text):
    path = tmp_path / "01_generation.ipynb"
    path.write_text(text)
    with pytest.raises(LeverError, match=r"01_generation\.ipynb: is damaged, no notebook can be read there"):
        run_notebook(path, "smoke", Outputs("smoke", smoke_params, tmp_path))


@pytest.mark.parametrize(
    "part",
    [
        {"metadata": None},
        {"metadata": []},
        {"nbformat": "4"},
        {"nbformat": 9},
        {"cells": [{"cell_type": "weird", "source": ""}]},
    ],
    ids=lambda part: json.dumps(part),
)
def test_what_is_nearly_a_notebook_is_one_line(monkeypatch, tmp_path, part):
    path, outputs = shortened(monkeypatch, tmp_path, "x = 1")
    path.write_text(json.dumps(json.loads(path.read_text()) | part))
    with pytest.raises(LeverError, match=r"07_short.ipynb: no notebook that can be run"):
        run_notebook(path, "smoke", outputs)
    assert not list((outputs.folder / "notebooks").iterdir())


def test_a_kernel_that_does_not_start_is_one_line(smoke_params, monkeypatch, tmp_path):
    def execute(*_, **__):
        raise RuntimeError("Kernel died before replying to kernel_info")

    monkeypatch.setattr("papermill.execute_notebook", execute)
    with pytest.raises(LeverError, match=r"01_generation\.ipynb failed for spec smoke: its kernel did not start: K"):
        notebooks.run_notebook(notebooks.numbered_notebooks()[0], "smoke", Outputs("smoke", smoke_params, tmp_path))


def test_kernels_are_those_of_this_python(monkeypatch, tmp_path):
    """Whatever else is called python3 on this machine."""
    other = tmp_path / "kernels" / "python3"
    other.mkdir(parents=True)
    (other / "kernel.json").write_text('{"argv": ["/nowhere/python"], "display_name": "other", "language": "python"}')
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    notebooks.prefer_own_kernel()
    assert KernelSpecManager().get_kernel_spec("python3").argv[0] != "/nowhere/python"


def test_params_that_change_while_a_notebook_runs_are_noticed(monkeypatch, tmp_path):
    path, outputs = shortened(monkeypatch, tmp_path, "x = 1")
    specs = iter(["smoke", "8x8"])
    monkeypatch.setattr(notebooks, "load_params", lambda spec: load_params(next(specs)))
    with pytest.raises(LeverError, match=r"params/smoke.yaml: was changed while notebook 07_short.ipynb ran"):
        run_notebook(path, "smoke", outputs)
    assert not list((outputs.folder / "notebooks").iterdir())
    assert "notebooks/07_short" not in outputs.manifest()


def test_sources_that_change_while_a_notebook_runs_are_noticed(monkeypatch, tmp_path):
    path, outputs = shortened(monkeypatch, tmp_path, "import lever_lib.artifacts")
    with monkeypatch.context() as patch:
        patch.setattr(notebooks, "CODE", "of an earlier edit")
        with pytest.raises(LeverError, match="lever_lib was changed while this run goes on, or PYTHONPATH"):
            run_notebook(path, "smoke", outputs)
    with monkeypatch.context() as patch:
        patch.setattr("lever_lib.artifacts.SOURCES", {})
        with pytest.raises(LeverError, match="lever_lib was changed while this run went on"):
            run_notebook(path, "smoke", outputs)
    assert "notebooks/07_short" not in outputs.manifest()
    assert run_notebook(path, "smoke", outputs)


def test_braces_in_a_path_are_nothing_special(monkeypatch, tmp_path):
    place = tmp_path / "a{b} {spec} {"
    place.mkdir()
    path, outputs = shortened(monkeypatch, place, "x = 1")
    assert run_notebook(path, "smoke", outputs)
    assert (outputs.folder / "notebooks" / "07_short.ipynb").is_file()


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        ("search: {encoder: no-such/model}", ["no-such/model"]),
        ("search: {decompose: llm}", ["no key for gpt-5-nano"]),
        ("search: {decompose: llm}\nllm: {replay: nowhere.jsonl}", ["nowhere.jsonl", "no such recording"]),
        ("pi2vec: {method: network, device: 'cuda:99'}", ["pi2vec.device = 'cuda:99'"]),
        ("execution: {scheduler: 'tcp://127.0.0.1:1'}", ["no Dask scheduler answers there"]),
    ],
)
def test_what_a_run_needs_is_looked_for_first(monkeypatch, tmp_path, capsys, settings, parts):
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("lever_lib.llm.ROOT", tmp_path)
    monkeypatch.chdir(tmp_path)
    few = "grid: {size: 6, golds: 4, blocks: 2, hazards: 2}\nlibraries: {X1: {episodes: 100, epsilon_decay: 0.9}}\n"
    (tmp_path / "needy.yaml").write_text(few + settings)
    monkeypatch.setattr("lever_lib.params.PARAMS_FOLDER", tmp_path)
    monkeypatch.setenv("LEVER_OUTPUTS", str(tmp_path / "outputs"))
    assert main(["needy"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert all(part in line for part in parts)
    assert not (tmp_path / "outputs" / "needy").exists()


def test_a_run_of_a_clone_keeps_the_study_that_came_with_it(smoke_params, tmp_path):
    outputs = Outputs("smoke", smoke_params, tmp_path)
    outputs.folder.mkdir()
    for name in ("composition", "study"):
        outputs.enter(name, {"key": "k", "root_seed": 0, "files": {}})
    library.build_library(smoke_params, outputs)
    assert set(outputs.manifest()) == {"library", "study"}


def test_an_unknown_number_is_refused(capsys):
    assert main(["--from", "77", "smoke"]) == 2
    assert "--from 77" in capsys.readouterr().err


SMOKE = (PARAMS_FOLDER / "smoke.yaml").read_text()


@pytest.mark.parametrize(
    ("old", "new", "parts"),
    [
        ("moves: forward", "moevs: forward", ["params/mine.yaml", "grid.moevs", "'moves'"]),
        ("size: 6", "size: '6'", ["params/mine.yaml", "grid.size", "integer"]),
        ("blocks: 2", "blocks: 25", ["params/mine.yaml", "grid", "25 blocks", "fewer"]),
        ("size: 6, golds: 4", "size: 112, golds: 6", ["params/mine.yaml: seeds, grid", "'0000'", "path-gold is -3."]),
    ],
)
def test_a_spec_that_cannot_run_is_refused_before_anything_is_written(monkeypatch, tmp_path, capsys, old, new, parts):
    (tmp_path / "params").mkdir()
    (tmp_path / "params" / "mine.yaml").write_text(SMOKE.replace(old, new))
    monkeypatch.setattr("lever_lib.params.PARAMS_FOLDER", tmp_path / "params")
    monkeypatch.setenv("LEVER_OUTPUTS", str(tmp_path / "outputs"))
    assert main(["mine"]) == 2
    message = capsys.readouterr().err
    assert len(message.splitlines()) == 1
    for part in parts:
        assert part in message
    assert not list((tmp_path / "outputs").glob("[!.]*"))


def test_an_unusable_output_folder_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    result = lever("smoke", outputs=tmp_path / "file", module="lever_lib.notebooks", cwd=tmp_path)
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    assert "Not a directory" in result.stderr


def test_sources_that_must_not_be_written_to_have_their_kernels_elsewhere(monkeypatch, tmp_path):
    def place():
        lever_lib._keep_kernels_true()
        return Path(os.environ["NUMBA_CACHE_DIR"]).parent

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    monkeypatch.setenv("NUMBA_CACHE_DIR", "")
    monkeypatch.setattr("lever_lib.os.access", lambda path, mode: not path.is_relative_to(ROOT))
    assert place() == tmp_path / "caches" / "lever_lib"
    (tmp_path / "caches" / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches" / "file"))
    monkeypatch.setenv("NUMBA_CACHE_DIR", f"{tmp_path}/kernels-0123456789abcdef")
    monkeypatch.setattr("lever_lib.tempfile.gettempdir", lambda: str(tmp_path))
    temporary = tmp_path / f"lever_lib-{os.getuid()}"
    assert place() == temporary, "what other sources left is not taken over"
    assert temporary.stat().st_mode & 0o777 == 0o700, "what lies there is loaded as code"
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "given"))
    assert place() == tmp_path / "given"
    temporary.rmdir()
    temporary.symlink_to(tmp_path)
    monkeypatch.setenv("NUMBA_CACHE_DIR", "")
    assert place() != temporary, "somebody else's"

    def none():
        raise FileNotFoundError("No usable temporary directory")

    monkeypatch.setenv("NUMBA_CACHE_DIR", "")
    monkeypatch.setattr("lever_lib.tempfile.gettempdir", none)
    assert place() == ROOT / "lever_lib" / "__pycache__", "as on a full disk, where what was compiled can be read"


def test_kernels_are_cached_per_state_of_the_sources():
    """A kernel does not notice a change in a function it uses from another file: the cache folder must."""
    found = Path(os.environ["NUMBA_CACHE_DIR"])
    assert found.name.startswith("kernels-")
    sources = b"".join(path.read_bytes() for path in sorted((ROOT / "lever_lib").rglob("*.py")))
    assert found.name == f"kernels-{hashlib.sha256(sources).hexdigest()[:16]}"


def test_a_notebook_depends_on_the_recording_that_comes_along(smoke_outputs, monkeypatch, tmp_path):
    before = notebooks._data(smoke_outputs)
    shutil.copytree(ROOT / "lever_lib" / "data", tmp_path / "lever_lib" / "data")
    monkeypatch.setattr(notebooks, "ROOT", tmp_path)
    assert notebooks._data(smoke_outputs) == before
    (tmp_path / "lever_lib" / "data" / "exchanges.jsonl").write_text("something else\n")
    assert notebooks._data(smoke_outputs) != before
