"""The judge's own formulas: updates against torch's, dropout against what the model drops."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

OPTIM = {
    "lr": 0.05, "beta1": 0.9, "beta2": 0.95, "epsilon": 1e-3, "weight_decay": 0.1, "momentum": 0.9, "newton_schulz": 5,
}  # fmt: skip


def weights() -> dict[str, Any]:
    import torch

    draw = torch.Generator().manual_seed(1)
    shapes = {
        "embedding.weight": (5, 4),
        "blocks.0.mlp.up.weight": (6, 4),
        "blocks.0.mlp.down.weight": (4, 6),
        "norm.weight": (4,),
    }
    return {
        name: torch.randn(shape, generator=draw, dtype=torch.float64).requires_grad_() for name, shape in shapes.items()
    }


def descend(kind: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Three updates by the judge, and the gradients of each."""
    import torch

    from argosy.prove.judge import Update

    named = weights()
    update = Update(named, kind, OPTIM)
    draw = torch.Generator().manual_seed(2)
    gradients = {
        name: [torch.randn(w.shape, generator=draw, dtype=torch.float64) for _ in range(3)] for name, w in named.items()
    }
    for step in range(3):
        update.apply({name: each[step] for name, each in gradients.items()}, 0.5)
    return named, gradients


def test_adamw_is_torchs() -> None:
    import torch

    named, gradients = descend("adamw")
    ours = weights()
    decayed = [w for name, w in ours.items() if w.ndim == 2 and name != "embedding.weight"]
    other = [w for name, w in ours.items() if w.ndim == 1 or name == "embedding.weight"]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": other, "weight_decay": 0.0}]
    torchs = torch.optim.AdamW(groups, lr=0.05, betas=(0.9, 0.95), eps=1e-3)
    for step in range(3):
        for name, w in ours.items():
            w.grad = gradients[name][step] * 0.5
        torchs.step()
    for name, w in ours.items():
        assert torch.allclose(w, named[name], rtol=0, atol=1e-14), name


def test_muon_is_torchs() -> None:
    """torch.optim.Muon iterates in bfloat16: close, and the same without the iterations."""
    import torch

    named, gradients = descend("muon")
    ours = weights()
    matrices = [w for name, w in ours.items() if name.startswith("blocks.")]
    torchs = torch.optim.Muon(
        matrices, lr=0.05, weight_decay=0.1, momentum=0.9, nesterov=True, adjust_lr_fn="match_rms_adamw"
    )
    for step in range(3):
        for name, w in ours.items():
            w.grad = gradients[name][step] * 0.5
        torchs.step()
    for name, w in ours.items():
        if name.startswith("blocks."):
            moved = (named[name] - weights()[name]).norm()
            assert (w - named[name]).norm() < 0.05 * moved, name


def test_gradient_descent() -> None:
    named, gradients = descend("sgd")
    for name, w in weights().items():
        expected = w - 0.05 * 0.5 * sum(gradients[name])
        assert (named[name] - expected).abs().max() < 1e-15


@pytest.mark.parametrize("share", [0.2, 0.5])
def test_dropout_is_the_models(share: float) -> None:
    """The keys by the judge's NumPy, and what the model's own function does with the noise that it makes itself."""
    import torch

    from argosy.model.layers import drop
    from argosy.prove.judge import mask
    from argosy.random import bits, key

    segments, positions = np.array([1, 1, 2, 2, 2], dtype=np.int32), np.array([0, 1, 0, 1, 2], dtype=np.int32)
    stays = mask(key(5, "dropout", "blocks.1.mlp"), 9, np.int64(41), segments, positions, 12, share)
    stream = bits(torch.tensor([key(5, "dropout", "blocks.1.mlp")]), torch.tensor([9]))
    token = torch.tensor(segments).long() * 2**32 + torch.tensor(positions).long()
    noise = bits(bits(stream, torch.tensor([41])), token)
    dropped = drop(torch.ones(1, 5, 12), (noise[None], torch.arange(12)), share)[0]
    assert torch.equal(dropped > 0, torch.tensor(stays))
    assert 0 < stays.mean() < 1
