"""Trunk and branch: a run that leaves another one at a step, with all that it had there, and decays on its own."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from argosy.cluster.here import Trial
from argosy.commands import fork
from argosy.commands.train import train
from argosy.errors import Refused
from argosy.run.folder import Run
from argosy.run.ledger import Entry, append

STEPS, TOKENS = 8, 128  # of the trunk; of a step
JOB = {
    "name": "trunk",
    "model": {"preset": "tiny", "layers": 1, "width": 16, "block": {"heads": 1}},
    "data": {"source": "text", "cache": "cache", "tokenizer": "bytes"},
    "batch": {"sequence": 32, "tokens": TOKENS, "micro": 2},
    "train": {"steps": STEPS, "precision": "float32", "compile": False},
    "optim": {"lr": 0.01, "warmup": 0, "decay": 0.25},
    "checkpoint": {"every": 2, "keep": 9},
    "observe": {"sample_every": "never"},
    "evaluate": {"every": "never"},
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with texts, in which the trunk is trained once."""
    place = tmp_path_factory.mktemp("fork")
    (place / "text").mkdir()
    for number in range(30):
        (place / f"text/{number}.txt").write_text(f"line {number} of a text that nobody has to like\n" * 20)
    return place


@pytest.fixture(autouse=True)
def trunk(home: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """The run that branches leave: eight steps, the last two of them its decay."""
    monkeypatch.chdir(home)
    monkeypatch.setenv("ARGOSY_RUNS", str(home / "runs"))
    monkeypatch.setattr(Trial, "begin", lambda self: None)
    monkeypatch.setattr(Trial, "ask", lambda self, request: {"gemm": {"float32": 50.0, "bfloat16": 20.0}})
    run = Run(home / "runs" / "trunk")
    if not run.exists:
        train(JOB, workers=0, quiet=True)
    return run


def rows(run: Run) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]


def branch(*overrides: str, of: str = "trunk@4", **options: Any) -> Run:
    return train(JOB, *overrides, workers=0, quiet=True, fork=of, **options)


def test_a_branch_with_nothing_changed_is_its_parent_again(trunk: Run, tmp_path: Path) -> None:
    """Weights, both moments, the place in the data and the rate: the losses are the same, bit for bit."""
    files = {path: path.read_bytes() for path in trunk.path.rglob("*") if path.is_file()}
    made = branch(run=tmp_path / "branch")
    assert made.path == tmp_path / "branch"
    keys = ("step", "tokens", "loss", "lr", "gradient_norm")
    found, wanted = ([tuple(row[key] for key in keys) for row in rows(run)] for run in (made, trunk))
    assert found == wanted[4:]
    assert {path: path.read_bytes() for path in trunk.path.rglob("*") if path.is_file()} == files


def test_the_record_tells_the_parent(trunk: Run, tmp_path: Path) -> None:
    made = branch("train.steps=5", run=tmp_path / "branch")
    assert made.info()["parents"] == [{"id": trunk.info()["id"], "path": str(trunk.path), "step": 4}]
    entry = made.ledger().entries[-1]
    assert (entry.from_step, entry.key, entry.reason) == (5, "optim.branch", "--fork")
    assert entry.new == {"run": str(trunk.path), "step": 4, "rate": 1.0}
    assert made.ledger().entries[:-1] == trunk.ledger().entries
    assert f"new, from step 4 of {trunk.path}" in (made.path / "journal.jsonl").read_text()


def test_a_branch_decays_on_its_own(tmp_path: Path) -> None:
    """Its length would have it decay from step 2 on: it begins at the peak where it leaves, and ends at nothing."""
    made = branch("train.steps=8", "optim.decay=0.9", run=tmp_path / "branch")
    assert [row["lr"] / 0.01 for row in rows(made)] == pytest.approx([0.875, 0.625, 0.375, 0.125])
    files = {path: path.stat().st_mtime_ns for path in made.path.rglob("*") if path.is_file()}
    for of in (False, "trunk@4"):  # and its folder knows that it is done
        train(JOB, "train.steps=8", "optim.decay=0.9", workers=0, quiet=True, run=made.path, fork=of)
        assert {path: path.stat().st_mtime_ns for path in made.path.rglob("*") if path.is_file()} == files


