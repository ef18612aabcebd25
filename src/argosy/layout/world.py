"""Which rank this process is, when a launcher started it: torchrun, Slurm, Open MPI, PMI. Reads a given environment only.

None means that nobody launched it as a rank: `argosy train` then starts its own workers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b

from argosy.errors import Refused

_FIRST_PORT, _PORTS = 20_000, 12_000  # below the range that Linux hands out to outgoing connections (32768 on)
_RESERVED_STEP = 0xFFFF_FFF0  # Slurm's numbers for the batch script and for interactive steps, which are no ranks


@dataclass(frozen=True)
class World:
    """One rank among all, as its launcher told it. host:port is where rank 0 opens the store."""

    rank: int
    world: int
    local_rank: int
    local_world: int
    host: str
    port: int
    launcher: str  # "torchrun", "Slurm", "Open MPI", "PMI"
    node: int = 0
    nodes: int = 1
    counts: tuple[int, ...] = ()  # ranks of each node, where the launcher tells

    @property
    def fullest(self) -> int:
        """Ranks of the node that has most of them: no rank has more than that share of a node."""
        return max(self.local_world, *self.counts, 0)

    def __post_init__(self) -> None:
        if not (0 <= self.rank < self.world and 0 <= self.local_rank < self.local_world <= self.world):
            raise Refused(
                f"{self.launcher} says rank {self.rank} of {self.world}, {self.local_rank} of {self.local_world} "
                "on this node, which cannot be.",
                do="Leftover variables? Start in a clean environment.",
            )


def world(environ: Mapping[str, str]) -> World | None:
    """The rank that a launcher made of this process, or None. Refused where its variables contradict each other."""
    for found in (_torchrun, _slurm, _open_mpi, _pmi):
        if (place := found(environ)) is not None:
            return place
    return None


def _int(environ: Mapping[str, str], *names: str) -> int | None:
    """The first of `names` that is set, as a number."""
    for name in names:
        if environ.get(name, "") != "":
            try:
                return int(environ[name])
            except ValueError:
                raise Refused(
                    f"{name} is no number.", found=environ[name], do="Start in a clean environment."
                ) from None
    return None


def _known(value: int | None, default: int) -> int:
    return default if value is None else value


def _port(environ: Mapping[str, str], identity: str) -> int:
    """MASTER_PORT, else a port that all ranks of the same job compute alike."""
    given = _int(environ, "MASTER_PORT")
    if given is not None:
        return given
    return _FIRST_PORT + int.from_bytes(blake2b(identity.encode(), digest_size=4).digest(), "little") % _PORTS


def _torchrun(environ: Mapping[str, str]) -> World | None:
    rank, size = _int(environ, "RANK"), _int(environ, "WORLD_SIZE")
    host, port = environ.get("MASTER_ADDR"), _int(environ, "MASTER_PORT")
    if rank is None or size is None or not host or port is None:
        return None
    local_size = _known(_int(environ, "LOCAL_WORLD_SIZE"), size)
    local_rank = _known(_int(environ, "LOCAL_RANK"), rank % max(1, local_size))
    nodes = max(1, size // max(1, local_size))
    node = _known(_int(environ, "GROUP_RANK"), rank // max(1, local_size))
    return World(rank, size, local_rank, local_size, host, port, "torchrun", node, nodes)


def _slurm(environ: Mapping[str, str]) -> World | None:
    step, rank = _int(environ, "SLURM_STEP_ID", "SLURM_STEPID"), _int(environ, "SLURM_PROCID")
    if step is None or rank is None or step >= _RESERVED_STEP:
        return None
    size = _known(_int(environ, "SLURM_STEP_NUM_TASKS", "SLURM_NTASKS", "SLURM_NPROCS"), 1)
    node = _known(_int(environ, "SLURM_NODEID"), 0)
    nodes = _known(_int(environ, "SLURM_STEP_NUM_NODES", "SLURM_NNODES"), 1)
    counts = tasks_per_node(
        environ.get("SLURM_STEP_TASKS_PER_NODE") or environ.get("SLURM_TASKS_PER_NODE") or str(size)
    )
    local_size = counts[node] if node < len(counts) else size // max(1, nodes)
    hosts = environ.get("SLURM_STEP_NODELIST") or environ.get("SLURM_JOB_NODELIST") or "127.0.0.1"
    host = environ.get("MASTER_ADDR") or ("127.0.0.1" if nodes == 1 else first_host(hosts))
    port = _port(environ, f"slurm {environ.get('SLURM_JOB_ID', '')}.{step}")
    local_rank = _known(_int(environ, "SLURM_LOCALID"), 0)
    told = tuple(counts) if len(counts) == nodes else ()  # else they are the allocation's, not this step's
    return World(rank, size, local_rank, local_size, host, port, "Slurm", node, nodes, told)


def _open_mpi(environ: Mapping[str, str]) -> World | None:
    rank, size = _int(environ, "OMPI_COMM_WORLD_RANK"), _int(environ, "OMPI_COMM_WORLD_SIZE")
    if rank is None or size is None:
        return None
    local = (
        _known(_int(environ, "OMPI_COMM_WORLD_LOCAL_RANK"), rank),
        _known(_int(environ, "OMPI_COMM_WORLD_LOCAL_SIZE"), size),
    )
    identity = environ.get("PMIX_NAMESPACE") or environ.get("OMPI_MCA_ess_base_jobid") or environ.get("PMIX_ID", "")
    return _mpi(environ, rank, size, *local, "Open MPI", identity)


def _pmi(environ: Mapping[str, str]) -> World | None:
    rank, size = _int(environ, "PMI_RANK", "PMIX_RANK"), _int(environ, "PMI_SIZE", "WORLD_SIZE")
    if rank is None:
        return None
    if size is None:
        raise Refused("PMIx gives a rank but no number of ranks.", do="Set WORLD_SIZE and MASTER_ADDR for all ranks.")
    local = (
        _known(_int(environ, "MPI_LOCALRANKID", "PMI_LOCAL_RANK"), rank),
        _known(_int(environ, "MPI_LOCALNRANKS", "PMI_LOCAL_SIZE"), size),
    )
    return _mpi(environ, rank, size, *local, "PMI", environ.get("PMIX_NAMESPACE") or environ.get("PMI_JOBID", ""))


def _mpi(
    environ: Mapping[str, str], rank: int, size: int, local_rank: int, local_size: int, launcher: str, identity: str
) -> World:
    """MPI tells ranks, not addresses: on several nodes MASTER_ADDR has to be given."""
    host = environ.get("MASTER_ADDR")
    if not host and local_size < size:
        raise Refused(
            f"{launcher} does not say where rank 0 runs.",
            do="Give it to all ranks: mpirun -x MASTER_ADDR=HOST -x MASTER_PORT=29500 argosy train ...",
        )
    per_node = max(1, local_size)
    port = _port(environ, f"{launcher} {identity.split('@')[0]}")
    where = (rank // per_node, max(1, size // per_node))
    return World(rank, size, local_rank, local_size, host or "127.0.0.1", port, launcher, *where)


def tasks_per_node(text: str) -> list[int]:
    """Slurm's "2(x3),1" as [2, 2, 2, 1]."""
    found: list[int] = []
    for word in text.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", word.strip())
        if match is None:
            raise Refused("SLURM_TASKS_PER_NODE is not in Slurm's form.", found=text, do="Expected: 2(x3),1")
        found += [int(match[1])] * int(match[2] or 1)
    return found


def first_host(text: str) -> str:
    """The first host of Slurm's "gpu[01-08,10],login": gpu01."""
    first = re.split(r",(?![^\[]*\])", text.strip())[0]
    return re.sub(r"\[([^\]]*)\]", lambda match: re.split(r"[,-]", match[1])[0], first)
