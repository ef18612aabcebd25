"""The record's writer and readers: 64 bytes an entry, whole through SIGKILL, versioned."""

from __future__ import annotations

import os
import signal
import struct
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from argosy.errors import Refused
from argosy.run import record
from argosy.run.recorder import Recorder

FIXTURE = Path(__file__).parent / "fixtures" / "record-rank-0000-inc-0001-000.bin"


@dataclass(frozen=True)
class Run:
    local: Path


def test_an_entry_is_64_bytes() -> None:
    assert record.ENTRY.itemsize == record.SIZE == 64


def test_what_is_written_is_read(tmp_path: Path) -> None:
    recorder = Recorder(Run(tmp_path), 3, 7)
    with recorder.during("data", 1):
        pass
    recorder.scalar("loss", 1, 4.25)
    recorder.step(1, 100, 250)
    recorder.mark("finished", 1)
    recorder.finish()
    [(name, path)] = record.files(tmp_path)
    assert (name.rank, name.incarnation) == (3, 7)
    found = record.read(path)
    kinds = [record.KINDS[kind] for kind in found["kind"].tolist()]
    assert kinds == ["phase", "scalar", "step", "mark", "scalar", "mark"]
    assert [record.name(*pair) for pair in zip(found["kind"].tolist(), found["name"].tolist(), strict=True)] == [
        "data", "loss", "", "finished", "record_seconds", "ended",
    ]  # fmt: skip
    assert found["sequence"].tolist() == [1, 2, 3, 4, 5, 6]
    assert found["value"][1] == 4.25
    assert (found["entered"][2], found["left"][2]) == (100, 250)
    assert found["entered"][0] <= found["left"][0]


def test_a_phase_is_recorded_when_the_block_raises(tmp_path: Path) -> None:
    recorder = Recorder(Run(tmp_path), 0, 1)
    with pytest.raises(KeyError), recorder.during("vote", 5):
        raise KeyError
    assert record.read(tmp_path / recorder.name.file)["step"].tolist() == [5]


def test_names_outside_the_tables_are_refused(tmp_path: Path) -> None:
    recorder = Recorder(Run(tmp_path), 0, 1)
    with pytest.raises(KeyError):
        recorder.scalar("los", 1, 0.0)
    with pytest.raises(KeyError):
        recorder.phase("loss", 1, 0, 0)
    assert len(record.read(tmp_path / recorder.name.file)) == 0


def test_files_grow_and_roll_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record, "FIRST", 4)
    monkeypatch.setattr(record, "SEGMENT", 16)
    recorder = Recorder(Run(tmp_path), 0, 1)
    follower = record.follow(Run(tmp_path), 0, 1)
    seen: list[int] = []
    for step in range(1, 41):
        recorder.step(step, 0, 1)
        if step % 7 == 0:
            seen += follower.poll()["step"].tolist()
    seen += follower.poll()["step"].tolist()
    assert seen == list(range(1, 41))
    assert [name.segment for name, _ in record.files(tmp_path)] == [0, 1, 2]
    assert len(follower.poll()) == 0


def test_a_reader_may_come_first(tmp_path: Path) -> None:
    follower = record.follow(Run(tmp_path), 0, 1)
    assert len(follower.poll()) == 0
    recorder = Recorder(Run(tmp_path), 0, 1)
    assert len(follower.poll()) == 0
    recorder.mark("born")
    assert len(follower.poll()) == 1


def test_an_older_record_is_never_written_over(tmp_path: Path) -> None:
    for step in (1, 2):
        Recorder(Run(tmp_path), 0, 1).step(step, 0, 1)
    assert [record.read(path)["step"].tolist() for _, path in record.files(tmp_path)] == [[1], [2]]
    assert record.follow(Run(tmp_path), 0, 1).poll()["step"].tolist() == [1, 2]


@pytest.mark.parametrize("damage", ["unpublished", "torn"])
def test_a_half_written_entry_is_not_read(tmp_path: Path, damage: str) -> None:
    recorder = Recorder(Run(tmp_path), 0, 1)
    for step in range(1, 6):
        recorder.step(step, 0, 1)
    path = tmp_path / recorder.name.file
    with path.open("r+b") as file:
        file.seek(record.SIZE * 4 + (0 if damage == "unpublished" else 20))  # the fourth entry
        file.write(bytes(8) if damage == "unpublished" else b"\xff")
    assert record.read(path)["step"].tolist() == [1, 2, 3]


