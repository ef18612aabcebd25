"""A rank's side: what lies in the slot is the state at the vote, and training waits only when every slot is being written."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from argosy.checkpoint import snapshot
from argosy.checkpoint.plan import TensorSpec
from argosy.checkpoint.save import LOOK, Saver, specs_of
from argosy.errors import MACHINE, Refused
from argosy.layout.layout import Layout
from argosy.run.lines import rows

WAIT = 60  # seconds; no test depends on how fast anything is


def test_the_file_holds_the_state_at_the_vote_though_training_went_on(
    bench: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slowed to 1 MB/s: `begin` waits for nothing but its copy, and a step is taken between any two parts of the file."""
    weight = torch.arange(300_000, dtype=torch.float32)
    at_vote = weight.clone()
    (saver,) = bench.savers(Layout(), specs_of({"w": weight}))
    monkeypatch.setattr(saver, "_wait", lambda: pytest.fail("a step waited for the writer"))
    saver.begin(1, {"w": weight}, {})
    weight += 1  # the next step's update, while nothing is written yet
    parts: list[int] = []
    wrote = snapshot.Pace.wrote

    def step_between(pace: snapshot.Pace, count: int) -> None:
        weight.add_(1)
        parts.append(count)
        wrote(pace, count)

    monkeypatch.setattr(snapshot.Pace, "wrote", step_between)
    writer = bench.writer(bandwidth=1e6)  # 1.2 MB at 1 MB/s
    assert writer.turn()
    assert sum(parts) == 1_200_000 and len(parts) > 5, "written part by part"
    assert float(bench.lines[0]["seconds"]) >= 1.2, "and held to the limit"
    (file,) = bench.run.checkpoints.glob("step-000001/*.safetensors")
    assert torch.equal(load_file(file)["w"], at_vote)


def test_a_slow_writer_makes_no_step_wait_while_a_slot_is_free(bench: Any) -> None:
    weight = torch.zeros(1000)
    (saver,) = bench.savers(Layout(), specs_of({"w": weight}))
    for step in (1, 2):  # nobody writes at all: the slowest writer there is
        saver.begin(step, {"w": weight}, {})
    assert sorted(bench.writer().slots.ready()) == [(1, 1), (1, 2)]


