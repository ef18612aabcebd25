"""What two real ranks send is heard by kind, members and bytes; what nobody can count is an error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from argosy.prove.pool import Failed, Pool

HERE = str(Path(__file__))


def said(rank: int, ranks: int, board: str, asked: str) -> list[Any]:
    """What is heard while this rank does what `asked` names."""
    import torch
    import torch.distributed as dist
    from torch import nn
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    from argosy.device.sends import hearing_sends
    from argosy.device.torch_versions import gather_into
    from argosy.layout.layout import Layout
    from argosy.parallel.mesh import Meeting, joined

    found: list[Any] = []
    with joined(Layout(tp=ranks), rank, Meeting("sends/1", Path(board))) as mesh:
        grid = mesh.tensor()
        assert grid is not None
        with hearing_sends(lambda *heard: found.append(heard)):
            if asked == "by hand":
                dist.all_reduce(torch.ones(6, dtype=torch.float64))
                gather_into(torch.zeros(4 * ranks), torch.ones(4), None)
                dist.broadcast(torch.ones(3, dtype=torch.bfloat16), 0)
                if rank == 0:
                    dist.send(torch.ones(5), 1)
                else:
                    dist.recv(torch.ones(5), 0)
            elif asked == "by DTensors":
                weight = nn.Parameter(distribute_tensor(torch.ones(4, 2), grid, [Shard(0)], src_data_rank=None))
                weight.redistribute(placements=[Replicate()]).to_local().sum().backward()
            else:
                dist.gather(torch.zeros(1), [torch.zeros(1) for _ in range(ranks)] if rank == 0 else None)
    return found


def test_collectives_and_letters(pool: Pool) -> None:
    first, second = pool.call(f"{HERE}:said", "by hand", ranks=2)
    assert second == [["all-reduce", [0, 1], 48], ["all-gather", [0, 1], 32], ["broadcast", [0, 1], 6]]
    assert first == [*second, ["send", [0, 1], 20]]


def test_what_dtensors_do_is_heard_below_them(pool: Pool) -> None:
    for heard in pool.call(f"{HERE}:said", "by DTensors", ranks=2):
        assert ["all-gather", [0, 1], 32] in heard


def test_what_nobody_can_count_is_an_error(pool: Pool) -> None:
    with pytest.raises(Failed, match=r"nobody knows how many bytes c10d\.gather_ sends"):
        pool.call(f"{HERE}:said", "gather", ranks=2)
