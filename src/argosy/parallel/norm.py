"""A rank's share of the squared gradient norm, copies counted: one sum over all ranks is the norm of the whole gradient.

Over any mix of meshes: each rank adds what it holds, divided by how many ranks hold the same numbers. Knows tensors only.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from argosy.device.shards import copies, local


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
