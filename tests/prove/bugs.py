"""Bugs for the fuzzer to find: each is planted in the ranks' own processes while a draw runs, and taken out again.

The patch points are here, in the tests, and nowhere in the program. Every bug is of a kind that trains without complaint.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

Plant = Callable[[int, int, Any], Iterator[Any]]  # (rank, ranks, job) -> patches to enter, one after the other
BUGS: dict[str, Plant] = {}


def bug(plant: Plant) -> Plant:
    """Put it on the list, under its own name."""
    BUGS[plant.__name__] = plant
    return plant


def steps(rank: int, ranks: int, board: str, asked: Mapping[str, Any]) -> dict[str, Any]:
    """`prove.measure.steps` with the bug that `asked` names."""
    from argosy.job.schema import Job
    from argosy.prove import measure

    with ExitStack() as stack:
        for planted in BUGS[asked["bug"]](rank, ranks, Job.model_validate(asked["job"])):
            stack.enter_context(planted)
        return measure.steps(rank, ranks, board, asked)


def layout_of(job: Any, ranks: int) -> Any:
    """The layout of a draw."""
    from argosy.plan import layouts

    return layouts.of(job.layout, ranks)


@contextmanager
def put(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Let owner.name be `value` for a while."""
    kept = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, kept)


def after(owner: Any, name: str, change: Callable[..., None]) -> Any:
    """Let `change(result, *arguments)` happen after every call of owner.name."""
    kept = getattr(owner, name)

    def changed(*arguments: Any, **named: Any) -> Any:
        result = kept(*arguments, **named)
        change(result, *arguments)
        return result

    return put(owner, name, changed)


@bug
def gradient_all_reduce_is_missing(rank: int, ranks: int, job: Any) -> Iterator[Any]:
    """Replicas keep their own gradients."""
    from argosy.parallel.data import Replicated

    real = Replicated._sum

    def own(self: Any, flat: Any, group: Any) -> None:
        if group is not self.group:  # shares of tensor ranks are another sum
            real(self, flat, group)

    yield put(Replicated, "_sum", own)


@bug
def divisor_of_one_sharded_module_is_wrong(rank: int, ranks: int, job: Any) -> Iterator[Any]:
    """The last block divides its gradients by the number of ranks, as the library does by default."""
    from argosy.parallel.data import Sharded

    def divide(_: None, self: Any, *rest: Any) -> None:
        self.modules[-1].set_gradient_divide_factor(float(layout_of(job, ranks).data))

    yield after(Sharded, "__init__", divide)


@bug
def stage_is_loaded_in_the_wrong_place(rank: int, ranks: int, job: Any) -> Iterator[Any]:
    """A later pipeline rank fills each of its blocks with the first weights of the one before."""
    from argosy.parallel import apply

    if layout_of(job, ranks).at(rank)["pp"] == 0:
        return
    real = apply.initialise

    def wrong(decoder: Any, seed: int) -> None:
        import torch

        from argosy.device.shards import box, local
        from argosy.model.weights import normals, spread
        from argosy.random import key

        real(decoder, seed)
        with torch.no_grad():
            for name, parameter in decoder.named_parameters():
                deviation, words = spread(decoder, name), name.split(".")
                if words[0] != "blocks" or deviation is None or not local(parameter).numel():
                    continue
                other = ".".join(["blocks", str(int(words[1]) - 1), *words[2:]])
                held = [range(*ends) for ends in zip(*box(parameter), strict=True)]
                local(parameter).copy_(normals(key(seed, "weights", other), held, parameter.shape) * deviation)

    yield put(apply, "initialise", wrong)


@bug
def tied_gradient_stays_on_its_stage(rank: int, ranks: int, job: Any) -> Iterator[Any]:
    """First and last stage keep their own gradient of the embedding that they share."""
    from argosy.parallel.data import Tied

    yield put(Tied, "__call__", lambda self, gradient, kind=None: None)


