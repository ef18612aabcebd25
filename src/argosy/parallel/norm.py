"""A rank's share of the squared gradient norm, copies counted: one sum over all ranks is the norm of the whole gradient.

Over any mix of meshes: each rank adds what it holds, divided by how many ranks hold the same numbers. Knows tensors only.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import prod

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from argosy.device.shards import cuts, local


def copies(tensor: Tensor, world: int) -> int:
    """How many of `world` ranks hold the same elements of `tensor`: all of them for a plain tensor."""
    if not isinstance(tensor, DTensor):
        return world
    if any(placement.is_partial() for placement in tensor.placements):
        raise ValueError("a partial sum has no norm yet: reduce it first")
    return world // prod(tensor.device_mesh.size(axis) for axis, _ in cuts(tensor))


def norm2(gradients: Iterable[Tensor], world: int = 1) -> Tensor:
    """This rank's share [scalar, float64] of the squared norm of all `gradients`."""
    by_copies: dict[int, list[Tensor]] = {}
    total: Tensor | None = None
    for gradient in gradients:
        by_copies.setdefault(copies(gradient, world), []).append(local(gradient))
    for shared, tensors in by_copies.items():
        norms = [torch.linalg.vector_norm(tensor, dtype=torch.float64) for tensor in tensors if tensor.numel()]
        if norms:
            mine = torch.stack(norms).square().sum() / shared
            total = mine if total is None else total + mine
    return total if total is not None else torch.zeros((), dtype=torch.float64)
