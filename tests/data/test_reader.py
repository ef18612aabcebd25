import fcntl
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event, Thread

import numpy as np
import psutil
import pytest

from argosy.data import reader
from argosy.data.batch import Batch, global_batch
from argosy.data.reader import AHEAD, LocalBatches, Reader, RingBatches
from argosy.data.shards import Shards
from argosy.errors import MACHINE, Refused
from argosy.job import leaves
from argosy.job.load import load
from argosy.job.setting import Setting
from argosy.run import folder
from argosy.run.folder import Run
from argosy.run.incarnation import Incarnation
from argosy.run.ledger import Ledger

LEDGER = Ledger.start(data__order=2, batch__sequence=16, batch__tokens=128).changed(6, "batch.tokens", 64, "x")
FIELDS = ("tokens", "labels", "segments", "positions", "kinds", "weights", "sequence")
PATIENCE = 120.0


@pytest.fixture
def shards(make_shards: Callable[..., Shards]) -> Shards:
    return make_shards([7, 64, 300, 2, 33, 500, 1, 12, 90], (3,), files=2)


@pytest.fixture
def run(tmp_path: Path, shards: Shards) -> Iterator[Run]:
    """A run folder as the parent makes it, of a job that reads 16 x 8 tokens a step."""
    loaded = load("smoke", ["batch.sequence=16", "batch.tokens=128", "train.seed=5"])
    made = folder.create(tmp_path / "run", asked=loaded.job, text=loaded.text, origin={})
    plain = {key: leaves.plain(value) for key, value in leaves.leaves(loaded.job).items()}
    rows = [Setting(key, value, value, "default") for key, value in plain.items()]
    folder.settle(made, loaded.job, loaded.written, rows, shards.folder, loaded.text)
    LEDGER.write(made.path / "ledger.jsonl")
    Incarnation(1, 1, "replicate1", 1, parent=os.getpid()).write(made)
    yield made
    reader.remove(made)


def same(batch: Batch, step: int, shards: Shards, seed: int = 5) -> bool:
    expected = global_batch(step, seed, LEDGER, shards)
    return all(np.array_equal(getattr(batch, name), getattr(expected, name)) for name in FIELDS)


def until(condition: Callable[[], bool]) -> bool:
    """Wait for a condition that must come, for as long as a very slow machine may need."""
    end = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


def start(run: Run, parent: int | None = None, **environment: str) -> "subprocess.Popen[bytes]":
    """The reader process, started as the parent starts it."""
    words = ["argosy.data.reader:main", "reader", str(run.path), "1", str(parent or os.getpid())]
    return subprocess.Popen([sys.executable, "-P", "-m", "argosy.run.child", *words], env={**os.environ, **environment})


@contextmanager
def serving(ring: Path, shards: Shards) -> Iterator[Reader]:
    """A reader in a thread of this process."""
    made, end = Reader(ring, lambda step: global_batch(step, 5, LEDGER, shards)), Event()

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


def test_local_batches_are_the_global_ones_in_any_order(shards: Shards) -> None:
    batches = LocalBatches(5, LEDGER, shards, 3)
    for step in (3, 4, 5, 6, 7, 20, 2):
        assert same(batches.get(step), step, shards)
    batches.close()


def test_local_batches_tell_what_went_wrong(shards: Shards) -> None:
    path = shards.folder / "part-00001.shard"
    data = bytearray(path.read_bytes())
    data[600] ^= 1
    path.write_bytes(data)
    with pytest.raises(Refused, match=r"part-00001\.shard, byte 512: this shard is damaged"):
        LocalBatches(5, LEDGER, Shards(shards.folder), 1).get(1)


def test_batches_are_made_ahead_and_removed_behind(tmp_path: Path, shards: Shards) -> None:
    ring = tmp_path / "ring"
    batches = RingBatches([tmp_path / "nowhere", ring], lambda: None)
    with serving(ring, shards):
        for step in (4, 5, 6, 7, 40):
            assert same(batches.get(step), step, shards)
            names = {reader.batch_name(other) for other in range(step, step + AHEAD + 1)}
            assert until(lambda names=names: {path.name for path in ring.glob("batch-*")} == names)  # type: ignore[misc]
    batches.close()


