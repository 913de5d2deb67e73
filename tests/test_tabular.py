import numpy as np
import pytest

from lever_lib.envs.gridworld import layout_from_text, make_layout
from lever_lib.envs.rewards import REWARD_SYSTEMS, reward_system
from lever_lib.params import Sarsa, load_params
from lever_lib.planning import optimum
from lever_lib.policies import tabular
from lever_lib.policies.tabular import SarsaState, TrainingJob, record_episode, sarsa_chunk, train
from lever_lib.seeding import stream
from tests.oracle import World

SETTINGS = (0.1, 0.99, 0.999, 0.01)


def fresh_state(layout):
    cells = layout.cells.size
    return SarsaState(
        np.zeros((cells, 4)),
        np.zeros((cells, 4), np.int64),
        np.full(cells, -1, np.int64),
        np.zeros((cells + 1, 2), np.int32),
    )


def job(layout, setup="path-gold", seed=0, marks=(200, 1000, 2500)):
    sarsa = Sarsa(snapshots=tuple(mark / marks[-1] for mark in marks))
    return TrainingJob(layout, reward_system(setup), "X1", sarsa, 0.998, list(marks), root_seed=seed)


def test_the_value_of_a_last_move_has_a_closed_form():
    last = layout_from_text("S . .\n. . .\n. . E", "last")
    state = fresh_state(last)
    rewards = last.rewards(reward_system("path"))
    sarsa_chunk(last.transitions, rewards, SETTINGS, state, stream(0, "x"), 1.0, 0, 500)
    # every update of the move into the exit has the same target, 99
    visits = state.visits[5, 1]
    assert visits > 20
    assert state.q[5, 1] == pytest.approx(99 * (1 - 0.9**visits))


def sarsa_by_hand(layout, system, episodes, rng):
    """SARSA written against the slow world: the same draws, none of the same code."""
    alpha, gamma, decay, epsilon_min = SETTINGS
    q, visits, epsilon = np.zeros((layout.cells.size, 4)), np.zeros((layout.cells.size, 4), int), 1.0

    def choose(cell):
        draw = rng.random()
        return int(4 * draw / epsilon) if draw < epsilon else int(np.argmax(q[cell]))

    for _ in range(episodes):
        world = World(layout, system.components, system.legacy_gold_exit)
        cell, action = 0, choose(0)
        for _ in range(layout.horizon):
            visits[cell, action] += 1
            reward = world.step(action)
            after = world.position[0] * world.size + world.position[1]
            if world.done:
                q[cell, action] += alpha * (reward - q[cell, action])
                break
            next_action = choose(after)
            q[cell, action] += alpha * (reward + gamma * q[after, next_action] - q[cell, action])
            cell, action = after, next_action
        epsilon = max(epsilon_min, epsilon * decay)
    return q, visits


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("setup", REWARD_SYSTEMS)
def test_the_kernel_is_sarsa_in_the_world_of_the_rules(setup, legacy):
    layout = make_layout(load_params("smoke").grid, 2)
    system = reward_system(setup, legacy)
    state = fresh_state(layout)
    sarsa_chunk(layout.transitions, layout.rewards(system), SETTINGS, state, stream(0, setup), 1.0, 0, 400)
    q, visits = sarsa_by_hand(layout, system, 400, stream(0, setup))
    assert (state.visits == visits).all()
    np.testing.assert_allclose(state.q, q, atol=1e-9)


@pytest.mark.parametrize("setup", REWARD_SYSTEMS)
def test_compiled_equals_interpreted(setup):
    layout = make_layout(load_params("smoke").grid, 1)
    rewards = layout.rewards(reward_system(setup))
    runs = []
    for chunk in (sarsa_chunk, sarsa_chunk.py_func):
        state = fresh_state(layout)
        result = chunk(layout.transitions, rewards, SETTINGS, state, stream(0, setup), 1.0, 0, 60)
        runs.append((result, state))
    (fast, fast_state), (slow, slow_state) = runs
    assert fast == pytest.approx(slow)
    assert (fast_state.visits == slow_state.visits).all()
    assert (fast_state.path == slow_state.path).all()
    np.testing.assert_allclose(fast_state.q, slow_state.q, rtol=1e-12)


def test_chunk_borders_change_nothing():
    layout = make_layout(load_params("smoke").grid, 0)
    rewards = layout.rewards(reward_system("path-gold-hazard"))
    whole, split = fresh_state(layout), fresh_state(layout)
    sarsa_chunk(layout.transitions, rewards, SETTINGS, whole, stream(0, "x"), 1.0, 0, 300)
    rng, epsilon = stream(0, "x"), 1.0
    for first in range(0, 300, 100):
        _, epsilon, _ = sarsa_chunk(layout.transitions, rewards, SETTINGS, split, rng, epsilon, first, 100)
    assert (whole.q == split.q).all()
    assert (whole.visits == split.visits).all()


def test_same_stream_same_bytes_other_stream_other(corridor):
    first, again, other = (train(job(corridor, seed=seed))[0][-1] for seed in (0, 0, 1))
    assert first.q_table.tobytes() == again.q_table.tobytes()
    assert first.q_table.tobytes() != other.q_table.tobytes()


def test_a_job_can_be_run_again(corridor):
    once = job(corridor)
    assert train(once)[0][-1].q_table.tobytes() == train(once)[0][-1].q_table.tobytes()


def test_snapshots_visits_and_curve(corridor):
    records, curve = train(job(corridor))
    assert [record.episodes for record in records] == [200, 1000, 2500]
    assert [point.episodes for point in curve] == [200, 1000, 2000, 2500], "chunks hold at most 1000 episodes"
    assert (np.diff([record.visits.sum() for record in records]) > 0).all(), "visits are cumulative"
    assert (records[-1].visits >= records[0].visits).all()
    assert len({record.policy_id for record in records}) == 3
    assert curve[-1].epsilon == pytest.approx(max(0.01, 0.998**2500))


def test_training_finds_the_best_path_of_the_corridor(corridor):
    _, curve = train(job(corridor, "path"))
    assert curve[-1].greedy_return == optimum(corridor, reward_system("path")).return_
    assert not curve[-1].greedy_stuck


def test_a_recorded_episode_knows_what_was_collected(corridor):
    episode = record_episode(corridor, np.array([0, 2, 6]), np.array([2, 1], np.int8))
    assert episode.golds.tolist() == [[True, True], [False, True], [False, True]]
    assert episode.hazard_steps.tolist() == [0, 0, 1]
    episode = record_episode(corridor, np.array([0, 8, 8]), np.array([3, 0], np.int8))
    assert episode.lever.tolist() == [False, True, True]


def test_the_snapshot_episode_is_one_the_policy_could_have_walked(corridor):
    record = train(job(corridor, "gold"))[0][0]
    episode = record.episode
    assert episode.cells[0] == 0
    for before, action, after in zip(episode.cells, episode.actions, episode.cells[1:], strict=False):
        assert corridor.transitions.next_cell[before, action] == after
        assert record.visits[before, action] > 0


def test_compiling_is_no_part_of_the_training_time(corridor, monkeypatch):
    happened = []

    def chunk(*arguments):
        happened.append(arguments[-1])
        return sarsa_chunk(*arguments)

    def clock():
        happened.append("clock")
        return 0.0

    monkeypatch.setattr(tabular, "sarsa_chunk", chunk)
    monkeypatch.setattr(tabular.time, "thread_time", clock)
    train(job(corridor, marks=(200, 300)))
    assert happened == [0, "clock", 200, "clock", "clock", 100, "clock"]
