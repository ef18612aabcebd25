"""Ranks that need each other for a sample write the same one and end together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from argosy.prove.pool import Pool

HERE = str(Path(__file__))


def sampled(rank: int, ranks: int, board: str, agree: bool) -> dict[str, Any]:
    """What a rank writes, and in how many passes: rank 0 expects the next letter, the others the end of the text."""
    import torch

    from argosy.data.tokenizer import Bytes
    from argosy.layout.layout import Layout
    from argosy.parallel.execute import Whole
    from argosy.parallel.mesh import Meeting, joined
    from argosy.train.samples import Samples

    passes = 0

    def scores(tokens: Any, positions: Any, segments: Any) -> Any:
        nonlocal passes
        passes += 1
        wanted = tokens + 1 if rank == 0 else torch.full_like(tokens, 256)
        return 9.0 * torch.nn.functional.one_hot(wanted % 257, 257).double()

    with joined(Layout(dp_shard=ranks), rank, Meeting("test", Path(board))) as mesh:
        write = Samples(
            Whole(torch.nn.Linear(1, 1)), Bytes(), ["a", "p"], tokens=4, temperature=0.0, context=32, seed=1,
            scores=scores, group=mesh.world if agree else None,
        )  # fmt: skip
        found = [list(one) for one in write(3)]
        torch.distributed.barrier()  # who leaves at once closes connections that others are still making
        return {"texts": found, "passes": passes}


def test_rank_0_chooses_for_all(pool: Pool) -> None:
    together = pool.call(f"{HERE}:sampled", True, ranks=3)
    assert [one["texts"] for one in together] == [[["a", "bcde"], ["p", "qrst"]]] * 3
    assert [one["passes"] for one in together] == [4] * 3
    # Each for itself they would part: the others need one pass, and whatever rank 0 then gathers never comes.
    assert [one["passes"] for one in pool.call(f"{HERE}:sampled", False, ranks=3)] == [4, 1, 1]
