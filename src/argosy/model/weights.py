"""First weights by the counter generator: each rank fills its own slice, which equals that part of the whole.

In: a module with memory, whose parameters may be sharded (DTensor). A number is a function of (seed, parameter name,
global element index): uniform by integers, normal by the inverse error function in float64, rounded once. Runs eager:
compiled, the last bit of float64 may differ.
"""

from __future__ import annotations

from math import sqrt

import torch
from torch import Tensor

from argosy.device.shards import box, local
from argosy.model.decoder import Decoder
from argosy.model.layers import known
from argosy.plan.derive import growth
from argosy.random import bits, key, unit

PIECE = 1 << 20  # elements made at once: bounds the float64 intermediates


def spread(decoder: Decoder, name: str) -> float | None:
    """The standard deviation of the first weights of parameter `name`; None for norms and biases, which are constant.

    Tables of embeddings get 0.02 (Radford et al., "GPT-2", 2019). Matrices get sqrt(2 / (5 D)), the small initialisation
    of Nguyen and Salazar, 2019; those that write into the residual stream are divided by sqrt(2 x layers), since so
    many of them add up. Under muP the head's shrink with the width itself, 1 / D, and are the same at the base width (Yang et
    al., "Tensor Programs V", 2022, table 3); all others have the right width already.
    """
    if name.endswith(".bias") or "norm." in name:
        return None
    if name.startswith(("embedding.", "positions.")):
        return 0.02
    width, layers = known(decoder.section.width, "width"), len(decoder.shapes)
    matrix = sqrt(2 / (5 * width))
    if name.startswith("head."):
        return matrix / sqrt(growth(decoder.section))
    return matrix / sqrt(2 * layers) if name.endswith(("output.weight", "down.weight")) else matrix


def normals(stream: int, held: list[range], shape: torch.Size) -> Tensor:
    """Standard normals [the sizes of `held`] in float64: those of a tensor of `shape` at the indices `held`."""
    index = torch.zeros([1] * len(held), dtype=torch.int64)
    stride = 1
    for dim in reversed(range(len(held))):
        line = torch.arange(held[dim].start, held[dim].stop, dtype=torch.int64) * stride
        index = index + line.view([-1] + [1] * (len(held) - dim - 1))
        stride *= shape[dim]
    found = torch.empty(index.shape, dtype=torch.float64)
    flat = found.view(-1)
    for made, part in zip(flat.split(PIECE), index.view(-1).split(PIECE), strict=True):
        made.copy_(torch.erfinv(unit(bits(stream, part)) * 2 - 1) * sqrt(2))
    return found


@torch.no_grad()
def initialise(decoder: Decoder, seed: int) -> None:
    """Fill every parameter of `decoder`, this rank's slices only. Numbers are made on the CPU and copied."""
    for name, parameter in decoder.named_parameters():
        own = local(parameter)
        deviation = spread(decoder, name)
        if deviation is None:
            own.fill_(0.0 if name.endswith(".bias") else 1.0)
        elif own.numel():
            held = [range(*ends) for ends in zip(*box(parameter), strict=True)]
            values = normals(key(seed, "weights", name), held, parameter.shape)
            own.copy_(values.mul_(deviation).view(own.shape))
