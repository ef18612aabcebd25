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
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from hashlib import blake2b
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from argosy.device.torch_versions import forget_meshes, let_go_of_groups, new_group
from argosy.errors import BUG, Refused
from argosy.layout.layout import GROUPS, Layout

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


_named: dict[
    tuple[str | int, ...], tuple[str, ...]
] = {}  # device meshes that torch may remember, and their groups' names
PARENT = ("dp_replicate", "dp_shard", "tp")  # dimensions of the one device mesh from which all others are cut


def groups_of(layout: Layout, rank: int) -> list[tuple[int, ...]]:
    """The different groups that `rank` joins, in the order in which they are made; the world first."""
    if layout.world == 1:
        return []
    along = (tuple(layout.group(rank, *axes)) for axes in GROUPS.values())
    found = dict.fromkeys([tuple(range(layout.world)), *along])
    return [ranks for ranks in found if len(ranks) > 1]


@dataclass
class Mesh:
    """All groups of one rank: None where the rank would be alone. `world` is the group of the vote."""

    layout: Layout
    rank: int
    kind: str = "cpu"  # torch's device type
    world: dist.ProcessGroup | None = None
    tp: dist.ProcessGroup | None = None
    cp: dist.ProcessGroup | None = None
    shard: dist.ProcessGroup | None = None
    replicate: dist.ProcessGroup | None = None
    data: dist.ProcessGroup | None = None
    pp: dist.ProcessGroup | None = None
    stage: dist.ProcessGroup | None = None
    _store: dist.Store | None = field(default=None, repr=False)  # of this incarnation alone
    _words: int = 0  # how often rank 0 has been waited for
    # Whether torch forgets all device meshes before and after this one. A process that makes many, and remembers them, must
    # leave that to `_told_apart`.
    forgets: bool = True
    _made: dict[tuple[str | int, ...], dist.ProcessGroup] = field(default_factory=dict, repr=False)
    _parent: DeviceMesh | None = field(default=None, repr=False)
    _meshes: list[DeviceMesh] = field(default_factory=list, repr=False)

    @property
    def size(self) -> int:
        """Number of ranks."""
        return self.layout.world

    def among(self, ranks: Sequence[int], name: str = "") -> dist.ProcessGroup | None:
        """The group of `ranks`, ascending, made once; None for a rank alone. All of them call this, in the same order.

        With a `name` it is one more group of the same ranks, whose messages do not wait for those of the others. Without, it is
        the world's own where it is the same. Only the members meet, over keys of their own: torch's default would cost a
        barrier of the whole world for every group.
        """
        members: tuple[str | int, ...] = (name, *ranks)
        if len(ranks) == 1:
            return None
        if members not in self._made:
            if self.world is not None and not name and len(ranks) == self.layout.world:
                self._made[members] = self.world
                return self.world
            label = blake2b(repr(members).encode(), digest_size=16).hexdigest()
            self._made[members] = new_group(ranks, label, PATIENCE)
        return self._made[members]

    def root(self) -> DeviceMesh | None:
        """The one device mesh of this rank's stages, with those of PARENT whose degree is above 1; None where there are none.

        `fully_shard` and tensor parallelism want theirs cut from one: grid() and tensor().
        """
        if self._parent is None:
            axes = [axis for axis in PARENT if getattr(self.layout, axis) > 1]
            groups = [group for group in (self.replicate, self.shard, self.tp) if group is not None]
            if not axes or len(groups) != len(axes):
                return None
            ranks = torch.tensor(self.layout.line(self.rank, *axes), dtype=torch.int)
            shape = [int(getattr(self.layout, axis)) for axis in axes]
            self._told_apart((*axes, *shape, *ranks.tolist()), groups)
            if len(axes) == 1:
                self._parent = DeviceMesh.from_group(groups[0], self.kind, mesh_dim_names=(axes[0],))
            else:
                names = tuple(axes)
                self._parent = DeviceMesh.from_group(groups, self.kind, mesh=ranks.view(shape), mesh_dim_names=names)
            self._meshes.append(self._parent)
        return self._parent

    def _told_apart(self, like: tuple[str | int, ...], groups: Sequence[dist.ProcessGroup]) -> None:
        """Let torch forget its meshes if it would take this one for an earlier one whose groups had other names.

        Groups are named by their members, but that of all ranks is the world's own, which torch names.
        """
        names = tuple(group.group_name for group in groups)
        if _named.setdefault(like, names) != names:
            forget_meshes()
            _named.clear()
            _named[like] = names

    def part(self, *axes: str) -> DeviceMesh | None:
        """Those dimensions of the root that have a degree above 1; None where none has."""
        named = tuple(axis for axis in axes if getattr(self.layout, axis) > 1)
        root = self.root()
        if root is None or not named:
            return None
        return root if named == root.mesh_dim_names else root[named]

    def grid(self) -> DeviceMesh | None:
        """What `fully_shard` shards over: [dp_shard], or [dp_replicate, dp_shard]; None where dp_shard is 1."""
        return None if self.shard is None else self.part("dp_replicate", "dp_shard")

    def tensor(self) -> DeviceMesh | None:
        """The ranks that share every matrix, [tp]; None where tp is 1."""
        return self.part("tp")

    def secondary(self, ranks: int) -> DeviceMesh | None:
        """[neighbourhoods, `ranks` of each] of the sharding ranks: where a second shard lies. None for 0 or all of them."""
        line = self.layout.line(self.rank, "dp_shard")
        if not ranks or ranks >= len(line):
            return None
        at = line.index(self.rank)
        near = self.among(sorted(line[at - at % ranks : at - at % ranks + ranks]))
        far = self.among(sorted(line[at % ranks :: ranks]))
        made = DeviceMesh.from_group(
            [group for group in (far, near) if group is not None], self.kind,
            mesh=torch.tensor(line, dtype=torch.int).view(-1, ranks), mesh_dim_names=("far", "near"),
        )  # fmt: skip
        self._meshes.append(made)
        return made

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
            for made in self._meshes:
                let_go_of_groups(
                    made
                )  # or they, and with them their sockets, would be kept as long as torch knows the mesh
            if self.forgets:
                forget_meshes()
        self._meshes.clear()
        self.world = self._store = self._parent = None
        for name in GROUPS:
            setattr(self, name, None)
        self._made.clear()


