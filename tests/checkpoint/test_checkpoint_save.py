"""A rank's side: what lies in the slot is the state at the vote, and training waits only when every slot is being written."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from argosy.checkpoint.plan import TensorSpec
from argosy.checkpoint.save import Saver, specs_of
from argosy.errors import MACHINE, Refused
from argosy.layout.layout import Layout

WAIT = 60  # seconds; no test depends on how fast anything is


def wait_for(condition: Callable[[], object]) -> None:
    end = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)


def test_the_file_holds_the_state_at_the_vote_though_training_went_on(bench: Any) -> None:
    weight = torch.arange(300_000, dtype=torch.float32)
    at_vote = weight.clone()
    (saver,) = bench.savers(Layout(), specs_of({"w": weight}))
    saver.begin(1, {"w": weight}, {})
    weight += 1  # the next step's update, while nothing is written yet
    writer = bench.writer(bandwidth=1e6)  # 1.2 MB at 1 MB/s
    thread = threading.Thread(target=writer.turn)
    thread.start()
    steps = 1
    while thread.is_alive():  # and steps go on while it is written
        weight += 1
        steps += 1
        time.sleep(0.001)
    thread.join()
    assert steps > 5, "training went on beside the writer"
    (file,) = bench.run.checkpoints.glob("step-000001/*.safetensors")
    assert torch.equal(load_file(file)["w"], at_vote)


def test_a_slow_writer_makes_no_step_wait_while_a_slot_is_free(bench: Any) -> None:
    weight = torch.zeros(1000)
    (saver,) = bench.savers(Layout(), specs_of({"w": weight}))
    for step in (1, 2):  # nobody writes at all: the slowest writer there is
        saver.begin(step, {"w": weight}, {})
    assert sorted(bench.writer().slots.ready()) == [(1, 1), (1, 2)]


def test_training_waits_for_a_slot_only_when_all_are_being_written(bench: Any) -> None:
    weight = torch.zeros(1000)
    (saver,) = bench.savers(Layout(), specs_of({"w": weight}))
    for step in (1, 2):
        saver.begin(step, {"w": weight}, {})
    waited: list[float] = []
    thread = threading.Thread(target=lambda: waited.append(saver.begin(3, {"w": weight}, {})))
    thread.start()
    writer = bench.writer()
    time.sleep(0.05)
    assert thread.is_alive() and (1, 3) not in writer.slots.ready()
    assert writer.turn()
    thread.join(WAIT)
    assert waited[0] >= 0.04
    assert writer.turn() and writer.turn()
    assert [line["step"] for line in bench.lines] == [1, 2, 3]
    assert float(bench.lines[2]["waited"]) >= 0.04, "what training waited is told beside the checkpoint"
    assert saver.flush() < WAIT


def test_a_rank_killed_while_copying_has_announced_nothing(bench: Any) -> None:
    weight = torch.zeros(10)
    specs = specs_of({"w": weight})
    (saver,) = bench.savers(Layout(), specs)
    with pytest.raises(KeyError):
        saver.begin(1, {}, {})  # dies in the middle of the copy
    assert bench.writer().slots.ready() == {}


def test_slots_go_to_a_disk_where_memory_has_no_room(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from argosy.checkpoint import slots

    whole = slots._reserved

    def full(path: Path, size: int) -> Any:
        if path.is_relative_to(bench.shm):
            raise OSError(28, "No space left on device")
        return whole(path, size)

    monkeypatch.setattr(slots, "_reserved", full)
    weight = torch.arange(10.0)
    (saver,) = bench.savers(Layout(), specs_of({"w": weight}))
    assert saver.note is not None and str(bench.run.local) in saver.note
    saver.begin(1, {"w": weight}, {})
    writer = bench.writer()
    assert writer.turn()
    (file,) = bench.run.checkpoints.glob("step-000001/*.safetensors")
    assert torch.equal(load_file(file)["w"], weight)
    writer.slots.clear()
    assert not list(bench.run.local.glob("slots/*"))


def test_no_room_anywhere_is_one_sentence(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from argosy.checkpoint import slots

    def full(path: Path, size: int) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(slots, "_reserved", full)
    with pytest.raises(Refused, match="no room for a snapshot") as refused:
        bench.savers(Layout(), [TensorSpec("w", "F64", (10,))])
    assert refused.value.code == MACHINE and "ARGOSY_LOCAL" in refused.value.text


def test_held_counts_generations(bench: Any) -> None:
    weight = torch.zeros(1)
    (saver,) = bench.savers(Layout(), specs_of({"w": weight}))
    assert sum(saver.held()) == 0
    saver.begin(1, {"w": weight}, {})
    assert saver.held() == (1.0, *[0.0] * 7)


def test_types_that_no_checkpoint_can_hold_are_named() -> None:
    with pytest.raises(ValueError, match=r"phase has type torch\.complex64"):
        specs_of({"phase": torch.zeros(2, dtype=torch.complex64)})


@pytest.mark.long
def test_a_rank_without_a_parent_keeps_its_own_snapshot_process(bench: Any, tmp_path: Path) -> None:
    """As under torchrun: started by the first rank, again when it was killed, ended by close; nothing is left in memory."""
    import os
    import signal

    from argosy.job.schema import Job
    from argosy.run.folder import settle

    job = Job()
    (bench.run.path / "run.json").write_text('{"version": 1, "id": "a"}')
    settle(bench.run, job, {}, [], tmp_path, "")
    weight = torch.arange(5.0)
    saver = Saver(bench.run, 0, 1, 1, Layout(), specs_of({"w": weight}), child=True)
    try:
        assert saver.writer is not None
        first = saver.writer.pid
        os.kill(first, signal.SIGKILL)
        saver.writer.wait()
        saver.begin(1, {"w": weight}, {})
        saver.flush()
        assert saver.writer.pid != first
        assert (bench.run.checkpoints / "step-000001" / "manifest.json").exists()
        folder = saver.files.folder
    finally:
        saver.close()
    assert not folder.exists()


def test_the_writer_needs_no_torch() -> None:
    rooms = "argosy.checkpoint.snapshot, argosy.checkpoint.store, argosy.checkpoint.slots, argosy.layout.placement"
    code = f"import sys, {rooms}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
