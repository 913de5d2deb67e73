"""The sentence encoder, taught to read what a sentence asks for.

The encoder's own weights stay as they are. Each matrix W of a layer becomes W + B A, the product being of low rank
(LoRA; Hu et al., 2022), and so is what is added to the embeddings of words: what was learned is a small file beside a
large model. For each objective the tokens
are averaged by an attention of its own, and a linear function of the mean gives the log odds that it is asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.nn.utils import parametrize
from tqdm import tqdm

from lever_lib import minilm
from lever_lib.artifacts import shown
from lever_lib.errors import LeverError
from lever_lib.recognise import LEARNED, WEIGHTS
from lever_lib.threads import one_torch_thread

RANK = 16
_WORD_RANK = 8  # of what is added to the embeddings
_WORDS = "shifts.words"  # which tokens the stored shifts belong to
_SCALE = 2.0  # of B A: larger steps at the same learning rate
_TOGETHER = 64  # sentences in one go
_ADAPTED = ("self_attn.in_proj_weight", "self_attn.out_proj.weight", "linear1.weight", "linear2.weight")


class _LowRank(torch.nn.Module):
    def __init__(self, shape: torch.Size) -> None:
        super().__init__()
        self.a = torch.nn.Parameter(torch.randn(RANK, shape[1]) / shape[1] ** 0.5)
        self.b = torch.nn.Parameter(torch.zeros(shape[0], RANK))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight + _SCALE * (self.b @ self.a)


class Reader(torch.nn.Module):
    """From tokens to log odds per objective; only what it adds to the encoder can be trained."""

    def __init__(self) -> None:
        super().__init__()
        minilm.network.cache_clear()  # its layers are changed here, so they must be nobody else's
        self.words, self.layers = minilm.network()
        minilm.network.cache_clear()
        for part in (self.layers, *self.words.values()):
            part.requires_grad_(False)
        for layer in self.layers.layers:
            for name in _ADAPTED:
                module, _, weight = name.rpartition(".")
                owner = layer.get_submodule(module)
                parametrize.register_parametrization(owner, weight, _LowRank(getattr(owner, weight).shape))
        count, width = self.words["word"].weight.shape
        self.shifts = torch.nn.Parameter(torch.zeros(count, _WORD_RANK))
        self.directions = torch.nn.Parameter(torch.randn(_WORD_RANK, width) / width**0.5)
        self.attention = torch.nn.Parameter(torch.randn(len(LEARNED), width) / width**0.5)
        self.odds = torch.nn.Linear(width, len(LEARNED))

    def forward(self, tokens: torch.Tensor, padded: torch.Tensor) -> torch.Tensor:
        """Log odds, float32 (n, K).

        Args:
            tokens: int64 (n, T).
            padded: which of them stand for nothing, bool (n, T).
        """
        shift = self.shifts[tokens] @ self.directions
        read = self.layers(minilm.embedded(self.words, tokens, shift), src_key_padding_mask=padded)
        scores = (read @ self.attention.T / read.shape[2] ** 0.5).masked_fill(padded[:, :, None], -torch.inf)
        means = torch.einsum("ntk,ntw->nkw", scores.softmax(dim=1), read)
        return (means * self.odds.weight).sum(dim=2) + self.odds.bias

    def learned(self) -> dict[str, torch.Tensor]:
        """What training may change."""
        return {name: value for name, value in self.named_parameters() if value.requires_grad}


def log_odds(sentences: Sequence[str]) -> np.ndarray:
    """How likely each objective is asked for, as log odds, float32 (n, K); the first 256 tokens of a text are read."""
    reader = _reader()
    with one_torch_thread(), torch.inference_mode():
        parts = [sentences[start : start + _TOGETHER] for start in range(0, len(sentences), _TOGETHER)]
        return np.concatenate([reader(*_batch(part)).numpy() for part in parts])


@cache
def _reader() -> Reader:
    reader = Reader()
    stored = load_file(WEIGHTS)
    words = stored.pop(_WORDS)
    learned = {name: value.float() for name, value in stored.items()}
    learned["shifts"] = torch.zeros_like(reader.shifts).index_copy(0, words, learned["shifts"])
    if learned.keys() != reader.learned().keys():
        raise LeverError(f"{shown(WEIGHTS)}: is damaged or of another version; run `python -m lever_lib.understanding`")
    reader.load_state_dict(learned, strict=False)
    for layer in reader.layers.layers:
        for name in _ADAPTED:
            module, _, weight = name.rpartition(".")
            parametrize.remove_parametrizations(layer.get_submodule(module), weight)  # the sum stays
    return reader.requires_grad_(False).eval()


def _batch(sentences: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens side by side, and which of them only fill up."""
    rows = [torch.tensor(minilm.tokens(sentence)) for sentence in sentences]
    tokens = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    lengths = torch.tensor([len(row) for row in rows])
    return tokens, torch.arange(tokens.shape[1]) >= lengths[:, None]


def trained_on() -> str:
    """What the stored weights were learned from, as `save` was told."""
    with safe_open(WEIGHTS, framework="numpy") as weights:
        return weights.metadata()["trained_on"]


def save(reader: Reader, source: str) -> None:
    """Write what a reader has learned, in half precision, and what from."""
    found = {name: value.detach().half().contiguous() for name, value in reader.learned().items()}
    found[_WORDS] = found["shifts"].any(dim=1).nonzero()[:, 0]  # of most words nothing was learned
    found["shifts"] = found["shifts"][found[_WORDS]]
    save_file(found, WEIGHTS, metadata={"trained_on": source})
    _reader.cache_clear()


def train(batches: Sequence[list[tuple[str, np.ndarray]]], rate: float, head_rate: float, seed: int) -> Reader:
    """Fit a reader by the cross-entropy of each objective.

    Args:
        batches: sentences and what each asks for, bool (K,), in the order they are taken.
        rate: highest learning rate of the low-rank changes.
        head_rate: highest learning rate of the attention and the linear function.
        seed: of the first weights and of dropout.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        reader = Reader().train()
        head = [reader.attention, *reader.odds.parameters()]
        body = [value for value in reader.learned().values() if all(value is not part for part in head)]
        optimiser = torch.optim.AdamW([{"params": body}, {"params": head}])
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimiser, [rate, head_rate], total_steps=len(batches), pct_start=0.1
        )
        for batch in tqdm(batches, desc="teaching", unit="batch"):
            sentences, wanted = zip(*batch, strict=True)
            optimiser.zero_grad()
            torch.nn.functional.binary_cross_entropy_with_logits(
                reader(*_batch(sentences)), torch.tensor(np.array(wanted)).float()
            ).backward()
            optimiser.step()
            schedule.step()
    return reader
