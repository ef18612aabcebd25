from __future__ import annotations

import pytest

from argosy.errors import Refused
from argosy.layout.world import World, first_host, tasks_per_node, world

TORCHRUN = {
    "RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4", "GROUP_RANK": "1",
    "MASTER_ADDR": "node0", "MASTER_PORT": "29500", "TORCHELASTIC_RUN_ID": "none",
}  # fmt: skip
SLURM = {
    "SLURM_JOB_ID": "4711", "SLURM_STEP_ID": "0", "SLURM_PROCID": "5", "SLURM_NTASKS": "7", "SLURM_LOCALID": "2",
    "SLURM_NODEID": "1", "SLURM_NNODES": "3", "SLURM_TASKS_PER_NODE": "3(x2),1", "SLURM_JOB_NODELIST": "gpu[07-08,12]",
}  # fmt: skip
OPEN_MPI = {
    "OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2", "PMIX_NAMESPACE": "prterun-host-12@1", "PMIX_RANK": "1",
}  # fmt: skip


def test_nobody_launched_us() -> None:
    assert world({}) is None
    assert world({"RANK": "0", "WORLD_SIZE": "2"}) is None  # leftovers without an address are no launcher
    assert world({"SLURM_JOB_ID": "1", "SLURM_PROCID": "0", "SLURM_NTASKS": "8"}) is None  # a batch script
    assert world({**SLURM, "SLURM_STEP_ID": str(0xFFFFFFFA)}) is None  # an interactive step's shell


def test_torchrun() -> None:
    assert world(TORCHRUN) == World(5, 8, 1, 4, "node0", 29500, "torchrun", 1, 2)
    assert World(5, 8, 1, 4, "node0", 29500, "torchrun", 1, 2).fullest == 4


def test_slurm_with_uneven_nodes() -> None:
    found = world(SLURM)
    assert found is not None
    assert (found.rank, found.world, found.local_rank, found.local_world, found.node, found.nodes) == (5, 7, 2, 3, 1, 3)
    assert (found.host, found.launcher) == ("gpu07", "Slurm")
    other = world({**SLURM, "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"})
    assert other is not None
    assert (other.host, other.port) == (found.host, found.port)  # all ranks compute the same address
    last = world({**SLURM, "SLURM_PROCID": "6", "SLURM_LOCALID": "0", "SLURM_NODEID": "2"})
    assert last is not None
    assert (last.local_world, last.fullest) == (1, 3)  # memory is shared out as on the node that has most
    part = world({**SLURM, "SLURM_NNODES": "2", "SLURM_NTASKS": "6", "SLURM_TASKS_PER_NODE": "3(x2),9"})
    assert part is not None and part.fullest == 3  # a step on some nodes of its allocation
    again = world({**SLURM, "SLURM_STEP_ID": "1"})
    assert again is not None
    assert again.port != found.port  # two steps of one job do not meet


def test_slurm_on_one_node_needs_no_names() -> None:
    found = world({**SLURM, "SLURM_PROCID": "1", "SLURM_NTASKS": "2", "SLURM_NNODES": "1", "SLURM_NODEID": "0",
                   "SLURM_LOCALID": "1", "SLURM_TASKS_PER_NODE": "2"})  # fmt: skip
    assert found is not None
    assert found.host == "127.0.0.1"
    assert 20_000 <= found.port < 32_000


def test_open_mpi() -> None:
    found = world(OPEN_MPI)
    assert found is not None
    assert (found.rank, found.world, found.host, found.launcher) == (1, 2, "127.0.0.1", "Open MPI")
    two_nodes = {**OPEN_MPI, "OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_SIZE": "4"}
    with pytest.raises(Refused, match="MASTER_ADDR"):
        world(two_nodes)
    found = world({**two_nodes, "MASTER_ADDR": "head", "MASTER_PORT": "1234"})
    assert found is not None
    assert (found.host, found.port, found.node, found.nodes) == ("head", 1234, 1, 2)


def test_pmi() -> None:
    found = world({"PMI_RANK": "1", "PMI_SIZE": "2"})
    assert found is not None
    assert (found.rank, found.world, found.launcher) == (1, 2, "PMI")
    with pytest.raises(Refused, match="WORLD_SIZE"):
        world({"PMIX_RANK": "1", "PMIX_NAMESPACE": "x"})


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(Refused, match="rank 8 of 8"):
        world({**TORCHRUN, "RANK": "8"})
    with pytest.raises(Refused, match="RANK is no number"):
        world({**TORCHRUN, "RANK": "five"})


def test_slurms_spellings() -> None:
    assert tasks_per_node("2(x3),1") == [2, 2, 2, 1]
    assert first_host("gpu[01-08,10],login") == "gpu01"
    assert first_host("a[3,5-6]b,c") == "a3b"
    assert first_host("solo") == "solo"
    with pytest.raises(Refused):
        tasks_per_node("x")
