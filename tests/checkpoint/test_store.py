"""Which checkpoint is used, which are kept: damaged and half-written ones are recognised, with the reason."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from argosy import points
from argosy.checkpoint import store
from argosy.checkpoint.manifest import MANIFEST, Damaged, read
from argosy.checkpoint.store import Checkpoint, listed, newest, opened, problems, prune, search
from argosy.errors import MACHINE, Refused

W = {"w": torch.arange(50.0)}


def steps(bench: Any) -> list[int]:
    return [int(folder.name[5:]) for folder in store.folders(bench.run.checkpoints)]


def data_of(folder: Path) -> Path:
    (file,) = folder.glob("*.safetensors")
    return file


def flip(folder: Path, offset: int) -> None:
    with data_of(folder).open("r+b") as file:
        file.seek(offset, os.SEEK_END if offset < 0 else os.SEEK_SET)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no manifest": (lambda folder: (folder / MANIFEST).unlink(), "was not finished"),
    "a bit of the data": (lambda folder: flip(folder, -5), "tensor w is damaged at bytes"),
    "a bit of the header": (lambda folder: flip(folder, 12), "the header is not the one"),
    "a shorter file": (lambda folder: os.truncate(data_of(folder), 100), "has 100 bytes where"),
    "no data": (lambda folder: data_of(folder).unlink(), "is missing"),
    "a folder for a file": (lambda folder: (data_of(folder).unlink(), data_of_dir(folder).mkdir()), "bytes where"),
    "no sidecar": (lambda folder: next(folder.glob("node-*.json")).unlink(), "is missing"),
    "another sidecar": (
        lambda folder: shutil.copy(
            next((folder.parent / "step-000001").glob("node-*.json")), next(folder.glob("node-*.json"))
        ),
        "not the one that was committed",
    ),
    "another step": (
        lambda folder: shutil.copytree(folder.parent / "step-000001", folder, dirs_exist_ok=True),
        "belongs to step 1",
    ),
}


def data_of_dir(folder: Path) -> Path:
    return folder / "node-0000-inc-0002.safetensors"


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_one_is_passed_over_and_the_one_before_used(bench: Any, kind: str) -> None:
    bench.save(1, {"w": torch.arange(51.0)})
    folder = bench.save(2, W, incarnation=2)
    damage, sentence = DAMAGE[kind]
    damage(folder)
    found = newest(bench.run)
    assert found is not None and found.step == 1
    assert len(found.skipped) == 1 and sentence in found.skipped[0].lower()
    assert str(folder) in found.skipped[0]


def test_none_good_is_none_with_reasons(bench: Any) -> None:
    assert newest(bench.run) is None
    flip(bench.save(1, W), -1)
    found, reasons = search(bench.run.checkpoints)
    assert found is None and len(reasons) == 1


def test_a_damaged_one_is_set_aside_and_not_kept_in_the_place_of_a_good_one(bench: Any) -> None:
    bench.save(1, W)
    flip(bench.save(3, W), -1)
    good, _ = search(bench.run.checkpoints, aside=True)
    assert good is not None and good.step == bench.run.newest_step() == 1
    good.close()
    verified = read(bench.save(4, W))
    prune(bench.run.checkpoints, 2, verified)
    assert [found.step for found in listed(bench.run.checkpoints)[0]] == [4, 1]


@pytest.mark.parametrize("kind", DAMAGE)
def test_whatever_was_committed_and_is_damaged_is_set_aside(bench: Any, kind: str) -> None:
    bench.save(1, {"w": torch.arange(51.0)})
    folder = bench.save(2, W, incarnation=2)
    DAMAGE[kind][0](folder)
    good, _ = search(bench.run.checkpoints, aside=True)
    assert good is not None and good.step == bench.run.newest_step() == 1
    good.close()
    assert (folder / f"{MANIFEST}.damaged").exists() is (kind != "no manifest"), "that one may just be being written"


AT_A_GLANCE = {"a shorter file", "no data", "a folder for a file", "another step"}


@pytest.mark.parametrize("kind", DAMAGE)
def test_what_shows_at_a_glance_is_sorted_out_without_reading_the_data(bench: Any, kind: str) -> None:
    bench.save(1, {"w": torch.arange(51.0)})
    folder = bench.save(2, W, incarnation=2)
    DAMAGE[kind][0](folder)
    reasons = store.sort_out(bench.run.checkpoints)
    assert len(reasons) == (kind in AT_A_GLANCE) and all(str(folder) in reason for reason in reasons)
    assert (folder / f"{MANIFEST}.damaged").exists() is (kind in AT_A_GLANCE)
    os.truncate(data_of(bench.run.checkpoints / "step-000001"), 5)
    (folder / MANIFEST).unlink(missing_ok=True)
    assert store.sort_out(bench.run.checkpoints) == [], "where nothing else looks whole, it stays as it is"
    assert bench.run.newest_step() == 1


@pytest.mark.parametrize("kind", [kind for kind in DAMAGE if kind != "no manifest"])
def test_what_was_found_is_told_also_after_it_was_set_aside(bench: Any, kind: str) -> None:
    bench.save(1, {"w": torch.arange(51.0)})
    folder = bench.save(2, W, incarnation=2)
    damage, sentence = DAMAGE[kind]
    damage(folder)
    store.sort_out(bench.run.checkpoints)
    search(bench.run.checkpoints, aside=True)
    moved = bench.run.path.with_name("moved")
    bench.run.path.rename(moved)
    found, reasons = search(moved / "checkpoints")
    assert found is not None and found.step == 1
    assert len(reasons) == 1 and sentence in reasons[0].lower() and reasons[0].endswith("(set aside)")
    assert str(moved / "checkpoints" / folder.name) in reasons[0] and "not finished" not in reasons[0]
    (moved / "checkpoints" / folder.name / "damaged.txt").unlink()  # set aside by an earlier version
    assert "the checkpoint was found damaged (set aside)" in search(moved / "checkpoints")[1][0]


def test_nothing_is_set_aside_where_nothing_is_good_or_the_disk_does_not_answer(bench: Any) -> None:
    folder = bench.save(1, W)
    flip(folder, -1)
    assert search(bench.run.checkpoints, aside=True)[0] is None
    assert (folder / MANIFEST).exists()
    flip(folder, -1)
    later = bench.save(2, W)
    sidecar = data_of(later).with_suffix(".json")
    sidecar.unlink()
    sidecar.mkdir()  # reading it is an error of the system, not of its bytes
    found, reasons = search(bench.run.checkpoints, aside=True)
    assert found is not None and found.step == 1 and "cannot be read" in reasons[0]
    assert (later / MANIFEST).exists()
    data = data_of(later)
    data.unlink()
    data.symlink_to(data)  # so is this, and it shows at a glance
    assert "cannot be read" in search(bench.run.checkpoints, aside=True)[1][0]
    assert store.sort_out(bench.run.checkpoints) == [] and (later / MANIFEST).exists()


def test_the_newest_step_is_that_of_a_later_incarnation(bench: Any) -> None:
    bench.save(9, W, incarnation=1)
    bench.save(5, W, incarnation=2)
    assert bench.run.newest_step() == 5


def test_lost_checkpoints_are_refused_and_unfinished_ones_are_not(bench: Any) -> None:
    store.refuse_lost(bench.run, [])
    folder = bench.save(1, W)
    os.replace(folder / MANIFEST, folder / f"{MANIFEST}.damaged")  # set aside by an earlier start
    with pytest.raises(Refused, match="the only checkpoint of this run is damaged") as caught:
        store.refuse_lost(bench.run, ["reason 1", "reason 2"])
    assert caught.value.code == MACHINE
    assert caught.value.found == "reason 1; reason 2"
    (folder / f"{MANIFEST}.damaged").unlink()
    (folder / f".{MANIFEST}.new").write_text("{")  # killed before its first commit
    store.refuse_lost(bench.run, [])


def test_a_good_one_has_no_problems(bench: Any) -> None:
    found = opened(bench.save(1, W))
    assert list(problems(found)) == [] and found.skipped == ()


def test_a_later_incarnation_goes_before_a_higher_step(bench: Any) -> None:
    """What an earlier life wrote beyond the step that a later one began from was given up."""
    bench.save(9, W, incarnation=1)
    bench.save(5, W, incarnation=2)
    found = newest(bench.run)
    assert found is not None and found.step == 5


def test_keep_counts_and_removes_the_oldest(bench: Any) -> None:
    for step in range(1, 6):
        bench.save(step, W, incarnation=step, keep=2)
    assert steps(bench) == [4, 5]
    bench.save(6, W, incarnation=6, keep=1)
    assert steps(bench) == [6]


def test_what_is_being_read_is_not_removed(bench: Any) -> None:
    reader: Checkpoint = opened(bench.save(1, W))
    bench.save(2, W, incarnation=2, keep=1)
    assert steps(bench) == [1, 2]
    assert list(problems(reader)) == []
    reader.close()
    bench.save(3, W, incarnation=3, keep=1)
    assert steps(bench) == [3]


def test_unfinished_ones_go_when_a_later_one_is_whole(bench: Any) -> None:
    for step in (1, 9):
        (bench.run.checkpoints / f"step-{step:06d}").mkdir()
        (bench.run.checkpoints / f"step-{step:06d}" / "node-0000-inc-0001.safetensors").write_bytes(b"half")
    bench.save(5, W)
    assert steps(bench) == [5, 9], "a later one may be another node's, being written now"


def test_the_same_step_of_a_later_incarnation_replaces_it_at_once(bench: Any) -> None:
    bench.save(3, W, incarnation=1)
    folder = bench.save(3, {"w": torch.zeros(50)}, incarnation=2)
    found = opened(folder)
    assert found.manifest.incarnation == 2 and list(problems(found)) == []
    assert sorted(path.name for path in folder.iterdir()) == [
        "manifest.json",
        "node-0000-inc-0002.json",
        "node-0000-inc-0002.safetensors",
    ]


@pytest.mark.parametrize("name", [name for name in points.POINTS if name.startswith("checkpoint.")])
def test_a_writer_that_dies_at_any_point_leaves_a_good_checkpoint(
    bench: Any, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Dies = raises: nothing after the point happens. What is there then is a whole checkpoint, the old or the new one."""
    bench.save(1, W)
    bench.save(2, W, incarnation=2)
    monkeypatch.setenv("ARGOSY_POINT", f"{name}:1:raise")
    points._passed.clear()
    with pytest.raises(points.Pointed):
        bench.save(3, {"w": torch.ones(50)}, incarnation=3, keep=2)
    monkeypatch.delenv("ARGOSY_POINT")
    found = newest(bench.run)
    assert found is not None and found.step == (3 if name in AFTER_COMMIT else 2)
    written = data_of(found.folder).stat().st_mtime_ns
    assert bench.writer().turn() is (name not in AFTER_RELEASE), "what was not finished is still in the slots"
    found = newest(bench.run)
    assert found is not None and found.step == 3 and list(problems(found)) == []
    assert name not in AFTER_COMMIT or data_of(found.folder).stat().st_mtime_ns == written, "never written over"


