import numpy as np
import pytest

from lever_lib.envs.layouts import BLOCK, EXIT, GOLD, HAZARD, LEVER, START, sample_layout
from lever_lib.errors import LeverError


def test_counts_and_corners():
    cells = sample_layout(16, golds=50, blocks=25, hazards=30, seed=3)
    assert [(cells == code).sum() for code in (GOLD, BLOCK, HAZARD, LEVER)] == [50, 25, 30, 1]
    assert cells[0, 0] == START
    assert cells[-1, -1] == EXIT


def test_a_seed_is_a_layout():
    first = sample_layout(8, 6, 4, 4, seed=1)
    assert (first == sample_layout(8, 6, 4, 4, seed=1)).all()
    assert (first != sample_layout(8, 6, 4, 4, seed=2)).any()


def test_the_shuffle_hands_out_cells_in_the_published_order():
    import random

    order = list(range(1, 63))
    random.Random(0).shuffle(order)
    cells = sample_layout(8, golds=6, blocks=4, hazards=4, seed=0).ravel()
    expected = np.zeros(64, dtype=np.int8)
    expected[order[:4]], expected[order[4:10]], expected[order[10:14]], expected[order[14]] = HAZARD, GOLD, BLOCK, LEVER
    expected[0], expected[-1] = START, EXIT
    assert (cells == expected).all()


def test_impossible_counts_are_refused():
    with pytest.raises(LeverError, match="must fit"):
        sample_layout(4, golds=8, blocks=4, hazards=4, seed=0)
    with pytest.raises(LeverError, match="none of 200 draws"):
        sample_layout(4, golds=0, blocks=13, hazards=0, seed=0)
