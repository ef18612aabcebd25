"""`argosy runs`, `save`, `stop`: found by name, listed, removed, asked; a running run is left alone."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

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
        '{"step": 1, "bits_per_byte": 2.5}\n{"step": 2, "bits_per_byte": 1.25}\n'
    )
    second = make(root / "b", state="finished", steps=5, created="2026-01-01T00:00:00")
    (root / "no-run").mkdir()
    (root / "latest").symlink_to("a")
    with second.lock():
        rows = runs.table()
    assert [(row.path.name, row.state) for row in rows] == [("a", "interrupted"), ("b", "running")]
    assert rows[0].bits_per_byte == 1.25
    assert [row.state for row in runs.table()] == ["interrupted", "finished"]
    shown = runs.text(rows).splitlines()
    assert "interrupted" in shown[1] and "1.250" in shown[1] and "0/20" in shown[1]


def test_an_unreadable_run_is_listed_as_such(root):
    made = make(root / "a")
    (made.path / "run.json").write_text("{")
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


def test_nothing_starts_in_a_run_that_is_being_removed(root, monkeypatch):
    made, busy = make(root / "a"), []
    monkeypatch.setattr(runs.shutil, "rmtree", lambda path, **more: busy.append(Run(root / "a").busy()))
    runs.remove("a")
    assert busy[-1] is not None and made.exists


def test_who_waits_while_a_run_is_removed_finds_nothing_and_is_told(root, monkeypatch):
    made, waits, said = make(root / "a"), threading.Event(), []
    really = runs.shutil.rmtree

    def start() -> None:
        with pytest.raises(Refused) as refused, made.lock(600, lambda text: waits.set()):
            pass
        said.append(refused.value.text)

    waiting = threading.Thread(target=start)

    def removing(path: Path, **more: object) -> None:
        if path == made.path.resolve():
            waiting.start()
            assert waits.wait(60)
        really(path, **more)

    monkeypatch.setattr(runs.shutil, "rmtree", removing)
    runs.remove("a")
    waiting.join(60)
    assert len(said) == 1 and "just removed" in said[0]
    assert not made.path.exists()


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
