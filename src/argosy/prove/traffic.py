"""What a rank really sends: every collective and letter of a step, heard below the model, beside the closed form.

Runs in ranks (pool.py); without torch at module level. `plan/moved.py` has the form.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from argosy.plan.moved import Move


@contextmanager
def heard() -> Iterator[list[Move]]:
    """The moves that this thread makes meanwhile, in their order."""
    from argosy.device.sends import hearing_sends
    from argosy.plan.moved import Move

    moves: list[Move] = []
    with hearing_sends(lambda kind, ranks, size: moves.append(Move(kind, ranks, size))):
        yield moves


def step(rank: int, ranks: int, board: str, asked: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One forward and backward of the jobs in force `asked["jobs"]`, each in its own layout. Runs in the pool.

    Gives for each "heard" and "formula": a list of {kind, ranks, size}, moves of one kind and group added up.
    """
    import torch

    from argosy.job.schema import Job
    from argosy.parallel import apply
    from argosy.parallel.mesh import Meeting, joined
    from argosy.plan import layouts, moved
    from argosy.prove.sample import batch_of
    from argosy.train.feed import cut, tensors

    found, device = [], torch.device("cpu")
    for number, told in enumerate(asked["jobs"]):
        job = Job.model_validate(told)
        layout = layouts.of(job.layout, ranks)
        rows = job.batch.tokens // job.batch.sequence
        batch = batch_of(1, rows=rows, sequence=job.batch.sequence, packed=False, vocabulary=job.model.vocabulary or 0)
        with joined(layout, rank, Meeting(f"traffic/{number}", Path(f"{board}-{number}"))) as mesh:
            laid = apply.decoder(job, mesh, device)
            laid.applied.whole.train()
            own = [
                tensors(part, device) for part in cut(batch, layout.data, layout.data_index(rank), int(job.batch.micro))
            ]
            laid.number.fill_(1)
            with heard() as moves:
                laid.execute(own, scale=1 / batch.counted)
        found.append({"heard": _rows(moves), "formula": _rows(moved.step(job, layout, rank))})
    return found


def _rows(moves: list[Move]) -> list[dict[str, Any]]:
    from argosy.plan.moved import added

    return [{"kind": kind, "ranks": list(ranks), "size": size} for (kind, ranks), size in sorted(added(moves).items())]
