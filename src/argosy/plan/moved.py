"""How many bytes a rank sends in one step, by closed formulas: every collective and letter of its forward and backward passes.

A rank of n sends (n - 1) / n of a tensor in an all-gather or a reduce-scatter, and twice that in an all-reduce: what a ring, or
any algorithm that is optimal in bytes, moves (Patarasuk and Yuan, 2009). The tensor's size is that of the whole. Sizes are
those that divide evenly; what only fills up the rest is not counted. Knows job, layout and cluster, no machine.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from argosy.cluster.links import link
from argosy.cluster.schema import Cluster
from argosy.job.schema import Job, layers
from argosy.layout.layout import Layout
from argosy.plan import classes, flops, layouts
from argosy.plan.bytes import WIDTH, pieces

GATHER, SCATTER, REDUCE, BROADCAST, SEND = "all-gather", "reduce-scatter", "all-reduce", "broadcast", "send"
TIMES = {GATHER: 1, SCATTER: 1, REDUCE: 2, BROADCAST: 1}  # how often (n - 1) / n of the whole leaves a rank, on average


@dataclass(frozen=True)
class Moved:
    """Bytes that one rank sends in a step, by what for."""

    activations: float  # between the parts of a layer, and at the ends of the model
    logits: float  # the softmax over a vocabulary that ranks share: two numbers a token

    @property
    def total(self) -> float:
        """All of it."""
        return self.activations + self.logits


@dataclass(frozen=True)
class Move:
    """A collective among `ranks` over tensors of `size` bytes in all, or letters from the first of two ranks to the second."""

    kind: str
    ranks: tuple[int, ...]
    size: float

    @property
    def sent(self) -> float:
        """Bytes that one of the ranks sends; for letters the first."""
        count = len(self.ranks)
        return self.size if self.kind == SEND else TIMES[self.kind] * (count - 1) / count * self.size


def added(moves: Iterable[Move]) -> dict[tuple[str, tuple[int, ...]], float]:
    """The sizes of `moves`, added up by kind and ranks."""
    found: dict[tuple[str, tuple[int, ...]], float] = {}
    for move in moves:
        found[move.kind, move.ranks] = found.get((move.kind, move.ranks), 0.0) + move.size
    return found


def by_tier(moves: Iterable[Move], cluster: Cluster) -> dict[str, float]:
    """Bytes sent by the tier of links that a move's ranks need: the farthest that two of them do."""
    found: dict[str, float] = {}
    for move in moves:
        tier = link(cluster, move.ranks).tier
        found[tier] = found.get(tier, 0.0) + move.sent
    return found


def passes(job: Job) -> int:
    """How often the activations of all tokens are gathered or scattered in a forward and a backward pass together.

    Four a block in each direction, two for the parallel block; one for the embedding and one before the loss. An all-reduce,
    where the sequence is whole on every rank, is two of them, and there are half as many.
    """
    return 2 * sum(2 if block.parallel else 4 for block in layers(job.model)) + 4


def tensor(job: Job, layout: Layout) -> Moved:
    """One step of the job in force, for a rank that has every layer; rows that only fill up a micro-batch are counted too.

    Without norms of queries and keys over all heads (`qk_norm = "full"`), which sum one number a token besides.
    """
    tp, tokens = layout.tp, pieces(job, layout, int(job.batch.micro)) * int(job.batch.micro) * job.batch.sequence
    width = WIDTH[str(job.train.precision)]
    share = (tp - 1) / tp
    activations = passes(job) * share * tokens * (job.model.width or 0) * width
    return Moved(activations, share * tp * 2 * tokens * max(width, 4))


def step(job: Job, layout: Layout, rank: int) -> list[Move]:
    """All that `rank` takes part in, in the forward and backward passes of one step of the job in force.

    Not counted: the vote and what the optimizer says; forward passes that are recomputed; norms over all heads.
    """
    return [move for move in Held(job, layout, rank).moves() if move.size and len(set(move.ranks)) > 1]


