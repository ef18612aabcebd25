"""Which file counts kills for memory: stored layouts of /proc and of the control groups' file systems."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from argosy.fleet.memory import counter, kill_count, kills, whose

ID = "8c1f2f5be9a3"
TWO = "35 24 0:30 / /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime shared:9 - cgroup2 cgroup2 rw,nsdelegate\n"
ONE = (
    "31 23 0:28 / /sys/fs/cgroup ro,nosuid shared:9 - tmpfs tmpfs ro,mode=755\n"
    "32 31 0:29 {root} /sys/fs/cgroup/cpu,cpuacct rw,nosuid shared:10 - cgroup cgroup rw,cpu,cpuacct\n"
    "35 31 0:32 {root} /sys/fs/cgroup/memory rw,nosuid shared:14 - cgroup cgroup rw,memory\n"
    "41 31 0:38 / /sys/fs/cgroup/unified rw,nosuid shared:15 - cgroup2 cgroup2 rw,nsdelegate\n"
)
HOST = ONE.format(root="/")
OLD = "11:cpu,cpuacct:{place}\n7:memory:{place}\n1:name=systemd:{place}\n0::{place}\n"
SESSION = "/user.slice/user-1000.slice/user@1000.service/app.slice/run-7.scope"

# name: /proc/PID/cgroup, /proc/self/mountinfo, files that are there, the one that counts
LAYOUTS = {
    "version 2, a session": (
        f"0::{SESSION}\n", TWO,
        [f"cgroup{SESSION}/memory.events", "cgroup/user.slice/memory.events"],
        f"cgroup{SESSION}/memory.events",
    ),
    "version 2, the controller is on further up only": (
        f"0::{SESSION}\n", TWO,
        [f"cgroup{SESSION}/cgroup.procs", "cgroup/user.slice/user-1000.slice/memory.events", "cgroup/user.slice/memory.events"],
        "cgroup/user.slice/user-1000.slice/memory.events",
    ),
    "version 2, a container with its own name space": (
        "0::/\n", TWO.replace("rw,nosuid", "ro,nosuid"), ["cgroup/memory.events"], "cgroup/memory.events",
    ),
    "version 2, a group within the container": (
        "0::/job/1\n", TWO, ["cgroup/memory.events", "cgroup/job/1/memory.events"], "cgroup/job/1/memory.events",
    ),
    "version 2, a container that sees the host's path": (
        f"0::/docker/{ID}/job\n", TWO.replace("0:30 /", f"0:30 /docker/{ID}"),
        ["cgroup/memory.events", "cgroup/job/memory.events"], "cgroup/job/memory.events",
    ),
    "version 2, outside of what can be seen": (
        "0::/../other.slice\n", TWO, ["cgroup/memory.events", "other.slice/memory.events"], "cgroup/memory.events",
    ),
    "version 2, the machine's first group counts nothing": ("0::/\n", TWO, ["cgroup/cgroup.procs"], None),
    "version 1, a service": (
        OLD.format(place="/system.slice/run.service"), HOST,
        ["cgroup/memory/memory.oom_control", "cgroup/memory/system.slice/run.service/memory.oom_control",
         "cgroup/unified/system.slice/run.service/memory.events"],
        "cgroup/memory/system.slice/run.service/memory.oom_control",
    ),
    "version 1, the groups of version 2 come first": (
        "0::/a\n12:hugetlb:/\n4:memory:/a/b\n", HOST,
        ["cgroup/unified/a/memory.events", "cgroup/memory/a/memory.oom_control", "cgroup/memory/a/b/memory.oom_control"],
        "cgroup/memory/a/b/memory.oom_control",
    ),
    "version 1, a step of Slurm": (
        OLD.format(place="/slurm/uid_1000/job_77/step_0/task_1"), HOST,
        ["cgroup/memory/slurm/uid_1000/job_77/step_0/task_1/memory.oom_control",
         "cgroup/memory/slurm/uid_1000/job_77/memory.oom_control"],
        "cgroup/memory/slurm/uid_1000/job_77/step_0/task_1/memory.oom_control",
    ),
    "version 1, a container": (
        OLD.format(place=f"/docker/{ID}"), ONE.format(root=f"/docker/{ID}"),
        ["cgroup/memory/memory.oom_control"], "cgroup/memory/memory.oom_control",
    ),
    "version 1, a group within the container": (
        OLD.format(place=f"/docker/{ID}/job"), ONE.format(root=f"/docker/{ID}"),
        ["cgroup/memory/memory.oom_control", "cgroup/memory/job/memory.oom_control"],
        "cgroup/memory/job/memory.oom_control",
    ),
    "version 1, a container whose path is not there": (
        OLD.format(place=f"/kubepods/pod1/{ID}"), HOST, ["cgroup/memory/memory.oom_control"],
        "cgroup/memory/memory.oom_control",
    ),
    "version 1, two controllers in one place": (
        "5:memory,cpu:/a\n", "35 31 0:32 / /cg/both rw - cgroup none rw,cpu,memory\n",
        ["../../cg/both/a/memory.oom_control"], "../../cg/both/a/memory.oom_control",
    ),
    "no memory controller": ("3:cpu:/a\n1:name=systemd:/\n", HOST, ["cgroup/memory/memory.oom_control"], None),
    "no groups at all": ("", "", [], None),
}  # fmt: skip


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_file_of_the_own_group_is_found(name: str, tmp_path: Path) -> None:
    groups, mounts, files, wanted = LAYOUTS[name]
    system = tmp_path / "sys" / "fs"
    system.mkdir(parents=True)
    for file in files:
        path = system / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    found = counter(groups, mounts, tmp_path)
    assert (found and found.resolve()) == (wanted and (system / wanted).resolve())


def test_the_kernels_number_is_read(tmp_path: Path) -> None:
    two, one, other = tmp_path / "memory.events", tmp_path / "memory.oom_control", tmp_path / "vmstat"
    two.write_text("low 0\nhigh 0\nmax 12\noom 3\noom_kill 2\noom_group_kill 9\n")
    one.write_text("oom_kill_disable 0\nunder_oom 1\noom_kill 5\n")
    other.write_text("nr_free_pages 7\noom_kill 11\n")
    assert [kill_count(file) for file in (two, one, other)] == [2, 5, 11]
    assert kill_count(tmp_path / "missing") == 0


# name: files with what they hold, the one whose count rose, what is said of it
OWNERS = {
    "version 2, a limit of its own": (
        {"a/memory.events": "", "a/memory.max": "2147483648\n"},
        "a/memory.events",
        "the memory of its control group (at most 2.0 GiB, {top}/a/memory.max)",
    ),
    "version 2, the limit is further up": (
        {"a/memory.max": "536870912\n", "a/cgroup.procs": "", "a/b/memory.max": "max\n", "a/b/memory.events": ""},
        "a/b/memory.events",
        "the memory of its control group (at most 512 MiB, {top}/a/memory.max)",
    ),
    "version 2, no limit anywhere": (
        {"a/b/memory.events": "", "a/b/memory.max": "max\n", "a/memory.max": "max\n", "a/cgroup.procs": ""},
        "a/b/memory.events",
        "the machine's memory",
    ),
    "version 1, a limit": (
        {"a/memory.oom_control": "", "a/memory.limit_in_bytes": "1073741824\n"},
        "a/memory.oom_control",
        "the memory of its control group (at most 1.0 GiB, {top}/a/memory.limit_in_bytes)",
    ),
    "version 1, its word for no limit": (
        {"a/memory.oom_control": "", "a/memory.limit_in_bytes": "9223372036854771712\n"},
        "a/memory.oom_control",
        "the machine's memory",
    ),
    "no groups: the count of the machine": ({"vmstat": "oom_kill 3\n"}, "vmstat", "the machine's memory"),
}


@pytest.mark.parametrize("name", OWNERS)
def test_whose_memory_ran_out_is_told(name: str, tmp_path: Path) -> None:
    files, rose, said = OWNERS[name]
    for file, text in files.items():
        path = tmp_path / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert whose(tmp_path / rose) == said.format(top=tmp_path)


def test_a_process_that_is_gone_counts_nowhere() -> None:
    assert kills(2**31 - 1) == {}
    assert all(file.is_file() for file in kills(os.getpid()))
