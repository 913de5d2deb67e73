"""The learner against closed forms and against PyTorch's own layers."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from lever_lib import psi_network
from lever_lib.errors import LeverError
from lever_lib.psi_network import ENDS, GOES_ON, LEARNERS, STAYS, Learner, Pairs, feature_scale, learn

GAMMA = 0.9
IMPROVED, PUBLISHED = LEARNERS["improved"], LEARNERS["published"]


def chain(length, seed, end=ENDS, width=5):
    """A walk through random features, and its exact psi at every state but the last."""
    rng = np.random.default_rng(seed)
    phi = rng.normal(size=(length + 1, width)).astype(np.float32) + 3.0
    if end == STAYS:
        phi[-1] = phi[-2]
    kind = np.full(length, GOES_ON, np.int8)
    kind[-1] = end
    psi = np.zeros_like(phi, dtype=float)
    psi[-1] = phi[-1]
    if end == STAYS:
        psi[-2:] = phi[-2] / (1 - GAMMA)
    for t in range(length - 1 - (end == STAYS), -1, -1):
        psi[t] = phi[t] + GAMMA * psi[t + 1]
    return Pairs(phi[:-1], phi[1:], kind), phi[:-1], psi[:-1]


@pytest.mark.parametrize("end", [ENDS, STAYS])
def test_what_is_solved_is_the_discounted_sum(end):
    pairs, states, psi = chain(12, 0, end)
    found = learn([pairs], states, feature_scale(states), IMPROVED, GAMMA)
    np.testing.assert_allclose(found[0], psi, rtol=1e-2)


def test_descent_comes_to_the_same():
    pairs, states, psi = chain(6, 1)
    slow = Learner("episode", (64,), None, ends=True, standardise=True, epochs=1500, step_size=3e-3, hold=50)
    found = learn([pairs], states, feature_scale(states), slow, GAMMA)
    np.testing.assert_allclose(found[0], psi, rtol=0.05)


@pytest.mark.parametrize("learner", [IMPROVED, replace(PUBLISHED, hidden=(16, 16), epochs=3)])
def test_all_at_once_is_one_by_one(learner):
    """Of different lengths, so that some are filled up and some are of another group."""
    chains = [chain(length, seed)[0] for seed, length in enumerate((30, 200, 90, 80, 10))]
    states = chains[1].before
    scale = feature_scale(states)
    together = learn(chains, states, scale, learner, GAMMA)
    assert together.shape == (5, 200, 5)
    for row, pairs in enumerate(chains):
        alone = learn([pairs], states, scale, learner, GAMMA)[0]
        np.testing.assert_allclose(together[row], alone, rtol=2e-3, atol=2e-3)


def test_the_same_seed_learns_the_same_and_another_one_something_else():
    pairs, states, _ = chain(9, 2)
    elsewhere = states + 0.5
    scale = feature_scale(states)
    for learner in (IMPROVED, replace(PUBLISHED, hidden=(16,), epochs=2)):
        first, again, other = (learn([pairs], elsewhere, scale, learner, GAMMA, seed) for seed in (0, 0, 1))
        assert (first == again).all()
        assert (first != other).any()


def reference(pairs, states, layers):
    """The published training loop with PyTorch's modules, in the order of pairs given, from the same weights."""
    net = nn.Sequential(nn.Linear(5, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 5))
    with torch.no_grad():
        for module, layer in zip((net[0], net[3]), layers, strict=True):
            module.weight.copy_(layer["weight"][0].T)
            module.bias.copy_(layer["bias"][0, 0])
    optimiser = torch.optim.Adam(net.parameters(), 1e-3)
    before, after = torch.tensor(pairs.before), torch.tensor(pairs.after)
    for _ in range(20):
        with torch.no_grad():
            target = before + GAMMA * net(after)
        loss = ((net(before) - target) ** 2).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    net.eval()
    return net(torch.tensor(states)).detach().numpy()


def test_the_published_learner_is_what_pytorch_would_do():
    """One batch per epoch, so that shuffling changes nothing; a bias before a norm drifts with rounding."""
    pairs, states, _ = chain(8, 3)
    learner = replace(PUBLISHED, hidden=(16,), epochs=20)
    rngs = psi_network._seeds([pairs], learner, 0)
    layers = psi_network._initial_weights(rngs, (5, 16, 5), torch.device("cpu"))
    expected = reference(pairs, states, layers)
    np.testing.assert_allclose(
        learn([pairs], states, feature_scale(states), learner, GAMMA)[0], expected, rtol=0.02, atol=0.005
    )


def test_published_settings():
    assert PUBLISHED.hidden == (128, 512, 512, 512)
    assert (PUBLISHED.norm, PUBLISHED.batch, PUBLISHED.epochs, PUBLISHED.step_size) == ("batch", 8, 50, 1e-3)
    assert (PUBLISHED.data, PUBLISHED.ends, PUBLISHED.standardise, PUBLISHED.solved) == ("episode", False, False, False)


def test_without_ends_the_network_is_asked_what_comes_after():
    pairs, states, psi = chain(1, 4)
    scale = feature_scale(np.vstack([states, states + 1]))
    closed, open_ = (learn([pairs], states, scale, replace(IMPROVED, ends=ends), GAMMA)[0] for ends in (True, False))
    np.testing.assert_allclose(closed, psi, rtol=1e-2)
    assert np.abs(open_ - psi).max() > 0.1


def test_errors_name_what_is_wrong():
    pairs, states, _ = chain(3, 5)
    scale = feature_scale(states)
    with pytest.raises(LeverError, match="at least one of every policy"):
        learn([pairs, Pairs(states[:0], states[:0], np.zeros(0, np.int8))], states, scale, IMPROVED, GAMMA)
    for device in ("abacus", "cuda:99", "cuda:x", "meta"):
        with pytest.raises(LeverError, match=f"pi2vec.device = '{device}': this machine has no such device"):
            learn([pairs], states, scale, IMPROVED, GAMMA, device=device)
