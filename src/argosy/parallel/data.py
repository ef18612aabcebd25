"""Data parallelism: how the gradients of many ranks become one, and who keeps which part of weights and gradients.

`Replicated` keeps everything on every rank and adds gradients up in one flat buffer per type. `Sharded` is `fully_shard` as
ZeRO-1, 2 or 3, over one axis or as a hybrid (replicas of shards). No gradient is ever divided by a number of ranks: the loss is
a sum, scaled by the global count before the backward pass. Knows modules and groups; not what the model computes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from argosy.parallel.mesh import Mesh


class DataParallel(Protocol):
    """What the executor tells data parallelism, in the order of a step."""

    def begin(self) -> None:
        """A step starts: no gradient stands."""

    def micro(self, *, last: bool) -> None:
        """A micro-batch starts; `last` of this step."""

    def finish(self) -> None:
        """All backward passes are done: gradients become the sum over ranks."""

    def settle(self) -> None:
        """A forward pass without a backward one is over: parameters are again what a checkpoint holds."""

    def gradients(self) -> Sequence[Tensor]:
        """The gradients after `finish`, or the buffers that hold them: to measure and to scale in place."""


class Replicated:
    """Every rank holds all; gradients are views into one flat buffer per type, summed over `group` after the last backward.

    One large all-reduce per type: at laptop size faster than many overlapped ones, which would take the cores from the
    backward pass. `reduce` is the type in which the sum over ranks is made; None keeps the gradients' own.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        group: dist.ProcessGroup | None = None,
        reduce: torch.dtype | None = None,
    ):
        self.group, self.reduce = group, reduce
        self.flat: list[Tensor] = []
        self.parameters = [parameter for parameter in parameters if parameter.requires_grad]
        self._took_part: set[int] = set()
        self._watch: list[torch.utils.hooks.RemovableHandle] = []
        by_type: dict[tuple[torch.dtype, torch.device], list[nn.Parameter]] = {}
        for parameter in self.parameters:
            by_type.setdefault((parameter.dtype, parameter.device), []).append(parameter)
            self._watch.append(parameter.register_post_accumulate_grad_hook(self._note))
        for (dtype, device), members in by_type.items():
            flat = torch.zeros(sum(parameter.numel() for parameter in members), dtype=dtype, device=device)
            begin = 0
            for parameter in members:
                end = begin + parameter.numel()
                parameter.grad = flat[begin:end].view_as(parameter)
                begin = end
            self.flat.append(flat)

    def begin(self) -> None:
        """Zero all gradients, in place: they stay views of the flat buffers."""
        for flat in self.flat:
            flat.zero_()

    def micro(self, *, last: bool) -> None:
        """Nothing to do: gradients add up in their buffers."""

    def finish(self) -> None:
        """Sum the buffers over the ranks."""
        if self.group is None:
            return
        for flat in self.flat:
            if self.reduce is None or self.reduce == flat.dtype:
                dist.all_reduce(flat, group=self.group)
            else:
                wide = flat.to(self.reduce)
                dist.all_reduce(wide, group=self.group)
                flat.copy_(wide)

    def settle(self) -> None:
        """Nothing to do: parameters are always whole."""

    def gradients(self) -> Sequence[Tensor]:
        """The flat buffers."""
        return self.flat

    def without_gradient(self) -> list[int]:
        """Indices of parameters that no backward pass has reached so far. Asked once: watching ends with it."""
        for handle in self._watch:
            handle.remove()
        return [index for index, parameter in enumerate(self.parameters) if id(parameter) not in self._took_part]

    def _note(self, parameter: Tensor) -> None:
        self._took_part.add(id(parameter))


class Sharded:
    """`fully_shard` as ZeRO stage 1, 2 or 3 over `mesh.shard`, replicated over `mesh.replicate` where there is one.

    Stage 1 keeps whole gradients until the last micro-batch, stage 2 sums them into shards after each, stage 3 also gives the
    whole weights back after each block's forward pass. A divide factor set on the root
    alone is wrong in silence, so it is set on every module.
    """

    def __init__(
        self,
        root: nn.Module,
        units: Iterable[nn.Module],
        mesh: Mesh,
        stage: int,
        *,
        compute: torch.dtype | None = None,
        reduce: torch.dtype | None = None,
    ):
        if stage not in (1, 2, 3):
            raise ValueError(f"ZeRO stage {stage}")
        grid = mesh.grid()
        if grid is None:
            raise ValueError("nothing to shard over: dp_shard is 1")
        self.stage = stage
        policy = MixedPrecisionPolicy(param_dtype=compute, reduce_dtype=reduce, cast_forward_inputs=False)
        for unit in units:
            fully_shard(unit, mesh=grid, reshard_after_forward=stage == 3, mp_policy=policy)
        fully_shard(root, mesh=grid, reshard_after_forward=stage == 3, mp_policy=policy)
        self.modules = [module for module in root.modules() if isinstance(module, FSDPModule)]
        self.root = self.modules[0]
        for module in self.modules:
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
        self._trained = root

    def begin(self) -> None:
        """Drop all gradients."""
        for parameter in self._trained.parameters():
            parameter.grad = None

    def micro(self, *, last: bool) -> None:
        """Say whether this backward pass sums gradients over ranks and gives whole weights back."""
        self.root.set_requires_gradient_sync(last or self.stage > 1)
        self.root.set_is_last_backward(last)
        self.root.set_reshard_after_backward(last or self.stage == 3)

    def finish(self) -> None:
        """Nothing to do: the backward pass has summed."""

    def settle(self) -> None:
        """Give whole weights back: after a forward pass alone they would still stand in the modules."""
        for module in self.modules:
            module.reshard()

    def gradients(self) -> Sequence[Tensor]:
        """The shards of all gradients."""
        return [parameter.grad for parameter in self._trained.parameters() if parameter.grad is not None]

    def without_gradient(self) -> list[int]:
        """Indices, among the trainable parameters, of those that have no gradient after a step."""
        trained = [parameter for parameter in self._trained.parameters() if parameter.requires_grad]
        return [index for index, parameter in enumerate(trained) if parameter.grad is None]
