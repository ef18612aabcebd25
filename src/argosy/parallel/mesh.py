"""Every process group and every store of the engine is made here, and nowhere else.

In: a Layout, a rank, the incarnation's number. Out: a Mesh with one group per set of ranks that must talk. Rank 0 of each
incarnation opens a fresh store on a free port and publishes its address in a file; every key has the prefix (run,
incarnation), so that new workers never read the addresses of dead ones. A rank touches the store only for groups that it is
in, and to hear that rank 0 has done what may take longer than a collective waits; nothing waits for the whole world. A single
rank has no group, no store and needs no network.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from argosy.errors import BUG, Refused
from argosy.layout.layout import Layout

PATIENCE = timedelta(
    minutes=30
)  # of a collective: a rank may compile, evaluate or wait for a disk; the parent notices the dead
LOOPBACK = "127.0.0.1"
LONGEST_PAUSE = 0.5  # seconds between two looks for rank 0's word; the first ones follow each other at once


@dataclass(frozen=True)
class Meeting:
    """How the ranks of one incarnation find each other.

    `board` is the file in which rank 0 publishes its store's address. Under a launcher `master` is "host:port" instead, and
    `hosted` says that the launcher keeps that store itself (torchrun does).
    """

    prefix: str  # run and incarnation
    board: Path | None = None
    master: str | None = None
    hosted: bool = False


@dataclass
class Mesh:
    """All groups of one rank. `world` is None for a single rank; `agree` is the group of the vote."""

    layout: Layout
    rank: int
    kind: str = "cpu"  # torch's device type
    world: dist.ProcessGroup | None = None
    shard: dist.ProcessGroup | None = None  # along dp_shard; None where that degree is 1
    replicate: dist.ProcessGroup | None = None  # along dp_replicate; None where that degree is 1
    data: dist.ProcessGroup | None = None  # along both
    _store: dist.Store | None = field(default=None, repr=False)  # of this incarnation alone
    _words: int = 0  # how often rank 0 has been waited for

    @property
    def size(self) -> int:
        """Number of ranks."""
        return self.layout.world

    def grid(self) -> DeviceMesh | None:
        """What `fully_shard` shards over: [dp_shard], or [dp_replicate, dp_shard]; None where dp_shard is 1."""
        if self.shard is None:
            return None
        if self.replicate is None:
            return DeviceMesh.from_group(self.shard, self.kind, mesh_dim_names=("dp_shard",))
        columns = self.layout.group(self.rank, "dp_replicate", "dp_shard")
        ranks = torch.tensor(columns, dtype=torch.int).view(self.layout.dp_replicate, self.layout.dp_shard)
        names = ("dp_replicate", "dp_shard")
        return DeviceMesh.from_group([self.replicate, self.shard], self.kind, mesh=ranks, mesh_dim_names=names)

    def first(self, work: Callable[[], object], pause: Callable[[float], object] = time.sleep) -> None:
        """Rank 0 does `work`, and all others wait until it is done, however long that takes. All ranks call it.

        A collective would give up after PATIENCE. A rank 0 that dies takes its store along, which is an error to who waits.
        """
        self._words += 1
        word, wait = f"argosy/first/{self._words}", 0.002
        if self.rank == 0:
            work()
            if self._store is not None:
                self._store.set(word, "done")
            return
        if self._store is None:
            raise ValueError(f"rank {self.rank} has no store to hear rank 0 by")
        while not self._store.check([word]):
            pause(wait)
            wait = min(LONGEST_PAUSE, wait * 1.5)

    def close(self) -> None:
        """Leave all groups. Waits for nobody."""
        if self.world is not None:
            dist.destroy_process_group()
        self.world = self.shard = self.replicate = self.data = self._store = None


def join(layout: Layout, rank: int, meeting: Meeting, *, backend: str = "gloo", kind: str = "cpu") -> Mesh:
    """Join the groups of `rank`. Refused (exit code 1) when rank 0's store does not appear within `PATIENCE`."""
    mesh = Mesh(layout, rank, kind)
    if layout.world == 1:
        return mesh
    mesh._store = dist.PrefixStore(meeting.prefix, _store(rank, meeting))
    dist.init_process_group(backend, store=mesh._store, rank=rank, world_size=layout.world, timeout=PATIENCE)
    mesh.world = dist.group.WORLD
    mesh.data = _group(layout, rank, mesh, "dp_replicate", "dp_shard")
    mesh.shard = _group(layout, rank, mesh, "dp_shard")
    mesh.replicate = _group(layout, rank, mesh, "dp_replicate")
    return mesh


@contextmanager
def joined(layout: Layout, rank: int, meeting: Meeting, *, backend: str = "gloo", kind: str = "cpu") -> Iterator[Mesh]:
    """`join`, and leave at the end."""
    mesh = join(layout, rank, meeting, backend=backend, kind=kind)
    try:
        yield mesh
    finally:
        mesh.close()


def _group(layout: Layout, rank: int, mesh: Mesh, *axes: str) -> dist.ProcessGroup | None:
    """The group of `rank` along `axes`; the world's own where it is the same, None for a rank alone."""
    ranks = layout.group(rank, *axes)
    if len(ranks) == 1:
        return None
    if len(ranks) == layout.world:
        return mesh.world
    # Local synchronisation: only the members meet, over keys of their own. Without it each group costs a barrier of the world.
    group = dist.new_group(ranks, timeout=PATIENCE, use_local_synchronization=True)
    if not isinstance(group, dist.ProcessGroup):
        raise RuntimeError(f"rank {rank} is no member of its own group {ranks}")
    return group


def _store(rank: int, meeting: Meeting) -> dist.Store:
    if meeting.master is not None:
        host, _, port = meeting.master.rpartition(":")
        first = rank == 0 and not meeting.hosted
        return dist.TCPStore(host, int(port), is_master=first, wait_for_workers=False, timeout=PATIENCE)
    if meeting.board is None:
        raise ValueError("a meeting needs a board or a master")
    # Nothing but loopback is used, and nothing else need be up.
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo0" if sys.platform == "darwin" else "lo")
    if rank == 0:
        store = dist.TCPStore(LOOPBACK, 0, is_master=True, wait_for_workers=False, timeout=PATIENCE)
        publish(meeting.board, f"{LOOPBACK}:{store.port}")
        return store
    host, _, port = wait_for(meeting.board).rpartition(":")
    return dist.TCPStore(host, int(port), is_master=False, wait_for_workers=False, timeout=PATIENCE)


def publish(board: Path, text: str) -> None:
    """Make the file `board` hold `text`, in one step: a reader sees nothing or all of it."""
    draft = board.with_name(f".{board.name}.{os.getpid()}")
    draft.write_text(text, encoding="utf-8")
    os.replace(draft, board)


def wait_for(
    board: Path, *, limit: float = PATIENCE.total_seconds(), pause: Callable[[float], None] = time.sleep
) -> str:
    """The text of `board`, as soon as it is published. Refused after `limit` seconds."""
    last = time.monotonic() + limit
    while True:
        try:
            return board.read_text(encoding="utf-8")
        except FileNotFoundError:
            if time.monotonic() > last:
                what = f"rank 0 did not publish its store in {limit:.0f} s."
                raise Refused(what, where=str(board), do="Its log tells why.", code=BUG) from None
            pause(0.002)
