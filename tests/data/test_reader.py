import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from threading import Event, Thread

import numpy as np
import psutil
import pytest

from argosy.data import reader
from argosy.data import ring as rings
from argosy.data.batch import Given, HeldOut, given, global_batch, held_out_batches
from argosy.data.reader import LocalBatches, Reader, RingBatches
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


def same(found: Given, step: int, shards: Shards, seed: int = 5) -> bool:
    expected = global_batch(step, seed, LEDGER, shards)
    return all(np.array_equal(getattr(found.batch, name), getattr(expected, name)) for name in FIELDS)


def start_of(nodes: int = 1, world: int = 1) -> Incarnation:
    return Incarnation(1, world, f"dp{world}", 1, nodes=nodes)


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


def test_the_ring_is_this_users_alone(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "MEMORY", tmp_path)
    monkeypatch.setattr(rings, "MEMORY", tmp_path)
    memory, disk = reader.places(run, start_of())
    assert f"-{os.getuid()}-" in memory.name
    assert reader._choose([memory, disk], LEDGER) == memory
    Reader(memory, lambda step: given(step, 5, LEDGER, Shards(run.prepared()))).close()
    assert stat.S_IMODE(memory.stat().st_mode) == 0o700
    shutil.rmtree(memory)
    memory.symlink_to(tmp_path / "elsewhere", target_is_directory=True)  # somebody was faster
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/bell").touch()
    assert reader._choose([memory, disk], LEDGER) == disk
    assert not RingBatches([memory, disk], lambda: None)._ask((1, rings.NOTHING, 0))
    assert not list((tmp_path / "elsewhere").glob("wanted-*"))


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
    assert not any(place.exists() for place in reader.places(run, start_of()))


def test_the_reader_needs_no_torch(run: Run, shards: Shards) -> None:
    program = (
        "import os, sys, threading; from argosy.data import reader; from argosy.run.folder import Run\n"
        "threading.Thread(target=reader.main, args=(sys.argv[1], 1), daemon=True).start()\n"
        "batch = reader.batches(Run(sys.argv[1]), 1).get(4).batch\n"
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
    assert any(place.exists() for place in reader.places(run, start_of()))
    parent.kill()
    parent.wait(PATIENCE)
    with suppress(psutil.NoSuchProcess):
        assert until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)
    assert until(lambda: not any(place.exists() for place in reader.places(run, start_of())))
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
    with pytest.raises(RuntimeError, match=r"the reader process failed: KeyError: 'x'; its log is in .*log"):
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
    mine = reader.places(run, start_of())
    node = reader.places(run, start_of(2, 2), 1)[1]
    LEDGER.changed(9, "batch.tokens", 256, "x").write(run.path / "ledger.jsonl")
    other = [place.with_name(mine[0].name.replace("ring-", "ring-0", 1)) for place in mine]
    changed = reader.places(run, start_of())
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
    batch = reader.batches(run, 1).get(2).batch
    assert np.array_equal(batch.tokens, global_batch(2, 5, changed, shards).tokens)
    assert len(batch) == 16
    process.kill()
    process.wait(PATIENCE)


