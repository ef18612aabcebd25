"""What this rank holds of a tensor that may be sharded (DTensor): its own memory and where it lies in the whole."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Shard


def local(tensor: Tensor) -> Tensor:
    """This rank's own memory of `tensor`: the tensor itself where it is not sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """All of `tensor`, gathered where it is sharded: a collective over its mesh, so every rank of it must call."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def box(tensor: Tensor) -> list[range]:
    """The global indices, by dimension, of what this rank holds of `tensor`; everything where it is not sharded.

    torch.chunk's rule, also for sizes that do not divide: every rank but the last ones holds the same number, rounded up.
    TypeError for a placement that is neither a plain shard nor a replica.
    """
    held = [range(size) for size in tensor.shape]
    if not isinstance(tensor, DTensor):
        return held
    place = tensor.device_mesh.get_coordinate()
    for axis, placement in enumerate(tensor.placements):
        if type(placement) is Shard and place is not None:
            outer = held[placement.dim]
            share = -(-len(outer) // tensor.device_mesh.size(axis))
            held[placement.dim] = outer[place[axis] * share : (place[axis] + 1) * share]
        elif not placement.is_replicate():
            raise TypeError(f"{placement} is neither a plain shard nor a replica")
    return held


def slices(held: list[range]) -> tuple[slice, ...]:
    """`held` (from `box`) as an index into the whole."""
    return tuple(slice(indices.start, indices.stop) for indices in held)


def zeros(like: Tensor) -> Tensor:
    """A tensor of zeros with the shape, type and sharding of `like`."""
    return torch.zeros_like(like, requires_grad=False)
