"""What three steps of a job must give: loss, gradients, norm, weights, from the formulas in float64 and in one process.

The model is `reference.py`. Dropout masks and updates (SGD, AdamW, Muon, LAMB) are written here again, by their
formulas, and share nothing with the engine; first weights come from the engine, whose generator is tested against published
vectors.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import sqrt
from typing import Any

import numpy as np

from argosy.random import bits, key

LR = 0.05  # of plain gradient descent
QUINTIC = (3.4445, -4.7750, 2.0315)  # Jordan et al., "Muon", 2024

Arrays = dict[str, np.ndarray[Any, Any]]


def judge(rank: int, ranks: int, board: str, asked: Mapping[str, Any]) -> list[dict[str, float]]:
    """Compute the steps of `asked` and write arrays to the file it names. Runs in the pool. Gives loss and norm of each step.

    The file holds "gradient.NAME" of the first step, "first.NAME" before it and "weight.NAME" after the last one.
    """
    import torch

    from argosy.job.schema import Job
    from argosy.model.decoder import Decoder
    from argosy.model.weights import initialise
    from argosy.prove import reference
    from argosy.prove.sample import batch_of

    job = Job.model_validate(asked["job"])
    first = torch.float64 if job.train.master == "float64" else torch.float32
    decoder = Decoder(job.model, seed=job.train.seed, compute=first, master=first).to_empty(device="cpu")
    initialise(decoder, job.train.seed)
    weights = {name: tensor.detach().double().requires_grad_() for name, tensor in decoder.named_parameters()}
    wide = job.model.width / job.model.base_width if job.model.scaling == "mup" else 1.0  # type: ignore[operator]
    update = Update(weights, asked["update"], job.optim.model_dump(), wide)
    found: list[dict[str, float]] = []
    kept: Arrays = {f"first.{name}": tensor.detach().numpy().copy() for name, tensor in weights.items()}
    for step in range(1, asked["steps"] + 1):
        batch = batch_of(step, **asked["batch"])
        arrays = {name: torch.tensor(value) for name, value in vars(batch).items()}
        dropped = dropout(job.model.block.dropout or 0.0, job.train.seed, step, arrays)
        loss = reference.loss(weights, job.model.model_dump(), arrays, dropped)
        gradients = dict(zip(weights, torch.autograd.grad(loss / batch.counted, list(weights.values())), strict=True))
        if step == 1:
            kept |= {f"gradient.{name}": tensor.numpy() for name, tensor in gradients.items()}
        norm = float(torch.stack([tensor.norm() for tensor in gradients.values()]).norm())
        found.append({"loss": float(loss.detach()), "norm": norm})
        clip = job.optim.clip
        update.apply(gradients, clip / norm if clip is not None and norm > clip else 1.0)
    kept |= {f"weight.{name}": tensor.detach().numpy() for name, tensor in weights.items()}
    np.savez(asked["file"], **kept)  # type: ignore[arg-type]
    return found


def dropout(share: float, seed: int, step: int, arrays: Mapping[str, Any]) -> Any:
    """What drops a `share`, keyed by layer, step, sequence and place in its document; None where nothing is dropped."""
    import torch

    if not share:
        return None

    def dropped(name: str, row: int, places: Any, vectors: Any) -> Any:
        """What dropout leaves of `vectors`."""
        sequence, segments, positions = (
            arrays["sequence"][row].numpy(),
            arrays["segments"][row, places].numpy(),
            arrays["positions"][row, places].numpy(),
        )
        stays = mask(key(seed, "dropout", name), step, sequence, segments, positions, vectors.shape[-1], share)
        return vectors * torch.tensor(stays) / (1 - share)

    return dropped


def mask(stream: int, step: int, sequence: Any, segments: Any, positions: Any, width: int, share: float) -> Any:
    """Which elements [t, width] of a layer's output stay, for t tokens of one document. NumPy only."""
    with np.errstate(over="ignore"):
        of_row = bits(bits(stream, np.array([step], dtype=np.int64)), np.asarray(sequence, dtype=np.int64))
        token = segments.astype(np.int64) * 2**32 + positions.astype(np.int64)
        numbers = bits(bits(of_row, token)[:, None], np.arange(width, dtype=np.int64)[None])
    return ((numbers >> 40) & (2**24 - 1)) >= round(share * 2**24)


