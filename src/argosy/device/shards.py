"""What this rank holds of a tensor that may be sharded (DTensor): its own memory and where it lies in the whole."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from argosy.device.torch_versions import cut_dim, cut_last, gather_into
from argosy.layout.placement import Box, cut, extent


def local(tensor: Tensor) -> Tensor:
    """This rank's own memory of `tensor`: the tensor itself where it is not sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def cuts(tensor: Tensor) -> list[tuple[int, int]]:
    """(mesh axis, dimension) of every cut of `tensor`, in the order in which they were made; none where it is whole.

    An axis that cuts the same dimension as one to its right, but after it, says so: where ranks share a matrix and others
    share what each of them holds, the inner axis cuts first. TypeError for a placement that is neither cut nor copy.
    """
    if not isinstance(tensor, DTensor):
        return []
    first: list[tuple[int, int]] = []
    later: list[tuple[int, int]] = []
    for axis, placement in enumerate(tensor.placements):
        dim = cut_dim(placement)
        if dim is not None:
            (later if cut_last(placement) else first).append((axis, dim % tensor.ndim))
        elif not placement.is_replicate():
            raise TypeError(f"{placement} is neither a shard nor a replica")
    return first + later


def copies(tensor: Tensor, ranks: int) -> int:
    """How many of `ranks` hold the same elements of `tensor`: all of them for a plain tensor."""
    if not isinstance(tensor, DTensor):
        return ranks
    if any(placement.is_partial() for placement in tensor.placements):
        raise ValueError("a partial sum has no norm yet: reduce it first")
    return ranks // prod(tensor.device_mesh.size(axis) for axis, _ in cuts(tensor))


def box(tensor: Tensor) -> Box:
    """The part of the whole of `tensor` that this rank holds; everything where it is not sharded.

    Empty for a rank outside of its mesh. TypeError for a placement that is neither a shard nor a replica.
    """
    if isinstance(tensor, DTensor) and tensor.device_mesh.get_coordinate() is None:
        return (0,) * tensor.ndim, (0,) * tensor.ndim
    return _boxes(tensor)[-1]


def _boxes(tensor: Tensor) -> list[Box]:
    """What this rank holds of the whole before the first cut, after it, and so on."""
    begin, end = [0] * tensor.ndim, list(tensor.shape)
    found: list[Box] = [(tuple(begin), tuple(end))]
    for axis, dim in cuts(tensor):
        assert isinstance(tensor, DTensor)
        place = tensor.device_mesh.get_coordinate() or [0] * (axis + 1)
        first, last = cut(end[dim] - begin[dim], tensor.device_mesh.size(axis), place[axis])
        begin[dim], end[dim] = begin[dim] + first, begin[dim] + last
        found.append((tuple(begin), tuple(end)))
    return found


@torch.no_grad()
def whole(tensor: Tensor) -> Tensor:
    """All of `tensor`, gathered where it is sharded: a collective over its mesh, so every rank of it must call.

    Cut by cut, the last one first, whichever way the axes are nested and whether or not the sizes divide.
    """
    if not isinstance(tensor, DTensor):
        return tensor
    held, boxes = tensor.to_local().detach(), _boxes(tensor)
    for level, (axis, dim) in reversed(list(enumerate(cuts(tensor)))):
        ranks, length = tensor.device_mesh.size(axis), extent(boxes[level])[dim]
        share = -(-length // ranks)
        lines = held.movedim(dim, 0)
        send = lines.new_zeros(share, *lines.shape[1:])
        send[: lines.shape[0]].copy_(lines)
        received = send.new_empty(ranks * share, *lines.shape[1:])
        if send.numel():
            # As bytes: gloo knows fewer types than torch.
            flat = (received.view(-1).view(torch.uint8), send.view(-1).view(torch.uint8))
            gather_into(*flat, tensor.device_mesh.get_group(axis))
        held = received[:length].movedim(0, dim).contiguous()
    return held


def alike_shard(own: Tensor, like: Tensor) -> Tensor:
    """`own` as this rank's part of a tensor that is sharded as `like`; `own` itself where that is whole."""
    if not isinstance(like, DTensor):
        return own
    return DTensor.from_local(
        own, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
    )


def slices(held: Box) -> tuple[slice, ...]:
    """`held` (from `box`) as an index into the whole."""
    return tuple(slice(begin, end) for begin, end in zip(*held, strict=True))


def zeros(like: Tensor) -> Tensor:
    """A tensor of zeros with the shape, type and sharding of `like`."""
    return alike_shard(torch.zeros_like(local(like), requires_grad=False), like)