class Held:
    """The part of a job that one rank computes, and what follows from it for each dimension."""

    def __init__(self, job: Job, layout: Layout, rank: int):
        self.job, self.layout, self.rank = job, layout, rank
        own = layout.stages_of(rank)
        stages = layouts.stage_layers(job, layout) if layout.pp > 1 else (range(len(layers(job.model))),)
        self.stages, self.blocks = own, [block for stage in own for block in stages[stage]]
        self.first, self.last = own[0] == 0, own[-1] == layout.stages - 1
        self.pieces = pieces(job, layout, int(job.batch.micro))
        self.tokens = int(job.batch.micro) * job.batch.sequence  # of a micro-batch
        self.width = job.model.width or 0
        self.compute, self.reduce = WIDTH[str(job.train.precision)], WIDTH[str(job.train.reduce)]
        ends = {"first": self.first, "last": self.last}
        self.all = flops.stage_parameters(job.model, self.blocks, **ends, tp=layout.tp)
        self.ends = flops.stage_parameters(job.model, (), **ends, tp=layout.tp)
        tp, split = layout.tp, job.layout.sequence
        self.repeated = flops.repeated_parameters(job.model, self.blocks, **ends, tp=tp, sequence=split)
        # What ranks that shard the rest hold whole: norms in a finer type than the one in which weights are gathered.
        carried, kinds = classes.carried(job.train), classes.of_classes(job.train)
        self.outer, self.embedding, self.head = (
            WIDTH[kind] for kind in (carried.ends, kinds["embedding"], kinds["head"])
        )
        self.kept, self.kept_after, self.shared = 0, 0, self.repeated / layout.dp_shard
        if layout.dp_shard > 1:
            inside, after = flops.norm_parameters(job.model, self.blocks, last=self.last, tp=tp)
            self.kept, self.kept_after = inside * carried.norms, after * carried.last_norm
            inside, after = flops.repeated_norms(job.model, self.blocks, last=self.last, tp=tp, sequence=split)
            again = inside * carried.norms + after * carried.last_norm
            self.shared = (self.repeated - again) / layout.dp_shard + again

    def moves(self) -> Iterator[Move]:
        """Every move of a step, those of nobody but this rank among them."""
        yield from self.tensor()
        yield from self.shards()
        yield from self.copies()
        yield from self.tied()
        yield from self.letters()

    def line(self, *axes: str) -> tuple[int, ...]:
        """This rank's group along `axes`."""
        return tuple(self.layout.group(self.rank, *axes))

    def tensor(self) -> Iterator[Move]:
        """Activations between ranks that share every matrix, the softmax, and gradients of what each of them holds whole."""
        if self.layout.tp == 1:
            return
        ranks, tokens = self.line("tp"), self.pieces * self.tokens
        shapes = layers(self.job.model)
        each = sum(2 if shapes[block].parallel else 4 for block in self.blocks) + self.first + self.last
        activations = each * tokens * self.width * self.compute  # once scattered, once gathered
        activations += self.first * tokens * self.width * (self.embedding - self.compute)
        if self.job.layout.sequence:
            yield Move(GATHER, ranks, activations)
            yield Move(SCATTER, ranks, activations)
        else:
            yield Move(REDUCE, ranks, activations)
        if self.last:
            yield Move(GATHER, ranks, len(ranks) * 2 * tokens * max(self.head, 4))
        yield Move(REDUCE, ranks, self.shared * self.reduce)

    def shards(self) -> Iterator[Move]:
        """Weights gathered and gradients scattered among ranks that shard them."""
        if self.layout.dp_shard == 1:
            return
        ranks, zero = self.line("dp_shard"), self.job.layout.zero
        # The ends of the model belong to its outermost module, which every pass of a stage goes through.
        inner = (self.all - self.ends - self.kept) * self.compute
        outer = (self.ends - self.kept_after) * self.outer
        if zero == 3:
            passed = self.pieces * (inner + len(self.stages) * outer)
            yield Move(GATHER, ranks, passed)
            yield Move(GATHER, self.near(), passed)
        else:
            yield Move(GATHER, ranks, inner + outer)
        yield Move(SCATTER, ranks, self.synchronised * self.sharded * self.reduce)

    @property
    def sharded(self) -> int:
        """This rank's parameters but those that ranks which shard the rest hold whole."""
        return self.all - self.kept - self.kept_after

    @property
    def synchronised(self) -> int:
        """How often a step adds gradients up over the ranks that shard them."""
        return 1 if self.job.layout.zero == 1 else self.pieces

    def near(self) -> tuple[int, ...]:
        """The sharding ranks among whom a backward pass gathers: all, or this rank's neighbours in a second shard."""
        line, size = self.layout.line(self.rank, "dp_shard"), self.job.layout.secondary
        begin = line.index(self.rank) // size * size if size else 0
        return tuple(sorted(line[begin : begin + size] if size else line))

    def copies(self) -> Iterator[Move]:
        """Gradients added up, once a step, over ranks that hold the same."""
        yield Move(REDUCE, self.line("dp_replicate"), self.sharded * self.reduce / self.layout.dp_shard)
        yield Move(REDUCE, self.line("dp_replicate", "dp_shard"), (self.kept + self.kept_after) * self.reduce)

    def tied(self) -> Iterator[Move]:
        """The gradient of an embedding that the first and the last stage of a pipeline both hold."""
        if self.layout.pp > 1 and self.job.model.tied and (self.first or self.last):
            ends = (self.layout.holder(self.rank, stage) for stage in (0, self.layout.stages - 1))
            size = -(-(self.job.model.vocabulary or 0) // self.layout.tp) * self.width * self.reduce
            yield Move(REDUCE, tuple(sorted(ends)), size / self.layout.dp_shard)

    def letters(self) -> Iterator[Move]:
        """Activations to the next stage, their gradients to the one before."""
        split = self.layout.tp if self.job.layout.sequence else 1
        size = self.pieces * self.tokens / split * self.width * self.compute
        for stage in self.stages:
            for other in (stage - 1, stage + 1):
                if 0 <= other < self.layout.stages:
                    yield Move(SEND, (self.rank, self.layout.holder(self.rank, other)), size)