def test_nothing_is_removed_that_a_living_worker_wants(tmp_path: Path, shards: Shards) -> None:
    """Another worker, a process of its own, wants step 1 while this one goes on; then it dies and holds nothing up."""
    ring = tmp_path / "ring"
    fast = RingBatches([ring], lambda: None)
    with serving(ring, shards), subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        assert same(fast.get(1), 1, shards)
        (ring / ".new").write_bytes(np.int64(1).tobytes())
        held = os.open(ring / ".new", os.O_RDWR)
        fcntl.flock(held, fcntl.LOCK_SH)  # as a worker does; here the test holds it, and only the process's end tells
        (ring / ".new").rename(ring / f"wanted-{other.pid}")
        for step in range(1, AHEAD + 2):
            assert same(fast.get(step), step, shards)
        assert until(lambda: (ring / reader.batch_name(1)).exists())
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
    stale.write_bytes(np.int64(1).tobytes())
    batches = RingBatches([ring], lambda: None)
    with serving(ring, shards):
        assert same(batches.get(30), 30, shards)
        assert not stale.exists()
    batches.close()


def test_the_ring_is_this_users_alone(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "MEMORY", tmp_path)
    memory, disk = reader.places(run, 0)
    assert f"-{os.getuid()}-" in memory.name
    assert reader._choose([memory, disk], LEDGER) == memory
    Reader(memory, lambda step: global_batch(step, 5, LEDGER, Shards(run.prepared()))).close()
    assert stat.S_IMODE(memory.stat().st_mode) == 0o700
    shutil.rmtree(memory)
    memory.symlink_to(tmp_path / "elsewhere", target_is_directory=True)  # somebody was faster
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/bell").touch()
    assert reader._choose([memory, disk], LEDGER) == disk
    assert not RingBatches([memory, disk], lambda: None)._want(1)
    assert not list((tmp_path / "elsewhere").glob("wanted-*"))


def test_a_worker_that_comes_late_gets_what_was_removed(tmp_path: Path, shards: Shards) -> None:
    ring = tmp_path / "ring"
    batches = RingBatches([ring], lambda: None)
    with serving(ring, shards):
        assert same(batches.get(50), 50, shards)
        assert same(batches.get(3), 3, shards)
    batches.close()


def test_views_outlive_the_file(tmp_path: Path, shards: Shards) -> None:
    path = tmp_path / reader.batch_name(7)
    reader.write_batch(path, 7, global_batch(7, 5, LEDGER, shards))
    batch = reader.read_batch(path, 7)
    path.unlink()
    assert batch is not None
    assert same(batch, 7, shards)
    assert reader.read_batch(path, 7) is None


def test_what_a_killed_reader_left_is_taken_up_and_half_files_go(tmp_path: Path, shards: Shards) -> None:
    ring = tmp_path / "ring"
    ring.mkdir()
    reader.write_batch(ring / reader.batch_name(2), 2, global_batch(2, 5, LEDGER, shards))
    kept = (ring / reader.batch_name(2)).stat().st_ino
    (ring / ("." + reader.batch_name(3))).write_bytes(b"half")
    batches = RingBatches([ring], lambda: None)
    with serving(ring, shards):
        assert not list(ring.glob(".batch-*"))
        assert same(batches.get(1), 1, shards)
        assert until(lambda: len(list(ring.glob("batch-*"))) == AHEAD + 1)
        assert (ring / reader.batch_name(2)).stat().st_ino == kept
        assert same(batches.get(3), 3, shards)
    batches.close()


def test_a_reader_killed_at_any_point_is_replaced_and_no_batch_is_lost(run: Run, shards: Shards) -> None:
    """It is killed before its first batch, after another's second, and by hand; the test plays the parent."""
    seen: list[bool] = []

    def work() -> None:
        batches = reader.batches(run, 1)
        for step in range(1, 61):
            seen.append(same(batches.get(step), step, shards))
            if step in (20, 40):
                may_go_on.wait(PATIENCE)
        batches.close()

    may_go_on = Event()
    worker = Thread(target=work)
    worker.start()
    for point in ("reader.batch.before:1:kill", "reader.batch.after:2:kill"):
        assert start(run, ARGOSY_POINT=point).wait(PATIENCE) == -signal.SIGKILL
    process = start(run)
    assert until(lambda: len(seen) == 20)
    process.kill()
    process.wait(PATIENCE)
    may_go_on.set()
    process = start(run)
    worker.join(PATIENCE)
    process.kill()
    process.wait(PATIENCE)
    assert seen == [True] * 60
    reader.remove(run)
    assert not any(place.exists() for place in reader.places(run, 0))


def test_the_reader_needs_no_torch(run: Run, shards: Shards) -> None:
    program = (
        "import os, sys, threading; from argosy.data import reader; from argosy.run.folder import Run\n"
        "threading.Thread(target=reader.main, args=(sys.argv[1], 1), daemon=True).start()\n"
        "batch = reader.batches(Run(sys.argv[1]), 1).get(4)\n"
        "print(batch.tokens.sum(), 'torch' in sys.modules, 'pandas' in sys.modules, flush=True)\n"
        "os._exit(0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(run.path)], capture_output=True, text=True, timeout=PATIENCE
    )
    assert done.stdout.split() == [str(global_batch(4, 5, LEDGER, shards).tokens.sum()), "False", "False"], done.stderr


