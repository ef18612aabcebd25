"""Pipeline parallelism: the ranks along pp share the layers out, and hand activations on, micro-batch by micro-batch.

In: a decoder on `meta` and a mesh. Out: the decoder with the stages of this rank alone (`split`), and the Executor that runs a
schedule of `layout/schedule.py` over them (`Pipeline`). Every rank has its rows of the global batch: tokens, labels, documents
and positions are nobody's message. What travels is activations [B, S, D] forward and their gradients backward, one letter per
micro-batch and border of two stages, of a shape that both sides know.

A stage computes as torch's `PipelineStage`; the schedule is ours, because torch's cannot do what a step asks of it: its
interleaved one wants the micro-batches to divide by its rounds, all of them keep a receive buffer per micro-batch, and under
`fully_shard` they put every reduce-scatter off to the last micro-batch, so that ZeRO-2 and 3 hold whole gradients as ZeRO-1
does.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from argosy.device.torch_versions import forget_micro_batch, pipeline_stage
from argosy.layout import schedule
from argosy.layout.layout import Layout
from argosy.layout.placement import cut
from argosy.layout.schedule import BACKWARD, FORWARD, RECV_B, RECV_F, SEND_B, SEND_F, Action, Shape
from argosy.model.decoder import Decoder
from argosy.parallel.data import DataParallel, Tied
from argosy.parallel.execute import Whole
from argosy.parallel.links import Links
from argosy.parallel.mesh import Mesh

if TYPE_CHECKING:
    from torch.distributed.pipelining import PipelineStage

# (module, what the stage before made or None, micro-batch) -> what the stage makes; the last one makes the loss.
Compute = Callable[[nn.Module, Tensor | None, Any], Tensor]
Like = Callable[
    [Any], tuple[tuple[int, ...], torch.dtype]
]  # shape and type of what flows between stages for a micro-batch


def split(decoder: Decoder, mesh: Mesh, layers: Sequence[range]) -> Tied | None:
    """Leave `decoder` the stages of this rank, in place, before anything shards it; `layers` are those of every stage.

    Gives the tied embedding where the first and the last stage both hold it, and this rank is one of them.
    """
    layout, rank = mesh.layout, mesh.rank
    own = layout.stages_of(rank)
    first, last = own[0] == 0, own[-1] == layout.stages - 1
    decoder.keep({layer for stage in own for layer in layers[stage]}, first=first, last=last)
    if decoder.section.tied is not True or not (first or last):
        return None
    ends = sorted((layout.holder(rank, 0), layout.holder(rank, layout.stages - 1)))
    group = mesh.among(ends)
    return None if group is None else Tied(group, "embedding.weight", counted=first)


class Part(nn.Module):
    """One stage as a module: what it makes of a micro-batch, through the root of the model, where weights are gathered."""

    def __init__(self, whole: Whole, compute: Compute):
        super().__init__()
        self.whole, self.compute = whole, compute

    def forward(self, x: Tensor | None = None, *, batch: Any) -> Tensor:
        """X from the stage before; None on the first."""
        made: Tensor = self.whole(self.compute, x, batch)
        return made


class Pipeline:
    """The Executor over the stages of a rank: runs the actions of a schedule, a list for each number of micro-batches.

    `computes` are this rank's stages, `units` the modules that each of them trains. The loss is 0 on ranks without the last
    stage.
    """

    def __init__(
        self,
        layout: Layout,
        rank: int,
        name: str,
        whole: Whole,
        computes: Mapping[int, Compute],
        data: DataParallel,
        links: Links,
        like: Like,
        kind: torch.dtype,
        device: torch.device,
        units: Mapping[int, Sequence[nn.Module]] | None = None,
    ):
        self.layout, self.rank, self.name, self.data, self.links = layout, rank, name, data, links
        self.units = units or {}
        self.whole, self.like, self.kind, self.device = whole, like, kind, device
        self.parts = {stage: Part(whole, compute) for stage, compute in computes.items()}
        self._ready: tuple[int, dict[int, PipelineStage]] = (0, {})
        self._lists: dict[tuple[str, int], tuple[list[Action], Mapping[Action, list[Action]]]] = {}

    def __call__(self, micro: Sequence[Any], *, scale: float, backward: bool = True) -> Tensor:
        """See Executor."""
        if backward:
            self.data.begin()
        run = Run(self, micro, scale, backward)
        try:
            for action in self._actions(len(micro), backward)[0]:
                run.do(action)
            self.links.close()
        finally:
            for stage in self.stages(0).values():
                stage.clear_runtime_states()
                stage.bwd_cache.clear()
        if backward:
            self.data.finish()
        else:
            self.data.settle()
        return run.total

    def stages(self, micro: int) -> Mapping[int, PipelineStage]:
        """Torch's stages of this rank, ready for so many micro-batches at least."""
        if self._ready[0] < micro or not self._ready[1]:
            micro = max(micro, self.layout.micro)  # as many as a step has: an evaluation before the first one has fewer
            made = {
                stage: pipeline_stage(part, stage, self.layout.stages, self.links.group, (self.kind, 3), micro)
                for stage, part in self.parts.items()
            }
            self._ready = (micro, made)
        return self._ready[1]

    def _actions(self, micro: int, backward: bool) -> tuple[list[Action], Mapping[Action, list[Action]]]:
        """This rank's list, and which letters it may forget when."""
        wanted = (self.name if backward else "", micro)
        if wanted not in self._lists:
            shape = Shape(self.layout.pp, self.layout.virtual, micro)
            order = schedule.ORDERS[self.name] if backward else schedule.forward_only
            place = self.layout.at(self.rank)["pp"]
            mine = schedule.messages(order(shape, place), shape.stages)
            before = order(shape, (place - 1) % shape.ranks)
            free: dict[Action, list[Action]] = {}
            for stage in self.parts:
                free |= schedule.delivered(before, stage)
            self._lists[wanted] = (mine, free)
        return self._lists[wanted]

    def freed(self, micro: int, action: Action) -> list[Action]:
        """The letters that have been read when `action` has what it needs."""
        if action.kind == BACKWARD:  # its gradient is the answer to what was sent forward
            return [Action(SEND_F, action.stage, action.micro)]
        return self._actions(micro, True)[1].get(action, [])

    @torch.no_grad()
    def scores(
        self, compute: Compute, kind: torch.dtype, tokens: Tensor, positions: Tensor, segments: Tensor
    ) -> Tensor:
        """What the last stage makes of a text by `compute`, in type `kind`, on every rank of the pipeline: logits."""
        batch = Text(tokens, positions, segments)
        x: Tensor | None = None
        last = self.layout.stages - 1
        for stage in range(self.layout.stages):
            if stage not in self.parts:
                continue
            if stage > 0:
                arrival = Action(RECV_F, stage, 0)
                shape, between = self.like(batch)
                self.links.open(arrival, torch.empty(shape, dtype=between, device=self.device))
                x = self.links.read(arrival)
            made: Tensor = self.whole(compute if stage == last else self.parts[stage].compute, x, batch)
            if stage < last:
                self.links.send(Action(SEND_F, stage, 0), made)
            x = made
        self.links.close()
        return self._told(x, kind)

    def _told(self, made: Tensor | None, kind: torch.dtype) -> Tensor:
        """`made` on the last stage's rank, on all ranks of the pipeline."""
        source = self.layout.holder(self.rank, self.layout.stages - 1)
        size = torch.tensor(made.shape if made is not None else (0, 0, 0), dtype=torch.int64, device=self.device)
        dist.broadcast(size, source, group=self.links.group)
        if self.rank == source and made is not None:
            found = made.contiguous()
        else:
            found = torch.empty(size.tolist(), dtype=kind, device=self.device)
        dist.broadcast(found, source, group=self.links.group)
        return found