def test_the_same_command_goes_on_with_the_branch_that_it_made(trunk: Run, tmp_path: Path) -> None:
    """A killed one is started again by whoever started it, Slurm say, with the words that there were."""
    whole = branch("train.steps=8", "optim.decay=0.9", run=tmp_path / "whole")
    made = branch("train.steps=8", "optim.decay=0.9", run=tmp_path / "killed")
    for later in (6, 8):
        shutil.rmtree(made.checkpoints / f"step-{later:06d}")
    made.update_info(state="running")
    again = branch("train.steps=8", "optim.decay=0.9", run=tmp_path / "killed")
    assert len(again.info()["parents"]) == 1 and len(list((tmp_path / "killed" / "record").iterdir())) == 2
    assert [row["loss"] for row in rows(again)] == [row["loss"] for row in rows(whole)]
    with pytest.raises(Refused, match="a fork is a new run"):
        branch("train.steps=8", "optim.decay=0.9", of="trunk@6", run=tmp_path / "killed")


def test_the_rate_comes_back_after_a_rollback(tmp_path: Path) -> None:
    made = branch(f"optim.rewarm={2 * TOKENS}", "train.steps=7", "optim.decay=0.1", run=tmp_path / "branch")
    assert [row["lr"] / 0.01 for row in rows(made)][:2] == pytest.approx([0.25, 0.75])


def test_without_a_job_it_is_the_parents(trunk: Run) -> None:
    made = train(None, "train.steps=5", workers=0, quiet=True, fork=str(trunk.path) + "@4")
    assert made.path.parent == trunk.path.parent and made.path.name.startswith("trunk-")
    assert made.asked().model == trunk.asked().model
    assert rows(made)[0]["loss"] == rows(trunk)[4]["loss"]
    newest = train(JOB, "train.steps=9", workers=0, quiet=True, fork="trunk")
    assert [row["step"] for row in rows(newest)] == [9]
    shutil.rmtree(made.path)
    shutil.rmtree(newest.path)


def test_a_branch_has_a_patience_of_its_own(trunk: Run, tmp_path: Path) -> None:
    """Of a trunk that ended since nothing was learned any more a branch decays all the same."""
    said = ["evaluate.every=1", "evaluate.patience=1", "evaluate.keep_best=true", "optim.lr=30.0"]
    words = [*said, "optim.schedule=constant", "checkpoint.every=1", "optim.clip=none", "optim.name=adamw"]
    ended = train(JOB, *words, "train.steps=40", workers=0, quiet=True, run=tmp_path / "ended")
    end = ended.info()["step"]
    assert end < 40 and ended.info()["early"]
    calm = [*said[:3], "optim.lr=1e-9", *words[4:], "optim.rewarm=0", "train.steps=50"]
    made = train(JOB, *calm, workers=0, quiet=True, fork=f"{ended.path}", run=tmp_path / "branch")
    first = made.evaluations()
    assert first["step"].to_pylist()[0] == end + 1 and first["best"].to_pylist()[0] is True


def test_a_run_folders_job_runs_no_code(trunk: Run, tmp_path: Path) -> None:
    copy = Run(shutil.copytree(trunk.path, tmp_path / "trunk"))
    ran = tmp_path / "ran"
    (tmp_path / "mine.py").write_text(f"open({str(ran)!r}, 'w').close()\ndef loss(model, batch): ...\n")
    job = (copy.path / "job.toml").read_text()
    (copy.path / "job.toml").write_text(job.replace("[train]\n", f'[train]\nloss = "{tmp_path}/mine.py:loss"\n'))
    with pytest.raises(
        Refused, match=r"a run folder by itself runs no code.*train\.loss = .*mine\.py:loss.*--fork"
    ) as caught:
        train(None, "train.steps=5", workers=0, quiet=True, fork=f"{copy.path}@4", run=tmp_path / "branch")
    assert caught.value.code == 2 and not ran.exists() and not (tmp_path / "branch").exists()
    assert fork.job_of(str(copy.path / "job.toml"), f"{copy.path}@4") == str(copy.path / "job.toml"), (
        "named, it is trusted"
    )


