"""The ring: what one process hands to the workers of its machine, and what becomes of it when either dies."""

import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread

import numpy as np
import pytest

from argosy.data import ring as rings
from argosy.data.batch import Given, HeldOut, given, global_batch, held_out_batches
from argosy.data.ring import AHEAD, NOTHING, Reader, RingBatches
from argosy.data.shards import Shards
from argosy.run.ledger import Ledger

LEDGER = Ledger.start(data__order=2, batch__sequence=16, batch__tokens=128).changed(6, "batch.tokens", 64, "x")
FIELDS = ("tokens", "labels", "segments", "positions", "kinds", "weights", "sequence")
PATIENCE = 120.0


@pytest.fixture
def shards(make_shards: Callable[..., Shards]) -> Shards:
    return make_shards([7, 64, 300, 2, 33, 500, 1, 12, 90], (3, 5), files=2)


def same(found: Given, step: int, shards: Shards) -> bool:
    """Whether it is the whole batch of `step`, and what is told of it is right."""
    expected = global_batch(step, 5, LEDGER, shards)
    told = found.whole == len(expected) and found.counted == expected.counted
    told = told and found.bytes == int(shards.bytes_of[expected.labels[expected.weights != 0]].sum())
    arrays = all(np.array_equal(getattr(found.batch, name), getattr(expected, name)) for name in FIELDS)
    return told and arrays and found.rows.tolist() == list(range(len(expected)))


def until(condition: Callable[[], bool]) -> bool:
    """Wait for a condition that must come, for as long as a very slow machine may need."""
    end = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


def wish(step: int) -> bytes:
    """What a worker that wants `step` has in its file."""
    return np.array([step, NOTHING, 0], "<i8").tobytes()


@contextmanager
def serving(ring: Path, shards: Shards, make: Callable[[int], Given] | None = None) -> Iterator[Reader]:
    """A reader in a thread of this process."""
    sets = [HeldOut(shards, 16, 10**6), HeldOut(shards, 16, 40)]
    made = Reader(
        ring,
        make or (lambda step: given(step, 5, LEDGER, shards)),
        lambda number, index, rows: sets[number].batch(index, rows),
    )
    end = Event()

    def serve() -> None:
        while not end.is_set():
            if not made.turn():
                made.wait(0.05)

    thread = Thread(target=serve)
    thread.start()
    try:
        yield made
    finally:
        end.set()
        thread.join()
        made.close()


def test_batches_are_made_ahead_and_removed_behind(tmp_path: Path, shards: Shards) -> None:
    ring = tmp_path / "ring"
    batches = RingBatches([tmp_path / "nowhere", ring], lambda: None)
    with serving(ring, shards):
        for step in (4, 5, 6, 7, 40):
            assert same(batches.get(step), step, shards)
            names = {rings.batch_name(other) for other in range(step, step + AHEAD + 1)}
            assert until(lambda names=names: {path.name for path in ring.glob("batch-*")} == names)  # type: ignore[misc]
    batches.close()


def test_nothing_is_removed_that_a_living_worker_wants(tmp_path: Path, shards: Shards) -> None:
    """Another worker, a process of its own, wants step 1 while this one goes on; then it dies and holds nothing up."""
    ring = tmp_path / "ring"
    fast = RingBatches([ring], lambda: None)
    with serving(ring, shards), subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        assert same(fast.get(1), 1, shards)
        (ring / ".new").write_bytes(wish(1))
        held = os.open(ring / ".new", os.O_RDWR)
        fcntl.flock(held, fcntl.LOCK_SH)  # as a worker does; here the test holds it, and only the process's end tells
        (ring / ".new").rename(ring / f"wanted-{other.pid}")
        for step in range(1, AHEAD + 2):
            assert same(fast.get(step), step, shards)
        assert until(lambda: (ring / rings.batch_name(1)).exists())
        other.kill()  # and is not waited for: a process that is only a number any more counts as gone
        for step in range(AHEAD + 2, 30):
            assert same(fast.get(step), step, shards)
        assert until(lambda: not (ring / f"wanted-{other.pid}").exists())
        os.close(held)
    fast.close()


def test_a_number_that_another_process_has_by_now_holds_nothing_up(tmp_path: Path, shards: Shards) -> None:
    """A worker died while no reader ran; its number belongs to a process that lives and wants nothing."""
    ring = tmp_path / "ring"
    ring.mkdir()
    stale = ring / f"wanted-{os.getppid()}"
    stale.write_bytes(wish(1))
    batches = RingBatches([ring], lambda: None)
    with serving(ring, shards):
        assert same(batches.get(30), 30, shards)
        assert not stale.exists()
    batches.close()


