"""What every layer does, in passing: gradient norm, update over weights, size of activations, largest attention score.

Taken of some steps while they are computed: no second pass over the data, and the same numbers under every layout. What flows
between blocks is measured where a block hands it on; scores are computed again for 64 query rows of the global batch, drawn by
(seed, step), with all heads and every key that they see: exact for those rows, a lower bound for the whole. Around the update
stand a copy of this rank's weights, and at its end two small all-reduces. Knows a decoder's blocks, parameters by name and the
record; costs nothing but a test in every block in all other steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from argosy.data.order import read_at
from argosy.device.shards import copies, local
from argosy.job.schema import Job
from argosy.model import attention
from argosy.model.decoder import Decoder
from argosy.parallel.apply import Laid
from argosy.quantities import Interval, interval
from argosy.random import bits, key
from argosy.run.ledger import Ledger
from argosy.run.recorder import Recorder
from argosy.train.callbacks import due

QUERIES = 64  # query rows of a step whose scores are computed again, in each layer
GRADIENT, WEIGHT, UPDATE, ACTIVATION, ELEMENTS = range(5)  # columns of the sums, all of squares but the last


class Read(NamedTuple):
    """The global batch of a step: the number of its first sequence, how many there are, and tokens in each."""

    first: int
    sequences: int
    length: int


@dataclass(frozen=True)
class Seen:
    """A micro-batch: its segments (kept, so that nothing else takes their identity), which tokens are text, what is asked."""

    segments: Tensor
    text: Tensor  # bool [B, S]
    queries: tuple[tuple[int, int, int], ...]  # (row, place, first place of its document)


class Numerics:
    """Takes the figures of one rank's part of the model, and lets rank 0 write those of the whole.

    `named`: parameters by global name, which `ranks` ranks hold with the same stages; `elsewhere`: one of them that another
    stage counts. `read(step)` tells what the global batch is. `world`: the group of all ranks.
    """

    def __init__(
        self, decoder: Decoder, named: Mapping[str, nn.Parameter], recorder: Recorder, every: Interval, *,
        steps: int, seed: int, read: Callable[[int], Read], rank: int = 0, ranks: int = 1,
        world: dist.ProcessGroup | None = None, elsewhere: str | None = None,
    ):  # fmt: skip
        self.named = {name: parameter for name, parameter in named.items() if name != elsewhere}
        self.recorder, self.every, self.steps, self.seed, self.read = recorder, every, steps, seed, read
        self.rank, self.world, self.layers = rank, world, len(decoder.shapes)
        self.copies = {name: copies(parameter, ranks) for name, parameter in self.named.items()}
        self.device = local(next(iter(named.values()))).device
        self.step = 0  # the one that is measured; 0 = none
        self._seen: dict[int, Seen] = {}  # by the identity of a micro-batch's segments
        self._now: tuple[int, Seen] | None = None  # the block that computes
        if every != Interval():
            for index in decoder.held:
                decoder.blocks[index].register_forward_pre_hook(partial(self._enter, index))
                decoder.blocks[index].register_forward_hook(self._leave)

    def begin(self, step: int, micro: Sequence[Any]) -> None:
        """This rank is about to compute `micro`, its part of `step`."""
        self.stop()
        if not due(self.every, step, self.steps):
            return
        self.step = step
        self.sums = torch.zeros(self.layers + 1, 5, dtype=torch.float64, device=self.device)
        self.highest = torch.full((self.layers,), -torch.inf, dtype=torch.float64, device=self.device)
        asked = drawn(self.seed, step, self.read(step))
        for batch in micro:
            text = (batch.segments != 0) & (batch.sequence >= 0)[:, None]  # neither padding nor rows that only fill up
            self._seen[id(batch.segments)] = Seen(batch.segments, text, _queries(batch, asked))
        attention.observers.append(self._scores)

    def stop(self) -> None:
        """Measure nothing until the next `begin`."""
        self.step, self._now = 0, None
        self._seen.clear()
        if self._scores in attention.observers:
            attention.observers.remove(self._scores)

    @contextmanager
    def around(self) -> Iterator[None]:
        """Around the optimizer's step: gradients are as they were added up, not clipped yet. All ranks come here together."""
        step = self.step
        self.stop()
        if not step:
            yield
            return
        self._add(GRADIENT, {n: local(p.grad) for n, p in self.named.items() if p.grad is not None})
        before = {name: local(parameter.detach()).clone() for name, parameter in self.named.items()}
        self._add(WEIGHT, before)
        yield
        self._add(UPDATE, {name: local(p.detach()) - before.pop(name) for name, p in self.named.items()})
        self._write(step)

    def _add(self, column: int, parts: Mapping[str, Tensor]) -> None:
        """Add the squares of this rank's parts, each divided by the ranks that hold the same."""
        for name, part in parts.items():
            squares = torch.linalg.vector_norm(part.detach(), dtype=torch.float64).square()
            self.sums[layer_of(name, self.layers), column] += squares / self.copies[name]

    def _enter(self, index: int, block: nn.Module, arguments: tuple[Any, ...]) -> None:
        if self.step:
            seen = self._seen.get(id(arguments[1]))
            self._now = None if seen is None else (index, seen)

    def _leave(self, block: nn.Module, arguments: tuple[Any, ...], made: Tensor) -> None:
        """What a block hands on: [B, this rank's part of S, D]."""
        if self._now is None:
            return
        index, seen = self._now
        self._now = None  # what backward computes again was seen already
        with torch.no_grad():
            part = getattr(block, "part", None)  # a block of somebody's own has none, and no ranks that share it
            mine = seen.text if part is None else part(seen.text, seen.text.shape[1])
            lengths = torch.linalg.vector_norm(made, dim=-1, dtype=torch.promote_types(made.dtype, torch.float32))
            self.sums[index, ACTIVATION] += (lengths.double().square() * mine).sum()
            self.sums[index, ELEMENTS] += mine.sum() * made.shape[-1]

    def _scores(self, q: Tensor, k: Tensor, window: int, scale: float) -> None:
        """The largest score of this rank's heads: q [B, S, H, K], k [B, S, G, K]."""
        if self._now is None:
            return
        index, seen = self._now
        wide, groups = torch.promote_types(q.dtype, torch.float32), k.shape[2]
        for row, place, first in seen.queries:
            first = max(first, place - window + 1) if window else first
            keys, query = k[row, first : place + 1].to(wide), q[row, place].to(wide).unflatten(0, (groups, -1))
            most = torch.einsum("ghk,sgk->ghs", query, keys).amax() * scale
            self.highest[index] = torch.maximum(self.highest[index], most.double())

    def _write(self, step: int) -> None:
        """Sum over all ranks; a layer that stages or ranks share has all of its parts then."""
        if self.world is not None:
            dist.all_reduce(self.sums, group=self.world)
            dist.all_reduce(self.highest, op=dist.ReduceOp.MAX, group=self.world)
        if self.rank != 0:
            return
        gradient, weight, update, activation, elements = self.sums.T.cpu()
        figures = {
            "layer_gradient_norm": gradient.sqrt(),
            "layer_update_ratio": (update / weight).sqrt(),
            "layer_activation_rms": (activation / elements).sqrt()[:-1],
            "layer_attention_logit": self.highest.cpu(),
        }
        for name, values in figures.items():
            for layer, value in enumerate(values.tolist()):
                self.recorder.scalar(name, step, value, layer)


