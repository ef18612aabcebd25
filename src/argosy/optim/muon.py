"""Muon: momentum whose matrices are made orthogonal by Newton-Schulz before they are applied.

In: named matrices with gradients, plain or sharded (DTensor), and the group of ranks that hold the same model. Each rank
keeps the momentum of its own shard. A matrix is orthogonalised whole, by one rank of the group, and handed to the others:
without that split the iterations would cost every rank what they cost one.
Sources: Jordan et al., "Muon", 2024; the scale that gives AdamW's usual update size: Liu et al., "Muon is scalable",
2025, section 2.2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import sqrt

import torch
import torch.distributed as dist
from torch import Tensor

from argosy.device.shards import alike_shard, box, local, slices, whole, zeros
from argosy.device.torch_versions import gather_into, interpolate_all, multiply_all

QUINTIC = (3.4445, -4.7750, 2.0315)  # Jordan's: steepest at zero, so that few iterations do


def orthogonalise(matrices: Tensor, iterations: int) -> Tensor:
    """The nearest (semi-)orthogonal matrix of each of `matrices` [n, a, b], roughly, in their type: U V' of U S V'.

    Singular values end between about 0.7 and 1.2, which serves as well as 1 (Jordan et al.).
    """
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    # The Frobenius norm bounds the largest singular value, as the iteration needs.
    size = torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True, dtype=torch.promote_types(x.dtype, torch.float32))
    x = x / size.clamp(min=1e-7).to(x.dtype)
    a, b, c = QUINTIC
    for _ in range(iterations):
        gram = torch.bmm(x, x.mT)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


def owners(shapes: Sequence[torch.Size], ranks: int) -> list[int]:
    """Which of `ranks` orthogonalises each matrix: the dearest first, each to whom has least so far. Pure."""
    cost = [2 * min(s) ** 2 * max(s) + min(s) ** 3 for s in shapes]
    found, load = [0] * len(shapes), [0] * ranks
    for index in sorted(range(len(shapes)), key=lambda i: (-cost[i], i)):
        found[index] = load.index(min(load))
        load[found[index]] += cost[index]
    return found


class Muon:
    """The update of a set of matrices. State: one momentum per matrix, there from the start."""

    def __init__(
        self, parameters: Mapping[str, Tensor], *, momentum: float, iterations: int, weight_decay: float,
        kind: torch.dtype, group: dist.ProcessGroup | None = None, rates: Mapping[str, float] | None = None,
    ):  # fmt: skip
        """`kind` is the type of the iterations (the device's fast one); `group` shares them out.

        `rates`, by name: the share of the learning rate that a matrix takes, left out: all of it. Its decay takes all of it.
        """
        self.parameters = dict(parameters)
        self.rates = dict.fromkeys(self.parameters, 1.0) | dict(rates or {})
        self.momentum, self.iterations, self.weight_decay, self.kind = momentum, iterations, weight_decay, kind
        self.state = {name: zeros(parameter) for name, parameter in self.parameters.items()}
        self.group = group if group is not None and dist.get_world_size(group) > 1 else None
        ranks = dist.get_world_size(self.group) if self.group else 1
        self.rank = dist.get_rank(self.group) if self.group else 0
        self.owners = owners([parameter.shape for parameter in self.parameters.values()], ranks)

    @torch.no_grad()
    def step(self, lr: float, good: Tensor | None = None) -> None:
        """Apply the gradients with learning rate `lr`; change nothing where `good`, a scalar on the device, is false.

        With a group or shards: every rank must call.
        """
        updates = self._orthogonal(self._nesterov(good))
        own = [local(parameter.detach()) for parameter in self.parameters.values()]
        if self.weight_decay:
            one = torch.ones((), dtype=torch.float64, device=own[0].device)
            decay = 1 - lr * self.weight_decay
            multiply_all(own, decay if good is None else torch.where(good, one.new_full((), decay), one))
        for (name, parameter), target, update in zip(self.parameters.items(), own, updates, strict=True):
            scale = 0.2 * sqrt(max(parameter.shape)) * self.rates[name]
            mine = update[slices(box(parameter))].to(target.dtype)
            if good is not None:
                mine = torch.where(good, mine, 0.0)
            target.add_(mine, alpha=-lr * scale)

    def named_state(self) -> dict[str, Tensor]:
        """The momentum of each matrix: "optim.<matrix>.momentum"."""
        return {f"optim.{name}.momentum": momentum for name, momentum in self.state.items()}

    def load_count(self, updates: int) -> None:
        """Nothing here depends on how many updates there were."""

    def _nesterov(self, good: Tensor | None) -> list[Tensor]:
        """Momentum's look-ahead of every matrix, sharded as the parameters are."""
        gradients = []
        for name, parameter in self.parameters.items():
            if parameter.grad is None:
                raise RuntimeError(f"{name} has no gradient")
            gradients.append(parameter.grad)
        momenta = list(self.state.values())
        held, towards = [local(m) for m in momenta], [local(g) for g in gradients]
        if good is None:
            interpolate_all(held, towards, 1 - self.momentum)
        else:  # one by one: no second copy of all momenta stands for the sake of a step that may be none
            for old, gradient in zip(held, towards, strict=True):
                old.copy_(torch.where(good, torch.lerp(old, gradient, 1 - self.momentum), old))
        ahead = [torch.lerp(gradient, m, self.momentum) for gradient, m in zip(towards, held, strict=True)]
        # Not by an operator on the sharded ones: what is gathered later lies over the parameters' own mesh.
        return [alike_shard(own, like) for own, like in zip(ahead, self.parameters.values(), strict=True)]

    def _orthogonal(self, updates: list[Tensor]) -> list[Tensor]:
        """Every matrix whole and orthogonal, whoever computed it."""
        gathered = [whole(update).to(self.kind) for update in updates]
        mine = [index for index, owner in enumerate(self.owners) if owner == self.rank]
        by_shape: dict[torch.Size, list[int]] = {}
        for index in mine:
            by_shape.setdefault(gathered[index].shape, []).append(index)
        for indices in by_shape.values():
            made = orthogonalise(torch.stack([gathered[index] for index in indices]), self.iterations)
            for index, matrix in zip(indices, made.unbind(), strict=True):
                gathered[index] = matrix
        return self._exchanged(gathered) if self.group else gathered

    def _exchanged(self, matrices: list[Tensor]) -> list[Tensor]:
        """Each matrix as its owner has it: one all-gather of everything, padded to the largest share."""
        ranks = dist.get_world_size(self.group)
        held = [[i for i, owner in enumerate(self.owners) if owner == rank] for rank in range(ranks)]
        longest = max(sum(matrices[i].numel() for i in indices) for indices in held)
        send = matrices[0].new_zeros(longest)
        flat = [matrices[i].reshape(-1) for i in held[self.rank]]
        if flat:
            torch.cat(flat, out=send[: sum(map(len, flat))])
        received = send.new_empty(ranks * longest)
        # As bytes: gloo knows fewer types than torch.
        gather_into(received.view(torch.uint8), send.view(torch.uint8), self.group)
        found = list(matrices)
        for rank, indices in enumerate(held):
            at = rank * longest
            for i in indices:
                found[i] = received[at : at + matrices[i].numel()].view(matrices[i].shape)
                at += matrices[i].numel()
        return found
