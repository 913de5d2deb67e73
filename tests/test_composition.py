from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lever_lib import composition
from lever_lib.composition import METHODS, Experience, Pool, QTables, Successors, Support, bounds, method, prune
from lever_lib.envs.gridworld import BUMP, ENTER_GOLD, UNKNOWN, States, layout_from_text, make_layout
from lever_lib.envs.rewards import EVENTS, reward_system
from lever_lib.errors import LeverError
from lever_lib.integer_bounds import upper_bound_by_integers
from lever_lib.params import load_params
from lever_lib.planning import optimum, plan
from lever_lib.policies.base import CellPolicy, successor_table
from lever_lib.rollout import END_EXIT, END_STUCK, evaluate, event_counts
from tests.oracle import World
from tests.worlds import layouts, random_q_tables, systems

ABOVE_NOISE = 1e-6
RUNG = {0: METHODS["qsum"], 1: METHODS["gpi"], 2: METHODS["switch"], 3: METHODS["exnonzero"]}


def pool_of(layout, system, count, seed, visited=0.7):
    rng = np.random.default_rng(seed)
    q_tables = random_q_tables(layout, count, seed)
    visits = (rng.random(q_tables.shape) < visited) * rng.integers(1, 500, q_tables.shape)
    return Pool(layout, system, q_tables, visits.astype(np.int32), alpha=0.1)


def single_returns(pool):
    return [evaluate(CellPolicy(actions), pool.layout, pool.system).return_ for actions in pool.actions]


@given(layouts(), systems, st.integers(1, 5), st.integers(0, 2**32 - 1))
def test_gpi_is_never_below_its_best_member(layout, system, count, seed):
    pool = pool_of(layout, system, count, seed)
    composed = evaluate(pool.compose(METHODS["gpi"], tuple(range(count))), layout, system)
    assert composed.return_ >= max(single_returns(pool)) - ABOVE_NOISE


def copied(world, pool):
    twin = World(pool.layout, pool.system.components, pool.system.legacy_gold_exit)
    twin.grid, twin.position, twin.lever = [row[:] for row in world.grid], world.position, world.lever
    return twin


def gpi_by_walking(pool):
    """Cells and return of GPI, every Q(s, a) found by walking on in the slow world for the steps left."""
    world = World(pool.layout, pool.system.components, pool.system.legacy_gold_exit)
    cells, total = [0], 0.0
    for left in range(pool.layout.horizon, 0, -1):
        best, best_value = 0, -np.inf
        for action in range(4):
            for actions in pool.actions:
                trial = copied(world, pool)
                value = trial.step(action)
                own = copied(world, pool)
                own.step(int(actions[cells[-1]]))
                if trial.position == world.position != own.position:
                    continue  # bump, then move on: put off, not better
                for _ in range(left - 1):
                    if trial.done:
                        break
                    value += trial.step(int(actions[trial.position[0] * trial.size + trial.position[1]]))
                if value > best_value + 1e-9:
                    best, best_value = action, value
        before = world.position
        total += world.step(best)
        if world.position == before:
            return cells, total - (left - 1)
        cells.append(world.position[0] * world.size + world.position[1])
        if world.done:
            return cells, total
    return cells, total


@given(layouts(largest=6), systems, st.integers(1, 3), st.integers(0, 2**32 - 1))
def test_gpi_equals_walking_every_continuation(layout, system, count, seed):
    pool = pool_of(layout, system, count, seed)
    composed = evaluate(pool.compose(METHODS["gpi"], tuple(range(count))), layout, system)
    cells, value = gpi_by_walking(pool)
    assert composed.cells.tolist() == cells
    assert composed.return_ == pytest.approx(value, abs=1e-6)


