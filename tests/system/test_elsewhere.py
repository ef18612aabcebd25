"""Under a launcher, and on a machine with nothing but loopback."""

from __future__ import annotations

import argparse
import ast
import inspect
import os
import shutil
import signal
import socket
import subprocess
import sys
import typing
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from tests.system.harness import WAIT, Command, Started, repeated, same

from argosy.errors import DONE
from argosy.run.folder import Run
from argosy.run.lines import rows

pytestmark = [pytest.mark.long, pytest.mark.timeout(1200)]

# Brings loopback up in a fresh network namespace (SIOCSIFFLAGS: up and running), then becomes the command.
LOOPBACK = """
import fcntl, os, socket, struct, sys
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as plug:
    fcntl.ioctl(plug, 0x8914, struct.pack("16sH14x", b"lo", 0x41))
assert os.listdir("/sys/class/net") == ["lo"] or len(socket.if_nameindex()) == 1
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


def test_torchrun_gives_the_same_bits(command: Command, undisturbed: Run) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    started = command.train("launched", workers=None, program=(*torchrun, "-m", "--", "argosy"))
    started.reach(9)
    assert started.stop() == DONE, started.text
    same(started.run, undisturbed, 9)


def test_two_machines_of_a_launch_read_a_part_each_and_replace_their_readers(
    command: Command, undisturbed: Run
) -> None:
    """Both are this one, and share its memory: what a launcher would tell each rank of two machines with one rank each."""
    with socket.socket() as plug:
        plug.bind(("127.0.0.1", 0))
        port = plug.getsockname()[1]
    told = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
    told["MASTER_PORT"] = str(port)
    first, second = (
        command.train(
            "machines",
            workers=None,
            # What lives only while a run goes lies on each machine's own disk.
            environment={
                **told,
                "RANK": rank,
                "GROUP_RANK": rank,
                "ARGOSY_LOCAL": str(command.folder / f"disk-{rank}"),
            },
        )
        for rank in ("0", "1")
    )
    first.reach(3)
    for machine, how in ((first, signal.SIGKILL), (second, signal.SIGSTOP)):
        killed = reader_of(machine)
        os.kill(killed, how)
        first.until(lambda machine=machine, killed=killed: reader_of(machine) not in (0, killed), "a new reader")
        first.reach(first.step + 3)
    first.until(lambda: first.run.newest_step() > 0, "a checkpoint of both machines")
    for machine in (first, second):
        machine.process.kill()
        machine.process.wait(WAIT)
    for name, count in (("metrics.jsonl", 9), ("evaluations.jsonl", 2)):
        mine, theirs = repeated(first.run.path / name), repeated(undisturbed.path / name)
        assert len(mine) >= count and mine[:count] == theirs[:count]


def reader_of(machine: Started) -> int:
    """The reader process that this rank started; 0 while there is none."""
    for child in psutil.Process(machine.process.pid).children():
        with suppress(psutil.Error):
            if "argosy.data.reader:serve" in child.cmdline():
                return child.pid
    return 0


def test_mpiexec_gives_the_same_bits(command: Command, undisturbed: Run) -> None:
    """MPICH's, which tells a rank who it is by PMI_RANK and others of its kind."""
    mpiexec = Path(sys.executable).parent / "mpiexec"
    ranks = (str(mpiexec), "-n", "2", sys.executable, "-P", "-m", "argosy")
    started = command.train("mpi", workers=None, program=ranks)
    started.reach(9)
    assert started.stop() == DONE, started.text
    same(started.run, undisturbed, 9)


@pytest.fixture(scope="module")
def alone() -> list[str]:
    """The words before a Python command that let it run with nothing but loopback; chosen by whether they work at all."""
    reasons = []
    for prefix in (["unshare", "-rn"], ["unshare", "-n"]):
        if shutil.which(prefix[0]) is None:
            pytest.skip("there is no unshare to make a network namespace with")
        words = [*prefix, sys.executable, "-c", LOOPBACK]
        tried = subprocess.run([*words, "-c", ""], capture_output=True, text=True)
        if tried.returncode == 0:
            return words
        reasons.append(f"{' '.join(prefix)}: {tried.stderr.strip().splitlines()[-1:]}")
    pytest.skip(f"this machine lets nobody make a network namespace ({'; '.join(reasons)})")


def test_nothing_but_loopback_is_needed(command: Command, undisturbed: Run, alone: list[str]) -> None:
    started = command.train("alone", program=(*alone, "-P", "-m", "argosy"))
    started.reach(5)
    assert started.stop() == DONE, started.text
    same(started.run, undisturbed, 5)


def test_the_main_job_needs_no_network_either(command: Command, alone: list[str]) -> None:
    """The laptop job as it is, compiled and in six steps, on a part of its text."""
    text = command.folder / "library"
    text.mkdir()
    for module in (argparse, ast, inspect, shutil, subprocess, typing):
        shutil.copy(str(module.__file__), text)
    words = ("--data.source", str(text), "--train.steps", "6", "--train.compile", "true", "--evaluate.tokens", "8192")
    started = command.train("main", *words, job="laptop", workers=None, program=(*alone, "-P", "-m", "argosy"))
    started.process.wait(900)  # the compiler works for a minute and more
    assert started.ended() == DONE, started.text
    run = started.run
    assert [row["step"] for row in rows(run.path / "metrics.jsonl")] == [1, 2, 3, 4, 5, 6]
    assert run.setting("train.compile").used or "cannot be done here" in started.text  # no compiler, and that was told
    assert run.newest_step() == 6 and (run.path / "report.html").is_file()
    assert {row["step"] for row in rows(run.path / "samples.jsonl")} >= {6}
