from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from argosy.data import ring, shard_file, shards
from argosy.data.batch import given
from argosy.errors import Refused
from argosy.job.schema import layers
from argosy.layout.layout import Layout
from argosy.plan import bytes as memory
from argosy.plan import flops
from argosy.run.ledger import Ledger

ROUGH = ("train.precision=bfloat16", "train.precision_of.norm=bfloat16", "optim.name=adamw", "layout.shape=dp2")


def test_sharding_takes_what_it_promises(settled: Any) -> None:
    job = settled(*ROUGH).job
    count = flops.parameters(job.model)

    def state(zero: int, shards: int) -> float:
        staged = job.model_copy(update={"layout": job.layout.model_copy(update={"zero": zero})})
        return memory.peak(staged, Layout(dp_shard=shards), 1).state / count

    assert state(1, 4) == 6 + 12 / 4  # whole gradients from one micro-batch to the next
    assert state(2, 4) == 2 + 16 / 4
    assert state(3, 4) == 16 / 4
    assert state(2, 1) == 16
    one = job.model_copy(update={"layout": job.layout.model_copy(update={"zero": 1})})
    rows = job.batch.tokens // job.batch.sequence
    assert memory.peak(one, Layout(dp_shard=4), rows // 4).state == round((2 + 16 / 4) * count)  # a single micro-batch


def test_norms_in_a_finer_type_are_whole_and_tables_are_gathered_in_theirs(settled: Any) -> None:
    """Of norms every rank has 16 bytes a parameter; ZeRO-2 keeps gathered tables in float32 then, at 4 bytes, not 2."""
    rough, fine, tables = (
        settled(*words).job
        for words in (ROUGH, (ROUGH[0], *ROUGH[2:]), (*ROUGH, "train.precision_of.embedding=float32"))
    )
    norms = sum(flops.norm_parameters(rough.model, range(len(layers(rough.model))), last=True))
    ends = flops.stage_parameters(rough.model, (), first=True, last=True)
    for zero, own in ((2, 2 + 16 / 4), (3, 16 / 4)):
        layout = Layout(dp_shard=4)
        state = []
        for job in (rough, fine, tables):
            staged = job.model_copy(update={"layout": job.layout.model_copy(update={"zero": zero})})
            state.append(memory.peak(staged, layout, 1).state)
        assert state[1] - state[0] == pytest.approx((16 - own) * norms, abs=3)
        assert state[2] - state[0] == pytest.approx(2 * ends if zero == 2 else 0, abs=3)
    assert memory.logits(settled(*ROUGH, "train.precision_of.head=float32").job) == 1.5 * memory.logits(rough)


def test_what_is_whole_for_a_moment_is_a_copy(settled: Any) -> None:
    job = settled("train.precision=bfloat16", "optim.name=adamw", "layout.shape=dp2").job
    count, layout = flops.parameters(job.model), Layout(dp_shard=4)
    assert memory.peak(job, Layout(), 1).copies == 2 * count  # every layer's cast
    assert memory.peak(settled("train.precision=float32").job, Layout(), 1).copies == 0
    ends = flops.stage_parameters(job.model, (), first=True, last=True)
    block = flops.stage_parameters(job.model, [0], first=False, last=False)
    assert memory.unit(job, layout) == max(ends, block) > min(ends, block) > 0
    two, three = (
        memory.peak(job.model_copy(update={"layout": job.layout.model_copy(update={"zero": zero})}), layout, 1).copies
        for zero in (2, 3)
    )
    assert two == max(ends, block) * (2 + 4)
    assert three == two + max(ends, block) * 2 * 2


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


def test_recomputing_keeps_less_and_lets_a_job_fit(settled: Any) -> None:
    words = ["model.layers=12", "batch.micro=8"]
    plain = settled(*words).job
    sizes = [
        memory.activations(settled(*words, f"memory.recompute={what}").job, 8)
        for what in ("none", "attention", "block")
    ]
    assert sizes[0] == memory.activations(plain, 8) > sizes[1] > sizes[2]
    width = plain.model.width or 0
    assert memory.kept(plain.model, layers(plain.model)[0], recompute=("block",)) == width
    needs = [
        memory.peak(settled(*words, f"memory.recompute={what}").job, Layout(), 8).total for what in ("none", "block")
    ]
    limit = f"memory.limit={sum(needs) // 2}"
    with pytest.raises(Refused, match=r"memory\.recompute=block"):
        settled(*words, limit, workers=1)
    assert settled(*words, limit, "memory.recompute=block", workers=1).job.batch.micro == 8


def test_norms_after_a_part_keep_their_input_and_capped_scores_are_held_whole(settled: Any) -> None:
    words = ("train.precision=float32", "batch.sequence=512", "batch.tokens=4096")
    plain, peri, post, capped = (
        settled(*words, *more).job
        for more in (
            (),
            ("model.block.norm_placement=peri",),
            ("model.block.norm_placement=post",),
            ("model.block.softcap=5.0",),
        )
    )
    width, block = plain.model.width or 0, layers(plain.model)[0]
    assert memory.kept(peri.model, layers(peri.model)[0]) == memory.kept(plain.model, block) + 2 * width
    assert memory.activations(post, 2) == memory.activations(plain, 2)
    scores = memory.activations(capped, 2) - memory.activations(plain, 2)
    assert scores == 2 * (block.heads or 0) * 512**2 * memory.SCORE
    both = settled(*ROUGH, "model.block.norm_placement=peri").job.model
    every = range(len(layers(both)))
    assert flops.norm_parameters(both, every, last=False)[0] == len(every) * 4 * (both.width or 0)
    assert flops.repeated_norms(both, every, last=False, tp=2, sequence=True)[0] == len(every) * 4 * (both.width or 0)


def test_what_a_reader_holds_is_what_its_ring_and_its_arrays_hold(settled: Any, tmp_path: Path) -> None:
    """The formula against the ring's own file and what Python says was allocated, for documents of many lengths."""
    random = np.random.default_rng(0)
    lengths = random.integers(2, 2000, 300)
    folder = tmp_path / "made"
    folder.mkdir()
    rows = np.zeros(len(lengths), shard_file.DOCUMENT)
    rows["held"][0] = 1
    rows["hash"] = np.arange(len(lengths))
    tokens = np.zeros(int(lengths.sum()), np.uint16)
    borders = np.cumsum([0, *lengths]).astype(np.uint64)
    shard_file.write(folder / "part.shard", shard_file.Contents(borders, rows, ["a"] * len(lengths), tokens))
    np.ones(257, "<i4").tofile(folder / shards.TOKEN_BYTES)
    facts = {"version": 1, "digest": "d", "source": "made", "vocabulary": 257, "shards": ["part.shard"]}
    (folder / shards.FACTS).write_text(json.dumps(facts))
    opened, job = shards.Shards(folder), settled("batch.tokens=1048576", "batch.sequence=128").job
    ledger = Ledger.start(data__order=2, batch__sequence=128, batch__tokens=1048576)
    given(1, 1, ledger, opened)  # the order of an epoch is kept
    tracemalloc.start()
    try:
        made = given(2, 1, ledger, opened)
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert memory.AHEAD == ring.AHEAD
    ring.write_batch(tmp_path / "batch", 2, made)
    size = (tmp_path / "batch").stat().st_size
    assert 0 <= size - memory.PLACE * 1048576 < 1048576  # the numbers of its sequences, a head
    said = memory.reader(job) - (memory.AHEAD + 1) * memory.PLACE * 1048576
    assert 0.8 < most / said < 1.0
    whole, half = memory.reader(job), memory.reader(job, 0.5)
    assert whole - half == 2 * memory.PLACE * 1048576
    assert memory.peak(job, Layout(dp_replicate=2), 4).batch == memory.PLACE * 1048576 // 2