@bug
def tied_weight_counts_on_both_stages(rank: int, ranks: int, job: Any) -> Iterator[Any]:
    """Both copies of a shared embedding are in the norm."""
    from dataclasses import replace

    from argosy.parallel import apply

    genuine = apply.shard

    def both(*arguments: Any, **named: Any) -> Any:
        if named.get("tied") is not None:
            named["tied"] = replace(named["tied"], counted=True)
        return genuine(*arguments, **named)

    yield put(apply, "shard", both)


@bug
def norm_weight_counts_twice_in_clipping(rank: int, ranks: int, job: Any) -> Iterator[Any]:
    """The last norm is added to the squared norm a second time."""
    from argosy.train.state import State

    real = State.norm2

    def twice(self: Any) -> Any:
        from argosy.device.shards import local

        total = real(self)
        for name, parameter in self.module.named_parameters():
            if name == "norm.weight" and parameter.grad is not None:
                total = total + local(parameter.grad).double().square().sum() / self.world
        return total

    yield put(State, "norm2", twice)


@bug
def copies_are_not_counted(rank: int, ranks: int, job: Any) -> Iterator[Any]:
    """Every rank adds all it holds to the norm, though others hold the same."""
    from argosy.parallel import norm

    yield put(norm, "copies", lambda tensor, world: 1)


@bug
def only_the_last_micro_batch_counts(rank: int, ranks: int, job: Any) -> Iterator[Any]:
    """Gradients of a step start anew with every micro-batch."""
    from argosy.parallel.data import Replicated, Sharded

    for kind in (Replicated, Sharded):
        yield after(kind, "micro", lambda result, self: self.begin())


@bug
def ranks_average_their_own_means(rank: int, ranks: int, job: Any) -> Iterator[Any]:
    """Each rank divides by its own count instead of the global one: right only where all count the same."""
    import argosy.train.step as module

    data, real = layout_of(job, ranks).data, module.step

    def local_mean(state: Any, micro: Any, execute: Any, agree: Any) -> Any:
        counted, own = state.counted, sum(float((part.weights > 0).sum()) for part in micro)
        state.counted = max(1.0, own * data)
        try:
            return real(state, micro, execute, agree)
        finally:
            state.counted = counted

    yield put(module, "step", local_mean)


@bug
def dropout_knows_only_local_numbers(rank: int, ranks: int, job: Any) -> Iterator[Any]:
    """A rank keys dropout by the place of a sequence among its own."""
    from argosy.train import feed

    real = feed.tensors

    def numbered(batch: Any, device: Any) -> Any:
        found = real(batch, device)
        found.sequence.copy_(found.sequence * 0 + 40)
        return found

    yield put(feed, "tensors", numbered)


@bug
def filler_rows_are_counted(rank: int, ranks: int, job: Any) -> Iterator[Any]:
    """Rows that only fill up a micro-batch weigh as much as others."""
    from argosy.train import feed

    real = feed.filler

    def heavy(batch: Any, rows: int) -> Any:
        import numpy as np

        found = real(batch, rows)
        return type(found)(
            **{**vars(found), "weights": np.ones_like(found.weights), "segments": np.ones_like(found.segments)}
        )

    yield put(feed, "filler", heavy)


@bug
def shares_of_tensor_ranks_are_not_summed(rank: int, ranks: int, job: Any) -> Iterator[Any]:
    """Norms keep the gradient that one tensor rank's tokens gave."""
    from argosy.parallel.data import Replicated, Summed

    yield put(Summed, "__call__", lambda self, gradients, kind=None: None)
    real = Replicated.finish

    def unsummed(self: Any) -> None:
        kept, self.summed = self.summed, None
        real(self)
        self.summed = kept

    yield put(Replicated, "finish", unsummed)


@bug
def tensor_ranks_each_add_the_bias(rank: int, ranks: int, job: Any) -> Iterator[Any]:
    """A bias after a matrix cut by columns is added by every tensor rank."""
    from argosy.parallel import tensor

    def all_add(_: None, name: str, block: Any, ranks_: Any) -> None:
        block.attention.output.share = 1.0

    yield after(tensor, "_share_block", all_add)


