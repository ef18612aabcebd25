from __future__ import annotations

import pytest

from argosy.job.load import load
from argosy.job.presets import filled
from argosy.job.schema import Job
from argosy.plan import derive


def job(*overrides: str) -> Job:
    asked = load("laptop", overrides).job
    return asked.model_copy(update={"model": filled(asked.model).model_copy(update={"vocabulary": 2048})})


def test_the_rate_falls_with_compute() -> None:
    adamw = job("optim.name=adamw")
    small, large = derive.lr(adamw, 10**6).value, derive.lr(adamw, 256 * 10**6).value
    assert small / large == pytest.approx(2, rel=0.06)  # 256^0.125
    assert "C^-0.125" in derive.lr(adamw, 10**6).why


def test_it_agrees_with_what_others_use() -> None:
    llama = job("model.preset=llama3-8b", "optim.name=adamw", "batch.sequence=8192", "batch.tokens=8192")
    assert derive.lr(llama, 15 * 10**12).value == pytest.approx(3e-4, rel=0.15)  # Llama 3's own 3e-4
    gpt2 = job("model.preset=gpt2-124m", "optim.name=adamw", "batch.sequence=1024")
    assert 5e-4 < derive.lr(gpt2, 10 * 10**9).value < 2e-3  # type: ignore[operator]


def test_warmup_is_a_tenth_of_a_short_run_and_less_of_a_long_one() -> None:
    laptop = job()
    assert derive.warmup(laptop, 320 * 4096).value == 32 * 4096
    assert derive.warmup(laptop, 100_000 * 4096).value == 2000 * 4096
    assert derive.warmup(laptop, 1_000_000 * 4096).value == 10_000 * 4096
    assert derive.warmup(laptop, 4096).value == 0


def test_lambs_rate_is_adamws_step_as_a_share_of_the_first_weights() -> None:
    tokens = 10**6
    adamw, lamb = derive.lr(job("optim.name=adamw"), tokens), derive.lr(job("optim.name=lamb"), tokens)
    first = (2 / (5 * 192)) ** 0.5  # of the laptop job's matrices
    assert lamb.value / adamw.value == pytest.approx(0.2 / first, rel=0.06)  # type: ignore[operator]
    assert "for LAMB" in lamb.why


def test_under_mup_the_rate_is_that_of_the_base_width() -> None:
    """Four times as wide is sixteen times the compute, which would lower the rate by itself; muP lowers it already."""
    wide = ("model.width=768", "model.block.heads=24", "model.tied=false", "optim.name=adamw")
    plain, scaled = (
        derive.lr(job(*wide), 10**6),
        derive.lr(job(*wide, "model.scaling=mup", "model.base_width=192"), 10**6),
    )
    base = derive.lr(job("model.tied=false", "optim.name=adamw"), 10**6)
    assert scaled.value == pytest.approx(base.value, rel=0.1)
    assert plain.value < 0.8 * scaled.value  # type: ignore[operator]
    assert "at width 192" in scaled.why
    assert derive.growth(job(*wide, "model.scaling=mup").model) == 4
    assert derive.growth(job(*wide).model) == 1