@given(layouts(), systems, st.integers(1, 4), st.integers(0, 2**32 - 1))
def test_rungs_are_nested_and_regret_parts_are_never_negative(layout, system, count, seed):
    pool = pool_of(layout, system, count, seed)
    members = tuple(range(count))
    on_support, on_experience = pool.support_return(RUNG[1], members), pool.support_return(RUNG[3], members)
    best = optimum(layout, system).return_
    assert max(single_returns(pool)) <= on_support + ABOVE_NOISE
    assert on_support <= on_experience + ABOVE_NOISE <= best + 2 * ABOVE_NOISE
    for each in METHODS.values():
        value = evaluate(pool.compose(each, members), layout, system).return_
        assert value <= pool.support_return(each, members) + ABOVE_NOISE, each.name


@given(layouts(), systems, st.integers(1, 4), st.integers(0, 2**32 - 1))
def test_switching_comes_to_the_best_on_the_support(layout, system, count, seed):
    pool = pool_of(layout, system, count, seed)
    members = tuple(range(count))
    switch, gpi = (evaluate(pool.compose(METHODS[name], members), layout, system).return_ for name in ("switch", "gpi"))
    assert switch == pytest.approx(pool.support_return(METHODS["switch"], members))
    assert switch >= gpi - ABOVE_NOISE


@given(layouts(), systems, st.integers(0, 2**32 - 1))
def test_the_more_visits_it_takes_the_less_can_be_had(layout, system, seed):
    pool = pool_of(layout, system, 2, seed)
    pool.visits[...] *= 5
    names = ("exnonzero", "exnonzero-10", "exnonzero-100", "exnonzero-1000", "switch")
    bounds = [pool.support_return(METHODS[name], (0, 1)) for name in names]
    assert all(more >= less - ABOVE_NOISE for more, less in pairwise(bounds))


@given(layouts(), systems, st.integers(0, 2**32 - 1))
def test_composing_a_policy_with_itself_changes_nothing(layout, system, seed):
    pool = pool_of(layout, system, 1, seed)
    twice = Pool(layout, system, np.repeat(pool.q_tables, 2, 0), np.repeat(pool.visits, 2, 0), 0.1)
    alone = single_returns(pool)[0]
    qsum, softmax, gpi = (
        evaluate(twice.compose(METHODS[name], (0, 1)), layout, system).return_ for name in ("qsum", "softmax", "gpi")
    )
    assert qsum == softmax == alone
    assert gpi >= alone - ABOVE_NOISE
    assert gpi == evaluate(pool.compose(METHODS["gpi"], (0,)), layout, system).return_


@given(layouts(), st.integers(0, 2**32 - 1))
def test_successor_features_equal_walking_on(layout, seed):
    """psi(s, a) by the backward sweep against one step of a and then the policy, counted event by event."""
    rng = np.random.default_rng(seed)
    actions = rng.integers(0, 4, layout.cells.size).astype(np.int8)
    table = successor_table(layout, actions[None])
    cell, action = int(rng.integers(layout.cells.size - 1)), int(rng.integers(4))
    if layout.cells.ravel()[cell] < 0:
        return  # no agent acts in a block or a hazard
    detour = actions.copy()
    detour[cell] = action
    starts = composition_start(layout, cell)
    counted = dict(zip(EVENTS, event_counts(layout, starts, CellPolicy(detour).paths(layout, starts))[0], strict=True))
    bumps_once = (
        layout.transitions.next_cell[cell, action] == cell and layout.transitions.next_cell[cell, actions[cell]] != cell
    )
    if bumps_once:
        return  # the detour as a policy would bump for ever, psi bumps once
    assert table.golds[0, cell, action] == counted["gold"]
    assert table.lever[0, cell, action] == counted["lever"]
    fixed = table.counts[0, cell, action]
    assert fixed[1:].tolist() == [counted["hazard"], counted["step"], counted["hazard_neighbour"]]
    assert (table.end[0, cell, action] == END_EXIT) == counted["exit"]
    if table.end[0, cell, action] == END_STUCK:
        assert layout.horizon - table.steps[0, cell, action] + fixed[0] == counted["bump"]


