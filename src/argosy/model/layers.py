"""The parts of a block that hold weights: norms, projections, the feed-forward part; and rotary angles and dropout.

Parameters stay in the master type; a layer casts them to the type of what flows through it where it uses them, inside
the compiled block. Knows the job's block section, nothing of batches, devices or layouts.
Shapes: B batch, S sequence, D model, H heads, G key-value heads, K head size, F hidden.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from argosy.errors import Refused
from argosy.random import bits

Value = TypeVar("Value")


def known(value: Value | None, key: str) -> Value:
    """`value`, which the job in force must have; Refused with the key where it is missing."""
    if value is None:
        raise Refused(f"model.{key} has no value.", do="Set it, or name a preset.")
    return value


class Norm(nn.Module):
    """RMSNorm or LayerNorm over the last dimension, computed in at least float32."""

    def __init__(self, size: int, kind: str, epsilon: float, bias: bool):
        super().__init__()
        self.centred, self.epsilon = kind == "layer", epsilon
        self.weight = nn.Parameter(torch.empty(size))
        self.bias = nn.Parameter(torch.empty(size)) if bias and self.centred else None

    def forward(self, x: Tensor) -> Tensor:
        """[..., size] to the same shape and type."""
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        if self.centred:
            wide = wide - wide.mean(-1, keepdim=True)
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.epsilon) * self.weight
        if self.bias is not None:
            wide = wide + self.bias
        return wide.to(x.dtype)


class Projection(nn.Module):
    """The weight [out, in] and bias of a linear map; `project` applies one or several at once."""

    def __init__(self, inputs: int, outputs: int, bias: bool):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs))
        self.bias = nn.Parameter(torch.empty(outputs)) if bias else None


def project(x: Tensor, maps: Sequence[Projection]) -> tuple[Tensor, ...]:
    """Each of `maps` applied to x [..., in], as one matrix product.

    The matrices are parameters of their own (a split over ranks, an orthogonalised update and a foreign format all want
    them so) and are laid end to end here: beside a product over thousands of tokens that copy costs nothing, and where
    the master type is another one the cast makes it anyway.
    """
    weight = torch.cat([m.weight.to(x.dtype) for m in maps]) if len(maps) > 1 else maps[0].weight.to(x.dtype)
    bias = None
    if any(m.bias is not None for m in maps):
        parts = [m.weight.new_zeros(m.weight.shape[0]) if m.bias is None else m.bias for m in maps]
        bias = torch.cat(parts).to(x.dtype)
    images: tuple[Tensor, ...] = F.linear(x, weight, bias).split([m.weight.shape[0] for m in maps], -1)
    return images


class FeedForward(nn.Module):
    """SwiGLU, down(silu(gate x) * up x), or GELU, down(gelu(up x)), exact or by tanh."""

    def __init__(self, width: int, hidden: int, activation: str, bias: bool):
        super().__init__()
        self.activation = activation
        if activation == "swiglu":
            self.gate = Projection(width, hidden, bias)
        self.up = Projection(width, hidden, bias)
        self.down = Projection(hidden, width, bias)

    @property
    def inputs(self) -> tuple[Projection, ...]:
        """The maps that read the block's input."""
        return (self.gate, self.up) if self.activation == "swiglu" else (self.up,)

    def forward(self, *inner: Tensor) -> Tensor:
        """From what `inputs` made of x, each [B, S, F], to [B, S, D]."""
        if self.activation == "swiglu":
            gate, up = inner
            active = F.silu(gate) * up
        else:
            active = F.gelu(inner[0], approximate="tanh" if self.activation == "gelu_tanh" else "none")
        return project(active, (self.down,))[0]


def rotation_table(length: int, size: int, theta: float, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Cosines and sines of the rotary angles: [length, 2, size / 2], computed in float64 and rounded once.

    Source: Su et al., "RoFormer", 2021, eq. 15; pairs are (i, i + size / 2).
    """
    wide = torch.float64 if device.type != "mps" else torch.float32
    frequency = theta ** (-torch.arange(0, size, 2, dtype=wide) / size)
    angle = torch.arange(length, dtype=wide)[:, None] * frequency
    return torch.stack((angle.cos(), angle.sin()), 1).to(device=device, dtype=dtype)


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """Turn x [B, S, H, K] by the angles `rotation` [B, S, 2, K / 2] of its tokens, in their type."""
    cosine, sine = rotation[:, :, None, 0], rotation[:, :, None, 1]
    first, second = x.to(rotation.dtype).chunk(2, -1)
    return torch.cat((first * cosine - second * sine, second * cosine + first * sine), -1).to(x.dtype)


def drop(x: Tensor, noise: Tensor, share: float) -> Tensor:
    """Zero a `share` of x [B, S, D] and scale up the rest; `noise` [B, S] int64 keys each token's row.

    Compares integers only, so that compiled and eager, one rank and many drop the same elements.
    """
    index = torch.arange(x.shape[-1], device=x.device)
    kept = ((bits(noise[..., None], index) >> 40) & 0xFFFFFF) >= round(share * 2**24)
    return torch.where(kept, x * (1 / (1 - share)), torch.zeros((), dtype=x.dtype, device=x.device))
