"""The key of a language model is used, and is nowhere to be read afterwards."""

import shutil
import subprocess

import nbformat
import pytest

from lever_lib.artifacts import ROOT
from tests.checkout import PLANTED_KEY as KEY
from tests.checkout import Checkout
from tests.llm_server import LLMServer, chooses, echoes

# Of the notebooks the one that asks a model, as `run_all.sh` runs it.
RUN_04 = """
import sys
from lever_lib.artifacts import Outputs
from lever_lib.errors import exit_code
from lever_lib.notebooks import numbered_notebooks, run_notebook
from lever_lib.params import load_params

outputs = Outputs("smoke", load_params("smoke"))
sys.exit(exit_code(lambda: not run_notebook(numbered_notebooks("04")[0], "smoke", outputs), ""))
"""


@pytest.mark.parametrize("name", [".env", ".env.local", "notebooks/.env", "outputs/.env", "params/.env"])
def test_git_does_not_take_it(name):
    ignored = subprocess.run(["git", "check-ignore", "-q", name], cwd=ROOT, check=False)
    assert ignored.returncode == 0


@pytest.fixture(scope="module")
def checkout(smoke, smoke_outputs, tmp_path_factory):
    """A copy of the repository with a key in `.env`, whose questions are split by a model and recorded."""
    copy = Checkout(tmp_path_factory.mktemp("secrets") / "a checkout")
    copy.ask_a_model()
    shutil.copytree(smoke_outputs.folder, copy.outputs)
    path = copy.root / "notebooks" / "04_search.ipynb"
    notebook = nbformat.read(path, as_version=4)
    asks = next(number for number, cell in enumerate(notebook.cells) if "split = decompose(" in cell.source)
    notebook.cells = notebook.cells[: asks + 1]  # the rest asks nobody, and takes its time
    nbformat.write(notebook, path)
    return copy


@pytest.mark.parametrize(
    ("step", "code", "file"),
    [
        (echoes(401, '{"error": {"message": "no such key: {}"}}'), 2, "04_search.failed.ipynb"),
        (chooses, 0, "04_search.ipynb"),
    ],
)
def test_a_notebook_and_what_it_leaves_behind(checkout, step, code, file):
    with LLMServer(step) as server:
        checkout.plant_key(server.url)
        process = checkout.start("-c", RUN_04)
        said, _ = process.communicate()
    assert process.returncode == code, said
    assert {request["headers"]["Authorization"] for request in server.requests} == {f"Bearer {KEY}"}
    assert KEY not in said
    files = [path for path in checkout.root.rglob("*") if path.is_file() and path.name != ".env"]
    assert {file, "recorded.jsonl"} <= {path.name for path in files}
    assert not [path for path in files if KEY.encode() in path.read_bytes()]
    told = "no such key: Bearer [key]" if code else "127.0.0.1"
    assert told in (checkout.outputs / "notebooks" / file).read_text()