def composition_start(layout, cell):
    golds = np.ones((1, len(layout.golds)), bool)
    golds[0] &= layout.golds != cell
    return States(np.array([cell], np.int32), golds, np.zeros(1, bool))


def test_one_bump_and_then_the_policy(corridor):
    actions = np.zeros(16, np.int8)
    actions[1] = 2
    table = successor_table(corridor, actions[None])
    down_into_the_block = table.counts[0, 1, 1]
    assert down_into_the_block[0] == 1
    assert (down_into_the_block[1:] == table.counts[0, 1, 2, 1:]).all()


def test_a_view_shows_its_rung_and_no_more(corridor):
    pool = pool_of(corridor, reward_system("path-gold"), 3, 0)
    names = {rung: set(vars(pool.view(RUNG[rung], (0, 2)))) for rung in range(4)}
    assert names[0] == {"q_tables"}
    assert names[1] - names[0] == {"psi", "fixed", "pay", "system"}
    assert names[2] - names[1] == {"transitions", "rewards", "fewest_golds", "gold_index", "cyclic"}
    assert names[3] - names[2] == {"visits", "alpha"}
    assert [type(pool.view(RUNG[rung], (0,))) for rung in range(4)] == [QTables, Successors, Support, Experience]
    view = pool.view(RUNG[3], (2, 0))
    assert (view.q_tables == pool.q_tables[[2, 0]]).all()
    for part, whole in zip(view.psi, successor_table(corridor, pool.actions), strict=True):
        assert (part == whole[[2, 0]]).all(), "successor features of the candidates, of nobody else"
    assert len(view.fixed) == 2


def test_transitions_outside_the_support_are_not_handed_out(corridor):
    pool = pool_of(corridor, reward_system("path"), 2, 1, visited=0.3)
    for rung in (2, 3):
        support = pool.row_support(RUNG[rung], (0, 1))
        view = pool.view(RUNG[rung], (0, 1))
        assert (view.transitions.event[~support] == UNKNOWN).all()
        assert (view.transitions.event[support] != UNKNOWN).all()
        shown = np.flatnonzero(view.gold_index >= 0)
        assert np.isin(shown, view.transitions.next_cell[view.transitions.event == ENTER_GOLD]).all()
        assert (view.rewards.fixed[~support] == 0).all()


def test_the_support_is_greedy_actions_and_what_rungs_0_and_1_did(corridor):
    pool = pool_of(corridor, reward_system("path-gold"), 2, 4)
    support = pool.support((0, 1))
    expected = np.zeros_like(support)
    for actions in pool.actions:
        expected[np.arange(16), actions] = True
    for name in ("qsum", "softmax", "gpi"):
        episode = evaluate(pool.compose(METHODS[name], (0, 1)), corridor, pool.system)
        for cell, action in zip(episode.cells, episode.actions, strict=False):
            expected[cell, action] = True
    assert (support == expected).all()
    seen = pool.row_support(RUNG[3], (0, 1))
    assert (seen == (expected | (pool.visits.sum(axis=0) > 0))).all()


def test_qsum_adds_and_ties_go_to_the_lowest_action(corridor):
    pool = Pool(corridor, reward_system("path"), np.zeros((2, 16, 4)), np.zeros((2, 16, 4), np.int32), 0.1)
    pool.q_tables[0, 0], pool.q_tables[1, 0] = [0, 3, 0, 2], [0, 0, 0, 2]
    composed = pool.compose(METHODS["qsum"], (0, 1))
    assert composed.actions[0] == 3, "2 + 2 beats 3 + 0"
    assert composed.actions[1] == 0