@bug
def key_heads_are_taken_from_the_wrong_group(rank: int, ranks: int, job: Any) -> Iterator[Any]:
    """Repeated key and value heads: every tensor rank takes the first one."""
    from argosy.model import placements

    real = placements.repeated

    def first(heads: int, groups: int, size: int, place: int) -> Any:
        return real(heads, groups, size, 0)

    yield put(placements, "repeated", first)


@bug
def one_replica_starts_elsewhere(rank: int, ranks: int, job: Any) -> Iterator[Any]:
    """The last rank draws its first weights with another seed."""
    from argosy.parallel import apply

    if rank != ranks - 1 or ranks == 1:
        return
    real = apply.initialise
    yield put(apply, "initialise", lambda decoder, seed: real(decoder, seed + 1))


@bug
def clipping_knows_only_the_local_norm(rank: int, ranks: int, job: Any) -> Iterator[Any]:
    """Each rank clips by the norm of what it holds."""
    from argosy.train.state import State

    real = State.update

    def local_norm(self: Any, vote: Any) -> None:
        from dataclasses import replace

        real(self, replace(vote, norm2=float(self.norm2())))

    yield put(State, "update", local_norm)


@bug
def muon_makes_shards_orthogonal(rank: int, ranks: int, job: Any) -> Iterator[Any]:
    """Newton-Schulz sees the rows that this rank holds, with zeros for the others."""
    from argosy.optim import muon

    def own_rows(tensor: Any) -> Any:
        import torch

        from argosy.device.shards import box, local, slices

        found = torch.zeros(tensor.shape, dtype=tensor.dtype)
        found[slices(box(tensor))] = local(tensor)
        return found

    yield put(muon, "whole", own_rows)


@bug
def lamb_measures_its_own_shards(rank: int, ranks: int, job: Any) -> Iterator[Any]:
    """Trust ratios are those of what a rank holds, not of whole tensors."""
    from argosy.optim.lamb import Lamb

    real = Lamb.trust

    def alone(self: Any, updates: Any) -> Any:
        group, self.group = self.group, None
        try:
            return real(self, updates)
        finally:
            self.group = group

    yield put(Lamb, "trust", alone)


@bug
def window_is_one_token_short_on_one_rank(rank: int, ranks: int, job: Any) -> Iterator[Any]:
    """Rank 1 attends to one token less than the window."""
    from argosy.model import decoder

    if rank != 1:
        return
    real = decoder.attention

    def short(q: Any, k: Any, v: Any, segments: Any, window: int, *more: Any) -> Any:
        return real(q, k, v, segments, window - 1 if window else 0, *more)

    yield put(decoder, "attention", short)


@bug
def last_chunk_of_the_loss_is_dropped(rank: int, ranks: int, job: Any) -> Iterator[Any]:
    """Labels of what does not fill a chunk do not count."""
    from argosy.model import decoder

    real = decoder.loss_sum

    def cut(hidden: Any, weight: Any, labels: Any, weights: Any, chunk: int, **more: Any) -> Any:
        flat = weights.reshape(-1).clone()
        whole = flat.numel() // chunk * chunk
        if whole:
            flat[whole:] = 0
        return real(hidden, weight, labels, flat.view(weights.shape), chunk, **more)

    yield put(decoder, "loss_sum", cut)


@bug
def one_rank_does_not_update(rank: int, ranks: int, job: Any) -> Iterator[Any]:
    """The last rank skips the last update: nothing but its weights tells."""
    from argosy.train.state import State

    if rank != ranks - 1 or ranks == 1:
        return
    real = State.update

    def lazy(self: Any, vote: Any) -> None:
        if self.step < 3:
            real(self, vote)

    yield put(State, "update", lazy)


@bug
def copies_of_an_early_stage_are_not_added_up(rank: int, ranks: int, job: Any) -> Iterator[Any]:
    """Copies of shards are added up in the step's last backward pass alone: stages whose own came before lose their sum."""
    from argosy.parallel import data

    yield put(data.Sharded, "ends", lambda self, units: None)
    yield put(data, "partial_sums", lambda module: False)  # nor does anybody look whether one is left
