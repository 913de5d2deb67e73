"""Policies of other people's making: trained by Stable-Baselines3 through the Gymnasium environment.

An algorithm is one module beside this one that says how to make a learner and how to read action values from it. All
else is shared: the learner sees the agent's cell, one-hot, as the policies of a library act by the cell; rewards are
divided by 100, because networks learn badly from rewards of that size; what it does in training is counted on the way,
so that its records are those of any other source.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np

from lever_lib.envs.environment import GridWorldEnv
from lever_lib.envs.gridworld import ACTIONS, Layout
from lever_lib.envs.rewards import RewardSystem
from lever_lib.errors import LeverError
from lever_lib.policies.base import PolicyRecord
from lever_lib.policies.tabular import record_episode
from lever_lib.seeding import stream
from lever_lib.threads import one_torch_thread

if TYPE_CHECKING:
    from stable_baselines3.common.base_class import BaseAlgorithm

REWARD_SCALE = 100.0
# What all algorithms are made with.
SETTINGS: dict[str, Any] = {
    **{"policy": "MlpPolicy", "policy_kwargs": {"net_arch": [64]}, "learning_rate": 1e-3, "gamma": 0.99},
    "device": "cpu",
}


@dataclass(frozen=True)
class Algorithm:
    """A way to train.

    Attributes:
        source: what records call it.
        make: a learner, given the environment and a seed.
        values: action values of a learner in given observations, float32 (n, S) to float64 (n, 4).
    """

    source: str
    make: Callable[[gymnasium.Env, int], BaseAlgorithm]
    values: Callable[[BaseAlgorithm, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class BlackBoxJob:
    """One training run.

    Attributes:
        algorithm: how.
        spec: params file of the world.
        layout: the world.
        system: what pays.
        library: budget that the policies are filed under.
        steps: of the environment; an algorithm may round them up to what it takes at a time.
        snapshots: shares of the steps; the last is 1.
        root_seed: of the run's own random stream, which is named after the rest.
    """

    algorithm: Algorithm
    spec: str
    layout: Layout
    system: RewardSystem
    library: str
    steps: int
    snapshots: tuple[float, ...]
    root_seed: int


class CellEnv(gymnasium.Wrapper):
    """The gridworld as a learner sees it, taking notes.

    Attributes:
        visits: times each action was taken, int64 (S, 4).
        episodes: finished so far.
        last: cells and actions of the last finished episode, int32 (T + 1,) and int8 (T,).
    """

    def __init__(self, env: gymnasium.Env) -> None:
        super().__init__(env)
        cells = env.unwrapped.layout.cells.size
        self.observation_space = gymnasium.spaces.Box(0.0, 1.0, (cells,), np.float32)
        self.visits = np.zeros((cells, ACTIONS), np.int64)
        self.episodes = 0
        self.last = np.zeros(1, np.int32), np.zeros(0, np.int8)
        self._cells: list[int] = []
        self._actions: list[int] = []

    def reset(self, **options: Any) -> tuple[np.ndarray, dict[str, Any]]:
        """Back to the start."""
        _, info = self.env.reset(**options)
        self._cells, self._actions = [info["cell"]], []
        return one_hot(self._cells, len(self.visits))[0], info

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """One step; its reward is scaled."""
        self.visits[self._cells[-1], action] += 1
        _, reward, terminated, truncated, info = self.env.step(int(action))
        self._cells.append(info["cell"])
        self._actions.append(int(action))
        if terminated or truncated:
            self.episodes += 1
            self.last = np.array(self._cells, np.int32), np.array(self._actions, np.int8)
        return one_hot([info["cell"]], len(self.visits))[0], reward / REWARD_SCALE, terminated, truncated, info


def one_hot(cells: list[int] | np.ndarray, count: int) -> np.ndarray:
    """Observations of an agent in given cells, float32 (n, count)."""
    out = np.zeros((len(cells), count), np.float32)
    out[np.arange(len(cells)), cells] = 1
    return out


def train_black_box(job: BlackBoxJob) -> list[PolicyRecord]:
    """Train, and take a record at each snapshot; the same job gives the same records.

    Stable-Baselines3 seeds the random generators of the whole process.

    Raises:
        LeverError: if Stable-Baselines3 is not installed.
    """
    try:
        with one_torch_thread():  # networks this small are slower on two, and the other core has its own work
            return _train(job)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "stable_baselines3":
            raise
        raise LeverError("deep.steps: needs stable-baselines3; pip install -e '.[deep]'") from None


def _train(job: BlackBoxJob) -> list[PolicyRecord]:
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.logger import Logger

    env = CellEnv(GridWorldEnv(job.spec, job.layout, job.system))
    name = (job.algorithm.source, job.library, job.layout.name, job.system.name)
    seed = int(stream(job.root_seed, "black box", *name).integers(2**31))
    learner = job.algorithm.make(env, seed)
    learner.set_logger(Logger(None, []))  # by default it leaves a folder behind
    marks = [round(share * job.steps) for share in job.snapshots]
    records: list[PolicyRecord] = []
    started, paused = time.thread_time(), 0.0

    def take() -> None:
        """A record of the learner as it is now."""
        nonlocal paused
        now = time.thread_time()
        records.append(_record(job, env, learner, job.snapshots[len(records)], now - started - paused))
        paused += time.thread_time() - now

    class Snapshots(BaseCallback):
        """Takes a record whenever a mark is passed."""

        def _on_step(self) -> bool:
            if len(records) < len(marks) - 1 and self.num_timesteps >= marks[len(records)]:
                take()
            return True

    learner.learn(job.steps, callback=Snapshots())
    while len(records) < len(marks):
        take()
    return records


def _record(job: BlackBoxJob, env: CellEnv, learner: BaseAlgorithm, snapshot: float, seconds: float) -> PolicyRecord:
    source, setup, seed = job.algorithm.source, job.system.name, job.layout.name
    cells = job.layout.cells.size
    return PolicyRecord(
        policy_id=f"{source}-{job.library}-{seed}-{setup}-{100 * snapshot:g}",
        source=source,
        setup=setup,
        library=job.library,
        seed=seed,
        snapshot=snapshot,
        episodes=env.episodes,
        description=job.system.sentence,
        q_table=job.algorithm.values(learner, one_hot(np.arange(cells), cells)),
        visits=env.visits.copy(),
        episode=record_episode(job.layout, *env.last),
        train_seconds=seconds,
    )