@dataclass(frozen=True)
class Text:
    """A batch [B, S] without labels."""

    tokens: Tensor
    positions: Tensor
    segments: Tensor
    sequence: None = None


class Run:
    """One pass of a list of actions over the micro-batches of a step."""

    def __init__(self, pipeline: Pipeline, micro: Sequence[Any], scale: float, backward: bool):
        self.pipeline, self.micro, self.scale, self.backward = pipeline, micro, scale, backward
        self.stages = pipeline.stages(len(micro))
        self.last = pipeline.layout.stages - 1
        self.total = torch.zeros((), dtype=torch.float64, device=pipeline.device)
        self.backwards = dict.fromkeys(self.stages, len(micro))  # still to come, by stage
        self.losses: dict[int, Tensor] = {}
        self.letters: dict[Action, Tensor] = {}
        self.posted: deque[Action] = deque()

    def do(self, action: Action) -> None:
        """Compute, post or get ready."""
        links = self.pipeline.links
        if action.kind == FORWARD:
            self.forward(action.stage, action.micro)
        elif action.kind == BACKWARD:
            self.backward_pass(action.stage, action.micro)
        elif action.kind in (RECV_F, RECV_B):
            shape, kind = self.pipeline.like(self.micro[action.micro])
            links.open(action, torch.empty(shape, dtype=kind, device=self.pipeline.device))
        elif action.kind in (SEND_F, SEND_B):
            if not self.backward:
                self.make_room(action)
            links.send(action, self.letters.pop(action))

    def make_room(self, action: Action) -> None:
        """Without a backward pass nobody answers: wait for letters of long ago, so that few are kept.

        Two for each rank: the reader of a letter that old waits for none of those that come now, also round the ring of stages.
        """
        self.posted.append(action)
        if len(self.posted) > 2 * self.pipeline.layout.pp:
            self.pipeline.links.let_go([self.posted.popleft()])

    def forward(self, stage: int, micro: int) -> None:
        """One micro-batch through one stage; what it makes is the next letter, or the loss."""
        own = self.stages[stage]
        if stage > 0:
            own.set_local_fwd_input(self.pipeline.links.read(Action(RECV_F, stage, micro)), micro)
        if self.backward:
            self.pipeline.links.let_go(self.pipeline.freed(len(self.micro), Action(FORWARD, stage, micro)))
        made: Tensor = unwrapped(own.forward_one_chunk, micro, (), {"batch": self.micro[micro]}, False)
        if stage == self.last:
            self.losses[micro] = made * self.scale
            self.total += made.detach().to(torch.float64)
        else:
            self.letters[Action(SEND_F, stage, micro)] = made
        if not self.backward:
            self.losses.clear()
            forget_micro_batch(own, micro)

    def backward_pass(self, stage: int, micro: int) -> None:
        """One micro-batch back through one stage; the gradient of what came in is the next letter."""
        own = self.stages[stage]
        if stage < self.last:
            own.set_local_bwd_input((self.pipeline.links.read(Action(RECV_B, stage, micro)),), micro)
        self.pipeline.links.let_go(self.pipeline.freed(len(self.micro), Action(BACKWARD, stage, micro)))
        self.backwards[stage] -= 1
        self.pipeline.data.micro(last=not any(self.backwards.values()))
        if not self.backwards[stage]:
            self.pipeline.data.ends(self.pipeline.units.get(stage, ()))
        unwrapped(own.backward_one_chunk, micro, self.losses.pop(micro, None))
        if stage > 0:
            (gradient,) = own.get_local_bwd_output(micro)
            assert gradient is not None
            self.letters[Action(SEND_B, stage, micro)] = gradient
        forget_micro_batch(own, micro)


