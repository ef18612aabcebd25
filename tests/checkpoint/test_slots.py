"""The files between ranks and writer: taken as long as announced, and never another run's."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from argosy.checkpoint import slots as slots_room
from argosy.checkpoint.plan import Piece
from argosy.checkpoint.save import specs_of
from argosy.checkpoint.slots import Slots, places
from argosy.checkpoint.sweep import sweep
from argosy.layout.layout import Layout

W = {"w": torch.zeros(10)}


def test_every_run_has_a_folder_of_its_own(bench: Any, tmp_path: Path) -> None:
    first = Slots(bench.run.path, bench.run.local, shm=bench.shm)
    copied = Slots(tmp_path / "copy", tmp_path / "copy" / "local", shm=bench.shm)
    assert first.folder != copied.folder
    assert first.folder.stat().st_mode & 0o077 == 0, "nobody else can read the weights"
    first.close()
    copied.close()


def test_what_a_removed_run_in_the_same_place_left_is_not_taken_up(bench: Any) -> None:
    (bench.run.path / "run.json").write_text('{"version": 1, "id": "first"}')
    (saver,) = bench.savers(Layout(), specs_of(W), incarnation=3)
    saver.begin(5, W, {})
    again = bench.writer()
    assert list(again.slots.ready()) == [(3, 5)], "the same run finds it"
    (bench.run.path / "run.json").write_text('{"version": 1, "id": "second"}')
    bench.savers(Layout(), specs_of(W), incarnation=1)
    writer = bench.writer()
    assert not writer.turn() and writer.slots.ready() == {}
    assert list(writer.slots.plans()) == [1]
    assert {path.name for path in slots_room.slots_in(writer.slots.folder)} == {
        "rank-0000-inc-0001-0.slot",
        "rank-0000-inc-0001-1.slot",
    }


def test_who_cannot_be_told_just_now_loses_nothing(bench: Any) -> None:
    info = bench.run.path / "run.json"
    info.write_text('{"version": 1, "id": "first"}')
    (saver,) = bench.savers(Layout(), specs_of(W), incarnation=3)
    saver.begin(5, W, {})
    info.rename(bench.run.path / "kept")
    info.mkdir()  # reading it is an error of the system, as of a network's disk, or of a process with too many open files
    with pytest.raises(IsADirectoryError):
        bench.writer()
    info.rmdir()
    (bench.run.path / "kept").rename(info)
    assert list(bench.writer().slots.ready()) == [(3, 5)]


def test_without_shared_memory_everything_lies_in_the_run(bench: Any) -> None:
    made = Slots(bench.run.path, bench.run.local, shm=bench.shm / "missing")
    assert made.folder == bench.run.local / "slots" and sweep(made) == []
    made.clear()
    assert not made.folder.exists()


def test_half_generations_of_dead_ranks_are_dropped(bench: Any) -> None:
    layout, specs = Layout(dp_replicate=2), specs_of(W)
    first = bench.savers(layout, specs, incarnation=1)
    first[0].begin(5, W, {})  # rank 1 was killed before its copy
    writer = bench.writer()
    assert not writer.turn() and (1, 5) in writer.slots.ready(), "it may still come"
    second = bench.savers(layout, specs, incarnation=2)
    assert not writer.turn()
    assert writer.slots.ready() == {}
    assert not writer.turn()
    names = {path.name for path in writer.slots.folder.iterdir()}
    assert not any("inc-0001" in name for name in names) and "plan-0002.json" in names
    for saver in second:
        saver.begin(6, W, {})
    assert writer.turn()


def test_whole_generations_of_dead_ranks_are_written(bench: Any) -> None:
    layout, specs = Layout(dp_replicate=2), specs_of(W)
    for saver in bench.savers(layout, specs, incarnation=1):
        saver.begin(5, W, {})
    bench.savers(Layout(), specs, incarnation=2)  # the same run goes on with fewer
    writer = bench.writer()
    assert writer.turn()
    assert [line["step"] for line in bench.lines] == [5]


def test_what_was_there_before_the_machine_started_again_is_void(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (saver,) = bench.savers(Layout(), specs_of(W))
    saver.begin(5, W, {})
    monkeypatch.setattr(slots_room, "_boot", lambda: "another start")
    writer = bench.writer()
    assert not writer.turn()
    assert writer.slots.ready() == {}
    assert list(bench.run.checkpoints.iterdir()) == []


def test_a_failure_is_told_to_those_it_concerns(bench: Any) -> None:
    made = Slots(bench.run.path, bench.run.local, shm=bench.shm)
    assert made.failure(1) is None
    made.give_up(1, "the disk is full")
    assert made.failure(1) == "the disk is full"
    assert made.failure(2) is None, "the next start tries again"
    made.close()


def test_pieces_lie_apart_in_a_slot() -> None:
    pieces = [Piece("a", (), (), 0, 0, 1, 0), Piece("b", (), (), 0, 0, 65, 0), Piece("c", (), (), 0, 0, 64, 0)]
    assert places(pieces) == ([0, 64, 192], 256)
    assert places([]) == ([], 64)


def test_a_folder_that_has_not_stirred_is_not_listed_and_nothing_is_missed(bench: Any) -> None:
    (saver,) = bench.savers(Layout(), specs_of(W))
    slots = bench.writer().slots
    long_ago = os.stat(slots.folder).st_mtime - 3600
    os.utime(slots.folder, (long_ago, long_ago))
    assert slots.stirred() and not slots.stirred()
    saver.begin(1, W, {})
    assert slots.stirred() and slots.stirred(), "just now: the same tick of the clock may bring another"
    os.utime(slots.folder, (long_ago, long_ago))
    assert slots.stirred() and not slots.stirred()


def test_one_writer_at_a_time(bench: Any) -> None:
    made = Slots(bench.run.path, bench.run.local, shm=bench.shm)
    assert made.writer() is None
    made.write_alone()
    assert made.writer() == os.getpid()
    made.close()