def numerics(job: Job, laid: Laid, recorder: Recorder, ledger: Ledger, steps: int) -> Numerics:
    """The figures of `job` in force, whose model is `laid` out on this rank, in a run of so many `steps`."""

    def read(step: int) -> Read:
        """Which sequences `step` reads: the first, how many, and their length."""
        found = read_at(step, ledger)
        return Read(found.first_sequence, found.tokens // found.sequence, found.sequence)

    tied = laid.applied.data.tied
    return Numerics(
        laid.module, laid.applied.named(), recorder, interval(job.observe.numerics_every), steps=steps,
        seed=job.train.seed, read=read, rank=laid.mesh.rank, ranks=laid.world, world=laid.mesh.world,
        elsewhere=None if tied is None or tied.counted else tied.name,
    )  # fmt: skip


def layer_of(name: str, layers: int) -> int:
    """The number of the block that the parameter `name` belongs to; `layers` for embedding, last norm and head."""
    return int(name.split(".")[1]) if name.startswith("blocks.") else layers


def drawn(seed: int, step: int, read: Read) -> dict[int, list[int]]:
    """The query rows of `step`: places by the number of the sequence. At most QUERIES, whoever holds them. Pure."""
    random = bits(key(seed, "numerics", step), np.arange(QUERIES, dtype=np.int64)).astype(np.uint64)
    found: dict[int, list[int]] = {}
    for number in sorted({int(one) % (read.sequences * read.length) for one in random}):
        found.setdefault(read.first + number // read.length, []).append(number % read.length)
    return found


def _queries(batch: Any, asked: Mapping[int, Sequence[int]]) -> tuple[tuple[int, int, int], ...]:
    """Those of the rows `asked` that are text of `batch`."""
    found = []
    for row, sequence in enumerate(batch.sequence.tolist()):
        if sequence not in asked:
            continue
        segments = batch.segments[row].cpu().numpy()
        for place in asked[sequence]:
            if segments[place]:
                found.append((row, place, int((segments == segments[place]).argmax())))
    return tuple(found)