def test_a_ledger_that_changes_while_a_reader_begins_gets_no_ring_of_the_old_one(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ring is named by the ledger: one of the new name must not hold what the old one says."""
    places, found = reader.places, []

    def changed(run: Run, start: Incarnation, node: int = 0) -> list[Path]:
        LEDGER.changed(2, "batch.tokens", 256, "x").write(run.path / "ledger.jsonl")
        found.extend(places(run, start, node))
        return found

    monkeypatch.setattr(reader, "places", changed)
    monkeypatch.setattr(reader, "Reader", lambda *words: pytest.fail("made a ring"))
    reader._serve(run, start_of(), 0)
    assert len(found) == 2 and not any(path.exists() for path in found)


def test_the_ring_is_on_disk_where_memory_has_no_room(tmp_path: Path) -> None:
    memory, disk = tmp_path / "none" / "ring", tmp_path / "ring"
    assert reader._choose([memory, disk], LEDGER) == disk
    (tmp_path / "none").mkdir()
    assert reader._choose([memory, disk], LEDGER) == memory
    assert reader._choose([memory, disk], LEDGER.changed(9, "batch.tokens", 10**15, "x")) == disk
    disk.mkdir()
    assert reader._choose([memory, disk], LEDGER) == disk


def test_local_batches_measure_too_and_tell_what_is_long_in_coming(
    shards: Shards, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rings, "SLOW", 0.05)
    missed, heard, part = Event(), [], Shards.part

    def slow(self: Shards, *words: object) -> object:
        assert missed.wait(PATIENCE)
        return part(self, *words)  # type: ignore[arg-type]

    def told(seconds: float, there: bool) -> None:
        heard.append(there)
        missed.set()

    monkeypatch.setattr(Shards, "part", slow)
    batches = LocalBatches(5, LEDGER, shards, 1, lambda: [HeldOut(shards, 16, 100)], told)
    assert batches.get(1).counted
    assert heard == [False, True]
    expected = list(held_out_batches(shards, 16, 2, 100))
    found = list(batches.held_out(0, 2))
    assert [batch.tokens.tolist() for batch in found] == [batch.tokens.tolist() for batch in expected] != []
    batches.close()


def test_a_reader_that_hangs_in_a_slow_store_is_waited_for_and_told(
    run: Run, shards: Shards, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stands still before its fourth batch, and goes on when somebody has said that the batch is missing."""
    monkeypatch.setattr(rings, "SLOW", 0.05)
    process, heard = start(run, ARGOSY_POINT="reader.batch.before:4:stop"), []

    def told(seconds: float, there: bool) -> None:
        if len(heard) == 0:
            assert until(lambda: psutil.Process(process.pid).status() == psutil.STATUS_STOPPED)
            process.send_signal(signal.SIGCONT)
        heard.append((there, seconds))

    batches = reader.batches(run, 1)
    assert same(batches.get(1), 1, shards)  # a process that starts may itself take long
    assert until(lambda: psutil.Process(process.pid).status() == psutil.STATUS_STOPPED)
    batches.heard = told
    for step in range(2, 12):
        assert same(batches.get(step), step, shards)
    batches.close()
    process.kill()
    process.wait(PATIENCE)
    assert [there for there, _ in heard[:2]] == [False, True]


def test_each_machine_reads_the_sequences_of_its_own_ranks(tmp_path: Path, run: Run, shards: Shards) -> None:
    """Two readers of a launch over two machines, here beside each other: what both give is the global batch."""
    found = []
    Incarnation(1, 4, "dp4", 1, nodes=2).write(run)
    for rank in (0, 2):
        own = reader.OwnReader(run, 1, rank)
        batches = reader.batches(run, 1, rank + 1)
        found.append(batches.get(2))
        assert [batch.tokens.shape for batch in batches.held_out(0, 2)], "what is measured is read whole everywhere"
        batches.close()
        own.close()
    assert not any(place.exists() for rank in (0, 1) for place in reader.places(run, start_of(2, 4), rank))
    expected = global_batch(2, 5, LEDGER, shards)
    assert [given.rows.tolist() for given in found] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert np.concatenate([given.batch.tokens for given in found]).tolist() == expected.tokens.tolist()
    assert [given.counted for given in found] == [expected.counted] * 2
    assert found[0].bytes is not None and found[1].bytes is None, "the first rank writes the bytes down, nobody else"


def test_the_shares_of_a_machine_follow_the_layout() -> None:
    """Ranks along tensor and pipeline axes read the same sequences; only those along data axes read their own."""
    start = Incarnation(1, 8, "tp2 dp4", 1, nodes=2)
    assert [reader.shares(start, node) for node in (0, 1)] == [((0, 1), 4), ((2, 3), 4)]
    start = Incarnation(1, 8, "pp2 dp4", 1, nodes=2)
    assert [reader.shares(start, node) for node in (0, 1)] == [((0, 1, 2, 3), 4)] * 2
    assert reader.shares(Incarnation(1, 8, "dp8", 1), 0) is None


def test_a_rank_that_is_its_own_parent_replaces_a_reader_that_dies_or_stands_still(run: Run, shards: Shards) -> None:
    """Under a launcher nobody else does."""
    Incarnation(1, 1, "dp1", 1).write(run)
    own = reader.OwnReader(run, 1)
    batches = reader.batches(run, 1)
    for number, how in ((1, signal.SIGKILL), (20, signal.SIGSTOP), (40, signal.SIGKILL)):
        assert same(batches.get(number), number, shards)
        before = own.pid
        os.kill(before, how)
        assert until(lambda before=before: own.pid != before)  # type: ignore[misc]
        assert same(batches.get(number + 10), number + 10, shards)
    last = own.pid
    batches.close()
    own.close()
    assert not psutil.pid_exists(last)
    assert not any(place.exists() for place in reader.places(run, start_of()))


def test_a_rank_that_is_its_own_parent_does_not_restart_what_tells_why_it_failed(run: Run, shards: Shards) -> None:
    path = shards.folder / "part-00000.shard"
    data = bytearray(path.read_bytes())
    data[700] ^= 1
    path.write_bytes(data)
    Incarnation(1, 1, "dp1", 1).write(run)
    own = reader.OwnReader(run, 1)
    with pytest.raises(Refused, match=r"part-00000\.shard, byte 512: this shard is damaged"):
        reader.batches(run, 1).get(1)
    own.close()
