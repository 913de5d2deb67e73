"""Proximal policy optimisation as a policy source; its action values are the log-probabilities of its actions.

Why not the critic: it values states, not actions, so that ranking actions by it would need the model of the world;
and it is no part of the policy. Log-probabilities rank actions as the policy does, their greatest is its greedy action,
and adding those of several policies multiplies the policies (a product of experts). They are no returns: beside the
Q-values of other sources they count for little in a sum.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import gymnasium
import numpy as np

from lever_lib.policies.black_box import SETTINGS, Algorithm

if TYPE_CHECKING:
    from stable_baselines3 import PPO as Learner


def _make(env: gymnasium.Env, seed: int) -> Learner:
    from stable_baselines3 import PPO as Learner

    return Learner(
        **SETTINGS,
        env=env,
        seed=seed,
        n_steps=512,
        batch_size=128,
        n_epochs=4,
        ent_coef=0.02,
    )


def _values(learner: Learner, observations: np.ndarray) -> np.ndarray:
    import torch

    with torch.no_grad():
        distribution = learner.policy.get_distribution(torch.as_tensor(observations)).distribution
    return distribution.logits.double().numpy()


PPO = Algorithm("ppo", _make, _values)
