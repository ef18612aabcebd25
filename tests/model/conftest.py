"""A small model section with every switch concrete, and a packed batch: what the tests of this room share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from argosy.data.batch import Batch
from argosy.job.schema import BlockSection, ModelSection
from argosy.model.decoder import Decoder
from argosy.model.weights import initialise

BLOCK: dict[str, Any] = {
    "heads": 4,
    "kv_heads": 4,
    "head_size": 8,
    "hidden": 24,
    "activation": "swiglu",
    "parallel": False,
    "norm": "rms",
    "norm_epsilon": 1e-5,
    "norm_bias": False,
    "qk_norm": "none",
    "qkv_bias": False,
    "attention_bias": False,
    "mlp_bias": False,
    "window": 0,
    "norm_placement": "pre",
    "softcap": 0.0,
    "dropout": 0.0,
}
MODEL: dict[str, Any] = {
    "layers": 2,
    "width": 16,
    "vocabulary": 37,
    "positions": "rotary",
    "context": 64,
    "rope_theta": 100.0,
    "tied": True,
    "rope_scaling": "none",
    "z_loss": 0.0,
}


def make_section(**said: Any) -> ModelSection:
    """The defaults above with what is said put over them, wherever it belongs: a cap to scores and to logits."""
    pattern = tuple(BlockSection(**block) for block in said.pop("pattern", ()))
    block = BLOCK | {key: value for key, value in said.items() if key in BLOCK}
    model = MODEL | {key: value for key, value in said.items() if key not in BLOCK or key == "softcap"}
    if model["positions"] == "learned":
        model["rope_scaling"] = "none"
    return ModelSection.model_validate({**model, "block": BlockSection(**block), "pattern": pattern})


def make_decoder(section: ModelSection, kind: torch.dtype = torch.float64, seed: int = 1) -> Decoder:
    """The decoder of `section` on the CPU, filled, with biases and gains that are not all alike."""
    decoder = Decoder(section, seed=seed, compute=kind, master=kind)
    decoder.to_empty(device="cpu")
    initialise(decoder, seed)
    draw = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in decoder.parameters():
            noise = torch.randn(parameter.shape, generator=draw, dtype=torch.float64)
            parameter.add_(noise.to(parameter.dtype), alpha=0.1)
    return decoder


def make_batch(rows: int, length: int, vocabulary: int = 37, seed: int = 0, padded: int = 2) -> Batch:
    """Random tokens in documents of random lengths, the last `padded` places of each row empty."""
    draw = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, vocabulary, (rows, length), generator=draw, dtype=torch.int32)
    borders = torch.rand((rows, length), generator=draw) < 4 / length
    borders[:, 0] = True
    segments = borders.cumsum(1).int()
    place = torch.arange(length).expand(rows, length)
    begins = torch.where(borders, place, 0).cummax(1).values
    positions = (place - begins).int()
    weights = (torch.rand((rows, length), generator=draw) < 0.8).float()
    if padded:
        segments[:, -padded:], weights[:, -padded:], positions[:, -padded:] = 0, 0, 0
    labels = tokens.roll(-1, 1)
    return Batch(tokens, labels, segments, positions, torch.zeros_like(tokens), weights, torch.arange(rows) + 100)


@pytest.fixture
def section() -> Callable[..., ModelSection]:
    return make_section


@pytest.fixture
def decoder() -> Callable[..., Decoder]:
    return make_decoder


@pytest.fixture
def batch() -> Callable[..., Batch]:
    return make_batch
