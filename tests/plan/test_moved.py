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
