"""What this rank holds of a tensor that may be sharded (DTensor): its own memory and where it lies in the whole."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Shard

from argosy.layout.placement import Box, cut


def local(tensor: Tensor) -> Tensor:
    """This rank's own memory of `tensor`: the tensor itself where it is not sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """All of `tensor`, gathered where it is sharded: a collective over its mesh, so every rank of it must call."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def box(tensor: Tensor) -> Box:
    """The part of the whole of `tensor` that this rank holds; everything where it is not sharded.

    Empty for a rank outside of its mesh. TypeError for a placement that is neither a plain shard nor a replica.
    """
    begin, end = [0] * tensor.ndim, list(tensor.shape)
    if not isinstance(tensor, DTensor):
        return tuple(begin), tuple(end)
    place = tensor.device_mesh.get_coordinate()
    if place is None:
        return tuple(begin), tuple(begin)
    for axis, placement in enumerate(tensor.placements):
        if type(placement) is Shard:
            dim = placement.dim % tensor.ndim
            first, last = cut(end[dim] - begin[dim], tensor.device_mesh.size(axis), place[axis])
            begin[dim], end[dim] = begin[dim] + first, begin[dim] + last
        elif not placement.is_replicate():
            raise TypeError(f"{placement} is neither a plain shard nor a replica")
    return tuple(begin), tuple(end)


def slices(held: Box) -> tuple[slice, ...]:
    """`held` (from `box`) as an index into the whole."""
    return tuple(slice(begin, end) for begin, end in zip(*held, strict=True))


def zeros(like: Tensor) -> Tensor:
    """A tensor of zeros with the shape, type and sharding of `like`."""
    return torch.zeros_like(like, requires_grad=False)
