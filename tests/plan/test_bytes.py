from __future__ import annotations

from typing import Any

from argosy.layout.layout import Layout
from argosy.plan import bytes as memory
from argosy.plan import flops


def test_sharding_takes_what_it_promises(settled: Any) -> None:
    job = settled("train.precision=bfloat16", "optim.name=adamw", "layout.shape=dp2").job
    count = flops.parameters(job.model)

    def state(zero: int, shards: int) -> float:
        staged = job.model_copy(update={"layout": job.layout.model_copy(update={"zero": zero})})
        peak = memory.peak(staged, Layout(dp_shard=shards), 1)
        return (peak.weights + peak.gradients + peak.optimizer) / count

    assert state(1, 4) == 6 + 12 / 4  # FACTS F14: 6 + 16/D less the shard of gradients that ZeRO-1 keeps whole anyway
    assert state(2, 4) == 2 + 16 / 4
    assert state(3, 4) == 18 / 4
    assert state(2, 1) == 18


def test_muon_holds_less_than_adamw(settled: Any) -> None:
    adamw, muon = settled("optim.name=adamw").job, settled().job
    assert memory.optimizer_bytes(adamw) == 8 * flops.parameters(adamw.model)
    saved = memory.optimizer_bytes(adamw) - memory.optimizer_bytes(muon)
    assert saved == 4 * flops.matrix_parameters(muon.model)
    assert memory.checkpoint(adamw) == 12 * flops.parameters(adamw.model)


def test_activations_grow_with_what_is_computed_at_once(settled: Any) -> None:
    job = settled().job
    assert abs(memory.activations(job, 8) - 8 * memory.activations(job, 1)) <= 4  # each is rounded to a byte
    wider = settled("train.precision=bfloat16").job
    assert memory.activations(wider, 8) < memory.activations(job, 8)
    assert memory.logits(settled("memory.loss_chunk=2048").job) == 2 * memory.logits(job)


def test_a_head_whose_weights_come_in_shards_adds_up_a_gradient_of_its_own(settled: Any) -> None:
    def beside(precision: str, layout: Layout) -> int:
        job = settled(f"train.precision={precision}", f"layout.shape={layout.text()}").job
        assert job.model.vocabulary * job.model.width == 2048 * 192
        return memory.peak(job, layout, 1).logits - memory.logits(job)

    assert beside("bfloat16", Layout(dp_shard=2)) == 4 * 2048 * 192
    assert beside("float32", Layout(dp_shard=2)) == 0
    assert beside("bfloat16", Layout(dp_replicate=2)) == 0  # as wide as the gradient that stands anyway


def test_disk_holds_one_checkpoint_more_than_are_kept(settled: Any) -> None:
    two, three = settled().job, settled("checkpoint.keep=3").job
    assert memory.disk(three, 10, 2) - memory.disk(two, 10, 2) == memory.checkpoint(two)
    assert memory.disk(two, 1000, 2) > memory.disk(two, 10, 2)