def test_softmax_does_not_care_in_what_a_q_table_counts(corridor):
    pool = pool_of(corridor, reward_system("path-gold"), 3, 5)
    scaled = Pool(corridor, pool.system, pool.q_tables * np.array([1, 50, 0.02])[:, None, None] + 7, pool.visits, 0.1)
    first, second = (each.compose(METHODS["softmax"], (0, 1, 2)).actions for each in (pool, scaled))
    assert (first == second).all()
    loud = Pool(corridor, pool.system, pool.q_tables * np.array([1, 1e6, 1])[:, None, None], pool.visits, 0.1)
    assert (loud.compose(METHODS["qsum"], (0, 1, 2)).actions == loud.actions[1]).all(), "the sum follows the loudest"


def test_bounds_by_hand(corridor):
    """In the cell before the exit, two moves into it and one that goes on: intervals [.1 r, (1 - .9^n) r]."""
    visits = np.zeros((1, 16, 4), np.int32)
    visits[0, 14, 0] = 1  # into the exit, seen once: exactly .1 x 99
    visits[0, 13, 2] = 50  # likewise, seen often: .1 to .995 x 99
    visits[0, 13, 0] = 1  # one cell on to 14: .1 x (-1 + .1 x 99)
    pool = Pool(corridor, reward_system("path"), np.zeros((1, 16, 4)), visits, 0.1)
    pool.q_tables[0, 13, 2] = 1.0  # greedy, so that the support adds nothing here
    keep, dropped = prune(pool.view(RUNG[3], (0,)))
    assert not keep[13, 2, 0] & 1, "0.89 is not above 9.9"
    assert keep[13, 2, 0] & 4
    assert dropped == 0, "none of these cells is reached from the start by known moves"


def bounds_by_walking(pool, members):
    """The moves that survive in every state that can be reached, by recursion through the slow world."""
    support = pool.row_support(RUNG[3], members)
    visits = pool.total_visits(members)
    survivors = {}

    def factor(count):
        return 1 - 0.9 ** int(count) if count else 1.0

    def bounds(world):
        cell = world.position[0] * world.size + world.position[1]
        left = sum(code == 1 for row in world.grid for code in row)
        state = (cell, left, int(world.lever))
        found = {}
        for action in np.flatnonzero(support[cell]):
            after = World(pool.layout, pool.system.components, pool.system.legacy_gold_exit)
            after.grid, after.position, after.lever = [row[:] for row in world.grid], world.position, world.lever
            reward = after.step(int(action))
            if after.position == world.position:
                continue
            high, low = (0.0, 0.0) if after.done else bounds(after)
            ends = 0.1, factor(visits[cell, action])
            found[int(action)] = max(e * (reward + high) for e in ends), min(e * (reward + low) for e in ends)
        if not found:
            return 0.0, -float(pool.layout.horizon)
        best = max(found, key=lambda action: (found[action][1], -action))
        survivors[state] = {a for a in found if a == best or found[a][0] > found[best][1] + 1e-12}
        return max(high for high, _ in found.values()), found[best][1]

    bounds(World(pool.layout, pool.system.components, pool.system.legacy_gold_exit))
    return survivors


@given(layouts(largest=5), systems, st.integers(0, 2**32 - 1))
def test_bounds_equal_walking_everything(layout, system, seed):
    pool = pool_of(layout, system, 2, seed)
    keep, _ = prune(pool.view(RUNG[3], (0, 1)))
    support = pool.row_support(RUNG[3], (0, 1))
    for (cell, left, taken), expected in bounds_by_walking(pool, (0, 1)).items():
        moves = {a for a in range(4) if layout.transitions.event[cell, a] != BUMP and support[cell, a]}
        assert {a for a in moves if (keep[cell, left, taken] >> a) & 1} == expected


@pytest.mark.parametrize("name", ["path", "path-gold", "path-gold-hazard-lever"])
def test_the_sweep_finds_what_the_integer_program_finds(name):
    world = layout_from_text("S G .\n. # L\nx . E", "small")
    view = pool_of(world, reward_system(name), 2, 3).view(RUNG[3], (0, 1))
    _, upper, _ = bounds(view)
    assert upper_bound_by_integers(view) == pytest.approx(upper[0, -1, 0], abs=1e-4)


