"""The coordinate check of muP: what a few steps change in every activation is as large at any width, layer by layer.

Without muP it grows with the width, and so it does behind the one layer whose share of the learning rate is taken away.
Source of the check: Yang et al., "Tensor Programs V", 2022, appendix D.1.
"""

from __future__ import annotations

from math import log2
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from argosy.job.schema import BlockSection, ModelSection, OptimSection
from argosy.model.decoder import Decoder
from argosy.model.weights import initialise, spread
from argosy.optim import build as building
from argosy.plan.derive import growth

WIDTHS = (32, 64, 128, 256)
BASE, HEAD, VOCABULARY, STEPS, SEEDS = 32, 16, 64, 4, 3
RATE = {"adamw": 0.01, "muon": 0.05, "lamb": 0.1}
UPDATES = ["adamw", *(pytest.param(name, marks=pytest.mark.long) for name in ("muon", "lamb"))]


def model(width: int, scaling: str) -> ModelSection:
    """Two layers of a Llama-like decoder that grows by more heads."""
    block = BlockSection(
        heads=width // HEAD, kv_heads=width // HEAD, head_size=HEAD, hidden=2 * width, activation="swiglu", parallel=False,
        norm="rms", norm_epsilon=1e-5, norm_bias=False, norm_placement="pre", qk_norm="none", qkv_bias=False,
        attention_bias=False, mlp_bias=False, window=0, softcap=0.0, dropout=0.0,
    )  # fmt: skip
    return ModelSection(
        layers=2, width=width, vocabulary=VOCABULARY, positions="rotary", rope_theta=1e4, rope_scaling="none",
        tied=False, scaling=scaling, base_width=BASE if scaling == "mup" else None, block=block,  # type: ignore[arg-type]
    )  # fmt: skip


def batch(seed: int) -> Any:
    """Four sequences of 32 tokens, one document each."""
    tokens = torch.randint(VOCABULARY, (4, 33), generator=torch.Generator().manual_seed(seed))
    ones = torch.ones(4, 32, dtype=torch.int32)
    return SimpleNamespace(
        tokens=tokens[:, :-1], labels=tokens[:, 1:], segments=ones, positions=torch.arange(32).expand(4, 32),
        weights=ones.float(), sequence=torch.arange(4),
    )  # fmt: skip


def activations(decoder: Decoder, read: Any) -> dict[str, torch.Tensor]:
    """What attention and feed-forward part of each block make of `read`, and the logits."""
    found: dict[str, torch.Tensor] = {}
    hooks = [
        decoder.blocks[index]
        .get_submodule(part)
        .register_forward_hook(lambda _, __, made, name=f"blocks.{index}.{part}": found.update({name: made}))
        for index in range(2)
        for part in ("attention", "mlp")
    ]
    with torch.no_grad():
        found["logits"] = decoder.logits(decoder(read.tokens, read.positions, read.segments))
    for hook in hooks:
        hook.remove()
    return found


def changed(width: int, scaling: str, update: str, seed: int) -> dict[str, float]:
    """Root mean square of what STEPS updates change in each activation."""
    section, read = model(width, scaling), batch(seed)
    decoder = Decoder(section, seed=seed).to_empty(device="cpu")
    initialise(decoder, seed)
    decoder.prepare("cpu", 32, False)
    asked = OptimSection(name=update, lr=RATE[update], weight_decay=0.0)  # type: ignore[arg-type]
    optimizer = building.build(decoder.named_parameters(), asked, growth=growth(section))
    before = activations(decoder, read)
    for _ in range(STEPS):
        decoder.zero_grad()
        (decoder.loss(read) / 128).backward()
        optimizer.step(1.0)
    after = activations(decoder, read)
    return {name: float((after[name] - made).square().mean().sqrt()) for name, made in before.items()}


def slopes(scaling: str, update: str) -> dict[str, float]:
    """By how many times each change doubles when the width does, by least squares over WIDTHS; of the seeds' mean."""
    sizes = [[changed(width, scaling, update, seed) for seed in range(1, SEEDS + 1)] for width in WIDTHS]
    places = [log2(width) - sum(map(log2, WIDTHS)) / len(WIDTHS) for width in WIDTHS]
    found = {}
    for name in sizes[0][0]:
        heights = [log2(sum(one[name] for one in each)) for each in sizes]
        found[name] = sum(x * y for x, y in zip(places, heights, strict=True)) / sum(x * x for x in places)
    return found


@pytest.mark.parametrize("update", UPDATES)
def test_changes_are_as_large_at_any_width(update: str) -> None:
    found = slopes("mup", update)
    assert set(found) == {"logits", *(f"blocks.{n}.{part}" for n in (0, 1) for part in ("attention", "mlp"))}
    logits = found.pop("logits")
    assert all(abs(slope) < 0.2 for slope in found.values()), found
    # What the random head makes of changed activations falls with the width; what the head itself learns does not.
    assert -0.4 < logits < 0.2


@pytest.mark.parametrize("update", UPDATES)
def test_without_it_they_grow(update: str) -> None:
    assert max(slopes("none", update).values()) > 0.3


@pytest.mark.parametrize(
    "layer, shown",
    [("blocks.0.mlp.", "blocks.0.mlp"), ("blocks.1.attention.", "blocks.1.attention"), ("head.", "logits")],
)
def test_one_layer_without_its_share_shows(layer: str, shown: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = building.width_rate

    def without(update: str, name: str, parameter: torch.Tensor, wider: float) -> float:
        return 1.0 if name.startswith(layer) else real(update, name, parameter, wider)

    monkeypatch.setattr(building, "width_rate", without)
    assert slopes("mup", "adamw")[shown] > 0.25


def test_at_the_base_width_nothing_changes() -> None:
    for seed in (1, 2):
        assert changed(BASE, "mup", "adamw", seed) == changed(BASE, "none", "adamw", seed)


def test_the_heads_first_weights_shrink_with_the_width() -> None:
    narrow, wide = (Decoder(model(width, "mup")) for width in (BASE, 4 * BASE))
    assert spread(narrow, "head.weight") == spread(Decoder(model(BASE, "none")), "head.weight")
    assert spread(narrow, "head.weight") / spread(wide, "head.weight") == pytest.approx(4)  # type: ignore[operator]
    matrix = "blocks.0.mlp.up.weight"
    assert spread(narrow, matrix) / spread(wide, matrix) == pytest.approx(2)  # type: ignore[operator]