KILLED = """
import os, sys, time
from pathlib import Path
from dataclasses import dataclass
from argosy.run.recorder import Recorder

@dataclass
class Run:
    local: Path

recorder = Recorder(Run(Path(sys.argv[1])), 0, 1)
ready, step = int(sys.argv[2]), 0
while True:
    step += 1
    recorder.scalar("loss", step, step / 2)
    recorder.step(step, step, step + 1)
    os.write(ready, step.to_bytes(8, "little"))   # told only after it was published
"""


def test_published_entries_survive_sigkill(tmp_path: Path) -> None:
    """A child writes and says so; killed at any moment, everything it said is there, whole and in order."""
    here, there = os.pipe()
    child = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path), str(there)], pass_fds=(there,))
    os.close(there)
    told = 0
    with os.fdopen(here, "rb") as pipe:
        while told < 3 * record.FIRST // 2:  # beyond the first growth
            told = int.from_bytes(pipe.read(8), "little")
            assert told, "the child ended by itself"
        child.send_signal(signal.SIGKILL)
        while text := pipe.read(8):
            told = max(told, int.from_bytes(text, "little"))
    child.wait()
    found = record.read(tmp_path / record.Name(1, 0).file)
    steps = found[found["kind"] == record.STEP]["step"].tolist()
    assert steps == list(range(1, len(steps) + 1)) and len(steps) >= told
    losses = found[found["kind"] == record.SCALAR]
    assert np.array_equal(losses["value"], losses["step"] / 2)
    assert record.header(tmp_path / record.Name(1, 0).file).own > 0


def test_own_time_is_counted(tmp_path: Path) -> None:
    recorder = Recorder(Run(tmp_path), 0, 1)
    for step in range(2000):
        recorder.step(step, 0, 1)
    own = recorder.own
    recorder.finish()
    path = tmp_path / recorder.name.file
    found = record.read(path)
    stated = found[found["name"] == record.number(record.SCALAR, "record_seconds")]["value"][-1]
    assert stated == own / 1e9 > 0
    assert record.header(path).own >= own


def test_the_stored_record_of_version_1_is_read() -> None:
    """The format never breaks: this file was written by the first version, whose tables were shorter."""
    phases = record.PHASES[: record.PHASES.index("wait") + 1]
    scalars = record.SCALARS[: record.SCALARS.index("collected") + 1]
    marks = record.MARKS[: record.MARKS.index("ended") + 1]
    head, found = record.header(FIXTURE), record.read(FIXTURE)
    assert (head.rank, head.incarnation, head.pid) == (0, 1, 4242)
    assert [record.name(k, n) for k, n in zip(found["kind"].tolist(), found["name"].tolist(), strict=True)] == [
        "born", *phases, *scalars, "", *marks[1:],
    ]  # fmt: skip
    assert found["value"][found["kind"] == record.SCALAR].tolist() == [n + 0.5 for n in range(len(scalars))]
    assert found["step"].tolist() == [3] * len(found)


def test_other_files_and_versions_are_refused(tmp_path: Path) -> None:
    foreign = tmp_path / record.Name(1, 0).file
    foreign.write_bytes(b"x" * 200)
    with pytest.raises(Refused, match="no record"):
        record.read(foreign)
    newer = bytearray(FIXTURE.read_bytes())
    struct.pack_into("<I", newer, 8, 2)
    foreign.write_bytes(newer)
    with pytest.raises(Refused, match="version 2"):
        record.read(foreign)


def test_a_full_disk_is_said_with_code_4(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder(Run(tmp_path), 0, 1)

    def full(descriptor: int, offset: int, size: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    for step in range(record.FIRST):
        recorder.step(step, 0, 1)
    with pytest.raises(Refused, match="No space left") as caught:
        recorder.step(record.FIRST, 0, 1)
    assert caught.value.code == 4
    assert len(record.read(tmp_path / recorder.name.file)) == record.FIRST
