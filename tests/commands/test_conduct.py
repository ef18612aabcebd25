"""What happens between the job file and the first worker: judged, prepared, settled, kept. No worker, no torch."""

from __future__ import annotations

import io
import shutil
from contextlib import ExitStack
from pathlib import Path

import pytest

from argosy.cluster.here import machine
from argosy.commands import conduct
from argosy.commands.conduct import Start, Wanted
from argosy.errors import Refused
from argosy.job.load import load
from argosy.job.schema import Job
from argosy.observe import progress
from argosy.run import folder
from argosy.run.folder import Run
from argosy.run.ledger import Ledger

CANARY = "canary-0123456789"


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ARGOSY_RUNS", raising=False)
    monkeypatch.delenv("ARGOSY_LOCAL", raising=False)
    monkeypatch.setenv("TORCH_TOKEN", CANARY)
    monkeypatch.setenv("HF_TOKEN", CANARY)
    (tmp_path / "text").mkdir()
    for number in range(30):
        (tmp_path / f"text/{number}.txt").write_text(f"line {number}\n" * 50)
    return tmp_path


def begun(*overrides: str, out: io.StringIO | None = None, **options) -> Run:
    """All that `argosy train` does before it starts workers."""
    words = ["data.source=text", "data.cache=cache", "train.precision=float32", *overrides]
    wanted = Wanted("smoke", words, **options)
    screen = progress.screen("plain", out or io.StringIO())
    with ExitStack() as stack:
        loaded = wanted.loaded()
        asked, verdict = conduct.judged(wanted, loaded, 2)
        start = Start(wanted, loaded, verdict, machine(), 2, screen)
        conduct.hold(stack, start, asked)
        conduct.ready(start)
        run = conduct.keep(start)
        conduct.header(start)
    return run


def save(run: Run, step: int) -> None:
    place = run.checkpoints / f"step-{step:06d}"
    place.mkdir()
    (place / "manifest.json").write_text("{}")


def test_a_new_run_holds_what_everybody_needs(place):
    out = io.StringIO()
    run = begun(out=out)
    assert run.path == Path("runs/smoke")
    job = run.job()
    assert (job.train.steps, job.layout.shape, job.train.precision) == (20, "replicate2", "float32")
    assert isinstance(job.batch.micro, int)
    assert run.ledger().at(1, "batch.tokens") == job.batch.tokens
    assert run.prepared().is_dir()
    info = run.info()
    for key in ("predicted", "probed", "machine", "data", "versions", "command", "environment"):
        assert info[key], key
    assert load(str(run.path / "job.toml")).job == run.asked()
    assert "runs/smoke (new)" in out.getvalue()
    assert (place / "runs/latest").resolve() == run.path.resolve()


def test_no_secret_is_kept(place):
    run = begun()
    for file in run.path.rglob("*"):
        if file.is_file():
            assert CANARY.encode() not in file.read_bytes(), file


def test_the_same_command_goes_on_and_keeps_what_was_measured(place):
    first = begun()
    save(first, 7)
    before = first.setting("train.compile")
    second = begun()
    assert second.path == first.path
    assert second.setting("train.compile") == before
    assert second.info()["id"] == first.info()["id"]


def test_a_change_stands_in_the_ledger_once(place):
    save(begun(), 7)
    for _ in range(2):  # killed right afterwards, and given again
        run = begun("batch.tokens=512", change=True)
    assert run.ledger().at(7, "batch.tokens") == 1024
    assert run.ledger().at(8, "batch.tokens") == 512
    assert len(run.ledger().entries) == 4
    assert run.job().batch.tokens == 512


def test_a_fork_has_its_parents_checkpoint_ledger_and_name(place):
    parent = begun()
    save(parent, 7)
    fork = begun("batch.tokens=512", fork=True)
    assert fork.path == Path("runs/smoke-2")
    assert fork.newest_step() == 7
    assert fork.info()["parents"] == [{"id": parent.info()["id"], "path": "runs/smoke", "step": 7}]
    assert fork.ledger().at(7, "batch.tokens") == 1024
    assert fork.ledger().at(8, "batch.tokens") == 512
    assert Ledger.read(parent.path / "ledger.jsonl").at(8, "batch.tokens") == 1024


def test_a_copy_gets_an_id_of_its_own_and_a_moved_run_keeps_it(place):
    first = begun()
    save(first, 7)
    first.update_info(place=str(first.path.resolve()))
    shutil.copytree(first.path, "twin")
    twin = begun(run=Path("twin"))
    assert twin.info()["id"] != first.info()["id"]
    assert twin.info()["parents"][0]["id"] == first.info()["id"]
    shutil.rmtree("twin")
    shutil.move("runs/smoke", "moved")
    assert begun(run=Path("moved")).info()["id"] == Run("moved").info()["id"]


def test_a_refused_start_leaves_nothing(place):
    with pytest.raises(Refused):
        conduct.lead(Wanted("smoke", ["data.source=nowhere", "data.cache=cache"]))
    assert not Path("runs").exists()


def test_a_folder_that_cannot_be_made(place):
    Path("runs").touch()
    with pytest.raises(Refused, match="cannot be kept there"):
        begun()


def test_a_job_can_be_a_table_or_a_tree(place):
    table = Wanted({"extends": "smoke", "optim": {"lr": 0.5}}, ["train.steps=7"]).loaded()
    assert (table.job.optim.lr, table.job.train.steps) == (0.5, 7)
    tree = Wanted(Job(name="mine")).loaded()
    assert tree.job.name == "mine"


def test_somebody_was_faster(place):
    wanted = Wanted("smoke", ["data.source=text", "data.cache=cache"])
    loaded = wanted.loaded()
    asked, verdict = conduct.judged(wanted, loaded, 2)
    start = Start(wanted, loaded, verdict, machine(), 2, progress.screen("quiet", io.StringIO()))
    folder.create(verdict.path, asked=loaded.job, text=loaded.text, origin={})
    with ExitStack() as stack, pytest.raises(Refused, match="just made a run"):
        conduct.hold(stack, start, asked)
