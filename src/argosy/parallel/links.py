"""Letters between the stages of a pipeline: activations forward, their gradients backward, each sent and read once.

Knows groups and ranks; not what a letter says, nor in which order a schedule wants them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from argosy.layout.schedule import BACKWARD, FORWARD, RECV_B, RECV_F, SEND_F, Action
from argosy.parallel.mesh import Mesh


class Links:
    """Letters between this rank and those that hold the stages before and after its own.

    Each border of two stages has a channel per direction, in which letters keep their order. Sends and receives are started and
    left alone: whoever needs a letter waits for it, and what was sent is kept until it has surely been read.
    """

    def __init__(self, mesh: Mesh, device: torch.device | None = None):
        if mesh.pp is None:
            raise ValueError("no pipeline: pp is 1")
        self.layout, self.rank = mesh.layout, mesh.rank
        self.group = mesh.pp
        # gloo tells letters apart by tag. NCCL knows no tags, and runs one group's letters one after the other: there each
        # channel is a group of its own.
        self.tags = mesh.kind == "cpu"
        self._groups: dict[tuple[str, int], dist.ProcessGroup] = {}
        for border in range(0 if self.tags else self.layout.stages - 1):
            ends = sorted((self._holder(border), self._holder(border + 1)))
            if self.rank in ends:
                for way in (FORWARD, BACKWARD):
                    made = mesh.among(ends, name=f"{way}{border}")
                    assert made is not None
                    self._groups[way, border] = made
                    self._open_up(way, border, device)
        self._open: dict[Action, tuple[dist.Work, Tensor]] = {}
        self._sent: dict[Action, tuple[dist.Work, Tensor]] = {}

    def _open_up(self, way: str, border: int, device: torch.device | None) -> None:
        """Send one number through a channel while nothing else goes on.

        NCCL makes the connection of two ranks at their first letter, and neither goes on before the other is there. A schedule
        opens letter boxes long before the letters come: there ranks would wait for each other in a circle. Here they cannot,
        since every rank goes through its borders in ascending order.
        """
        begin, end = (border, border + 1) if way == FORWARD else (border + 1, border)
        number, group = torch.zeros(1, device=device), self._groups[way, border]
        if self.rank == self._holder(begin):
            dist.send(number, self._holder(end), group=group)
        else:
            dist.recv(number, self._holder(begin), group=group)

    def _holder(self, stage: int) -> int:
        return self.layout.holder(self.rank, stage)

    def _channel(self, action: Action) -> tuple[int, dist.ProcessGroup, int]:
        """The rank at the other end, the group and the tag."""
        forward = action.kind in (SEND_F, RECV_F)
        border = action.stage if action.kind in (SEND_F, RECV_B) else action.stage - 1
        other = border + 1 if action.kind in (SEND_F, RECV_B) else border
        if self.tags:
            return self._holder(other), self.group, 2 * border + (0 if forward else 1)
        return self._holder(other), self._groups[FORWARD if forward else BACKWARD, border], 0

    def send(self, action: Action, letter: Tensor) -> None:
        """Post `letter`, which must not change until it is read."""
        other, group, tag = self._channel(action)
        letter = letter.detach().contiguous()
        work = dist.isend(letter, other, group=group, tag=tag)
        assert work is not None
        self._sent[action] = (work, letter)

    def open(self, action: Action, buffer: Tensor) -> None:
        """Get ready for a letter that fits `buffer`."""
        other, group, tag = self._channel(action)
        work = dist.irecv(buffer, other, group=group, tag=tag)
        assert work is not None
        self._open[action] = (work, buffer)

    def read(self, action: Action) -> Tensor:
        """The letter that `action` opened a box for, as soon as it is there."""
        work, buffer = self._open.pop(action)
        work.wait()
        return buffer

    def let_go(self, actions: Sequence[Action]) -> None:
        """Forget letters that have been read."""
        for action in actions:
            if action in self._sent:
                self._sent.pop(action)[0].wait()

    def close(self) -> None:
        """The end of a step: nothing is under way. RuntimeError where a letter was never read."""
        self.let_go(list(self._sent))
        if self._open:
            raise RuntimeError(f"letters that nobody read: {', '.join(map(str, self._open))}")
