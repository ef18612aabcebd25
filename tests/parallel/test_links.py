"""Channels that are made at their first letter would stop most schedules for ever: why all of them are opened at the start."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from argosy.layout import schedule
from argosy.layout.schedule import BACKWARD, COMPUTE, FORWARD, RECV_B, SEND_B, SEND_F, Action, Shape
from argosy.prove.pool import Pool

HERE = str(Path(__file__))
Channel = tuple[str, int]  # direction and border of two stages


def channel_of(action: Action) -> Channel:
    forward = action.kind not in (SEND_B, RECV_B)
    return (FORWARD if forward else BACKWARD, action.stage if action.kind in (SEND_F, RECV_B) else action.stage - 1)


class Play:
    """The lists of all ranks, where the first letter of a channel is a meeting: neither side goes on without the other."""

    def __init__(self, name: str, shape: Shape, *, opened: bool):
        self.lists = [schedule.actions(name, shape, rank) for rank in range(shape.ranks)]
        self.places = [0] * shape.ranks
        self.shape, self.opened = shape, opened
        self.met: set[Channel] = set()
        self.sent: set[Action] = set()  # by the computation that made it

    def now(self, rank: int) -> Action | None:
        place = self.places[rank]
        return self.lists[rank][place] if place < len(self.lists[rank]) else None

    def at(self, channel: Channel, but: int) -> Iterator[int]:
        """Ranks but one that have come to a letter of `channel`."""
        for rank in range(self.shape.ranks):
            action = self.now(rank)
            if rank != but and action is not None and action.kind not in COMPUTE and channel_of(action) == channel:
                yield rank

    def can(self, rank: int, action: Action) -> bool:
        if action.kind in COMPUTE:
            needed = schedule.needs(action, self.shape.stages)
            return needed is None or needed in self.sent
        channel = channel_of(action)
        if not self.opened and channel not in self.met:
            if not any(self.at(channel, but=rank)):
                return False
            self.met.add(channel)
        if action.kind in (SEND_F, SEND_B):
            self.sent.add(Action(FORWARD if action.kind == SEND_F else BACKWARD, action.stage, action.micro))
        return True

    def stuck(self) -> bool:
        """Whether some list never comes to its end."""
        moved = True
        while moved:
            moved = False
            for rank in range(self.shape.ranks):
                while (action := self.now(rank)) is not None and self.can(rank, action):
                    self.places[rank] += 1
                    moved = True
        return any(self.now(rank) is not None for rank in range(self.shape.ranks))


@pytest.mark.parametrize(
    ("name", "ranks", "virtual", "stuck"),
    [
        ("gpipe", 2, 1, range(1, 9)),
        ("gpipe", 4, 1, range(1, 9)),
        ("1f1b", 2, 1, [1]),
        ("1f1b", 4, 1, [1, 2, 3]),
        ("interleaved", 2, 2, [1]),
        ("interleaved", 3, 2, [1, 2, 3]),
        ("interleaved", 4, 2, [1, 2, 3, 4, 5]),
    ],
)
def test_schedules_stop_where_a_first_letter_is_a_meeting(
    name: str, ranks: int, virtual: int, stuck: list[int]
) -> None:
    """What opening the channels is for; with them open none stops, whatever the number of micro-batches."""
    shapes = [Shape(ranks, virtual, micro) for micro in range(1, 9)]
    assert [shape.micro for shape in shapes if Play(name, shape, opened=False).stuck()] == list(stuck)
    assert not any(Play(name, shape, opened=True).stuck() for shape in shapes)


def opened(rank: int, ranks: int, board: str, virtual: int) -> dict[str, Any]:
    """What this rank sends while its channels are made as NCCL needs them, and what is under way afterwards."""
    import torch.distributed as dist

    from argosy.layout.layout import Layout
    from argosy.parallel.links import Links
    from argosy.parallel.mesh import Meeting, joined
    from argosy.prove.traffic import heard

    with joined(Layout(pp=ranks, virtual=virtual), rank, Meeting("test", Path(board))) as mesh:
        mesh.kind = "cuda"  # only the choice of channels looks at it here
        with heard() as moves:
            links = Links(mesh)
        mesh.kind = "cpu"
        links.close()
        dist.barrier()  # rank 0 has the store by which the others may still be making groups
        return {
            "letters": [[move.kind, list(move.ranks)] for move in moves],
            "channels": sorted([way, border] for way, border in links._groups),
            "under way": len(links._sent) + len(links._open),
        }


@pytest.mark.parametrize(("ranks", "virtual"), [(2, 1), (2, 2), (4, 1), (4, 2)])
def test_every_channel_is_opened_before_the_first_step(pool: Pool, ranks: int, virtual: int) -> None:
    """One letter through each channel in its direction, borders in ascending order: the order in which nobody can stop."""
    borders = range(ranks * virtual - 1)
    for rank, found in enumerate(pool.call(f"{HERE}:opened", virtual, ranks=ranks)):
        letters = []
        for border in borders:
            ends = [border % ranks, (border + 1) % ranks]
            letters += [["send", ends]] if rank == ends[0] else []
            letters += [["send", ends[::-1]]] if rank == ends[1] else []
        assert found["letters"] == letters
        own = [border for border in borders if rank in (border % ranks, (border + 1) % ranks)]
        assert found["channels"] == sorted([way, border] for way in (FORWARD, BACKWARD) for border in own)
        assert found["under way"] == 0