def test_what_the_parent_changed_later_is_not_the_branchs(trunk: Run, tmp_path: Path) -> None:
    copy = Run(shutil.copytree(trunk.path, tmp_path / "trunk"))
    append(copy.path / "ledger.jsonl", [Entry(7, "batch.tokens", TOKENS, 2 * TOKENS, "--change")])
    made = branch("train.steps=7", of=f"{copy.path}@6", run=tmp_path / "branch")
    assert [row["tokens"] for row in rows(made)] == [7 * TOKENS]
    assert [entry.key for entry in made.ledger().entries].count("batch.tokens") == 1


@pytest.mark.parametrize(
    "of, run, words",
    [("trunk@5", "new", ("no checkpoint of step 5", "2, 4, 6, 8", "checkpoint.keep")),
     ("nowhere@4", "new", ("nowhere is no run",)),
     ("trunk@4", "runs/trunk", ("a fork is a new run", "leave out --fork"))],
)  # fmt: skip
def test_what_cannot_be_left_is_said(home: Path, of: str, run: str, words: tuple[str, ...]) -> None:
    with pytest.raises(Refused) as caught:
        branch(of=of, run=home / run)
    assert all(word in caught.value.text for word in words), caught.value.text
    assert caught.value.code == 2 and not (home / "new").exists()


def test_a_damaged_checkpoint_is_not_left(trunk: Run, tmp_path: Path) -> None:
    copy = Run(shutil.copytree(trunk.path, tmp_path / "trunk"))
    file = next((copy.checkpoints / "step-000004").glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    with pytest.raises(Refused, match="the checkpoint to fork from is damaged"):
        branch(of=f"{copy.path}@4", run=tmp_path / "branch")


def test_a_checkpoint_that_goes_while_it_is_copied(trunk: Run, tmp_path: Path) -> None:
    copy, made = Run(shutil.copytree(trunk.path, tmp_path / "trunk")), Run(tmp_path / "branch")
    shutil.rmtree(copy.checkpoints / "step-000004")
    made.checkpoints.mkdir(parents=True)
    with pytest.raises(Refused, match="was pruned while it was copied"):
        fork.checkpoint(copy, made, 4)
    assert not made.checkpoints.exists()


def test_the_words_of_a_command_line(home: Path, trunk: Run) -> None:
    (home / "job.toml").write_text("")
    for words, rest, parent in (
        (["job.toml", "trunk@4"], ["job.toml"], "trunk@4"),
        (["runs/trunk", "job.toml", "optim.lr=1"], ["job.toml", "optim.lr=1"], "runs/trunk"),
        (["runs/trunk@12"], [], "runs/trunk@12"),
        (["job.toml", "nowhere"], ["job.toml"], "nowhere"),
        (["job.toml"], ["job.toml"], None),
        (["--model.init", "runs/trunk", "job.toml"], ["--model.init", "runs/trunk", "job.toml"], None),
        (["--model.init", "trunk", "job.toml", "trunk"], ["--model.init", "trunk", "job.toml"], "trunk"),
    ):
        assert fork.parted(words) == (rest, parent)
    assert fork.parent("trunk@4") == (trunk.path, 4)
    assert fork.job_of(None, "trunk") == str(trunk.path / "job.toml")
    assert fork.job_of("smoke", "trunk") == "smoke" and fork.job_of(None, True) is None
