"""Deep Q-learning as a policy source; its action values are its Q-values over all cells, in units of reward."""

from __future__ import annotations

from typing import TYPE_CHECKING

import gymnasium
import numpy as np

from lever_lib.policies.black_box import REWARD_SCALE, SETTINGS, Algorithm

if TYPE_CHECKING:
    from stable_baselines3 import DQN as Learner


def _make(env: gymnasium.Env, seed: int) -> Learner:
    from stable_baselines3 import DQN as Learner

    return Learner(
        **SETTINGS,
        env=env,
        seed=seed,
        buffer_size=20_000,
        learning_starts=500,
        batch_size=64,
        train_freq=4,
        gradient_steps=2,
        target_update_interval=250,
        exploration_fraction=0.8,
        exploration_final_eps=0.05,
    )


def _values(learner: Learner, observations: np.ndarray) -> np.ndarray:
    import torch

    with torch.no_grad():
        values = learner.q_net(torch.as_tensor(observations))
    return REWARD_SCALE * values.double().numpy()


DQN = Algorithm("dqn", _make, _values)
