"""A tensor plan for a model that states none, read off one forward pass; and the model shared out by it.

Two rules (after Tan et al., "Redco", 2023, section 3, which states them for feed-forward and attention by name; here the
order in which a module runs its linear maps says the same for any name):

1. Of the linear maps of one module (queries, keys, values, output; up, down) the last to run writes the result and is cut along
   its inputs, as a sum over ranks; the others are cut along their outputs, so that each rank makes heads or hidden units.
2. A linear map alone in its module (a head) is cut along its outputs, and a table with as many rows (the vocabulary) along its
   rows.

Inside such a module everything is a DTensor: the collective between two placements follows from them. Outside it all is as
before, and whole on every rank. Knows modules, nothing of their meaning: attention must run as plain operators ("eager" in
transformers).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.experimental import implicit_replication

from argosy.device.shards import local
from argosy.errors import Refused
from argosy.model.layers import lookup

OUTPUTS, INPUTS = 0, 1  # dimensions of a linear map's weight [out, in]


@dataclass(frozen=True)
class Plan:
    """Which dimension of each weight is cut: `parts`, module -> {linear map, in it or itself: dimension}; `tables` by rows."""

    parts: Mapping[str, Mapping[str, int]]
    tables: tuple[str, ...]

    def lines(self) -> list[str]:
        """The plan as a person reads it."""
        words = {OUTPUTS: "outputs", INPUTS: "inputs"}
        found = [f"{name}: {words[dim]}" for linears in self.parts.values() for name, dim in linears.items()]
        return found + [f"{name}: rows" for name in self.tables]


@dataclass(frozen=True)
class Shared:
    """A model after `share`: bytes of its parameters in all and on this rank, and its backward pass."""

    model: nn.Module
    bytes: int
    own: int

    def backward(self, loss: Tensor) -> None:
        """The gradients of `loss`, added to those there are: sums over ranks, cut as their parameters are."""
        with implicit_replication():  # constants that the model made, masks for instance, are whole on every rank
            loss.backward()
        for parameter in self.model.parameters():
            gradient = parameter.grad
            if isinstance(parameter, DTensor) and isinstance(gradient, DTensor):
                parameter.grad = gradient.redistribute(placements=parameter.placements)


def derive(model: nn.Module, forward: Callable[[nn.Module], Any]) -> Plan:
    """The plan for `model`. `forward(model)` runs it once, on whatever input; the order of its linear maps is all that counts.

    Refused where no linear map runs.
    """
    ran: list[str] = []

    def note(name: str) -> Callable[..., None]:
        """A hook that writes down that the module `name` ran."""
        return lambda *_: ran.append(name)

    linears = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    watch = [module.register_forward_hook(note(name)) for name, module in linears.items()]
    try:
        with torch.no_grad():
            forward(model)
    finally:
        for handle in watch:
            handle.remove()
    if not ran:
        raise Refused("no linear map (torch.nn.Linear) runs in this model: there is nothing to share out.")
    together: dict[str, list[str]] = {}
    for name in dict.fromkeys(ran):
        together.setdefault(name.rpartition(".")[0], []).append(name)
    parts: dict[str, dict[str, int]] = {}
    for owner, names in together.items():
        if len(names) == 1:
            parts[names[0]] = {names[0]: OUTPUTS}
        else:
            parts[owner] = {name: INPUTS if name == names[-1] else OUTPUTS for name in names}
    rows = {linears[name].out_features for name in parts if name in linears}
    tables = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding) and module.num_embeddings in rows and module.padding_idx is None
    ]
    return Plan(parts, tuple(tables))


def share(model: nn.Module, plan: Plan, grid: DeviceMesh) -> Shared:
    """Cut the weights of `model`, in place, over the ranks of the one-dimensional `grid`; its modules run on what is left.

    Every rank calls it with the same weights. Refused where a size does not divide, by the rule's numbers.
    """
    before = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    cuts: dict[int, int] = {}
    inside: set[int] = set()
    for owner, linears in plan.parts.items():
        inside |= {id(parameter) for parameter in model.get_submodule(owner).parameters()}
        for name, dim in linears.items():
            linear = model.get_submodule(name)
            assert isinstance(linear, nn.Linear)
            _divides(name, linear.weight.shape[dim], dim, grid.size(), alone=name == owner)
            cuts[id(linear.weight)] = dim
            if linear.bias is not None and dim == OUTPUTS:
                cuts[id(linear.bias)] = 0
    for name in plan.tables:
        table = model.get_submodule(name)
        assert isinstance(table, nn.Embedding)
        cuts[id(table.weight)] = 0
    _distribute(model, cuts, inside, grid)
    for name in plan.tables:
        _replace_forward(model.get_submodule(name), _table(grid))
    for owner in plan.parts:
        _replace_forward(model.get_submodule(owner), _part(grid))
    own = sum(local(parameter.detach()).numel() * parameter.element_size() for parameter in model.parameters())
    return Shared(model, before, own)


def _divides(name: str, size: int, dim: int, ranks: int, alone: bool) -> None:
    if size % ranks and not alone:
        raise Refused(
            f"{name}: its {size} {'outputs' if dim == OUTPUTS else 'inputs'} do not divide by {ranks} ranks.",
            do="Share the model over a number of ranks that divides them.",
        )


def _distribute(model: nn.Module, cuts: Mapping[int, int], inside: set[int], grid: DeviceMesh) -> None:
    """Make DTensors of the parameters in `cuts` and `inside` (by id); a parameter in two places stays one."""
    made: dict[int, tuple[nn.Parameter, nn.Parameter]] = {}  # the old one is kept, so that no other gets its id
    for module in model.modules():
        for word, parameter in list(module.named_parameters(recurse=False)):
            if id(parameter) in made:
                module.register_parameter(word, made[id(parameter)][1])
            elif id(parameter) in cuts or id(parameter) in inside:
                dim = cuts.get(id(parameter))
                placement = Replicate() if dim is None else Shard(dim)
                split = distribute_tensor(parameter.detach(), grid, [placement], src_data_rank=None)
                new = nn.Parameter(split, requires_grad=parameter.requires_grad)
                made[id(parameter)] = (parameter, new)
                module.register_parameter(word, new)


def _replace_forward(module: nn.Module, wrap: Callable[[nn.Module, Callable[..., Any]], Callable[..., Any]]) -> None:
    object.__setattr__(module, "forward", wrap(module, module.forward))


def _table(grid: DeviceMesh) -> Callable[[nn.Module, Callable[..., Any]], Callable[..., Any]]:
    """An embedding of which this rank has some rows: those it finds, summed over ranks."""

    def wrapped(module: nn.Module, _: Callable[..., Any]) -> Callable[..., Any]:
        """The forward pass that takes the place of the embedding's own."""

        def forward(ids: Tensor) -> Tensor:
            """Rows of `ids`, whole."""
            weight = module.weight
            assert isinstance(weight, Tensor)
            return _whole(DTensor.from_local(lookup(ids, weight), grid, (Partial(),), run_check=False))

        return forward

    return wrapped


