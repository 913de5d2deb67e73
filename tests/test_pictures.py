import base64
import io

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pandas as pd
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from PIL import Image

from lever_lib import plots
from lever_lib.pictures import main, smaller


def chart():
    """A picture with smooth edges, as charts have."""
    rows, columns = np.mgrid[:200, :300]
    inside = np.clip(80 - np.hypot(rows - 100, columns - 150), 0, 1)[..., None]
    pixels = (255 * (1 - inside) + np.array([0, 114, 178]) * inside).astype(np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG", compress_level=1)
    return out.getvalue()


def test_a_chart_looks_the_same_in_fewer_bytes():
    before = chart()
    after = smaller(before)
    assert len(after) < len(before)
    assert after == smaller(before)
    one, other = (np.asarray(Image.open(io.BytesIO(png)).convert("RGB"), dtype=int) for png in (before, after))
    assert one.shape == other.shape
    assert np.abs(one - other).max() <= 12, "of 255"
    assert smaller(after) == after, "once is enough"


@pytest.mark.parametrize("name", ["01_learning_curves", "03_predicted_against_true", "04_cosines"])
def test_real_figures_look_the_same(name, smoke, smoke_outputs, corridor):
    rng = np.random.default_rng(0)
    if name == "04_cosines":
        figure = plots.cosine_table(pd.DataFrame(rng.uniform(size=(5, 8))).rename(index=str, columns=str), name)
    elif name == "03_predicted_against_true":
        pairs = pd.DataFrame({"return": rng.normal(size=500), "predicted": rng.normal(size=500)})
        figure = plots.predicted_against_true(pairs.assign(stuck=rng.random(500) < 0.2), name)
    else:
        curves = smoke.library.curves.query("seed == '0000'")
        figure = plots.learning_curves(curves, dict.fromkeys(curves["setup"].unique(), 100.0), name)
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=160)
    plt.close(figure)
    one, other = (
        np.asarray(Image.open(io.BytesIO(png)).convert("RGB"), dtype=int)
        for png in (out.getvalue(), smaller(out.getvalue()))
    )
    off = np.abs(one - other).max(axis=2)
    assert (off > 12).mean() < 0.01, "of the pixels, and these are edges of letters"


def test_pictures_of_a_notebook_shrink_and_nothing_else_changes(tmp_path):
    data = {"image/png": base64.b64encode(chart()).decode(), "text/plain": "<Figure>"}
    cell = new_code_cell("draw()", outputs=[new_output("display_data", data), new_output("stream", text="said")])
    path = tmp_path / "page.ipynb"
    nbformat.write(new_notebook(cells=[new_markdown_cell("# Title"), cell]), path)
    before = nbformat.read(path, as_version=4)
    main([str(path)])
    after = nbformat.read(path, as_version=4)
    drawn = after.cells[1].outputs[0].data
    assert base64.b64decode(drawn["image/png"]) == smaller(chart())
    drawn["image/png"] = data["image/png"]
    assert after == before
