"""All dimensions of a layout applied to one model, in one order: compile, then data.

The order is fixed, because each step sees what the one before made: a block is compiled as itself, then sharded, so that the
gathering of its weights stays outside the compiled code. Later dimensions are added to this list and nowhere else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from argosy.errors import BUG, Refused
from argosy.parallel.data import Replicated, Sharded
from argosy.parallel.execute import Whole
from argosy.parallel.mesh import Mesh


@dataclass
class Applied:
    """A model ready to train: its outermost module, and how its gradients become one."""

    whole: Whole
    data: Replicated | Sharded
    order: tuple[str, ...]  # what was applied, as printed

    def named(self) -> dict[str, nn.Parameter]:
        """Trainable parameters by global name; names know no wrapper."""
        return {
            name.removeprefix("model."): parameter
            for name, parameter in self.whole.named_parameters()
            if parameter.requires_grad
        }

    def check_gradients(self) -> None:
        """After the first step: every trainable parameter has a gradient. Refused with the names of those without."""
        names = list(self.named())
        missing = [names[index] for index in self.data.without_gradient()]
        if missing:
            shown = ", ".join(missing[:4]) + (f" and {len(missing) - 4} more" if len(missing) > 4 else "")
            raise Refused(
                f"{len(missing)} of {len(names)} trainable parameters got no gradient in the first step: {shown}.",
                do="Use them in the forward pass, or set requires_grad = False on them.",
                code=BUG,
            )


def compile_units(units: Sequence[nn.Module]) -> None:
    """Compile the forward pass of each unit by itself, for fixed shapes; equal units share one graph."""
    for unit in units:
        # The instance's method is replaced, not the module wrapped: names stay, and hooks run outside the compiled code.
        object.__setattr__(unit, "forward", torch.compile(unit.forward, dynamic=False, fullgraph=True))


def shard(
    model: nn.Module,
    units: Sequence[nn.Module],
    mesh: Mesh,
    *,
    zero: int = 2,
    compile: bool = False,
    compute: torch.dtype | None = None,
    reduce: torch.dtype | None = None,
) -> Applied:
    """Make `model` trainable on `mesh`: its `units` (blocks) are compiled and sharded each by itself.

    A model on `meta` is sharded without weights; `materialise` and first weights come after this call. Gradient buffers of a
    replicated model are made by `materialise`, since they need real parameters.
    """
    order = []
    if compile:
        compile_units(units)
        order.append(f"compile {len(units)} units")
    whole = Whole(model)
    data: Replicated | Sharded
    if mesh.shard is not None:
        data = Sharded(whole, units, mesh, zero, compute=compute, reduce=reduce)
        order.append(f"shard over {mesh.layout.dp_shard} (ZeRO-{zero})")
        if mesh.replicate is not None:
            order.append(f"replicate {mesh.layout.dp_replicate} times")
    else:
        data = Replicated((), mesh.data, reduce)
        if mesh.data is not None:
            order.append(f"replicate {mesh.layout.dp_replicate} times")
    return Applied(whole, data, tuple(order))


def materialise(applied: Applied, device: torch.device) -> None:
    """Give a model on `meta` its memory (contents undefined), and a replicated one its gradient buffers."""
    if any(parameter.is_meta for parameter in applied.whole.parameters()):
        applied.whole.to_empty(device=device)
    if isinstance(applied.data, Replicated):
        applied.data = Replicated(applied.whole.parameters(), applied.data.group, applied.data.reduce)
