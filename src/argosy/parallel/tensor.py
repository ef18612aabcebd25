"""Tensor and sequence parallelism: the ranks along tp share every matrix of a layer, and between layers the sequence.

In: a decoder on `meta` and a mesh. Out: the same decoder, whose matrices are DTensors cut as `model/placements.py` says, and
whose joints move activations. Which collective a joint needs follows from the placements on its two sides: from a part of the
sequence to all of it (all-gather; backward reduce-scatter), from shares of a sum to a part of the sequence (the reverse). A
block needs two of each, MegaScale's parallel block one of each. Where the sequence is whole on every rank: nothing forward and
an all-reduce backward, and the reverse.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard, distribute_tensor

from argosy.errors import Refused
from argosy.layout.placement import cut
from argosy.model import placements
from argosy.model.decoder import Attention, Block, Decoder
from argosy.parallel.data import Summed
from argosy.parallel.mesh import Mesh

WHOLE, SHARES, SEQUENCE = Replicate(), Partial(), Shard(1)  # of activations [B, S, ...] over the tensor ranks


class Ranks:
    """What the joints of this rank do. Every method is a `Joint.move`: (activations, tokens of the whole sequence)."""

    def __init__(self, grid: DeviceMesh, sequence: bool):
        self.grid, self.sequence = grid, sequence
        self.size, self.rank = grid.size(), grid.get_local_rank()
        self.between = SEQUENCE if sequence else WHOLE  # how activations lie between layers
        # One object each: a compiled block asks whether its joints still do what they did.
        self.whole, self.own, self.part = self._whole, self._own, self._part
        self.average, self.every = self._average, self._every

    def _whole(self, x: Tensor, length: int) -> Tensor:
        """From how activations lie between layers to all tokens, whose gradient comes back as shares of a sum."""
        return self._moved(x, self.between, WHOLE, (x.shape[0], length, *x.shape[2:]), SHARES)

    def _own(self, x: Tensor, length: int) -> Tensor:
        """From shares of a sum to the sum, as activations lie between layers."""
        return self._moved(x, SHARES, self.between, x.shape, self.between)

    def _part(self, x: Tensor, length: int) -> Tensor:
        """This rank's tokens of integers [B, S, ...] that every rank has whole."""
        if not self.sequence:
            return x
        begin, end = cut(length, self.size, self.rank)
        return x[:, begin:end]

    def _average(self, x: Tensor, length: int) -> Tensor:
        """The mean of what the ranks hold, which each of them uses: both ways an all-reduce."""
        summed = self._moved(x, SHARES, WHOLE, x.shape, WHOLE)
        return self._moved(summed, WHOLE, WHOLE, x.shape, SHARES) / self.size

    def _every(self, x: Tensor, size: int) -> Tensor:
        """The last dimension, of which the ranks hold parts, whole."""
        last = Shard(x.ndim - 1)
        return self._moved(x, last, WHOLE, (*x.shape[:-1], size), WHOLE)

    def _moved(self, x: Tensor, begin: Placement, end: Placement, shape: tuple[int, ...], back: Placement) -> Tensor:
        """X from `begin` to `end`, where the whole of it has `shape`; `back`: how its gradient lies when it comes back."""
        stride = [1]
        for size in reversed(shape[1:]):
            stride.insert(0, stride[0] * size)
        whole = DTensor.from_local(
            x, self.grid, (begin,), run_check=False, shape=torch.Size(shape), stride=tuple(stride)
        )
        return whole.redistribute(placements=(end,)).to_local(grad_placements=(back,))


def shard(decoder: Decoder, mesh: Mesh, *, sequence: bool = True) -> Summed | None:
    """Share the layers of `decoder`, in place, over the tensor ranks of `mesh`; None where there is one.

    Before anything compiles or shards its blocks. `sequence`: activations between layers are shared out too. Gives the
    parameters whose gradients have to be summed over these ranks. Refused where the query heads do not divide.
    """
    grid, group = mesh.tensor(), mesh.tp
    if grid is None or group is None:
        return None
    ranks, summed = Ranks(grid, sequence), set()
    for owner, module in decoder.named_modules():
        block = decoder.shapes[int(owner.split(".")[1])] if owner.startswith("blocks.") else None
        for word, parameter in list(module.named_parameters(recurse=False)):
            name = f"{owner}.{word}"
            dim = placements.cut(name, block, ranks.size)
            if dim is not None:
                split = distribute_tensor(parameter.detach(), grid, [Shard(dim)], src_data_rank=None)
                module.register_parameter(word, nn.Parameter(split, requires_grad=parameter.requires_grad))
            elif sequence or not placements.matches(name, placements.PER_TOKEN):
                summed.add(name)
        if isinstance(module, Block):
            _share_block(owner, module, ranks)
    for word in ("whole", "own", "part", "every"):
        getattr(decoder, word).move = getattr(ranks, word)
    return Summed(group, frozenset(summed))


def _share_block(name: str, block: Block, ranks: Ranks) -> None:
    """Set the joints of one block, and what its parts must know of this rank."""
    attention: Attention = block.attention
    if attention.heads % ranks.size:
        raise Refused(
            f"{name}: {attention.heads} query heads do not divide by tp {ranks.size}.",
            do="Name a tp that divides them, or another number of heads (model.block.heads).",
        )
    block.whole.move, block.own.move, block.part.move = ranks.whole, ranks.own, ranks.part
    divides = attention.groups % ranks.size == 0
    if not divides:
        attention.used = placements.repeated(attention.heads, attention.groups, ranks.size, ranks.rank)
    if attention.full and attention.query_norm is not None and attention.key_norm is not None:
        attention.query_norm.average.move = ranks.average
        if divides:
            attention.key_norm.average.move = ranks.average
    adds = 1.0 if ranks.rank == 0 else 0.0
    attention.output.share = block.mlp.down.share = adds
