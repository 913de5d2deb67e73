"""Successor features learned from transitions alone: for policies that nobody can look into.

A policy is seen as pairs (phi(s), phi(s')): where it was, where it was next. A network psi is fitted to
psi(s) = phi(s) + gamma * psi(s') on the pairs of a policy, one network per policy, and read at states of one's choice.
All policies are learned at once: their networks are stacked, and every step of the learner is one batched operation.

`LEARNERS` holds the settings of the published study and better ones. The published network descends the gradient of
the squared temporal difference with a bootstrapped target. The improved one keeps a random hidden layer, the same for
every policy, and *solves* for the output layer: the fixed point that descent creeps towards, without step sizes,
epochs or a target network.

Sources: Scarpellini et al. (2024), pi2vec; Bradtke & Barto (1996), least-squares temporal differences; Huang et al.
(2006), random hidden layers.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from threadpoolctl import threadpool_limits

from lever_lib.errors import LeverError
from lever_lib.seeding import stream
from lever_lib.threads import one_torch_thread

if TYPE_CHECKING:
    import torch

GOES_ON, ENDS, STAYS = range(3)
_TOGETHER = 32  # policies in one stack: what fits into memory at 32x32
_EPSILON, _MOMENTUM = 1e-5, 0.1  # of the norms, as PyTorch has them


class Pairs(NamedTuple):
    """What is seen of one policy: n transitions.

    Attributes:
        before: phi(s), float32 (n, D).
        after: phi(s'), float32 (n, D).
        kind: int8 (n,); `GOES_ON`, `ENDS` (s' is terminal), or `STAYS` (s' = s, for ever).
    """

    before: np.ndarray
    after: np.ndarray
    kind: np.ndarray


@dataclass(frozen=True)
class Learner:
    """How a network is fitted.

    Attributes:
        data: `episode`: one recorded episode; `canonical`: the policy followed from every state psi will be read at.
        hidden: widths of the hidden layers.
        norm: after each hidden layer; `batch`, `layer` or None.
        ends: whether a terminal state counts once and an agent that stays, for ever, in closed form. Otherwise the
            network is asked what comes after the end.
        standardise: whether features are scaled to the same size before they are learned.
        alike: whether all networks start from the same weights.
        solved: whether the output layer is solved for; what follows is for descent only.
        epochs: over the pairs.
        batch: pairs per step.
        step_size: of Adam.
        hold: steps for which the network that makes the targets is held still; 0: it is the network itself.
        penalty: of the solution, per pair.
    """

    data: Literal["episode", "canonical"] = "episode"
    hidden: tuple[int, ...] = (128, 512, 512, 512)
    norm: Literal["batch", "layer"] | None = "batch"
    ends: bool = False
    standardise: bool = False
    alike: bool = False
    solved: bool = False
    epochs: int = 50
    batch: int = 8
    step_size: float = 1e-3
    hold: int = 0
    penalty: float = 1e-4


LEARNERS: dict[str, Learner] = {
    "published": Learner(),
    "improved": Learner("canonical", (96,), None, ends=True, standardise=True, alike=True, solved=True),
}


class Scale(NamedTuple):
    """What standardises features: (phi - mean) / deviation.

    Attributes:
        mean: float32 (D,).
        deviation: float32 (D,); 1 where a feature never changes.
    """

    mean: np.ndarray
    deviation: np.ndarray


def feature_scale(features: np.ndarray) -> Scale:
    """Mean and standard deviation of features, float (n, D)."""
    deviation = features.std(axis=0)
    return Scale(features.mean(axis=0), np.where(deviation > 1e-6, deviation, 1).astype(np.float32))


def learn(
    seen: Sequence[Pairs],
    states: np.ndarray,
    scale: Scale,
    learner: Learner,
    gamma: float,
    root_seed: int = 0,
    device: str = "cpu",
) -> np.ndarray:
    """Successor features of P policies, float64 (P, K, D).

    What is learned of a policy does not depend on the others, but for rounding.

    Args:
        seen: of each policy, at least one pair.
        states: phi of the states to read psi at, float32 (K, D).
        scale: of features; must be the same for all policies that are to be compared.
        learner: settings.
        gamma: discount per step, in [0, 1).
        root_seed: of the initial weights.
        device: `cpu`, `cuda`, or one of several GPUs, e.g. `cuda:1`.

    Raises:
        LeverError: if a policy comes without a pair, or the device is not there.
    """
    import torch

    if not all(len(pairs.kind) for pairs in seen):
        raise LeverError("pairs: there must be at least one of every policy")
    if not learner.standardise:
        scale = Scale(np.zeros_like(scale.mean), np.ones_like(scale.deviation))
    out = np.empty((len(seen), *states.shape))
    with one_torch_thread(), threadpool_limits(1):  # another number of threads adds in another order
        for rows in _stacks([len(pairs.kind) for pairs in seen], learner):
            batch = _stacked([seen[row] for row in rows], scale, learner, gamma, check_device(device))
            read = torch.as_tensor((states - scale.mean) / scale.deviation, device=batch.before.device)
            if learner.solved:
                psi = _solve(batch, read, learner, gamma, root_seed)
            else:
                psi = _descend(batch, read, learner, gamma, _seeds([seen[row] for row in rows], learner, root_seed))
            out[rows] = psi.double().cpu().numpy() * scale.deviation
    return out


def check_device(name: str) -> torch.device:
    """A device by its name.

    Raises:
        LeverError: if this machine has no such device.
    """
    import torch

    kind, _, number = name.partition(":")
    try:
        if kind not in ("cpu", "cuda") or (number and not number.isdigit()):
            raise RuntimeError
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError):  # what PyTorch raises where there is no driver, or no such number
        raise LeverError(f"pi2vec.device = {name!r}: this machine has no such device; cpu always works") from None
    return device


def _stacks(sizes: list[int], learner: Learner) -> Iterator[list[int]]:
    """Policies that are learned together: as many steps per epoch, and not too many."""
    steps = [0 if learner.solved else -(-size // learner.batch) for size in sizes]
    order = sorted(range(len(sizes)), key=lambda row: (steps[row], sizes[row]))
    for _, same in itertools.groupby(order, key=lambda row: steps[row]):
        rows = list(same)
        yield from (rows[start : start + _TOGETHER] for start in range(0, len(rows), _TOGETHER))


class _Stack(NamedTuple):
    """Pairs of G policies, filled up to the longest.

    Attributes:
        before: scaled features of s, float32 (G, n, D).
        after: of s', likewise.
        known: what the target holds without the network, float32 (G, n, D).
        weight: of the network's value of s' in the target, float32 (G, n, 1).
        real: 1 for a pair, 0 for filling, float32 (G, n, 1).
    """

    before: torch.Tensor
    after: torch.Tensor
    known: torch.Tensor
    weight: torch.Tensor
    real: torch.Tensor


def _stacked(seen: list[Pairs], scale: Scale, learner: Learner, gamma: float, device: torch.device) -> _Stack:
    import torch

    longest, width = max(len(pairs.kind) for pairs in seen), len(scale.mean)
    before, after, known = (np.zeros((len(seen), longest, width), np.float32) for _ in range(3))
    weight, real = (np.zeros((len(seen), longest, 1), np.float32) for _ in range(2))
    for row, pairs in enumerate(seen):
        n = len(pairs.kind)
        before[row, :n] = (pairs.before - scale.mean) / scale.deviation
        after[row, :n] = (pairs.after - scale.mean) / scale.deviation
        # Targets are scaled, not centred: a sum of centred features would lose how many there were.
        known[row, :n] = pairs.before / scale.deviation
        weight[row, :n, 0] = gamma
        real[row, :n] = 1
        if learner.ends:
            ends, stays = pairs.kind == ENDS, pairs.kind == STAYS
            known[row, :n][ends] += gamma * (pairs.after / scale.deviation)[ends]
            known[row, :n][stays] /= 1 - gamma
            weight[row, :n, 0][ends | stays] = 0
    return _Stack(*(torch.as_tensor(part, device=device) for part in (before, after, known, weight, real)))


def _solve(stack: _Stack, read: torch.Tensor, learner: Learner, gamma: float, root_seed: int) -> torch.Tensor:
    """Least-squares temporal differences on a random hidden layer, the scaled features and a constant."""
    import torch

    [hidden] = learner.hidden
    width = read.shape[-1]
    rng = stream(root_seed, "psi network", "hidden layer")
    weights = torch.as_tensor(rng.normal(size=(width, hidden)) / np.sqrt(width), dtype=read.dtype, device=read.device)
    bias = torch.as_tensor(rng.uniform(-1, 1, size=hidden), dtype=read.dtype, device=read.device)

    def units(x: torch.Tensor) -> torch.Tensor:
        """What the output layer reads."""
        return torch.cat([torch.relu(x @ weights + bias), x, torch.ones_like(x[..., :1])], dim=-1)

    before = units(stack.before) * stack.real
    left = before.transpose(1, 2)
    gram = (left @ (before - stack.weight * stack.real * units(stack.after))).double()
    count = stack.real.sum(dim=1, keepdim=True).double()
    gram += learner.penalty * count * torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    return units(read).double() @ torch.linalg.solve(gram, (left @ stack.known).double())


def _seeds(seen: list[Pairs], learner: Learner, root_seed: int) -> list[np.random.Generator]:
    """A stream of random numbers per policy, named after what is seen of it."""
    names = ["alike" if learner.alike else hashlib.sha256(pairs.before.tobytes()).hexdigest() for pairs in seen]
    return [stream(root_seed, "psi network", name) for name in names]


def _initial_weights(
    rngs: list[np.random.Generator], widths: Sequence[int], device: torch.device
) -> list[dict[str, Any]]:
    """Stacked layers, as PyTorch would start each of them."""
    import torch

    layers = []
    for inputs, outputs in itertools.pairwise(widths):
        bound = 1 / np.sqrt(inputs)
        parts = {
            "weight": np.stack([rng.uniform(-bound, bound, (inputs, outputs)) for rng in rngs]),
            "bias": np.stack([rng.uniform(-bound, bound, (1, outputs)) for rng in rngs]),
            "gain": np.ones((len(rngs), 1, outputs)),
            "shift": np.zeros((len(rngs), 1, outputs)),
        }
        layer: dict[str, Any] = {
            name: torch.tensor(part, dtype=torch.float32, device=device, requires_grad=True)
            for name, part in parts.items()
        }
        layer["mean"] = torch.zeros(len(rngs), 1, outputs, device=device)
        layer["variance"] = torch.ones(len(rngs), 1, outputs, device=device)
        layers.append(layer)
    return layers


def _forward(
    layers: list[dict[str, Any]], x: torch.Tensor, norm: str | None, real: torch.Tensor | None
) -> torch.Tensor:
    """Output of the stacked networks, (G, B, D).

    Args:
        layers: stacked.
        x: input, (G, B, D).
        norm: as in `Learner`.
        real: which rows are real, (G, B, 1), in training; None for reading.
    """
    import torch

    *hidden, last = layers
    for layer in hidden:
        x = torch.baddbmm(layer["bias"], x, layer["weight"])
        if norm == "layer":
            mean, variance = x.mean(dim=-1, keepdim=True), x.var(dim=-1, keepdim=True, correction=0)
        elif norm == "batch" and real is not None:
            count = real.sum(dim=1, keepdim=True)
            mean = (x * real).sum(dim=1, keepdim=True) / count
            variance = ((x - mean) ** 2 * real).sum(dim=1, keepdim=True) / count
            with torch.no_grad():
                layer["mean"] += _MOMENTUM * (mean - layer["mean"])
                layer["variance"] += _MOMENTUM * (variance * count / (count - 1).clamp(min=1) - layer["variance"])
        else:
            mean, variance = layer["mean"], layer["variance"]
        if norm is not None:
            x = (x - mean) / torch.sqrt(variance + _EPSILON) * layer["gain"] + layer["shift"]
        x = torch.relu(x)
    return torch.baddbmm(last["bias"], x, last["weight"])


def _descend(
    stack: _Stack, read: torch.Tensor, learner: Learner, gamma: float, rngs: list[np.random.Generator]
) -> torch.Tensor:
    """Semi-gradient temporal differences with Adam; each policy has its own shuffles and its own error."""
    import torch

    width, device = read.shape[-1], read.device
    layers = _initial_weights(rngs, (width, *learner.hidden, width), device)
    trained = [layer[name] for layer in layers for name in ("weight", "bias", "gain", "shift")]
    optimiser = torch.optim.Adam(trained, learner.step_size)
    held, steps = layers, 0
    sizes = stack.real[..., 0].sum(dim=1).long().tolist()
    span = -(-max(sizes) // learner.batch) * learner.batch
    for _ in range(learner.epochs):
        order = np.zeros((len(sizes), span), np.int64)
        real = np.zeros((len(sizes), span, 1), np.float32)
        for row, (rng, size) in enumerate(zip(rngs, sizes, strict=True)):
            order[row, :size], real[row, :size] = rng.permutation(size), 1
        chosen, real_now = torch.as_tensor(order, device=device), torch.as_tensor(real, device=device)
        for start in range(0, span, learner.batch):
            if learner.hold and steps % learner.hold == 0:
                held = [{name: part.detach().clone() for name, part in layer.items()} for layer in layers]
            mask = real_now[:, start : start + learner.batch]
            picked = chosen[:, start : start + learner.batch, None]
            before, after, known, weight = (
                torch.take_along_dim(part, picked, dim=1)
                for part in (stack.before, stack.after, stack.known, stack.weight)
            )
            with torch.no_grad():
                target = known + weight * _forward(held, after, learner.norm, mask)
            error = (_forward(layers, before, learner.norm, mask) - target) ** 2 * mask
            loss = (error.sum(dim=(1, 2)) / (mask.sum(dim=(1, 2)) * width)).sum()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            steps += 1
    with torch.no_grad():
        return _forward(layers, read.expand(len(rngs), *read.shape), learner.norm, None)
