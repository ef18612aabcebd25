"""A process ends with the one that it watches."""

from __future__ import annotations

import os
import subprocess
import sys

from argosy.run import guardian

LONG = 60  # seconds; only a failure waits so long


def _started(code: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def test_a_watching_process_ends_when_the_watched_one_is_killed():
    watched = _started("import sys; print('born', flush=True); sys.stdin.read()")
    assert watched.stdout.readline() == "born\n"
    code = (
        "import sys, time; from argosy.run.guardian import watch\n"
        "watch(int(sys.argv[1])); print('watching', flush=True); time.sleep(600)"
    )
    watching = _started(code, str(watched.pid))
    assert watching.stdout.readline() == "watching\n"
    assert watching.poll() is None
    watched.kill()
    watched.wait()
    assert watching.wait(LONG) == guardian.ORPHANED


def test_watching_a_process_that_is_gone_already():
    gone = _started("pass")
    gone.wait()
    code = "import sys, time; from argosy.run.guardian import watch; watch(int(sys.argv[1])); time.sleep(600)"
    assert _started(code, str(gone.pid)).wait(LONG) == guardian.ORPHANED


def test_what_must_be_removed_is_removed_first(tmp_path):
    gone = _started("pass")
    gone.wait()
    code = (
        "import sys, time; from pathlib import Path; from argosy.run import guardian\n"
        "guardian.farewell.append(lambda: Path(sys.argv[2]).touch())\n"
        "guardian.watch(int(sys.argv[1])); time.sleep(600)"
    )
    assert _started(code, str(gone.pid), str(tmp_path / "said")).wait(LONG) == guardian.ORPHANED
    assert (tmp_path / "said").exists()


def test_alive():
    assert guardian.alive(os.getpid())
    gone = _started("pass")
    gone.wait()
    assert not guardian.alive(gone.pid)
