"""Random worlds and policies for property tests."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from lever_lib.envs.gridworld import Layout
from lever_lib.envs.layouts import sample_layout
from lever_lib.envs.rewards import REWARD_SYSTEMS, reward_system


@st.composite
def layouts(draw, largest=8):
    """A published layout of random size and counts."""
    size = draw(st.integers(4, largest))
    area = size * size
    golds = draw(st.integers(0, area // 6))
    blocks = draw(st.integers(0, area // 10))
    hazards = draw(st.integers(0, area // 8))
    seed = draw(st.integers(0, 9999))
    return Layout(sample_layout(size, golds, blocks, hazards, seed), f"{seed:04d}")


systems = st.builds(reward_system, st.sampled_from([*REWARD_SYSTEMS, "gold-lever"]), st.booleans())


def random_q_tables(layout, count, seed):
    """Q-tables of `count` arbitrary policies, float64 (count, S, 4)."""
    return np.random.default_rng(seed).normal(size=(count, layout.cells.size, 4))
