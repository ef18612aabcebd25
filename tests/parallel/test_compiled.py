"""Compiled blocks in every kind of layout: right, and one compilation for each shape of block, however many blocks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from argosy.prove import parity
from argosy.prove.options import Case, job_of, plain
from argosy.prove.parity import Bench, Trial
from argosy.prove.pool import Pool

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]

HERE = str(Path(__file__))
COMMON: Case = {**plain(), "layers": 4, "micros": 3, "dropout": 0.2, "packed": True, "clip": 0.05}
PP: Case = {"pp": 2, "schedule": "1f1b"}
CASES: list[Case] = [
    {**PP, "schedule": "gpipe", "tied": True},
    {**PP, "tied": True},
    {**PP, "schedule": "interleaved", "virtual": 2, "tied": True},
    {**PP, "recompute": "block", "window": "every other"},
    {**PP, "recompute": "attention"},
    {"tp": 2, "sequence": True, "parallel": True},
    {"tp": 2, "sequence": True, "recompute": "block"},
    {"tp": 2, "recompute": "norm", "positions": "learned"},
    {"shard": 2, "zero": 3, "tp": 2, "sequence": True, "qk_norm": "full"},
    {"shard": 2, "zero": 3, "recompute": "mlp"},
    {"shard": 4, "zero": 3, "secondary": 2},
    {**PP, "tp": 2, "sequence": True, "tied": True},
    {**PP, "schedule": "interleaved", "virtual": 2, "shard": 2, "zero": 2},
    {"replicate": 2, "shard": 2, "zero": 2, "recompute": "norm"},
]


def blocks_compiled(rank: int, ranks: int, board: str, asked: Mapping[str, Any]) -> dict[str, Any]:
    """`prove.measure.steps`; says in its order how many graphs were compiled of blocks, and of how many shapes they are."""
    import torch

    from argosy.device.torch_versions import compile_settings_restored, compile_strictly, forget_compiled, inductor
    from argosy.job.schema import Job, layers
    from argosy.model.decoder import Block
    from argosy.prove import measure

    job = Job.model_validate(asked["job"])
    compiled: list[str] = []
    real = torch.compile

    def noting(graph: Any, inputs: Any) -> Any:
        """The usual backend; one object for all, since graphs are shared only where it is the same."""
        compiled.append(type(graph).__name__)
        return inductor(graph, inputs)

    def counting(function: Any, **options: Any) -> Any:
        """torch.compile, which notes the graphs of blocks; one that is recomputed whole is no method any more."""
        of_block = isinstance(getattr(function, "__self__", None), Block) or "recomputed" in function.__qualname__
        return real(function, backend=noting, **options) if of_block else real(function, **options)

    forget_compiled()
    torch.compile = counting  # type: ignore[assignment]
    try:
        with compile_settings_restored():
            compile_strictly()
            found = measure.steps(rank, ranks, board, asked)
    finally:
        torch.compile = real
    shapes = len({str(block) for block in layers(job.model)})
    assert len(compiled) == shapes, f"{len(compiled)} graphs of blocks of {shapes} shapes"
    return found


@pytest.fixture(scope="module")
def bench(pool: Pool) -> Iterator[Bench]:
    made = Bench(pool, run=f"{HERE}:blocks_compiled")
    yield made
    made.close()


@pytest.mark.parametrize("more", CASES, ids=lambda more: " ".join(f"{name}{value}" for name, value in more.items()))
def test_a_compiled_layout_trains_as_the_reference_does(
    bench: Bench, more: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parity, "LIMIT", 1500.0)  # compiling takes minutes on a loaded machine
    case = {**COMMON, **more}
    job = job_of(case, "float32")
    job = job.model_copy(update={"train": job.train.model_copy(update={"compile": True})})
    found = bench.try_(Trial(job, case["update"], case["packed"], parity.ranks_of(case)))
    assert found.ok, found.wrong
    assert any(word.startswith("compile ") for word in found.order)
