"""The snapshot process itself: told to finish, killed, orphaned, out of disk. Real processes, real files."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from argosy.checkpoint.save import Saver, specs_of
from argosy.checkpoint.slots import FINISH
from argosy.checkpoint.snapshot import Pace
from argosy.checkpoint.store import newest
from argosy.errors import MACHINE, Refused
from argosy.job.schema import Job
from argosy.layout.layout import Layout
from argosy.run import child
from argosy.run.folder import Run, new_id, settle
from argosy.run.guardian import ORPHANED

WAIT = 60
W = {"w": torch.arange(200_000.0)}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    monkeypatch.delenv("ARGOSY_LOCAL", raising=False)
    made = Run(tmp_path / "run")
    made.checkpoints.mkdir(parents=True)
    made.local.mkdir()
    # An id that no run had: what a test of the same place has left in memory is not this one's.
    (made.path / "run.json").write_text(f'{{"version": 1, "id": "{new_id()}"}}')
    settle(made, Job(), {}, [], tmp_path, "")
    yield made
    folder = Saver(made, 0, 1, 99, Layout(), []).files
    folder.clear()


@pytest.fixture
def saver(run: Run) -> Iterator[Saver]:
    made = Saver(run, 0, 1, 1, Layout(), specs_of(W))
    yield made
    made.close()


def start(run: Run, parent: int | None = None, limit: int | None = None, **environment: str) -> subprocess.Popen[bytes]:
    """The snapshot process, started as the parent starts it; `limit` is the largest file it may write."""

    def limited() -> None:
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    words = [sys.executable, "-P", "-m", "argosy.run.child", "argosy.checkpoint.snapshot:main", "snapshot"]
    return subprocess.Popen(
        [*words, str(run.path), "1", str(parent or os.getpid())], env={**os.environ, **environment}, preexec_fn=limited
    )


def wait_for(condition: Callable[[], object]) -> None:
    end = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def saved(run: Run) -> list[dict[str, Any]]:
    path = run.local / "saved.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_it_writes_what_is_whole_then_ends_when_told_and_leaves_no_memory(run: Run, saver: Saver) -> None:
    saver.begin(1, W, {})
    saver.begin(2, {"w": W["w"] + 1}, {})
    (run.local / FINISH).touch()
    process = start(run)
    assert process.wait(WAIT) == 0
    assert [(line["step"], line["ok"]) for line in saved(run)] == [(1, True), (2, True)]
    (file,) = run.checkpoints.glob("step-000002/*.safetensors")
    assert torch.equal(load_file(file)["w"], W["w"] + 1)
    assert saved(run)[0]["bytes"] == file.stat().st_size
    assert not saver.files.folder.exists()


def test_killed_while_writing_the_next_one_takes_the_slots_up(run: Run, saver: Saver) -> None:
    saver.begin(1, W, {})
    process = start(run, ARGOSY_POINT="checkpoint.data.after:1:kill")
    assert process.wait(WAIT) == -9
    assert newest(run) is None, "half-written is no checkpoint"
    (run.local / FINISH).touch()
    assert start(run).wait(WAIT) == 0
    found = newest(run)
    assert found is not None and found.step == 1


def test_it_ends_with_its_parent(run: Run) -> None:
    parent = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    process = start(run, parent=parent.pid)
    folder = Saver(run, 0, 1, 1, Layout(), []).files
    wait_for(lambda: folder.writer() == process.pid)
    parent.kill()
    parent.wait()
    assert process.wait(WAIT) == ORPHANED
    folder.close()


def test_a_full_disk_is_said_and_the_last_good_state_kept(run: Run, saver: Saver) -> None:
    """A limit on file size stands for the disk: the same error, for any user, on any file system."""
    saver.begin(1, W, {})
    saver.begin(2, W, {})
    process = start(run, ARGOSY_POINT="checkpoint.write.before:2:stop")
    assert os.WIFSTOPPED(os.waitpid(process.pid, os.WUNTRACED)[1]), "it stands before the second checkpoint"
    assert [line["step"] for line in saved(run)] == [1]
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (100_000, 100_000))
    os.kill(process.pid, signal.SIGCONT)
    assert process.wait(WAIT) == MACHINE
    ended = child.ended(run, "snapshot", 1)
    assert ended is not None and ended["code"] == MACHINE
    sentence = str(ended["sentence"])
    assert "step 2 cannot be saved" in sentence and "The last good checkpoint is step 1." in sentence
    line = saved(run)[-1]
    assert (line["ok"], line["error"], line["step"]) == (False, "disk", 2) and line["sentence"] == sentence
    assert sorted(path.name for path in run.checkpoints.iterdir()) == ["step-000001"], "the room is given back"
    for use in (saver.flush, lambda: saver.begin(3, W, {})):
        with pytest.raises(Refused, match="step 2 cannot be saved") as refused:
            use()
        assert refused.value.code == MACHINE
    with Path(run.local / FINISH).open("w"):
        pass
    again = Saver(run, 0, 1, 2, Layout(), specs_of(W))  # room was made; the same command again
    again.begin(2, W, {})
    assert start(run).wait(WAIT) == 0
    found = newest(run)
    assert found is not None and found.step == 2
    again.close()


def test_pace_holds_the_limit_on_the_whole() -> None:
    begin = time.monotonic()
    pace = Pace(1e6)
    assert pace.chunk == 50_000
    for _ in range(4):
        pace.wrote(50_000)
    assert time.monotonic() - begin >= 0.19
    free = Pace(None)
    free.wrote(1 << 40)
    assert time.monotonic() - begin < WAIT


def test_the_disk_that_returns_other_bytes_is_not_trusted(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from argosy.checkpoint import snapshot

    whole = snapshot._all
    monkeypatch.setattr(snapshot, "_all", lambda descriptor, data: whole(descriptor, bytes(len(data))))
    with pytest.raises(Refused, match="does not give back") as refused:
        bench.save(1, {"w": torch.ones(10)})
    assert refused.value.code == MACHINE and newest(bench.run) is None