def _part(grid: DeviceMesh) -> Callable[[nn.Module, Callable[..., Any]], Callable[..., Any]]:
    """A module inside which every tensor is a DTensor: whole tensors go in and come out."""

    def wrapped(_: nn.Module, original: Callable[..., Any]) -> Callable[..., Any]:
        """The `original` forward pass over DTensors."""

        def forward(*arguments: Any, **named: Any) -> Any:
            """What `original` makes of whole tensors, whole."""

            def entered(x: Tensor) -> Tensor:
                """A whole tensor that all ranks have alike."""
                return DTensor.from_local(x, grid, (Replicate(),), run_check=False)

            with implicit_replication():
                found = original(*_mapped(arguments, entered), **_mapped(named, entered))
            return _mapped(found, _whole)

        return forward

    return wrapped


def _whole(x: Tensor) -> Tensor:
    """All of x as a plain tensor."""
    if not isinstance(x, DTensor):
        return x
    return x.redistribute(placements=(Replicate(),)).to_local(grad_placements=(Replicate(),))


def _mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """`value` with every tensor in it changed, in tuples, lists and dictionaries."""
    if isinstance(value, Tensor):
        return change(value)
    if type(value) in (tuple, list):
        return type(value)(_mapped(each, change) for each in value)
    if type(value) is dict:
        return {name: _mapped(each, change) for name, each in value.items()}
    return value
