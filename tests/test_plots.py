import matplotlib

matplotlib.use("Agg")

import numpy as np
import pandas as pd

from lever_lib import plots
from lever_lib.artifacts import Outputs, file_hash
from lever_lib.params import load_params


def test_a_figure_is_written_twice_to_the_same_bytes(corridor, tmp_path):
    outputs = Outputs("smoke", load_params("smoke"), tmp_path)
    digests = []
    for _ in range(2):
        figure = plots.layout_paths(corridor.cells, {"a": np.array([0, 2]), "b": np.array([0, 8])}, "corridor")
        plots.save_figure(figure, outputs, "00_test")
        digests.append([file_hash(path) for path in sorted((tmp_path / "smoke" / "figures").iterdir())])
        matplotlib.pyplot.close(figure)
    assert digests[0] == digests[1]
    assert sorted(path.name for path in (tmp_path / "smoke" / "figures").iterdir()) == ["00_test.pdf", "00_test.png"]


def test_every_figure_draws_what_it_is_given():
    rng = np.random.default_rng(0)
    labels = pd.DataFrame({"setup": ["path", "gold"] * 5, "stuck": False})
    figure = plots.embedding_map(rng.normal(size=(10, 2)), labels, "map")
    assert len(figure.axes[0].collections[0].get_offsets()) == 10
    pairs = pd.DataFrame({"return": rng.normal(size=8), "predicted": rng.normal(size=8), "stuck": [True, False] * 4})
    assert plots.predicted_against_true(pairs, "pairs").axes[0].get_xlabel() == "true return"
    assert plots.cosine_table(pd.DataFrame([[0.1, 0.9]], ["q"], ["a", "b"]), "cosines").axes
    shares = pd.DataFrame({"strategy": ["a", "a", "b", "b"], "method": ["m"] * 4, "share": [0.5, 0.7, 0.9, 1.0]})
    figure = plots.share_of_optimum(shares, "shares")
    assert figure.axes[0].get_ylabel() == "return / optimum"
    matplotlib.pyplot.close("all")
