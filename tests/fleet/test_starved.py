"""A process that the kernel really kills for memory, in a control group made for it. The count alone: test_workers.py."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from argosy.fleet import workers
from argosy.fleet.workers import Child
from argosy.policy.events import Broken, GiveUp
from argosy.policy.rules import decide
from argosy.policy.state import Fleet
from argosy.run.folder import Run

LONG = 60  # seconds; only a failure waits so long
LIMIT = 64 << 20  # bytes
EATER = """
import sys
sys.stdin.readline()
eaten = [b"x" * (16 << 20) for _ in range(16)]
print("alive", flush=True)
"""
# Where the groups lie, the files of limit and swap, what no swap is called, and the file that counts: versions 1 and 2.
VERSIONS = (
    (
        Path("/sys/fs/cgroup/memory"),
        "memory.limit_in_bytes",
        "memory.memsw.limit_in_bytes",
        LIMIT,
        "memory.oom_control",
    ),
    (Path("/sys/fs/cgroup"), "memory.max", "memory.swap.max", 0, "memory.events"),
)


@pytest.fixture
def counter() -> Iterator[Path]:
    """The file that counts kills in a group of our own, which has LIMIT; skipped where no such group can be made."""
    for top, limit, swap, no_swap, count in VERSIONS:
        folder = top / f"argosy-test-{os.getpid()}"
        try:
            folder.mkdir()
        except OSError:
            continue
        try:
            with suppress(OSError):
                (folder / limit).write_text(str(LIMIT))
                with suppress(OSError):  # a kernel that does not count swap
                    (folder / swap).write_text(str(no_swap))
                if "oom_kill 0" in (folder / count).read_text().splitlines():
                    yield folder / count
                    return
        finally:
            _removed(folder)
    pytest.skip("no memory group with a limit can be made here: that takes a machine of one's own, and its root")


def _removed(folder: Path) -> None:
    """Remove a group, as soon as the kernel has let go of whom it killed there."""
    last = time.monotonic() + LONG
    while time.monotonic() < last:
        with suppress(OSError):
            folder.rmdir()
            return
        time.sleep(0.01)


def test_a_worker_that_the_kernel_kills_for_memory_ends_the_run_with_the_reason(counter: Path, tmp_path: Path) -> None:
    (tmp_path / "local").mkdir()
    process = subprocess.Popen([sys.executable, "-c", EATER], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin and process.stdout
    try:
        try:
            (counter.parent / "cgroup.procs").write_text(str(process.pid))
        except OSError:
            pytest.skip("no process may be moved into a group here")
        child = Child("worker", "rank-0000", 1, process.pid, process, 0)
        process.stdin.write(b"eat\n")
        process.stdin.flush()
        told = select.select([process.stdout], [], [], LONG)[0]
        if not told or process.stdout.read(1) or "oom_kill 1" not in counter.read_text().splitlines():
            pytest.skip("this kernel lets a process have more than its group may, or counts no kills")
        assert workers.wait_gone([child], LONG) == []
        end = child.end(Run(tmp_path))
        child.close()
    finally:
        process.kill()
        process.communicate()
    assert (end.manner, end.signal) == ("killed", signal.SIGKILL)
    assert end.starved.startswith("the memory of its control group (at most 64 MiB, ")
    decision = decide(Fleet(world=2, limit=3, step=7), Broken((end,)))
    assert decision.actions == (GiveUp(4, "out_of_memory"),)
    assert "ran out and the kernel chose it" in decision.because
