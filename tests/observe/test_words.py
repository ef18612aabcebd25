"""The block before the first step says of the layout what acts and is not as it is when nobody asks."""

from __future__ import annotations

import pytest

from argosy.job.load import load
from argosy.observe import words


@pytest.mark.parametrize(
    ("workers", "asked", "said"),
    [
        (2, ["replicate2"], "2 workers of 1 thread: replicate2 over gloo, 4 sequences at once"),
        (12, ["dp12"], "12 workers of 1 thread: dp12, ZeRO-2 over gloo, 4 sequences at once"),
        (
            8,
            ["dp8", "layout.zero=3", "layout.secondary=4"],
            "8 workers of 1 thread: dp8, ZeRO-3 over gloo, 4 sequences at once\na second shard over 4 ranks",
        ),
        (2, ["pp2"], "2 workers of 1 thread: pp2 over gloo, 4 sequences at once"),
        (
            4,
            ["pp2 tp2", "layout.schedule=interleaved", "layout.virtual=2", "layout.sequence=false"],
            "4 workers of 1 thread: pp2 tp2 over gloo, 4 sequences at once"
            "\ninterleaved with 2 stages a rank, sequences whole on every tensor rank",
        ),
        (
            4,
            ["pp2 dp2", "layout.schedule=gpipe", "layout.stages=[1, 2]", "layout.order=dp pp replicate cp tp"],
            "4 workers of 1 thread: pp2 dp2, ZeRO-2 over gloo, 4 sequences at once"
            "\naxes in the order dp pp replicate cp tp, gpipe, stages of 1 + 2 layers",
        ),
        (
            1,
            ["dp1", 'memory.recompute=["attention", "norm"]'],
            "1 worker of 1 thread: dp1, 4 sequences at once\nbackward recomputes attention, norm",
        ),
        (0, ["dp1"], "in this process, no workers"),
        (0, ["dp1", "memory.recompute=block"], "in this process, no workers\nbackward recomputes block"),
    ],
)
def test_a_layout_is_told(workers: int, asked: list[str], said: str) -> None:
    shape, *more = asked
    job = load("laptop", [f"layout.shape={shape}", "batch.micro=4", *more]).job
    assert words._layout(job, workers, 1, "gloo") == said


def test_a_batch_that_grows_is_told_as_it_grows() -> None:
    words_of = ["optim.warmup=512", "batch.tokens=1024", "batch.sequence=128", "train.tokens=8192"]
    plain = load("laptop", words_of).job
    ramped = load("laptop", [*words_of, "batch.ramp={ start = 256, by = 256, tokens = 4096 }"]).job
    assert words._batch(plain, 8, 8192, 8192).startswith("8 sequences x 128 = 1,024 tokens; 8 steps")
    assert "= 1,024 tokens, from 256 on over the first 4,096; 8 steps" in words._batch(ramped, 8, 8192, 8192)
    assert "warm-up 1 steps" in words._optim(plain, 8, None), "half of a step, told as one"
    assert "warm-up 512 tokens" in words._optim(ramped, 8, None), "two steps of the first size"
