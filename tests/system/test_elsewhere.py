"""Under a launcher, and on a machine with nothing but loopback."""

from __future__ import annotations

import subprocess
import sys

import pytest
from tests.system.harness import Command, same

from argosy.errors import DONE
from argosy.run.folder import Run

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


def test_nothing_but_loopback_is_needed(command: Command, undisturbed: Run) -> None:
    prefixes = (["unshare", "-n"], ["unshare", "-rn"])
    alone = next((prefix for prefix in prefixes if _works(prefix)), None)
    if alone is None:
        pytest.skip("this machine lets nobody make a network namespace (unshare -n, unshare -rn)")
    program = (*alone, sys.executable, "-c", LOOPBACK, "-P", "-m", "argosy")
    started = command.train("alone", program=program)
    started.reach(5)
    assert started.stop() == DONE, started.text
    same(started.run, undisturbed, 5)


def _works(prefix: list[str]) -> bool:
    try:
        return subprocess.run([*prefix, sys.executable, "-c", LOOPBACK, "-c", ""], capture_output=True).returncode == 0
    except FileNotFoundError:
        return False