class Update:
    """One of four updates, of all weights, in float64."""

    def __init__(self, weights: Mapping[str, Any], kind: str, optim: Mapping[str, Any], wide: float = 1.0):
        import torch

        self.weights, self.kind, self.optim, self.wide, self.steps = weights, kind, optim, wide, 0
        self.first = {name: torch.zeros_like(tensor) for name, tensor in weights.items()}
        self.second = {name: torch.zeros_like(tensor) for name, tensor in weights.items()}

    def apply(self, gradients: Mapping[str, Any], scale: float) -> None:
        """Change the weights by `gradients` times `scale`."""
        import torch

        self.steps += 1
        with torch.no_grad():
            for name, gradient in gradients.items():
                weight, gradient = self.weights[name], gradient * scale
                if self.kind == "sgd":
                    weight -= LR * gradient
                elif self.kind == "muon" and weight.ndim == 2 and name.startswith("blocks."):
                    self._muon(name, weight, gradient)
                else:
                    self._adamw(name, weight, gradient, layered=self.kind == "lamb" and weight.ndim == 2)

    def _rate(self, name: str, shared: bool) -> float:
        """The learning rate by muP (Yang et al., 2022): of matrices over the width, its root where steps know their size."""
        inside = name.startswith("blocks.") and self.weights[name].ndim == 2
        share = 1 / self.wide if not shared else self.wide**-0.5
        return float(self.optim["lr"]) * (share if inside or (name == "head.weight" and not shared) else 1.0)

    def _adamw(self, name: str, weight: Any, gradient: Any, layered: bool) -> None:
        """Loshchilov and Hutter, 2019: moments, corrected for their start at zero; decay of matrices apart from them.

        layered: You et al., 2020: the whole step, decay in it, is as long as the weight, times the rate.
        """
        one, other, lr = self.optim["beta1"], self.optim["beta2"], self.optim["lr"]
        self.first[name] = one * self.first[name] + (1 - one) * gradient
        self.second[name] = other * self.second[name] + (1 - other) * gradient**2
        mean, square = self.first[name] / (1 - one**self.steps), self.second[name] / (1 - other**self.steps)
        step = mean / (square.sqrt() + self.optim["epsilon"])
        if weight.ndim == 2 and not name.startswith(("embedding.", "positions.")):
            decay = self.optim["weight_decay"] * weight
            step = step + decay * (1.0 if layered else lr / self._rate(name, False))
        weight -= self._rate(name, layered) * step * (weight.norm() / step.norm() if layered else 1.0)

    def _muon(self, name: str, weight: Any, gradient: Any) -> None:
        """Jordan et al., 2024: Nesterov's momentum, made nearly orthogonal; scaled as Liu et al., 2025, section 2.2."""
        beta, lr = self.optim["momentum"], self.optim["lr"]
        self.first[name] = beta * self.first[name] + (1 - beta) * gradient
        x = beta * self.first[name] + (1 - beta) * gradient
        x = x / x.square().sum().sqrt().clamp(min=1e-7)
        a, b, c = QUINTIC
        wide = x.shape[0] <= x.shape[1]
        for _ in range(self.optim["newton_schulz"]):
            gram = x @ x.T if wide else x.T @ x
            poly = b * gram + c * gram @ gram
            x = a * x + (poly @ x if wide else x @ poly)
        weight -= lr * self.optim["weight_decay"] * weight
        weight -= self._rate(name, True) * 0.2 * sqrt(max(weight.shape)) * x