def test_a_worker_that_comes_late_gets_what_was_removed(tmp_path: Path, shards: Shards) -> None:
    ring = tmp_path / "ring"
    batches = RingBatches([ring], lambda: None)
    with serving(ring, shards):
        assert same(batches.get(50), 50, shards)
        assert same(batches.get(3), 3, shards)
    batches.close()


def test_views_outlive_the_file(tmp_path: Path, shards: Shards) -> None:
    path = tmp_path / rings.batch_name(7)
    rings.write_batch(path, 7, given(7, 5, LEDGER, shards))
    batch = rings.read_batch(path, 7)
    path.unlink()
    assert batch is not None
    assert same(batch, 7, shards)
    assert rings.read_batch(path, 7) is None


def test_what_a_killed_reader_left_is_taken_up_and_half_files_go(tmp_path: Path, shards: Shards) -> None:
    ring = tmp_path / "ring"
    ring.mkdir()
    rings.write_batch(ring / rings.batch_name(2), 2, given(2, 5, LEDGER, shards))
    kept = (ring / rings.batch_name(2)).stat().st_ino
    (ring / ("." + rings.batch_name(3))).write_bytes(b"half")
    batches = RingBatches([ring], lambda: None)
    with serving(ring, shards):
        assert not list(ring.glob(".batch-*"))
        assert same(batches.get(1), 1, shards)
        assert until(lambda: len(list(ring.glob("batch-*"))) == AHEAD + 1)
        assert (ring / rings.batch_name(2)).stat().st_ino == kept
        assert same(batches.get(3), 3, shards)
    batches.close()


def test_what_is_measured_comes_through_the_same_ring_and_training_goes_on_where_it_stood(
    tmp_path: Path, shards: Shards
) -> None:
    ring = tmp_path / "ring"
    batches = RingBatches([ring], lambda: None)
    with serving(ring, shards):
        assert [len(batch) for batch in batches.held_out(1, 2)] == [2, 2], "before any step, too"
        for step in (1, 2):
            assert same(batches.get(step), step, shards)
            for number, tokens, rows in ((0, 10**6, 3), (1, 40, 3), (1, 40, 2)):
                expected = list(held_out_batches(shards, 16, rows, tokens))
                found = list(batches.held_out(number, rows))
                assert len(found) == len(expected) > 0
                for mine, theirs in zip(found, expected, strict=True):
                    assert all(np.array_equal(getattr(mine, name), getattr(theirs, name)) for name in FIELDS)
            assert until(lambda: not list(ring.glob("held-*"))), "nobody wants them any more"
            assert (ring / rings.batch_name(step + 1)).exists()
    batches.close()


def test_a_measurement_that_is_broken_off_leaves_nothing(tmp_path: Path, shards: Shards) -> None:
    ring = tmp_path / "ring"
    batches = RingBatches([ring], lambda: None)
    with serving(ring, shards):
        for _ in batches.held_out(0, 1):
            break
        assert until(lambda: not list(ring.glob("held-*")))
        assert same(batches.get(1), 1, shards)
    batches.close()


def test_a_batch_that_is_long_in_coming_is_told_when_it_is_missed_and_when_it_came(
    tmp_path: Path, shards: Shards, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store that gives nothing until somebody has said that it is slow."""
    monkeypatch.setattr(rings, "SLOW", 0.05)
    missed, heard = Event(), []

    def slow(step: int) -> Given:
        if step == 9:
            assert missed.wait(PATIENCE)
        return given(step, 5, LEDGER, shards)

    def told(seconds: float, there: bool) -> None:
        heard.append((seconds, there))
        missed.set()

    batches = RingBatches([tmp_path / "ring"], lambda: None)
    with serving(tmp_path / "ring", shards, slow):
        assert same(batches.get(1), 1, shards)
        batches.heard = told
        assert same(batches.get(9), 9, shards)
    batches.close()
    assert [there for _, there in heard] == [False, True]
    assert 0.05 <= heard[0][0] <= heard[1][0]


def test_a_part_of_a_batch_goes_through_the_ring(tmp_path: Path, shards: Shards) -> None:
    path = tmp_path / rings.batch_name(3)
    part = given(3, 5, LEDGER, shards, ((1, 3), 4), weigh=False)
    rings.write_batch(path, 3, part)
    found = rings.read_batch(path, 3)
    assert found is not None
    assert (found.rows.tolist(), found.whole, found.bytes) == ([2, 3, 6, 7], 8, None)
    assert found.counted == global_batch(3, 5, LEDGER, shards).counted
    assert np.array_equal(found.part(range(6, 8)).tokens, global_batch(3, 5, LEDGER, shards).tokens[6:8])