AFTER_COMMIT = {"checkpoint.rename.after", "checkpoint.prune.before", "checkpoint.prune.after"}
AFTER_RELEASE = {"checkpoint.prune.before", "checkpoint.prune.after"}


def test_prune_never_takes_the_verified_one(bench: Any) -> None:
    bench.save(9, W, incarnation=2)
    folder = bench.save(5, W, incarnation=1, keep=1)
    assert steps(bench) == [5, 9]
    prune(bench.run.checkpoints, 1, read(folder))
    assert 5 in steps(bench)


def test_prune_keeps_the_best_that_the_newest_tells_of(bench: Any) -> None:
    for step in (1, 2, 3, 4):
        bench.save(step, W, keep=9)
    kept = {"best": {"step": 2, "kept": True}}
    for told, left in ((kept, [2, 4]), ({"best": {"step": 2, "kept": False}}, [4]), ({}, [4])):
        verified = read(bench.run.checkpoints / "step-000004").model_copy(update={"facts": told})
        prune(bench.run.checkpoints, 1, verified)
        assert steps(bench) == left
    for strange in (None, 7, {"step": "2", "kept": True}, {"kept": True}):
        assert store.best_step(verified.model_copy(update={"facts": {"best": strange}})) is None


def test_listed_is_newest_first_and_names_the_bad(bench: Any) -> None:
    bench.save(1, W)
    bench.save(2, W, incarnation=2)
    (bench.run.checkpoints / "step-000007").mkdir()
    (bench.run.checkpoints / "notes").mkdir()
    good, bad = listed(bench.run.checkpoints)
    assert [found.step for found in good] == [2, 1]
    assert len(bad) == 1 and "step-000007" in bad[0]


def test_a_missing_step_is_said(bench: Any) -> None:
    with pytest.raises(Damaged, match="step-000004"):
        store.at(bench.run, 4)
