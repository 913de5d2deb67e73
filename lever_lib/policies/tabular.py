"""Tabular SARSA: the policy source of the published study.

Q is indexed by the cell alone, as published, or by (cell, golds left, lever taken), on which all rewards depend
(`sarsa.state`). It starts at 0 and learns from epsilon-greedy episodes:
Q(s, a) += alpha * (r + gamma * Q(s', a') - Q(s, a)), with target r at a terminal cell (Sutton & Barto, 2018,
section 6.4). Training runs in chunks of at most `CHUNK` episodes of one compiled kernel that carries its random
state along, so chunk borders change nothing but when progress shows and Ctrl-C is heard.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numba import njit

from lever_lib.envs.gridworld import (
    BUMP,
    ENTER_EMPTY,
    ENTER_EXIT,
    ENTER_HAZARD,
    Layout,
    RewardTables,
    Transitions,
    enter,
    memory_count,
    state_row,
)
from lever_lib.envs.layouts import HAZARD, LEVER
from lever_lib.envs.rewards import RewardSystem
from lever_lib.params import Sarsa
from lever_lib.policies.base import CellPolicy, Episode, PolicyRecord, greedy_actions
from lever_lib.rollout import evaluate
from lever_lib.seeding import stream

CHUNK = 1000  # episodes


@dataclass(frozen=True)
class TrainingJob:
    """One training run: a reward system on a layout with a budget.

    Attributes:
        layout: the world.
        system: what pays.
        library: name of the budget, e.g. `X10`.
        sarsa: step size, discount, exploration floor, snapshot shares.
        epsilon_decay: factor per episode.
        marks: episodes at each snapshot, ascending; the last is the budget.
        root_seed: of the run's own random stream, which is named after the rest.
    """

    layout: Layout
    system: RewardSystem
    library: str
    sarsa: Sarsa
    epsilon_decay: float
    marks: list[int]
    root_seed: int


class CurvePoint(NamedTuple):
    """Learning progress at the end of a chunk.

    Attributes:
        episodes: trained so far.
        epsilon: exploration rate of the next episode.
        training_return: mean undiscounted return of the chunk's episodes.
        greedy_return: exact return of the greedy policy.
        greedy_stuck: whether the greedy policy gets stuck.
    """

    episodes: int
    epsilon: float
    training_return: float
    greedy_return: float
    greedy_stuck: bool


class SarsaState(NamedTuple):
    """What a run carries from chunk to chunk.

    Attributes:
        q: action values, float64 (S, 4), or (S * 2 (G + 1), 4) with rows as `state_row` numbers them.
        visits: times each action was taken, int64, as many.
        entered: number of the episode that last entered a cell, int64 (S,); tells first entries apart.
        path: cells and actions of the chunk's last episode, int32 (S + 1, 2).
    """

    q: np.ndarray
    visits: np.ndarray
    entered: np.ndarray
    path: np.ndarray


def train(job: TrainingJob) -> tuple[list[PolicyRecord], list[CurvePoint]]:
    """Run one SARSA training; the same job gives the same bytes however often and wherever it runs.

    Returns:
        One record per snapshot, and one curve point per chunk.
    """
    layout, marks = job.layout, job.marks
    cells = layout.cells.size
    rows = cells * (memory_count(len(layout.golds)) if job.sarsa.state == "augmented" else 1)
    state = SarsaState(
        np.zeros((rows, 4)),
        np.zeros((rows, 4), np.int64),
        np.full(cells, -1, np.int64),
        np.zeros((cells + 1, 2), np.int32),
    )
    rewards = layout.rewards(job.system)
    rng = stream(job.root_seed, "training", job.library, layout.name, job.system.name)
    records: list[PolicyRecord] = []
    curve: list[CurvePoint] = []
    epsilon, done, seconds = 1.0, 0, 0.0
    settings = (job.sarsa.alpha, job.sarsa.gamma, job.epsilon_decay, job.sarsa.epsilon_min)
    # No episode, only the kernel: compiling or loading it is no part of the training time.
    sarsa_chunk(layout.transitions, rewards, settings, state, rng, epsilon, 0, 0)
    for stop in sorted({*range(CHUNK, marks[-1], CHUNK), *marks}):
        started = time.thread_time()
        total, epsilon, steps = sarsa_chunk(
            layout.transitions, rewards, settings, state, rng, epsilon, done, stop - done
        )
        seconds += time.thread_time() - started
        greedy = evaluate(CellPolicy(greedy_actions(state.q)), layout, job.system)
        curve.append(CurvePoint(stop, epsilon, total / (stop - done), greedy.return_, greedy.stuck))
        done = stop
        if stop in marks:
            snapshot = job.sarsa.snapshots[marks.index(stop)]
            records.append(_record(job, state, snapshot, stop, steps, seconds))
    return records, curve


def _record(
    job: TrainingJob, state: SarsaState, snapshot: float, episodes: int, steps: int, seconds: float
) -> PolicyRecord:
    setup, seed = job.system.name, job.layout.name
    return PolicyRecord(
        policy_id=f"{job.library}-{seed}-{setup}-{100 * snapshot:g}",
        source="sarsa",
        setup=setup,
        library=job.library,
        seed=seed,
        snapshot=snapshot,
        episodes=episodes,
        description=job.system.sentence,
        q_table=state.q.copy(),
        visits=state.visits.copy(),
        episode=record_episode(job.layout, state.path[: steps + 1, 0].copy(), state.path[:steps, 1].astype(np.int8)),
        train_seconds=seconds,
    )


def record_episode(layout: Layout, cells: np.ndarray, actions: np.ndarray) -> Episode:
    """Add to a path what the agent had collected in each of its states.

    Args:
        layout: the world.
        cells: int32 (T + 1,).
        actions: int8 (T,).
    """
    flat = layout.cells.ravel()
    entered = cells[:, None] == layout.golds[None, :]
    return Episode(
        cells=cells,
        actions=actions,
        golds=~np.logical_or.accumulate(entered, axis=0),
        lever=np.logical_or.accumulate(flat[cells] == LEVER),
        hazard_steps=np.cumsum(flat[cells] == HAZARD, dtype=np.int32),
    )


@njit(cache=True, nogil=True)
def _choose(q: np.ndarray, s: int, epsilon: float, rng: np.random.Generator) -> int:
    draw = rng.random()
    if draw < epsilon:
        return min(int(4 * draw / epsilon), 3)  # below epsilon the draw is uniform once more
    best = 0
    for a in range(1, 4):
        if q[s, a] > q[s, best]:
            best = a
    return best


@njit(cache=True, nogil=True)
def sarsa_chunk(
    transitions: Transitions,
    rewards: RewardTables,
    settings: tuple[float, float, float, float],
    state: SarsaState,
    rng: np.random.Generator,
    epsilon: float,
    first: int,
    episodes: int,
) -> tuple[float, float, int]:
    """Train `episodes` more episodes in place.

    Args:
        transitions: of the layout.
        rewards: of the reward system on it.
        settings: step size, discount, epsilon decay per episode, epsilon minimum.
        state: carried from chunk to chunk; changed in place.
        rng: likewise.
        epsilon: exploration rate of the first episode.
        first: number of the first episode.
        episodes: how many.

    Returns:
        Sum of the undiscounted returns, epsilon of the next episode, steps of the last episode.
    """
    next_cell, event, _ = transitions
    fixed, pay = rewards
    alpha, gamma, decay, epsilon_min = settings
    q, visits, entered, path = state
    horizon, golds = len(next_cell), pay.exit.shape[0] - 1
    memories = len(q) // horizon
    total, t = 0.0, 0
    for number in range(first, first + episodes):
        recording = number == first + episodes - 1
        s, left, taken, t = 0, golds, 0, 0
        row = state_row(s, left, taken, golds, memories)
        a = _choose(q, row, epsilon, rng)
        ended = False
        while not ended and t < horizon:
            visits[row, a] += 1
            if recording:
                path[t, 0], path[t, 1] = s, a
            t += 1
            e = event[s, a]
            s_after = next_cell[s, a]
            seen = entered[s_after] == number
            extra, left, taken = enter(ENTER_EMPTY if seen else e, left, taken, pay)
            reward = fixed[s, a] + extra
            ended = e in (ENTER_EXIT, ENTER_HAZARD)
            if e != BUMP:
                entered[s_after] = number
            total += reward
            if ended:
                q[row, a] += alpha * (reward - q[row, a])
                s = s_after
            else:
                row_after = state_row(s_after, left, taken, golds, memories)
                a_after = _choose(q, row_after, epsilon, rng)
                q[row, a] += alpha * (reward + gamma * q[row_after, a_after] - q[row, a])
                s, a, row = s_after, a_after, row_after
        if recording:
            path[t, 0] = s
        epsilon = max(epsilon_min, epsilon * decay)
    return total, epsilon, t
