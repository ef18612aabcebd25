"""`argosy runs`, `save`, `stop`: found by name, listed, removed, asked; a running run is left alone."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from argosy.__main__ import main
from argosy.checkpoint.slots import Slots
from argosy.commands import runs, save, stop
from argosy.errors import Refused
from argosy.job.load import load
from argosy.run import folder, requests
from argosy.run.folder import Run


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("ARGOSY_RUNS", str(tmp_path / "runs"))
    return tmp_path / "runs"


def make(path: Path, **facts) -> Run:
    loaded = load("smoke")
    return folder.create(path, asked=loaded.job, text=loaded.text, origin={}, **facts)


def test_no_runs_yet(root):
    assert runs.table() == []
    assert "make one" in runs.text([])
    with pytest.raises(Refused, match="there is no run yet"):
        runs.find(None)


def test_a_run_is_found_by_name_path_and_as_the_newest(root):
    made = make(root / "a")
    make(root / "b")
    (root / "latest").symlink_to("b")
    assert runs.find("a").path == root / "a"
    assert runs.find(str(made.path)).path == made.path
    assert runs.find(None).path == (root / "b").resolve()
    with pytest.raises(Refused, match="c is no run"):
        runs.find("c")


def test_the_list_says_how_far_each_is(root):
    first = make(root / "a", state="running", steps=20, created="2026-01-02T00:00:00")
    (first.path / "evaluations.jsonl").write_text(
        '{"step": 1, "bits_per_byte": 2.5}\n{"step": 2, "bits_per_byte": 1.25}\n{"step": 3, "bits_per_byte": 1.5}\n'
    )
    second = make(root / "b", state="finished", steps=5, created="2026-01-01T00:00:00")
    (root / "no-run").mkdir()
    (root / "latest").symlink_to("a")
    with second.lock():
        rows = runs.table()
    assert [(row.path.name, row.state) for row in rows] == [("a", "interrupted"), ("b", "running")]
    assert rows[0].bits_per_byte == 1.5, "of the model as it is, not of the best"
    assert [row.state for row in runs.table()] == ["interrupted", "finished"]
    shown = runs.text(rows).splitlines()
    assert "interrupted" in shown[1] and "1.500" in shown[1] and "0/20" in shown[1]


@pytest.mark.parametrize("damaged", ["{", '{"version": 1, "steps": "many"}', '{"version": 1, "steps": [3]}'])
def test_an_unreadable_run_is_listed_as_such(root, damaged):
    made = make(root / "a")
    (made.path / "run.json").write_text(damaged)
    assert [row.state for row in runs.table()] == ["unreadable"]


def test_removing(root):
    made = make(root / "a")
    (root / "latest").symlink_to("a")
    with made.lock(), pytest.raises(Refused, match="running"):
        runs.remove("a")
    assert made.exists
    runs.remove("a")
    assert not made.path.exists()
    assert not (root / "latest").is_symlink()
    (root / "thesis").mkdir()
    with pytest.raises(Refused):
        runs.remove("thesis")
    assert (root / "thesis").exists()


@pytest.mark.parametrize("command, wish", [(save.save, "save"), (stop.stop, "stop")])
def test_asking_waits_for_the_answer(root, command, wish):
    run = make(root / "a")
    locked, done = threading.Event(), threading.Event()

    def job() -> None:
        with run.lock():
            locked.set()
            while wish not in requests.asked(run):
                done.wait(0.005)
            requests.answered(run, wish, 41)
            done.wait(60)

    thread = threading.Thread(target=job, daemon=True)
    thread.start()
    assert locked.wait(60)
    assert command("a") == 41
    done.set()
    thread.join(60)


def test_nothing_is_removed_where_one_of_the_names_is_none(root):
    made = make(root / "a")
    assert main(["runs", "rm", "a", "nothere"]) == 2
    assert made.exists


@pytest.mark.parametrize("named", ["a/", "./a", "b/../a"])
def test_what_holds_a_slash_is_a_path_and_never_the_run_of_that_name(root, tmp_path, monkeypatch, named):
    made = make(root / "a")
    (tmp_path / "a").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Refused, match="is no run"):
        runs.remove(named)
    assert made.exists and runs.find("a").path == made.path


def test_a_link_to_a_run_is_not_removed_in_its_place(root):
    made = make(root / "a")
    for link in (root / "b", root / "latest"):
        link.symlink_to("a")
        with pytest.raises(Refused, match=f"a link to a run. Found: {made.path.resolve()}. Name the run"):
            runs.remove(link.name)
    assert made.exists


def test_a_run_in_a_folder_of_something_else_is_not_removed_with_it(root):
    made = make(root / "a")
    for name in ("thesis.tex", ".git"):
        (made.path / name).mkdir()
        with pytest.raises(Refused, match=f"what no run makes.*{name}"):
            runs.remove("a")
        (made.path / name).rmdir()
    assert made.exists
    (made.path / ".run.json.77").touch()  # half written by a killed start
    runs.remove("a")
    assert not made.path.exists()


def test_a_run_that_begins_while_another_of_its_name_is_removed_is_not_touched(root, monkeypatch):
    """Removing takes as long as the disk takes for all checkpoints: what begins in that time finds nothing of the old run."""
    old, found = make(root / "a"), []
    (old.checkpoints / "step-000001").mkdir()
    really = runs.shutil.rmtree

    def removing(path: Path, **more: object) -> None:
        if not found and (path / "run.json").is_file():  # not the slots
            found.append((root / "a").exists())
            really(path / "log")  # a part is gone
            (path / "lock").unlink()
            with make(root / "a").lock(0):
                pass
        really(path, **more)

    monkeypatch.setattr(runs.shutil, "rmtree", removing)
    assert runs.remove("a") == (root / "a").resolve()
    assert found == [False]
    assert old.exists and old.log.is_dir() and not list(old.checkpoints.iterdir())
    assert [entry.name for entry in root.iterdir()] == ["a"]


def test_what_a_killed_removal_has_left_goes_with_the_next_and_is_no_run(root):
    make(root / "a")
    left = make(root / ".removed-20260102-030405-0123abcd").path
    mine = make(root / ".removed-notes").path
    assert sorted(row.path.name for row in runs.table()) == [".removed-notes", "a"]
    runs.remove("a")
    assert not left.exists() and mine.exists()


def test_a_run_on_a_disk_of_its_own_node_is_removed_there_too(root, tmp_path, monkeypatch):
    monkeypatch.setenv("ARGOSY_LOCAL", str(tmp_path / "scratch"))
    made = make(root / "a")
    local = made.local
    assert local.is_dir() and local.is_relative_to(tmp_path / "scratch")
    runs.remove("a")
    assert not local.exists() and not made.path.exists()


def test_who_waits_while_a_run_is_removed_finds_nothing_and_is_told(root, monkeypatch):
    made, waits, said = make(root / "a"), threading.Event(), []
    really = Path.rename

    def start() -> None:
        with pytest.raises(Refused) as refused, made.lock(600, lambda text: waits.set()):
            pass
        said.append(refused.value.text)

    waiting = threading.Thread(target=start)

    def renaming(path: Path, target: Path) -> Path:
        if path.name == "a":  # the lock is held
            waiting.start()
            assert waits.wait(60)
        return really(path, target)

    monkeypatch.setattr(Path, "rename", renaming)
    runs.remove("a")
    waiting.join(60)
    assert len(said) == 1 and "just removed" in said[0]
    assert not made.path.exists()


def test_a_run_that_cannot_be_removed_loses_nothing(root, monkeypatch):
    """Its newest checkpoint may still be in memory only."""
    made = make(root / "a")
    slots = Slots(made.path, made.local)
    (slots.folder / "rank-0000-inc-0001-0.slot").write_bytes(b"newest")
    (root / ".removed-taken").mkdir()
    (root / ".removed-taken" / "file").touch()
    monkeypatch.setattr(folder, "new_id", lambda: "taken")  # a folder that is not empty lies where it would be moved to
    try:
        with pytest.raises(Refused, match=r"cannot be removed\..*Nothing is lost\."):
            runs.remove("a")
        assert made.exists and (slots.folder / "rank-0000-inc-0001-0.slot").read_bytes() == b"newest"
        monkeypatch.undo()
        monkeypatch.setenv("ARGOSY_RUNS", str(root))
        runs.remove("a")
        assert not made.path.exists() and not slots.folder.exists()
    finally:
        slots.clear()


def test_what_of_a_run_could_not_be_removed_is_named(root, monkeypatch):
    make(root / "a")
    (root / "latest").symlink_to("a")
    really = runs.shutil.rmtree

    def busy(path: Path, *rest: object, **more: object) -> None:
        if (Path(path) / "run.json").is_file() and not more:
            raise OSError(39, "Directory not empty", "log")  # as of an open file on NFS
        really(path, *rest, **more)

    monkeypatch.setattr(runs.shutil, "rmtree", busy)
    with pytest.raises(
        Refused, match=r"\.removed-.*not all of this run.*not empty \(log\)\. Remove that folder by hand"
    ) as refused:
        runs.remove("a")
    assert Path(refused.value.where).is_dir() and refused.value.code == 2
    assert not (root / "a").exists() and not (root / "latest").is_symlink()


def test_asking_who_is_not_there(root):
    make(root / "a")
    with pytest.raises(Refused, match="not running"):
        save.save("a")
    assert requests.asked(Run(root / "a")) == set()


def test_asking_who_leaves_without_an_answer(root):
    run = make(root / "a")
    locked = threading.Event()

    def job() -> None:
        with run.lock():
            locked.set()
            while "save" not in requests.asked(run):
                locked.wait(0.005)

    thread = threading.Thread(target=job, daemon=True)
    thread.start()
    assert locked.wait(60)
    with pytest.raises(Refused, match="left before it answered"):
        save.save("a")
    thread.join(60)
    assert requests.asked(run) == set()
