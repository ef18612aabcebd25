"""The parts of a block that hold weights: norms, projections, the feed-forward part; and rotary angles and dropout.

Parameters stay in the master type; a layer casts them to the type of what flows through it where it uses them, inside
the compiled block. Knows the job's block section, nothing of batches, devices or layouts.
Shapes: B batch, S sequence, D model, H heads, G key-value heads, K head size, F hidden.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import log, pi
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from argosy.device.shards import box, local
from argosy.errors import Refused
from argosy.job.schema import RopeScaling
from argosy.random import bits

Value = TypeVar("Value")


def known(value: Value | None, key: str) -> Value:
    """`value`, which the job in force must have; Refused with the key where it is missing."""
    if value is None:
        raise Refused(f"model.{key} has no value.", do="Set it, or name a preset.")
    return value


class Joint(nn.Module):
    """A place where ranks that share a layer hand activations over. What goes in comes out, unless a layout sets `move`."""

    move: Callable[[Tensor, int], Tensor] | None = None

    def forward(self, x: Tensor, length: int) -> Tensor:
        """X [B, ...] of a sequence that has `length` tokens in all."""
        return x if self.move is None else self.move(x, length)


class Norm(nn.Module):
    """RMSNorm or LayerNorm over the last dimension, computed in `kind`: None is the type of what flows, at least float32."""

    kind: torch.dtype | None = None

    def __init__(self, size: int, kind: str, epsilon: float, bias: bool):
        super().__init__()
        self.centred, self.epsilon = kind == "layer", epsilon
        self.weight = nn.Parameter(torch.empty(size))
        self.bias = nn.Parameter(torch.empty(size)) if bias and self.centred else None
        self.average = Joint()  # of the ranks' means, where each holds a part of the last dimension

    def forward(self, x: Tensor) -> Tensor:
        """[..., size] to the same shape and type."""
        kind = self.kind or torch.promote_types(x.dtype, torch.float32)
        wide = x.to(kind)
        if self.centred:
            wide = wide - self.average(wide.mean(-1, keepdim=True), x.shape[1])
        variance = self.average(wide.square().mean(-1, keepdim=True), x.shape[1])
        wide = wide * torch.rsqrt(variance + self.epsilon) * local(self.weight).to(kind)
        if self.bias is not None:
            wide = wide + local(self.bias).to(kind)
        return wide.to(x.dtype)


class Projection(nn.Module):
    """The weight [out, in] and bias of a linear map; `project` applies one or several at once.

    `share` is the part of the bias that this rank adds: where ranks add up their products, one of them adds all of it.
    """

    share = 1.0

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
    weights = [local(m.weight).to(x.dtype) for m in maps]
    weight = torch.cat(weights) if len(maps) > 1 else weights[0]
    bias = None
    if any(m.bias is not None for m in maps):
        parts = [_bias(m, part) for m, part in zip(maps, weights, strict=True)]
        bias = torch.cat(parts).to(x.dtype) if len(maps) > 1 else parts[0].to(x.dtype)
    images: tuple[Tensor, ...] = F.linear(x, weight, bias).split([part.shape[0] for part in weights], -1)
    return images


def _bias(of: Projection, weight: Tensor) -> Tensor:
    if of.bias is None:
        return weight.new_zeros(weight.shape[0])
    bias = local(of.bias)
    return bias if of.share == 1.0 else bias * of.share


def lookup(ids: Tensor, table: Tensor) -> Tensor:
    """The rows `ids` of `table` [V, D]; zeros for rows that other ranks hold, so that the sum over ranks has every row."""
    own, ((first, _), (last, _)) = local(table), box(table)
    rows = last - first
    if rows == table.shape[0]:
        return F.embedding(ids, own)
    if not rows:  # more ranks than rows need
        own = F.pad(own, (0, 0, 0, 1))
    place = ids.long() - first
    here = (place >= 0) & (place < rows)
    return F.embedding(torch.where(here, place, 0), own) * here[..., None]


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


def rotation_table(
    length: int, size: int, theta: float, device: torch.device, dtype: torch.dtype, scaling: RopeScaling | None = None
) -> Tensor:
    """Cosines and sines of the rotary angles: [length, 2, size / 2], computed in float64 and rounded once.

    Source: Su et al., "RoFormer", 2021, eq. 15; pairs are (i, i + size / 2).
    """
    wide = torch.float64 if device.type != "mps" else torch.float32
    frequency = theta ** (-torch.arange(0, size, 2, dtype=wide) / size)
    if scaling is not None:
        frequency = stretched(frequency, size, theta, scaling)
    angle = torch.arange(length, dtype=wide)[:, None] * frequency
    factor = amplitude(scaling)
    return (torch.stack((angle.cos(), angle.sin()), 1) * factor).to(device=device, dtype=dtype)


def stretched(frequency: Tensor, size: int, theta: float, scaling: RopeScaling) -> Tensor:
    """Frequencies [size / 2], in radians a position, as `scaling` changes them.

    Sources: Chen et al., "Position interpolation", 2023, eq. 4; Grattafiori et al., "Llama 3", 2024, as its authors' code
    has it; Peng et al., "YaRN", 2023, section 3.2: how many times an angle turns within `original` decides between the
    frequency as it was and one that is `factor` times lower, with a ramp between two bounds.
    """
    if scaling.kind == "linear":
        return frequency / scaling.factor
    original = known(scaling.original, "rope_scaling.original")
    if scaling.kind == "llama3":
        low, high = scaling.low or 1.0, scaling.high or 4.0
        turns = original * frequency / (2 * pi)
        kept = ((turns - low) / (high - low)).clamp(0, 1)
    else:
        begin, end = (size * log(original / (turns * 2 * pi)) / (2 * log(theta))
                      for turns in (scaling.fast or 32.0, scaling.slow or 1.0))  # fmt: skip
        # Whole numbers within the table, as every published model has them.
        first, last = max(int(begin // 1), 0), min(-int(-end // 1), size - 1)
        place = torch.arange(size // 2, dtype=frequency.dtype)
        kept = 1 - ((place - first) / (last - first if last != first else 0.001)).clamp(0, 1)
    return frequency / scaling.factor * (1 - kept) + frequency * kept


def amplitude(scaling: RopeScaling | None) -> float:
    """What cosines and sines are multiplied with: 1, but for YaRN (its equation 22)."""
    if scaling is None or scaling.kind != "yarn":
        return 1.0
    return 0.1 * log(scaling.factor) + 1 if scaling.attention is None else scaling.attention


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """Turn x [B, S, H, K] by the angles `rotation` [B, S, 2, K / 2] of its tokens, in their type."""
    cosine, sine = rotation[:, :, None, 0], rotation[:, :, None, 1]
    first, second = x.to(rotation.dtype).chunk(2, -1)
    return torch.cat((first * cosine - second * sine, second * cosine + first * sine), -1).to(x.dtype)


Noise = tuple[Tensor, Tensor]  # keys [B, S, ...] int64 of tokens, and the numbers 0 to D - 1 [D] int64


def drop(x: Tensor, noise: Noise, share: float) -> Tensor:
    """Zero a `share` of x [B, S, D] and scale up the rest; keys [B, S] and the numbers of columns make each element's bits.

    Compares integers only, so that compiled and eager, one rank and many drop the same elements. The numbers come from
    outside: where the compiler makes them itself, torch 2.13 on a CPU gets the last D modulo 16 columns wrong.
    """
    keys, columns = noise
    kept = ((bits(keys[..., None], columns) >> 40) & 0xFFFFFF) >= round(share * 2**24)
    return torch.where(kept, x * (1 / (1 - share)), torch.zeros((), dtype=x.dtype, device=x.device))
