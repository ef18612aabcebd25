"""The run folder: settings there and back, whole files, the lock across processes."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import subprocess
import sys
import threading

import pytest

from argosy.errors import Refused
from argosy.job import leaves
from argosy.job.load import load
from argosy.job.setting import Setting
from argosy.run import folder
from argosy.run.folder import Run, append_line
from argosy.run.lines import rows


@pytest.fixture
def made(tmp_path):
    loaded = load("smoke")
    run = folder.create(tmp_path / "runs/smoke", asked=loaded.job, text=loaded.text, origin={"argosy": "0"}, parents=[])
    rows = [
        Setting(key, leaves.plain(value), leaves.plain(value), "default")
        for key, value in leaves.leaves(loaded.job).items()
    ]
    folder.settle(run, loaded.job, loaded.written, rows, tmp_path / "prepared", loaded.text)
    return run, loaded


def test_a_new_run_is_for_its_owner_alone(made):
    assert made[0].path.stat().st_mode & 0o777 == 0o700


def test_what_was_settled_is_read_back(made, tmp_path):
    run, loaded = made
    assert run.job() == loaded.job
    assert run.asked() == loaded.job
    assert run.written() == loaded.written
    assert run.setting("train.steps").used == 20
    assert run.prepared() == tmp_path / "prepared"
    assert load(str(run.path / "job.toml")).job == loaded.job
    with pytest.raises(KeyError):
        run.setting("optim.nothing")


def test_a_setting_changed_in_the_file_is_in_force(made):
    run, _ = made
    table = json.loads((run.path / "settings.json").read_text())
    next(row for row in table["settings"] if row["key"] == "model.layers")["used"] = 7
    (run.path / "settings.json").write_text(json.dumps(table))
    assert run.job().model.layers == 7
    assert run.asked().model.layers == 2


def test_info_keeps_what_it_had(made):
    run, _ = made
    run.update_info(state="running", step=3)
    assert run.info()["state"] == "running"
    assert run.info()["argosy"] == "0"
    assert not list(run.path.glob(".*")), "a temporary file was left"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"version": "x"}', '{"version": 99}'])
def test_a_run_that_cannot_be_read_is_refused(made, text):
    run, _ = made
    (run.path / "run.json").write_text(text)
    with pytest.raises(Refused) as refused:
        run.info()
    assert "run.json" in refused.value.text


@pytest.mark.parametrize(
    "damage",
    [{"settings": None}, {"settings": [{"a": 1}]}, {"asked": 3, "written": []}],
    ids=["none", "strange", "others"],
)
def test_damaged_settings_are_refused(made, damage):
    run, _ = made
    path = run.path / "settings.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **damage}))
    with pytest.raises(Refused, match=r"settings\.json is damaged"):
        run.settings(), run.asked()
    if "written" in damage:
        with pytest.raises(Refused, match='"written" is no dict'):
            run.written()


def test_no_run_is_refused(tmp_path):
    with pytest.raises(Refused, match="there is no run here"):
        Run(tmp_path).info()
    assert not Run(tmp_path).exists


def test_the_newest_checkpoint_is_the_newest_committed_one(made):
    run, _ = made
    assert run.newest_step() == 0
    for step, name in ((3, "manifest.json"), (12, "manifest.json"), (20, "half.json")):
        place = run.checkpoints / f"step-{step:06d}"
        place.mkdir()
        (place / name).touch()
    assert run.newest_step() == 12


def test_journal_and_metrics_are_tables(made):
    run, _ = made
    run.journal({"what": "begun"})
    run.journal({"what": "ended", "code": 0})
    lines = [json.loads(line) for line in (run.path / "journal.jsonl").read_text().splitlines()]
    assert [line["what"] for line in lines] == ["begun", "ended"]
    assert lines[0]["time"] <= lines[1]["time"]
    assert run.metrics().num_rows == 0
    (run.path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.5}\n{"step": 2, "loss": 2.25}\n{"step": 3, "lo')
    assert run.metrics().column("loss").to_pylist() == [2.5, 2.25]


def test_a_line_that_has_no_room_is_left_out_as_a_whole(tmp_path):
    path = tmp_path / "lines.jsonl"
    append_line(path, {"step": 1})
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 20, limits[1]))
    try:
        with pytest.raises(OSError) as full:
            append_line(path, {"sentence": "long" * 100})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert full.value.errno == errno.EFBIG
    assert path.read_bytes() == before
    append_line(path, {"step": 2})
    assert [row["step"] for row in rows(path)] == [1, 2]


def test_live_files_go_where_they_are_told_to(made, tmp_path, monkeypatch):
    run, _ = made
    assert run.local == run.path / "local"
    monkeypatch.setenv("ARGOSY_LOCAL", str(tmp_path / "fast"))
    assert run.local == tmp_path / "fast" / run.info()["id"]


@pytest.mark.parametrize("name", ["/home/me", "../..", "..", ".", "", "a/b", "a" * 65, 7, None])
def test_an_id_of_a_stranger_leads_nowhere_else(made, tmp_path, monkeypatch, name):
    run, _ = made
    run.update_info(id=name)
    monkeypatch.setenv("ARGOSY_LOCAL", str(tmp_path / "fast"))
    with pytest.raises(Refused, match="no id that names a folder"):
        _ = run.local


def test_a_locked_run_names_its_holder_and_is_free_again(made):
    run, _ = made
    notes = []
    with run.lock():
        assert run.busy()
        with pytest.raises(Refused, match="in use by process") as refused, Run(run.path).lock(0.2, notes.append):
            pass
    assert str(os.getpid()) in refused.value.text
    assert len(notes) == 1
    assert run.busy() is None
    with run.lock(0):
        pass


def test_a_second_start_waits_for_the_first_to_leave(made):
    run, _ = made
    with run.lock():
        waiting = _locker(run, "5")
        assert waiting.stdout.readline() == "waiting\n"
    assert waiting.communicate(timeout=60)[0] == "locked\n"


@pytest.mark.parametrize("again", [False, True])
def test_who_waits_for_a_run_that_is_removed_holds_what_lies_there_then(made, again):
    run, _ = made
    waits, said = threading.Event(), []

    def start():
        try:
            with Run(run.path).lock(600, lambda text: waits.set()) as descriptor:
                said.append(os.path.samestat(os.stat(run.path / "lock"), os.fstat(descriptor)) and run.busy())
        except Exception as error:
            said.append(error)

    waiting = threading.Thread(target=start)
    with run.lock():
        waiting.start()
        assert waits.wait(60)
        shutil.rmtree(run.path)
        if again:  # another start was quick
            run.path.mkdir()
    waiting.join(60)
    assert len(said) == 1
    if again:
        assert said == [os.getpid()], "it held a lock that nobody else can see"
    else:
        assert isinstance(said[0], Refused) and "just removed" in said[0].text
        assert not run.path.exists()


def test_an_orphan_that_inherited_the_lock_keeps_the_folder_busy(made):
    run, _ = made
    with run.lock() as descriptor:
        orphan = subprocess.Popen(
            [sys.executable, "-c", "import sys; print('born', flush=True); sys.stdin.read()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=(descriptor,),
        )
        assert orphan.stdout.readline() == b"born\n"
    assert run.busy()
    with pytest.raises(Refused), run.lock(0.1):
        pass
    orphan.communicate()
    with run.lock(60):
        pass


def _locker(run, patience):
    code = (
        "import sys; from argosy.run.folder import Run\n"
        f"with Run(sys.argv[1]).lock({patience} * 12, lambda text: print('waiting', flush=True)): print('locked')"
    )
    return subprocess.Popen([sys.executable, "-c", code, str(run.path)], stdout=subprocess.PIPE, text=True)