def test_the_reader_ends_with_its_parent_and_takes_the_ring_along(run: Run) -> None:
    """The parent is another process here, which starts the reader, tells its number and is killed."""
    program = (
        "import os, subprocess, sys, time\n"
        "words = ['argosy.data.reader:main', 'reader', sys.argv[1], '1', str(os.getpid())]\n"
        "child = subprocess.Popen([sys.executable, '-P', '-m', 'argosy.run.child', *words])\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(1000)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", program, str(run.path)], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    child = psutil.Process(int(parent.stdout.readline()))
    batches = reader.batches(run, 1)
    batches.get(1)
    assert any(place.exists() for place in reader.places(run, 0))
    parent.kill()
    parent.wait(PATIENCE)
    with suppress(psutil.NoSuchProcess):
        assert until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)
    assert until(lambda: not any(place.exists() for place in reader.places(run, 0)))
    batches.close()
    parent.stdout.close()


def test_a_damaged_shard_ends_reader_and_workers_with_the_same_sentence(run: Run, shards: Shards) -> None:
    path = shards.folder / "part-00000.shard"
    data = bytearray(path.read_bytes())
    data[700] ^= 1
    path.write_bytes(data)
    process = start(run)
    with pytest.raises(Refused, match=r"part-00000\.shard, byte 512: this shard is damaged") as refused:
        reader.batches(run, 1).get(1)
    assert process.wait(PATIENCE) == refused.value.code == 2
    assert "part-00000.shard, byte 512" in (run.log / "reader.txt").read_text()


def test_a_bug_of_the_reader_is_told_to_the_workers(run: Run) -> None:
    row = {"code": 1, "kind": "bug", "sentence": "KeyError: 'x'", "pid": 1}
    (run.local / "ended-reader-0.json").write_text(json.dumps({**row, "sentence": "of yesterday"}))
    os.utime(run.local / "ended-reader-0.json", (0, 0))
    (run.local / "ended-reader-1.json").write_text(json.dumps(row))
    with pytest.raises(RuntimeError, match=r"the reader process failed: KeyError: 'x'; see .*reader.txt"):
        reader.batches(run, 1).get(1)


def test_without_reader_and_parent_a_worker_gives_up(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait(PATIENCE)
    Incarnation(2, 1, "replicate1", 1, parent=gone.pid).write(run)
    monkeypatch.setattr(reader, "PATIENCE", 0.5)
    with pytest.raises(Refused, match=f"the reader process is gone, and so is process {gone.pid}") as refused:
        reader.batches(run, 2).get(1)
    assert refused.value.code == MACHINE


def test_rings_of_other_batches_are_removed_those_of_other_runs_not(run: Run, tmp_path: Path) -> None:
    mine = reader.places(run, 0)
    node = reader.places(run, 1)[1]
    LEDGER.changed(9, "batch.tokens", 256, "x").write(run.path / "ledger.jsonl")
    other = [place.with_name(mine[0].name.replace("ring-", "ring-0", 1)) for place in mine]
    changed = reader.places(run, 0)
    assert len({place.name for place in (*mine, *changed, *other, node)}) == 4
    for ring in (*mine, *changed, *other, node):
        ring.mkdir(parents=True)
    reader.remove(run, but=changed[1])
    assert [ring for ring in (*mine, *changed, *other, node) if ring.exists()] == [changed[1], *other, node]
    for ring in other:
        ring.rmdir()


def test_a_living_reader_follows_a_changed_ledger(run: Run, shards: Shards) -> None:
    process = start(run)
    assert same(reader.batches(run, 1).get(1), 1, shards)
    changed = LEDGER.changed(2, "batch.tokens", 256, "x")
    changed.write(run.path / "ledger.jsonl")
    batch = reader.batches(run, 1).get(2)
    assert np.array_equal(batch.tokens, global_batch(2, 5, changed, shards).tokens)
    assert len(batch) == 16
    process.kill()
    process.wait(PATIENCE)


def test_the_ring_is_on_disk_where_memory_has_no_room(tmp_path: Path) -> None:
    memory, disk = tmp_path / "none" / "ring", tmp_path / "ring"
    assert reader._choose([memory, disk], LEDGER) == disk
    (tmp_path / "none").mkdir()
    assert reader._choose([memory, disk], LEDGER) == memory
    assert reader._choose([memory, disk], LEDGER.changed(9, "batch.tokens", 10**15, "x")) == disk
    disk.mkdir()
    assert reader._choose([memory, disk], LEDGER) == disk