def test_training_waits_for_a_slot_only_when_all_are_being_written(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.zeros(1000)
    (saver,) = bench.savers(Layout(), specs_of({"w": weight}))
    for step in (1, 2):
        saver.begin(step, {"w": weight}, {})
    waited: list[float] = []
    waits, wait = threading.Event(), saver._wait

    def seen() -> None:
        waits.set()
        wait()

    monkeypatch.setattr(saver, "_wait", seen)
    thread = threading.Thread(target=lambda: waited.append(saver.begin(3, {"w": weight}, {})))
    thread.start()
    writer = bench.writer()
    assert waits.wait(WAIT), "no slot is free: it waits"
    assert thread.is_alive() and (1, 3) not in writer.slots.ready()
    assert writer.turn()
    thread.join(WAIT)
    assert waited[0] >= LOOK, "at least one look"
    assert writer.turn() and writer.turn()
    assert [line["step"] for line in bench.lines] == [1, 2, 3]
    assert LOOK <= float(bench.lines[2]["waited"]) <= waited[0] + 1e-4, (
        "what training waited is told beside the checkpoint"
    )
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


def test_held_tells_which_generations_lie_in_the_slots(bench: Any) -> None:
    weight = torch.zeros(1)
    (saver,) = bench.savers(Layout(), specs_of({"w": weight}))
    writer = bench.writer()

    def held() -> list[int]:
        return [index for index, there in enumerate(saver.held()) if there]

    assert held() == []
    for step in (1, 2):
        saver.begin(step, {"w": weight}, {})
    assert held() == [0, 1]
    with pytest.raises(KeyError):
        assert writer.turn()
        saver.begin(3, {}, {})  # dies in the middle of the copy: what the slot held is gone
    assert held() == [1]
    for step in range(3, 11):
        saver.begin(step, {"w": weight}, {})
        while writer.turn():
            pass
    assert 9 % 8 in held() and len(held()) <= 2


def test_a_new_start_waits_for_what_an_earlier_one_announced(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    values = {"w": torch.zeros(6)}
    specs, two = specs_of(values), Layout(dp_replicate=2)
    whole, half = bench.savers(two, specs)
    for saver in (whole, half):
        saver.begin(1, values, {})
    whole.begin(2, values, {})  # and the other rank was killed before it had copied
    (later, _) = bench.savers(two, specs, incarnation=2)
    writer, turns = bench.writer(), []
    monkeypatch.setattr(later, "_wait", lambda: turns.append(writer.turn()))
    later.settle()
    assert turns == [True, False]
    assert [line["step"] for line in bench.lines] == [1]


def test_a_write_is_held_back_only_while_nobody_waits_for_it(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    values = {"w": torch.zeros(20_000)}  # 80 kB, for which the limit gives 800 s
    (saver,) = bench.savers(Layout(), specs_of(values))
    slept: list[float] = []
    monkeypatch.setattr(snapshot.time, "sleep", slept.append)
    for step in (1, 2, 3):
        saver.begin(step, values, {})
        del slept[:]
        if step == 2:  # ranks of the next incarnation come when half of it is written
            monkeypatch.setattr(
                snapshot.time, "sleep", lambda s: (slept.append(s), bench.savers(Layout(), [], incarnation=2))
            )
        assert bench.writer(bandwidth=100).turn()
        assert (len([pause for pause in slept if pause > 0.1]) > 5) == (step == 1), slept
    assert [line["step"] for line in bench.lines] == [1, 2, 3]


def test_types_that_no_checkpoint_can_hold_are_named() -> None:
    with pytest.raises(ValueError, match=r"phase has type torch\.complex64"):
        specs_of({"phase": torch.zeros(2, dtype=torch.complex64)})


@pytest.mark.long
def test_a_rank_without_a_parent_keeps_its_own_snapshot_process(bench: Any, tmp_path: Path) -> None:
    """As under torchrun: started by the first rank, again when it was killed, ended by close; nothing is left in memory."""
    import os
    import signal

    from argosy.job.schema import Job
    from argosy.run.folder import new_id, settle

    job = Job()
    (bench.run.path / "run.json").write_text(f'{{"version": 1, "id": "{new_id()}"}}')  # nothing left in memory is ours
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


@pytest.mark.parametrize("left", [4, 1])
def test_a_snapshot_process_that_leaves_without_a_word_ends_the_wait(bench: Any, left: int) -> None:
    (saver,) = bench.savers(Layout(), specs_of({"w": torch.zeros(3)}))
    saver.begin(1, {"w": torch.zeros(3)}, {})
    saver.child = True
    saver.writer = subprocess.Popen([sys.executable, "-c", f"raise SystemExit({left})"])
    saver.writer.wait()
    with pytest.raises(Refused, match=rf"snapshot\.txt.*ended with {left}") as refused:
        saver.flush()
    assert refused.value.code == left
    saver.child = False
    saver.files.give_up(1, "the disk is full")
    with pytest.raises(Refused, match=r"^the disk is full"):
        saver.flush()
    saver.writer = None


def test_a_start_that_waits_says_so(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    values = {"w": torch.zeros(3)}
    (first,) = bench.savers(Layout(), specs_of(values))
    first.begin(7, values, {})
    (later,) = bench.savers(Layout(), specs_of(values), incarnation=2)
    monkeypatch.setattr("argosy.checkpoint.save.TELL", -1.0)
    writer, looks = bench.writer(), []
    monkeypatch.setattr(later, "_wait", lambda: looks.append(None) or (len(looks) > 2 and writer.turn()))
    later.settle()
    (told,) = rows(bench.run.local / "saved.jsonl")
    assert (told["ok"], told["sentence"]) == (
        False,
        "waiting until step 7, which an earlier start announced, is on the disk",
    )


def test_the_writer_needs_no_torch() -> None:
    rooms = "argosy.checkpoint.snapshot, argosy.checkpoint.store, argosy.checkpoint.slots, argosy.layout.placement"
    code = f"import sys, {rooms}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
