from __future__ import annotations

from typing import Any

from argosy.layout.layout import Layout
from argosy.plan import bytes as memory
from argosy.plan import flops, moved


def test_one_rank_sends_nothing_and_more_send_almost_the_whole(settled: Any) -> None:
    job = settled().job
    assert moved.tensor(job, Layout()).total == 0
    two, eight = (moved.tensor(job, Layout(tp=tp)).activations for tp in (2, 8))
    assert eight == two * (7 / 8) / (1 / 2)


def test_the_parallel_block_sends_half(settled: Any) -> None:
    layout = Layout(tp=2)
    plain, parallel = (moved.passes(settled(f"model.block.parallel={word}").job) - 4 for word in ("false", "true"))
    assert plain == 2 * parallel > 0
    assert (
        moved.tensor(settled("model.block.parallel=true").job, layout).total < moved.tensor(settled().job, layout).total
    )


def test_data_parallel_ranks_share_the_tokens(settled: Any) -> None:
    job = settled("batch.micro=1").job
    assert moved.tensor(job, Layout(tp=2)).total == 2 * moved.tensor(job, Layout(tp=2, dp_shard=2)).total


def test_tensor_ranks_hold_their_part(settled: Any) -> None:
    job = settled().job
    one, two = memory.peak(job, Layout(), 4), memory.peak(job, Layout(tp=2), 4)
    assert flops.parameters(job.model) > flops.parameters(job.model, 2) > flops.parameters(job.model) / 2
    assert two.weights < 0.55 * one.weights
    assert two.optimizer < 0.55 * one.optimizer
    assert two.logits == one.logits / 2
    assert 0.5 * one.activations < two.activations < 0.8 * one.activations
    whole = job.model_copy(update={"layout": job.layout.model_copy(update={"sequence": False})})
    assert memory.peak(whole, Layout(tp=2), 4).activations > two.activations


def test_a_step_counts_every_dimension(settled: Any) -> None:
    job = settled("batch.micro=2", "layout.shape=tp2").job
    eight = Layout(pp=2, dp_shard=2, tp=2)
    for rank in range(8):
        found = {(move.kind, len(move.ranks)) for move in moved.step(job, eight, rank)}
        assert found == {("all-gather", 2), ("reduce-scatter", 2), ("all-reduce", 2), ("send", 2)}
    assert moved.step(job, Layout(), 0) == []


def test_what_shards_and_copies_send(settled: Any) -> None:
    """The table of docs/parallel-data.md, for W bytes of weights: gathers and scatters of each ZeRO stage, and one sum."""
    job = settled("batch.micro=4", "layout.shape=dp2").job
    whole = 4.0 * flops.parameters(job.model)
    assert memory.pieces(job, Layout(dp_shard=2), 4) == 2
    for zero, gathers, scatters in ((1, 1, 1), (2, 1, 2), (3, 4, 2)):
        staged = job.model_copy(update={"layout": job.layout.model_copy(update={"zero": zero})})
        found = moved.added(moved.step(staged, Layout(dp_shard=2), 1))
        assert found == {("all-gather", (0, 1)): gathers * whole, ("reduce-scatter", (0, 1)): scatters * whole}
        assert sum(move.sent for move in moved.step(staged, Layout(dp_shard=2), 1)) == (gathers + scatters) * whole / 2
    (copies,) = moved.step(job, Layout(dp_replicate=2), 0)
    assert (copies.kind, copies.size, copies.sent) == ("all-reduce", whole, whole)


def test_letters_go_to_the_neighbouring_stages(settled: Any) -> None:
    job = settled("batch.micro=4", "layout.shape=pp2", "model.tied=false", "model.layers=4").job
    letters = 4 * 4 * job.batch.sequence * 192 * 4  # four micro-batches of four sequences, width 192, float32
    layout = Layout(pp=4)
    for rank, others in enumerate([(1,), (0, 2), (1, 3), (2,)]):
        found = moved.added(moved.step(job, layout, rank))
        assert found == {("send", (rank, other)): letters for other in others}
