"""All dimensions of a layout applied to one model, in one order: pipeline, tensor and sequence, recompute, compile, data.

The order is fixed, because each step sees what the one before made: a block is compiled as itself, then sharded, so that the
gathering of its weights stays outside the compiled code. Later dimensions are added to this list and nowhere else.
`shard` takes any module; `decoder` lays out the model of a job, for the worker and for the layout fuzzer alike.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from argosy.device.precision import dtype
from argosy.errors import BUG, Refused
from argosy.job.schema import Job
from argosy.model.decoder import Decoder
from argosy.model.layers import known
from argosy.model.own import decoder_of, own_loss
from argosy.model.precisions import class_of
from argosy.model.weights import initialise
from argosy.parallel import pipeline, tensor
from argosy.parallel import recompute as recomputation
from argosy.parallel.data import Replicated, Sharded, Summed, Tied
from argosy.parallel.execute import Executor, Plain, Whole
from argosy.parallel.links import Links
from argosy.parallel.mesh import Mesh
from argosy.plan import layouts
from argosy.plan.classes import Carried, carried, of_classes


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
    secondary: int = 0,
    recompute: Sequence[str] = (),
    compile: bool = False,
    compute: torch.dtype | None = None,
    reduce: torch.dtype | None = None,
    summed: Summed | None = None,
    tied: Tied | None = None,
    ends: torch.dtype | None = None,
    kept: Collection[str] = (),
) -> Applied:
    """Make `model` trainable on `mesh`: its `units` (blocks) are compiled and sharded each by itself.

    A model on `meta` is sharded without weights; `materialise` and first weights come after this call. Gradient buffers of a
    replicated model are made by `materialise`, which has real parameters. `summed`: what tensor ranks must add up; `tied`:
    what the first and the last stage of a pipeline must. `ends` and `kept`: as `Sharded` has them, `kept` by name.
    """
    order = []
    if mesh.pp is not None:
        order.append(f"pipeline over {mesh.layout.pp}")
    if summed is not None:
        order.append(f"tensor over {mesh.layout.tp}")
    if recompute:
        recomputation.apply(units, recompute)
        order.append(f"recompute {', '.join(recompute)}")
    if compile:
        compile_units(units)
        order.append(f"compile {len(units)} units")
    whole = Whole(model)
    data: Replicated | Sharded
    if mesh.shard is not None:
        named = dict(model.named_parameters())
        data = Sharded(
            whole,
            units,
            mesh,
            zero,
            compute=compute,
            reduce=reduce,
            summed=summed,
            tied=tied,
            secondary=secondary,
            ends=ends,
            kept={name: named[name] for name in kept},
        )
        second = f", second shard over {secondary}" if secondary else ""
        order.append(f"shard over {mesh.layout.dp_shard} (ZeRO-{zero}{second})")
        if kept:
            order.append(f"keep {len(kept)} norms whole")  # in digits that sharded weights lose on their way
    else:
        data = Replicated((), mesh.data, reduce, summed, tied)
    if mesh.replicate is not None:
        order.append(f"replicate {mesh.layout.dp_replicate} times")
    return Applied(whole, data, tuple(order))


def whole_under(carrying: Carried, name: str) -> bool:
    """Whether the decoder's parameter `name` must not be sharded, since weights are carried so."""
    return class_of(name) == "norm" and (carrying.norms if name.startswith("blocks.") else carrying.last_norm)


def materialise(applied: Applied, device: torch.device) -> None:
    """Give a model on `meta` its memory (contents undefined), and a replicated one its gradient buffers."""
    if any(parameter.is_meta for parameter in applied.whole.parameters()):
        applied.whole.to_empty(device=device)
    if isinstance(applied.data, Replicated):
        laid = applied.data
        applied.data = Replicated(applied.named().items(), laid.group, laid.reduce, laid.summed, laid.tied)


@dataclass
class Laid:
    """The model of a job on this rank, ready to train: what it holds of the weights, and who computes with them.

    `number` is the step's number [int64 scalar] and is filled before each step; `module` has the parameters by global name.
    """

    module: Decoder
    applied: Applied
    execute: Executor
    number: Tensor
    kernel: str
    mesh: Mesh
    chunk: int  # tokens whose logits are held at once
    scores: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None  # logits of a text, where stages share the model

    @property
    def copies(self) -> int:
        """Ranks that compute the same loss: the vote divides by it. A rank without the last stage brings a loss of zero."""
        return self.mesh.layout.tp * self.mesh.layout.cp

    @property
    def world(self) -> int:
        """Ranks that hold the same stages of the pipeline: over them copies are counted in the norm of the gradient."""
        return self.mesh.layout.world // self.mesh.layout.pp


def chunk(tokens: int, most: int) -> int:
    """Tokens of each chunk of the loss: a micro-batch's `tokens` in as few equal chunks of up to `most` as hold them."""
    return -(-tokens // -(-tokens // most))


def decoder(job: Job, mesh: Mesh, device: torch.device) -> Laid:
    """The model of `job` (in force) laid out on `mesh`, on `device`, with its first weights."""
    compute, master, reduce = (dtype(str(name)) for name in (job.train.precision, job.train.master, job.train.reduce))
    kinds = {name: dtype(kind) for name, kind in of_classes(job.train).items()}
    carrying, compiled = carried(job.train), job.train.compile is True
    model = decoder_of(job.model)(job.model, seed=job.train.seed, compute=compute, master=master, kinds=kinds)
    layers = layouts.stage_layers(job, mesh.layout)
    tied = None if mesh.pp is None else pipeline.split(model, mesh, layers)
    kernel = model.prepare(device.type, job.batch.sequence, compiled)
    summed = tensor.shard(model, mesh, sequence=job.layout.sequence)
    blocks = [model.blocks[index] for index in model.held]
    applied = shard(
        model,
        blocks,
        mesh,
        zero=job.layout.zero,
        secondary=job.layout.secondary,
        recompute=job.memory.recompute,
        compile=compiled,
        compute=compute,
        reduce=reduce,
        summed=summed,
        tied=tied,
        ends=dtype(carrying.ends),
        kept=[name for name, _ in model.named_parameters() if whole_under(carrying, name)],
    )
    materialise(applied, device)
    initialise(model, job.train.seed)
    number = torch.zeros((), dtype=torch.int64, device=device)
    size = chunk(int(job.batch.micro) * job.batch.sequence, job.memory.loss_chunk)

    theirs = None if job.train.loss is None else own_loss(job.train.loss)

    def loss(whole: Decoder, batch: Any) -> Tensor:
        """The loss of a micro-batch, summed over counted labels, in nats."""
        return whole.loss(batch, size, number) if theirs is None else theirs(whole, batch, number)

    if mesh.pp is None:
        return Laid(model, applied, Plain(applied.whole, loss, applied.data), number, kernel, mesh, size)
    own, ends = mesh.layout.stages_of(mesh.rank), (0, mesh.layout.stages - 1)
    execute = pipeline.Pipeline(
        mesh.layout,
        mesh.rank,
        job.layout.schedule,
        applied.whole,
        pipeline.computes(layers, own, number, size),
        applied.data,
        Links(mesh, device),
        pipeline.flowing(mesh, known(job.model.width, "width"), compute, job.layout.sequence),
        compute,
        device,
        {stage: pipeline.trained(model, layers[stage], applied.whole, end=stage in ends) for stage in own},
    )
    scores = partial(execute.scores, pipeline.logits(layers[-1]), kinds["head"])
    return Laid(model, applied, execute, number, kernel, mesh, size, scores)
