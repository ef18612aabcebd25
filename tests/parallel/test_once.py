"""Copies of shards are added up once a step, at the last micro-batch of each stage, however many micro-batches there are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from argosy.prove.options import Case, job_of, legal, plain, rows_of
from argosy.prove.parity import Bench, Trial
from argosy.prove.pool import Failed, Pool

HERE = str(Path(__file__))
HYBRID: Case = {**plain(), "replicate": 2, "shard": 2, "layers": 2, "tied": True, "clip": 0.05}
INTERLEAVED: Case = {**HYBRID, "pp": 2, "schedule": "interleaved", "virtual": 2, "layers": 4}


def sums(rank: int, ranks: int, board: str, asked: dict[str, Any]) -> dict[str, int]:
    """How often one step adds up copies of shards, and how many modules this rank shards; `asked["broken"]`: see the test."""
    import torch

    from argosy.job.schema import Job
    from argosy.parallel import apply
    from argosy.parallel.data import Sharded
    from argosy.parallel.mesh import Meeting, joined
    from argosy.plan import layouts
    from argosy.prove.sample import batch_of
    from argosy.prove.traffic import heard
    from argosy.train.feed import cut, tensors

    job = Job.model_validate(asked["job"])
    layout, device = layouts.of(job.layout, ranks), torch.device("cpu")
    rows, length = job.batch.tokens // job.batch.sequence, job.batch.sequence
    batch = batch_of(1, rows=rows, sequence=length, packed=False, vocabulary=job.model.vocabulary or 0)
    with joined(layout, rank, Meeting("once/1", Path(board))) as mesh:
        laid = apply.decoder(job, mesh, device)
        assert isinstance(laid.applied.data, Sharded)
        if asked.get("broken"):
            setattr(laid.applied.data, "ends", lambda units: None)  # noqa: B010
        own = cut(batch, layout.data, layout.data_index(rank), int(job.batch.micro))
        with heard() as moves:
            laid.execute([tensors(part, device) for part in own], scale=1.0)
        copies = tuple(layout.group(rank, "dp_replicate"))
        units = [module for module in laid.applied.data.modules if module is not laid.applied.whole]
        ends = any(not name.startswith("model.blocks.") for name, _ in laid.applied.whole.named_parameters())
        return {
            "sums": sum(move.kind == "all-reduce" and move.ranks == copies for move in moves),
            "modules": len(units) + ends,
        }


@pytest.mark.parametrize("zero", [1, 2, 3])
def test_one_sum_over_copies_a_module_and_step(pool: Pool, zero: int) -> None:
    for micros in (1, 3):
        case = {**HYBRID, "zero": zero, "micros": micros}
        asked = {"job": job_of(case).model_dump(mode="json")}
        assert rows_of(case) == 4 * micros
        for found in pool.call(f"{HERE}:sums", asked, ranks=4):
            assert found == {"sums": 3, "modules": 3}  # two blocks, and the ends of the model


@pytest.mark.parametrize("zero", [2, 3])
def test_in_an_interleaved_pipeline_too(pool: Pool, zero: int) -> None:
    """There most stages have their last backward pass before the step's last one."""
    case = {**INTERLEAVED, "zero": zero, "micros": 3}
    for found in pool.call(f"{HERE}:sums", {"job": job_of(case).model_dump(mode="json")}, ranks=8):
        assert found["sums"] == found["modules"] == 3


def test_gradients_are_those_of_one_process(pool: Pool) -> None:
    bench = Bench(pool)
    try:
        for more in ({"zero": 2, "micros": 3}, {"zero": 3, "micros": 2, "uneven": True, "recompute": "block"}):
            case = {**INTERLEAVED, **more}
            assert legal(case)
            found = bench.try_(Trial.of(case))
            assert found.ok, (more, found.wrong)
    finally:
        bench.close()


def test_a_sum_that_would_be_lost_is_an_error(pool: Pool) -> None:
    """Were only the step's last backward pass to add copies up, an earlier stage's gradients would be lost without a word."""
    asked = {"job": job_of({**INTERLEAVED, "zero": 2, "micros": 3}).model_dump(mode="json"), "broken": True}
    with pytest.raises(Failed, match="added up over shards but not over their copies"):
        pool.call(f"{HERE}:sums", asked, ranks=8)