def unwrapped(call: Callable[..., Any], *arguments: Any) -> Any:
    """What `call` returns. Torch's stages raise an error of their own around the one that happened: that one is raised."""
    try:
        return call(*arguments)
    except RuntimeError as error:
        if error.__cause__ is not None:
            raise error.__cause__ from None
        raise


def computes(layers: Sequence[range], own: Sequence[int], number: Tensor, chunk: int) -> dict[int, Compute]:
    """What each of this rank's stages `own` of a decoder does with a micro-batch; the last one gives its loss.

    `number` is the step's number [int64 scalar], `chunk` as in `Decoder.loss`.
    """

    def stage(index: int) -> Compute:
        """What the stage `index` computes."""

        def compute(decoder: Any, x: Tensor | None, batch: Any) -> Tensor:
            """Embed on the first stage, the stage's blocks, norm and loss on the last."""
            made = through(decoder, x, batch, layers[index], number)
            if index < len(layers) - 1:
                return made
            loss: Tensor = decoder.hidden_loss(decoder.finish(made, batch.tokens.shape[1]), batch, chunk)
            return loss

        return compute

    return {index: stage(index) for index in own}


def trained(decoder: Decoder, blocks: range, whole: Whole, *, end: bool) -> list[nn.Module]:
    """The modules whose weights a stage of these `blocks` trains; at an `end` of the model also the outermost one's."""
    return [decoder.blocks[index] for index in blocks] + ([whole] if end else [])


def logits(blocks: range) -> Compute:
    """What the last stage, of these `blocks`, does with a text: the logits [B, S, V]."""

    def compute(decoder: Any, x: Tensor | None, batch: Any) -> Tensor:
        """Blocks, last norm and head."""
        made = decoder.finish(through(decoder, x, batch, blocks, None), batch.tokens.shape[1])
        found: Tensor = decoder.logits(made)
        return found

    return compute


def through(decoder: Any, x: Tensor | None, batch: Any, blocks: range, number: Tensor | None) -> Tensor:
    """X of `batch` through `blocks`; from the tokens where x is None."""
    if x is None:
        x = decoder.embed(batch.tokens, batch.positions)
    found: Tensor = decoder.blocks_forward(x, blocks, batch.positions, batch.segments, number, batch.sequence)
    return found


def flowing(mesh: Mesh, width: int, kind: torch.dtype, sequence: bool) -> Like:
    """The shape [B, S, D] and type of a letter; S is this tensor rank's part where they share the sequence."""
    place, ranks = mesh.layout.at(mesh.rank)["tp"], mesh.layout.tp

    def like(batch: Any) -> tuple[tuple[int, ...], torch.dtype]:
        """Shape and type of a letter about the micro-batch `batch`."""
        rows, length = batch.tokens.shape
        if sequence and ranks > 1:
            begin, end = cut(length, ranks, place)
            length = end - begin
        return (rows, length, width), kind

    return like