def test_an_integer_program_that_would_take_for_ever_is_refused():
    view = pool_of(make_layout(load_params("8x8").grid, 0), reward_system("path"), 2, 0).view(RUNG[3], (0, 1))
    with pytest.raises(LeverError, match="choices, at most"):
        upper_bound_by_integers(view)


def test_full_experience_is_planning():
    layout = make_layout(load_params("16x16").grid, 2)
    system = reward_system("path-gold-hazard-lever", legacy_gold_exit=True)
    pool = pool_of(layout, system, 2, 0, visited=1.0)
    composed = evaluate(pool.compose(METHODS["exnonzero"], (0, 1)), layout, system)
    assert composed.return_ == optimum(layout, system).return_


def test_pruning_drops_moves_and_plans_on_the_rest():
    layout = make_layout(load_params("8x8").grid, 0)
    view = pool_of(layout, reward_system("path"), 2, 0).view(RUNG[3], (0, 1))
    keep, dropped = prune(view)
    assert 0 < dropped < 1
    every = plan(view.transitions, view.rewards, None, view.fewest_golds)
    rest = plan(view.transitions, view.rewards, keep, view.fewest_golds)
    planned = np.arange(keep.shape[1]) >= view.fewest_golds[:, None]
    assert (rest.end_value[planned] <= every.end_value[planned] + ABOVE_NOISE).all()
    cell, left, taken = np.unravel_index(np.argmax((keep < 15) & planned[:, :, None]), keep.shape)
    assert (keep[cell, left, taken] >> rest.end_action[cell, left, taken]) & 1, "a dropped move is not planned with"


def test_the_share_of_dropped_moves_by_hand():
    line = layout_from_text("S . .\n# # .\n# # E", "line")
    visits = np.zeros((1, 9, 4), np.int32)
    for cell, action in ((0, 0), (0, 2), (1, 0), (2, 1), (2, 3), (5, 1)):
        visits[0, cell, action] = 1000
    visits[0, 2, 1] = 1  # one cell on to 5: .1 x (-1 + 99) at most, while down x2 is worth .1 x 99 at least
    pool = Pool(line, reward_system("path"), np.zeros((1, 9, 4)), visits, 0.1)
    pool.q_tables[0, 2, 3] = 1.0
    keep, dropped = prune(pool.view(RUNG[3], (0,)))
    assert not keep[2, 0, 0] & 2
    assert dropped == pytest.approx(1 / 6), "one of six moves between the states that can be reached"


def test_a_method_of_ones_own(corridor, monkeypatch):
    monkeypatch.setattr(composition, "METHODS", dict(METHODS))

    @composition.register("first", rung=0)
    def first(view):
        return CellPolicy(np.argmax(view.q_tables[0], axis=1).astype(np.int8))

    assert composition.method("first").compose is first
    with pytest.raises(LeverError, match="rung"):
        composition.register("odd", rung=7)
    with pytest.raises(LeverError, match="must be one of qsum, softmax, gpi, switch, exnonzero"):
        method("nope")


@given(layouts(), systems, st.integers(0, 2**16))
def test_supports_grow_with_policies(layout, system, seed):
    pool = pool_of(layout, system, 3, seed, visited=0.3)
    cells, few, all_ = np.arange(layout.horizon), (0, 1), (0, 1, 2)
    greedy = {members: np.zeros((layout.horizon, 4), bool) for members in (few, all_)}
    for members, support in greedy.items():
        for member in members:
            support[cells, pool.actions[member]] = True
        assert (support <= pool.support(members)).all()
    believed = RUNG[3]
    seen = pool.total_visits(few) > 0
    assert (greedy[few] <= pool.support(all_)).all()
    assert (seen <= pool.row_support(believed, all_)).all()
    best = [optimum(layout, system, greedy[members]).return_ for members in (few, all_)]
    assert best[0] <= best[1] + 1e-9
