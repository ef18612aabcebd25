"""The run rule: each situation, what is done, and the sentence about it. Real folders, no processes but the lock's."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from argosy.errors import Refused
from argosy.job import leaves
from argosy.job.load import load
from argosy.job.setting import Setting
from argosy.run import folder, rule
from argosy.run.folder import Run
from argosy.run.rule import Asked

JOB = "smoke"


def make(path: Path, *overrides: str, state: str = "stopped", step: int = 10, workers: int = 2) -> Run:
    loaded = load(JOB, overrides)
    run = folder.create(path, asked=loaded.job, text=loaded.text, origin={}, state=state, workers=workers, steps=20)
    rows = [Setting(key, None, leaves.plain(value), "default") for key, value in leaves.leaves(loaded.job).items()]
    folder.settle(run, loaded.job, loaded.written, rows, path, loaded.text)
    if step:
        place = run.checkpoints / f"step-{step:06d}"
        place.mkdir()
        (place / "manifest.json").touch()
    return run


def judge(path: Path, *overrides: str, **options) -> rule.Verdict:
    asked = Asked(load(JOB, overrides).job, path, **{"workers": 2, **options})
    return rule.judge(asked, rule.look(path), rule.free_name(path))


@pytest.fixture
def place(tmp_path):
    return tmp_path / "smoke"


def test_new(place):
    verdict = judge(place)
    assert (verdict.action, verdict.path, verdict.because) == ("create", place, "new")
    assert not place.exists()


def test_empty_folder(place):
    place.mkdir()
    assert judge(place).action == "create"
    (place / "lock").touch()  # another start was about to make it
    assert "empty folder" in judge(place).because


def test_foreign_folder(place):
    place.mkdir()
    (place / "thesis.tex").touch()
    verdict = judge(place)
    assert verdict.action == "refuse"
    assert "thesis.tex" in verdict.because and "--run" in verdict.because


def test_a_file_in_the_way(place):
    place.touch()
    assert "is a file" in judge(place).because


def test_unreadable_run(place):
    make(place)
    (place / "settings.json").write_text("{")
    verdict = judge(place)
    assert verdict.action == "refuse" and "settings.json" in verdict.because


@pytest.mark.parametrize(
    "file, text",
    [
        ("run.json", '{"version": 1}'),
        ("run.json", '{"version": 1, "id": "x"}'),
        ("run.json", '{"version": 1, "id": "x", "state": "stopped", "steps": "many"}'),
        ("run.json", '{"version": 1, "id": "x", "state": "stopped", "workers": [2]}'),
        ("settings.json", '{"version": 1}'),
    ],
)
def test_a_run_whose_files_lack_what_belongs_there(place, file, text):
    run = make(place)
    (place / file).write_text(text)
    (run.checkpoints / "step-last").mkdir()
    (run.checkpoints / "step-last/manifest.json").touch()
    verdict = judge(place)
    assert verdict.action == "refuse" and "cannot be read" in verdict.because
    assert run.newest_step() == 10


def test_a_run_that_cannot_be_read_is_named_once(place):
    make(place)
    (place / "run.json").write_text("{")
    told = judge(place).refused.text
    assert told.startswith(f"{place}: the run here cannot be read: run.json cannot be read.")
    assert told.count(str(place)) == 1


def test_a_twin_without_an_id_is_no_twin(place):
    make(place)
    there = place.with_name("twin")
    shutil.copytree(place, there)
    (place / "run.json").write_text('{"version": 1}')
    assert not judge(there, explicit=True).renew
    assert rule.newest_of(place) == place


def test_unfinished_run_of_the_same_job_goes_on(place):
    make(place)
    verdict = judge(place)
    assert (verdict.action, verdict.step, verdict.notes) == ("continue", 10, ())
    assert verdict.because == "goes on after step 10 of 20"


def test_interrupted_before_its_first_checkpoint(place):
    make(place, state="running", step=0)
    verdict = judge(place)
    assert verdict.action == "continue" and "no checkpoint yet" in verdict.because


def test_killed_before_it_was_settled(place):
    make(place, step=0)
    (place / "settings.json").unlink()
    assert judge(place, "model.layers=3").action == "continue"


def test_failed_run_says_so(place):
    make(place, state="failed")
    assert judge(place).because.endswith("it had failed")


def test_finished_run_makes_a_new_one(place):
    make(place, state="finished", step=20)
    verdict = judge(place)
    assert (verdict.action, verdict.path.name) == ("create", "smoke-2")
    assert "finished" in verdict.because
    make(place.with_name("smoke-2"), state="finished", step=20)
    assert judge(place).path.name == "smoke-3"


def test_finished_run_named_explicitly_is_done(place):
    make(place, state="finished", step=20)
    verdict = judge(place, explicit=True)
    assert verdict.action == "finished" and "nothing to do" in verdict.because


def test_finished_run_named_explicitly_and_made_longer(place):
    make(place, state="finished", step=20)
    verdict = judge(place, "train.steps=40", explicit=True)
    assert verdict.action == "continue" and "length" in verdict.because


def test_finished_run_of_another_job_named_explicitly(place):
    make(place, state="finished", step=20)
    assert judge(place, "model.layers=3", explicit=True).action == "refuse"


@pytest.mark.parametrize(
    "key, value",
    [
        ("model.layers", "3"),
        ("data.held_out", "0.5"),
        ("batch.tokens", "2048"),
        ("optim.lr", "0.1"),
        ("train.seed", "2"),
        ("train.precision", "float32"),
        ("train.compile", "true"),
        ("train.deterministic", "true"),
        ("train.master", "float64"),
        ("train.reduce", "float64"),
    ],
)
def test_changed_key_is_refused_with_three_ways_on(place, key, value):
    make(place)
    verdict = judge(place, f"{key}={value}")
    assert verdict.action == "refuse"
    for words in (key, "--run", "--fork (new run from its step 10)", "take back"):
        assert words in verdict.because
    assert ("--change" in verdict.because) == (
        key.split(".")[0] not in ("model", "data") and key not in ("train.seed", "train.master")
    )
    assert isinstance(verdict.refused, Refused)


@pytest.mark.parametrize(
    "words",
    [
        ("layout.shape=dp2", "layout.zero=3"),
        ("memory.loss_chunk=64",),
        ("checkpoint.every=5",),
        ("faults.restarts=9",),
        ("observe.log_every=1 s",),
        ("evaluate.tokens=512",),
        ("data.cache=/elsewhere",),
        ("train.collect_every=7",),
    ],
)
def test_what_never_blocks(place, words):
    make(place)
    assert judge(place, *words).action == "continue"


def test_what_is_compared_is_what_the_schema_says():
    free = {key for key, field in leaves.fields().items() if (field.json_schema_extra or {}).get("change") == "free"}
    assert {"name", "train.steps", "layout.shape", "data.cache"} <= free
    assert {key for key in leaves.fields() if not rule._compared(key)} == free
    assert {key.split(".")[0] for key in free - {"batch.micro"}} & {"model", "optim", "batch"} == set()


def test_a_default_written_out_is_no_change(place):
    make(place)
    assert judge(place, "optim.beta1=0.9").action == "continue"


@pytest.mark.parametrize("words", ["train.steps=40", "train.tokens=1M", "train.time=3 min"])
def test_changed_length_goes_on(place, words):
    make(place)
    verdict = judge(place, words)
    assert verdict.action == "continue"
    assert "another length" in verdict.notes[0]


def test_changed_key_with_change_goes_into_the_ledger(place):
    make(place)
    verdict = judge(place, "batch.tokens=2048", "optim.lr=0.5", change=True)
    assert verdict.action == "continue"
    assert verdict.changes == (("batch.tokens", 1024, 2048), ("optim.lr", None, 0.5))
    assert "from step 11 on" in verdict.notes[0]


def test_change_refuses_what_cannot_change_on_the_way(place):
    make(place)
    assert "cannot change model.layers" in judge(place, "model.layers=3", change=True).because


def test_change_without_a_change(place):
    make(place)
    assert "nothing" in judge(place, change=True).notes[0]


def test_other_workers(place):
    make(place)
    verdict = judge(place, workers=4)
    assert verdict.action == "continue" and "with 4 workers, before with 2" in verdict.notes[0]


def test_fork(place):
    make(place)
    verdict = judge(place, "optim.lr=0.1", fork=True)
    assert (verdict.action, verdict.path.name, verdict.source, verdict.step) == ("fork", "smoke-2", place, 10)
    assert verdict.changes == (("optim.lr", None, 0.1),)
    for change in ("model.width=128", "train.master=float64"):
        assert judge(place, change, fork=True).action == "refuse"
    for change in ("train.seed=2", "batch.packing=best-fit", "batch.ramp={ start = 128, by = 128, tokens = 512 }"):
        verdict = judge(place, change, fork=True)  # the ledger, which says what is read, would not follow
        assert verdict.action == "refuse" and "reads on from where its parent stands" in verdict.because


def test_what_the_weights_follow_is_not_changed_on_the_way(place):
    learned = "model.positions=learned"
    make(place)
    make(place.with_name("learned"), learned)
    refused = [(place, ["train.precision=float64"]), (place.with_name("learned"), [learned, "batch.sequence=16"])]
    for folder_of, words in refused:
        for way in ({"fork": True}, {"change": True}):
            verdict = judge(folder_of, *words, **way)
            assert verdict.action == "refuse" and words[-1].split("=")[0] in verdict.because
        assert "--change" not in judge(folder_of, *words).because
    for words in ("train.precision=float32", "batch.sequence=16"):
        assert judge(place, words, change=True).action == "continue"


def test_fork_without_a_checkpoint_or_a_run(place):
    assert "needs a run" in judge(place, fork=True).because
    make(place, step=0)
    assert "needs a checkpoint" in judge(place, fork=True).because


def test_fork_and_change_together(place):
    make(place)
    assert judge(place, fork=True, change=True).action == "refuse"


def test_moved_run_goes_on(place):
    make(place)
    there = place.with_name("elsewhere")
    shutil.move(place, there)
    verdict = judge(there, explicit=True)
    assert verdict.action == "continue" and not verdict.renew
    assert verdict.notes == (f"moved here from {place}",)


def test_copied_run_goes_on_as_a_run_of_its_own(place):
    make(place)
    there = place.with_name("twin")
    shutil.copytree(place, there)
    verdict = judge(there, explicit=True)
    assert verdict.action == "continue" and verdict.renew
    assert f"a copy of {place}" in verdict.notes[0]
    assert not judge(place).renew


def test_locked_run_is_refused_with_the_pid(place):
    run = make(place)
    with run.lock(), pytest.raises(Refused, match="in use by process"), Run(place).lock(0):
        pass


def test_the_newest_of_a_name(place):
    assert rule.newest_of(place) == place
    make(place, state="finished")
    (place.with_name("smoke-2")).mkdir()  # no run
    second = make(place.with_name("smoke-3"))
    assert rule.newest_of(place) == second.path


def test_a_run_that_was_removed_hides_none_of_the_later_ones(place):
    make(place, state="finished")
    later = make(place.with_name("smoke-10"))
    make(place.with_name("smoke-9"), state="finished")
    other = make(place.with_name("smoke-2026"))
    other.update_info(name="smoke-2026")  # its name, not a number
    assert rule.newest_of(place) == later.path
    assert rule.free_name(place) == place.with_name("smoke-11")