def join(
    layout: Layout, rank: int, meeting: Meeting, *, backend: str = "gloo", kind: str = "cpu", forgets: bool = True
) -> Mesh:
    """Join the groups of `rank`. Refused (exit code 1) when rank 0's store does not appear within `PATIENCE`."""
    mesh = Mesh(layout, rank, kind, forgets=forgets)
    if layout.world == 1:
        return mesh
    mesh._store = dist.PrefixStore(meeting.prefix, _store(rank, meeting))
    return joined_over(mesh, mesh._store, backend)


def joined_over(mesh: Mesh, store: dist.Store, backend: str) -> Mesh:
    """Make all groups of `mesh` over `store`: operations on it are for groups that the rank is in, and for nothing else."""
    layout, rank = mesh.layout, mesh.rank
    if mesh.forgets:
        forget_meshes()  # of another job in this process
    dist.init_process_group(backend, store=store, rank=rank, world_size=layout.world, timeout=PATIENCE)
    mesh.world = dist.group.WORLD
    for name, axes in GROUPS.items():
        setattr(mesh, name, mesh.among(layout.group(rank, *axes)))
    return mesh


@contextmanager
def joined(
    layout: Layout, rank: int, meeting: Meeting, *, backend: str = "gloo", kind: str = "cpu", forgets: bool = True
) -> Iterator[Mesh]:
    """`join`, and leave at the end."""
    mesh = join(layout, rank, meeting, backend=backend, kind=kind, forgets=forgets)
    try:
        yield mesh
    finally:
        mesh.close()


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
