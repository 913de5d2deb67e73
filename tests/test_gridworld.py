import numpy as np
import pytest

from lever_lib.envs.gridworld import (
    BUMP,
    ENTER_EMPTY,
    ENTER_EXIT,
    ENTER_GOLD,
    ENTER_HAZARD,
    ENTER_LEVER,
    UNKNOWN,
    Layout,
    layout_from_text,
    restrict,
    reward_tables,
    seed_name,
)
from lever_lib.envs.rewards import reward_system
from lever_lib.errors import LeverError

RIGHT, DOWN, RIGHT_TWICE, DOWN_TWICE = range(4)


def test_transitions_of_the_corridor(corridor):
    next_cell, event, around = corridor.transitions
    assert (next_cell[0, RIGHT], event[0, RIGHT]) == (1, ENTER_EMPTY)
    assert (next_cell[0, RIGHT_TWICE], event[0, RIGHT_TWICE]) == (2, ENTER_GOLD)
    assert (next_cell[0, DOWN_TWICE], event[0, DOWN_TWICE]) == (8, ENTER_LEVER)
    assert (next_cell[1, DOWN], event[1, DOWN]) == (1, BUMP), "a block is not entered"
    assert (next_cell[4, RIGHT_TWICE], event[4, RIGHT_TWICE]) == (6, ENTER_HAZARD), "a double step jumps the block"
    assert (next_cell[3, RIGHT], event[3, RIGHT]) == (3, BUMP), "the border is not left"
    assert (next_cell[13, RIGHT_TWICE], event[13, RIGHT_TWICE]) == (15, ENTER_EXIT)
    assert around[0, RIGHT_TWICE] == 1, "the gold cell lies above the hazard"
    assert around[0, RIGHT] == 0


@pytest.mark.parametrize(
    ("setup", "legacy", "cell", "action", "expected"),
    [
        ("path", False, 0, RIGHT, -1),
        ("gold", False, 0, RIGHT, -0.01),
        ("hazard", False, 0, RIGHT_TWICE, -0.1 - 2),
        ("hazard-lever", False, 1, RIGHT, -0.1 - 2 - 0.1),
        ("path", False, 1, DOWN, -1),
        ("path-gold-hazard-lever", False, 4, RIGHT_TWICE, -100),
    ],
)
def test_fixed_rewards(corridor, setup, legacy, cell, action, expected):
    assert corridor.rewards(reward_system(setup, legacy)).fixed[cell, action] == pytest.approx(expected)


def test_rewards_that_depend_on_what_was_collected(corridor):
    pay = corridor.rewards(reward_system("gold-lever")).pay
    assert (pay.gold, pay.lever, pay.bump) == (5, 20, -1)
    np.testing.assert_allclose(pay.exit, [[120, 180], [15, 75], [10, 70]])
    legacy = corridor.rewards(reward_system("gold", legacy_gold_exit=True)).pay
    np.testing.assert_allclose(legacy.exit[:, 0], [100, -20, -20])


def test_a_support_hides_everything_else(corridor):
    support = np.zeros((16, 4), dtype=bool)
    support[0, RIGHT_TWICE] = True
    known = restrict(corridor.transitions, support)
    assert known.next_cell[0, RIGHT_TWICE] == 2
    assert (known.event[~support] == UNKNOWN).all()
    assert (known.next_cell[~support] == -1).all()
    assert (reward_tables(known, 2, reward_system("hazard")).fixed[~support] == 0).all()


def test_the_lever_may_be_out_of_reach_of_forward_moves(corridor):
    assert corridor.lever_then_exit
    behind = layout_from_text("S # . \n # . . \n L x E", "behind")
    assert behind.lever_then_exit, "double steps jump"
    walled = layout_from_text("S . . .\n. . . .\n. . L #\n. # # E", "walled")
    assert not walled.lever_then_exit


def test_drawing_and_reading_are_inverse(corridor):
    assert (layout_from_text(corridor.drawn(), "again").cells == corridor.cells).all()
    assert "[S]" in corridor.drawn(np.array([0]))


@pytest.mark.parametrize("text", ["S .\n. .", "S E", "S . \n ? E", "S E\n. E", ". .\n. E"])
def test_a_layout_needs_its_corners_and_known_symbols(text):
    with pytest.raises(LeverError, match="layout"):
        layout_from_text(text, "mine")


def test_a_layout_is_square_and_its_moves_known():
    with pytest.raises(LeverError, match="square"):
        Layout(np.zeros((2, 3), np.int8), "mine")
    with pytest.raises(LeverError, match="must be square"):
        Layout(np.zeros((0, 0), np.int8), "mine")
    with pytest.raises(LeverError, match="codes"):
        Layout(np.array([[5, 3], [0, 10]]), "mine")
    with pytest.raises(LeverError, match="only start"):
        Layout(np.array([[5, 5], [0, 10]]), "mine")
    with pytest.raises(LeverError, match="moves"):
        layout_from_text("S .\n. E", "mine", moves="sideways")


@pytest.mark.parametrize(("given", "name"), [(3, "0003"), ("3", "0003"), ("0003", "0003"), (12, "0012")])
def test_seed_names(given, name):
    assert seed_name(given) == name


@pytest.mark.parametrize("given", ["x", -1, 10000, "1.5", 1.0, "", "1_0", True, None, "٣"])
def test_a_seed_is_a_small_whole_number(given):
    with pytest.raises(LeverError, match="seed"):
        seed_name(given)


def test_a_seed_of_thousands_of_digits_is_no_small_number():
    assert seed_name("0" * 5000 + "7") == "0007"
    for given in ("9" * 5000, 10**5000):
        with pytest.raises(LeverError, match="must be a whole number from 0 to 9999"):
            seed_name(given)
