"""Data parallelism: how the gradients of many ranks become one, and who keeps which part of weights and gradients.

`Replicated` keeps everything on every rank and adds gradients up in one flat buffer per type. `Sharded` is `fully_shard` as
ZeRO-1, 2 or 3, over one axis or as a hybrid (replicas of shards). No gradient is ever divided by a number of ranks: the loss is
a sum, scaled by the global count before the backward pass. Knows modules and groups; not what the model computes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Shard

from argosy.device.shards import alike_shard, local
from argosy.device.torch_versions import partial_sums, reshard_over
from argosy.parallel.mesh import Mesh


class DataParallel(Protocol):
    """What the executor tells data parallelism, in the order of a step."""

    def begin(self) -> None:
        """A step starts: no gradient stands."""

    def micro(self, *, last: bool) -> None:
        """A micro-batch starts; `last` of this step."""

    def ends(self, units: Iterable[nn.Module]) -> None:
        """The backward pass that comes is the last one of this step that goes through `units`, which others may follow."""

    def finish(self) -> None:
        """All backward passes are done: gradients become the sum over ranks."""

    def settle(self) -> None:
        """A forward pass without a backward one is over: parameters are again what a checkpoint holds."""

    def gradients(self) -> Sequence[Tensor]:
        """The gradients after `finish`, or the buffers that hold them: to measure and to scale in place."""


@dataclass(frozen=True)
class Summed:
    """Parameters that each rank of `group` holds whole, while the backward pass leaves it a share of their gradient only.

    Norms see a part of the tokens, or of the heads; one rank adds the output biases. They are small: their sum is one
    all-reduce of all of them together, after the last backward pass and after whatever data parallelism did with them.
    """

    group: dist.ProcessGroup
    names: frozenset[str]

    @torch.no_grad()
    def __call__(self, gradients: Mapping[str, Tensor], kind: torch.dtype | None = None) -> None:
        """Sum those of `gradients` (by name, or shards of them) that are shares, in place; in type `kind`."""
        mine = [local(gradient) for name, gradient in gradients.items() if name in self.names]
        if not mine:
            return
        flat = torch.cat([gradient.reshape(-1).to(kind or gradient.dtype) for gradient in mine])
        dist.all_reduce(flat, group=self.group)
        for gradient, summed in zip(mine, flat.split([gradient.numel() for gradient in mine]), strict=True):
            gradient.copy_(summed.view(gradient.shape))


@dataclass(frozen=True)
class Tied:
    """A parameter that the first and the last stage of a pipeline both hold, each with a share of its gradient.

    `group` are those two ranks. Both then make the same update; the gradient is `counted` in the norm on one of them.
    """

    group: dist.ProcessGroup
    name: str
    counted: bool

    @torch.no_grad()
    def __call__(self, gradient: Tensor, kind: torch.dtype | None = None) -> None:
        """Sum `gradient` (or this rank's shard of it) over the two stages, in place; in type `kind`."""
        own = local(gradient)
        wide = own.to(kind or own.dtype).contiguous()
        dist.all_reduce(wide, group=self.group)
        own.copy_(wide)


class Replicated:
    """Every rank of `group` holds the same; gradients are views into flat buffers, summed over it after the last backward.

    One large all-reduce per buffer: at laptop size faster than many overlapped ones, which would take the cores from the
    backward pass. `reduce` is the type in which the sum over ranks is made; None keeps the gradients' own. Parameters that
    tensor ranks share out have buffers of their own, and so have those whose shares `summed` adds up, and a `tied` one.
    """

    def __init__(
        self,
        parameters: Iterable[tuple[str, nn.Parameter]],
        group: dist.ProcessGroup | None = None,
        reduce: torch.dtype | None = None,
        summed: Summed | None = None,
        tied: Tied | None = None,
    ):
        self.group, self.reduce, self.summed, self.tied = group, reduce, summed, tied
        self.flat: list[Tensor] = []
        self._shares: list[Tensor] = []  # those of self.flat that the tensor ranks add up
        self._gradients: list[Tensor] = []
        self._tied: list[Tensor] = []
        named = [(name, parameter) for name, parameter in parameters if parameter.requires_grad]
        self.parameters = [parameter for _, parameter in named]
        self._took_part: set[int] = set()
        self._watch: list[torch.utils.hooks.RemovableHandle] = []
        alike: dict[tuple[torch.dtype, torch.device, DeviceMesh | None, bool, bool], list[nn.Parameter]] = {}
        for name, parameter in named:
            grid = parameter.device_mesh if isinstance(parameter, DTensor) else None
            share = summed is not None and name in summed.names
            both = tied is not None and name == tied.name
            alike.setdefault((parameter.dtype, parameter.device, grid, share, both), []).append(parameter)
            self._watch.append(parameter.register_post_accumulate_grad_hook(self._note))
        for (dtype, device, grid, share, both), members in alike.items():
            own = [local(parameter.detach()) for parameter in members]
            flat = torch.zeros(sum(part.numel() for part in own), dtype=dtype, device=device)
            for parameter, part, view in zip(members, own, flat.split([part.numel() for part in own]), strict=True):
                parameter.grad = alike_shard(view.view_as(part), parameter)
            self.flat.append(flat)
            self._shares += [flat] if share else []
            # Another part on every tensor rank: said in the type, for whoever counts copies.
            whole = flat if grid is None else DTensor.from_local(flat, grid, (Shard(0),), run_check=False)
            self._tied += [flat] if both else []
            if tied is None or tied.counted or not both:
                self._gradients.append(whole)

    def begin(self) -> None:
        """Zero all gradients, in place: they stay views of the flat buffers."""
        for flat in self.flat:
            flat.zero_()

    def micro(self, *, last: bool) -> None:
        """Nothing to do: gradients add up in their buffers."""

    def ends(self, units: Iterable[nn.Module]) -> None:
        """Nothing to do: the sum over ranks is made at the end."""

    def finish(self) -> None:
        """Sum the buffers over the ranks."""
        for flat in self.flat:
            self._sum(flat, self.group)
        if self.summed is not None:
            for flat in self._shares:
                self._sum(flat, self.summed.group)
        if self.tied is not None:
            for flat in self._tied:
                self.tied(flat, self.reduce)

    def _sum(self, flat: Tensor, group: dist.ProcessGroup | None) -> None:
        if group is None:
            return
        if self.reduce is None or self.reduce == flat.dtype:
            dist.all_reduce(flat, group=group)
        else:
            wide = flat.to(self.reduce)
            dist.all_reduce(wide, group=group)
            flat.copy_(wide)

    def settle(self) -> None:
        """Nothing to do: parameters are always whole."""

    def gradients(self) -> Sequence[Tensor]:
        """The flat buffers, but one that is counted elsewhere."""
        return self._gradients

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
    whole weights back after each block's forward pass. Shards are added up over their copies once a step, at the last
    micro-batch. A divide factor set on the root alone is wrong in silence, so it is set on every module. Over weights that
    tensor ranks share out it cuts what is left.
    `compute` is the type in which the weights of `units` are gathered, `ends` that of all others (left out: the same). The
    parameters `kept`, by name, are not sharded: their gradients are added up over all data ranks after the last backward pass.
    `secondary`: under stage 3, between a block's forward and backward pass so many neighbouring ranks keep its weights, and the
    backward pass gathers among them alone (Wang et al., "ZeRO++", 2023, section 3.2).
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
        summed: Summed | None = None,
        tied: Tied | None = None,
        secondary: int = 0,
        ends: torch.dtype | None = None,
        kept: Mapping[str, nn.Parameter] | None = None,
    ):
        if stage not in (1, 2, 3):
            raise ValueError(f"ZeRO stage {stage}")
        grid = mesh.grid()
        if grid is None:
            raise ValueError("nothing to shard over: dp_shard is 1")
        self.stage, self.reduce, self.summed, self.tied = stage, reduce, summed, tied
        own, others = (
            MixedPrecisionPolicy(param_dtype=kind, reduce_dtype=reduce, cast_forward_inputs=False)
            for kind in (compute, ends or compute)
        )
        kept = kept or {}
        self.kept = None if not kept or mesh.data is None else Summed(mesh.data, frozenset(kept))
        ignored, again = set(kept.values()) or None, stage == 3
        for unit in units:
            fully_shard(unit, mesh=grid, reshard_after_forward=again, mp_policy=own, ignored_params=ignored)
        fully_shard(root, mesh=grid, reshard_after_forward=again, mp_policy=others, ignored_params=ignored)
        self.modules = [module for module in root.modules() if isinstance(module, FSDPModule)]
        self.root = self.modules[0]
        self.copied = mesh.replicate is not None
        second = mesh.secondary(secondary)
        for module in self.modules:
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
            if second is not None:
                reshard_over(module, second)
        self._trained = root

    def begin(self) -> None:
        """Drop all gradients."""
        for parameter in self._trained.parameters():
            parameter.grad = None

    def micro(self, *, last: bool) -> None:
        """Say whether this backward pass sums gradients over ranks and gives whole weights back."""
        for module in self.modules:  # torch itself would look through all layers of all blocks for them, three times
            module.set_requires_gradient_sync(last or self.stage > 1, recurse=False)
            if self.copied:
                module.set_requires_all_reduce(last, recurse=False)
            module.set_reshard_after_backward(last or self.stage == 3, recurse=False)
        self.root.set_is_last_backward(last)

    def ends(self, units: Iterable[nn.Module]) -> None:
        """Let the copies of the shards of `units` add them up in the backward pass that comes.

        Where a rank has several stages, most have their last backward pass before the step's last one: a sum over shards that
        stood until then would never be added up over copies, since nothing comes after it.
        """
        if self.copied:
            for unit in units:
                if isinstance(unit, FSDPModule):
                    unit.set_requires_all_reduce(True, recurse=False)

    def finish(self) -> None:
        """The backward pass has summed over the data ranks; what is left are shares of tensor ranks and of another stage."""
        if self.copied and any(partial_sums(module) for module in self.modules):
            raise RuntimeError("a gradient was added up over shards but not over their copies")
        named = ((name.removeprefix("model."), p.grad) for name, p in self._trained.named_parameters())
        gradients = {name: gradient for name, gradient in named if gradient is not None}
        if self.kept is not None:
            self.kept(gradients, self.reduce)
        if self.summed is not None:
            self.summed(gradients, self.reduce)
        if self.tied is not None:
            self.tied(gradients[self.tied.name], self.reduce)

    def settle(self) -> None:
        """Give whole weights back: after a forward pass alone they would still stand in the modules."""
        for module in self.modules:
            module.reshard()

    def gradients(self) -> Sequence[Tensor]:
        """The shards of all gradients, but one that is counted elsewhere."""
        elsewhere = "" if self.tied is None or self.tied.counted else f"model.{self.tied.name}"
        named = self._trained.named_parameters()
        return [p.grad for name, p in named if p.grad is not None and name != elsewhere]

    def without_gradient(self) -> list[int]:
        """Indices, among the trainable parameters, of those that have no gradient after a step."""
        trained = [parameter for parameter in self._trained.parameters() if parameter.requires_grad]
        return [index for index, parameter in enumerate(trained) if parameter.grad is None]
