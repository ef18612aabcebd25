"""Evaluations over a run: several sets, what is best, its checkpoint kept, an early end that all ranks agree on, going on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from argosy.errors import Refused
from argosy.run import record
from argosy.run.archive import Archive
from argosy.run.folder import Run
from argosy.run.recorder import Recorder


def evaluations(run: Run) -> list[dict[str, Any]]:
    """The lines of evaluations.jsonl, made anew from the record."""
    section = run.job().evaluate
    Archive(run, [one.name for one in section.sets], section.by).close()
    return [json.loads(line) for line in (run.path / "evaluations.jsonl").read_text().splitlines()]


def marks(folder: Path, name: str) -> list[tuple[int, float, int]]:
    """(step, value, extra) of each mark of that name, of rank 0."""
    found = []
    for _, path in record.files(folder, rank=0):
        for entry in record.read(path):
            if entry["kind"] == record.MARK and record.name(record.MARK, int(entry["name"])) == name:
                found.append((int(entry["step"]), float(entry["value"]), int(entry["extra"])))
    return found


class Place:
    """A folder for a record."""

    def __init__(self, local: Path):
        self.local = local


@pytest.fixture
def recorder(tmp_path: Path) -> Iterator[Recorder]:
    made = Recorder(Place(tmp_path), 0, 1)
    yield made
    made.finish()


class Loop:
    """What a callback sees of a trainer: enough to be evaluated at every step."""

    def __init__(self, recorder: Recorder, steps: int, rank: int = 0):
        from types import SimpleNamespace

        self.recorder, self.steps, self.rank, self.state = recorder, steps, rank, SimpleNamespace(step=0)
        self.saving = self.enough = False

    @property
    def complete(self) -> bool:
        return self.enough or self.state.step >= self.steps

    def settle(self) -> None:
        pass


def evaluate(losses: Sequence[Sequence[float]], loop: Loop, facts: dict[str, Any] | None = None, **options: Any) -> Any:
    """An Evaluate that finds `losses`, one list a step, taken through all its steps; saves are noted in `saved`."""
    from argosy.evaluate.held_out import Held
    from argosy.quantities import Interval
    from argosy.train.callbacks import Evaluate
    from argosy.train.vote import Vote

    coming = iter(losses)
    made = Evaluate(lambda: [Held(loss * 10, 10, 0, 1) for loss in next(coming)], Interval(steps=1), **options)
    made.start(loop, facts or {})  # type: ignore[arg-type]
    made.saved = []  # type: ignore[attr-defined]
    for _ in losses:
        loop.state.step += 1
        made.step(loop, Vote())  # type: ignore[arg-type]
        if loop.saving:
            made.saved.append(loop.state.step)  # type: ignore[attr-defined]
            loop.saving = False
    return made


def facts_of(made: Any) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    made.save(None, facts)
    return json.loads(json.dumps(facts))  # type: ignore[no-any-return]


def test_the_best_is_what_one_set_says_and_what_is_no_number_never_is(recorder: Recorder) -> None:
    nan = float("nan")
    losses = [[3.0, 9.0], [2.0, 9.5], [2.5, 8.0], [1.0, nan], [0.5, 8.0]]
    own = evaluate(losses, Loop(recorder, 9), sets=("a", "b"), by="a", keep=True)
    assert facts_of(own)["best"] == {"set": "a", "text": "", "step": 5, "loss": 0.5, "worse": 0, "kept": True}
    assert own.saved == [1, 2, 4, 5]
    other = evaluate(losses, Loop(recorder, 9), sets=("a", "b"), by="b")
    assert facts_of(other)["best"] == {"set": "b", "text": "", "step": 3, "loss": 8.0, "worse": 2, "kept": False}
    assert other.saved == [], "it is kept where that is asked for"


def test_patience_ends_and_goes_on_from_a_checkpoint(recorder: Recorder, tmp_path: Path) -> None:
    loop = Loop(recorder, 9)
    made = evaluate([[3.0], [4.0], [3.0]], loop, patience=2)
    assert loop.enough and marks(tmp_path, "enough") == [(3, 2.0, 1)]
    facts = facts_of(made)
    again = Loop(recorder, 9)
    evaluate([], again, facts, patience=2)
    assert again.enough, "a run that had ended so does not begin anew"
    longer = Loop(recorder, 9)
    evaluate([[2.0], [5.0], [5.0], [5.0]], longer, facts, patience=3)
    assert longer.enough and marks(tmp_path, "enough")[-1] == (4, 3.0, 1)  # better once, then three times not
    other = Loop(recorder, 9, rank=1)
    evaluate([[3.0], [4.0]], other, patience=1)
    assert other.enough, "every rank finds the same at the same step"
    assert len(marks(tmp_path, "enough")) == 3, "and rank 0 tells it"


@pytest.mark.parametrize(
    "told, now",
    [({"set": "another"}, {}), ({"text": "9 tokens of another"}, {}), ({}, {"since": 3}), ({}, {"since": 1})], ids=str
)  # fmt: skip
def test_what_another_text_or_another_run_measured_is_no_measure(
    recorder: Recorder, told: dict[str, Any], now: dict[str, Any]
) -> None:
    """A branch of a run that had ended so trains: it is as patient as any other."""
    facts = {"best": {"set": "", "text": "", "step": 1, "loss": 3.0, "worse": 2, "kept": True, **told}}
    loop = Loop(recorder, 9)
    made = evaluate([[9.0]], loop, facts, patience=2, **now)
    assert not loop.enough and facts_of(made)["best"]["loss"] == 9.0


def test_a_branchs_own_best_is_gone_on_with(recorder: Recorder) -> None:
    facts = {"best": {"set": "", "text": "", "step": 4, "loss": 3.0, "worse": 1, "kept": True}}
    made = evaluate([[9.0]], Loop(recorder, 9), facts, since=3)
    assert facts_of(made)["best"] == {**facts["best"], "worse": 2}


@pytest.fixture
def other_text(tmp_path: Path) -> Path:
    place = tmp_path / "other"
    place.mkdir()
    for number in range(8):
        (place / f"{number}.txt").write_text(
            f"{number} quite another matter {number * 13}, with figures {number}{number}.\n"
        )
    return place


def test_named_sets_are_measured_beside_the_runs_own_text(
    make_run: Any, work: Any, other_text: Path, tmp_path: Path
) -> None:
    import argosy

    sets = [{"name": "other", "source": str(other_text)}]
    run = make_run(tmp_path / "run", **{"evaluate.sets": sets, "evaluate.by": "other", "evaluate.keep_best": True})
    assert work(run) == 0
    rows = evaluations(run)
    assert [row["step"] for row in rows] == [4, 8]
    for row in rows:
        other = row["sets"]["other"]
        assert other["documents"] >= 8, "all of them, held out or not"
        assert other["loss"] > row["loss"] > 0 and other["bits_per_byte"] > 0
        before = [one["sets"]["other"]["loss"] for one in rows if one["step"] <= row["step"]]
        assert row["by"] == "other" and row["best"] is (other["loss"] == min(before))
    told = argosy.evaluate(run.path)
    assert told["sets"]["other"]["loss"] == pytest.approx(rows[-1]["sets"]["other"]["loss"], rel=1e-6)
    assert told["loss"] == pytest.approx(rows[-1]["loss"], rel=1e-6)
    best = min(rows, key=lambda row: row["sets"]["other"]["loss"])
    assert argosy.evaluate(run.path, best=True)["step"] == best["step"]
    with pytest.raises(Refused, match="no best checkpoint was kept"):
        plain = make_run(tmp_path / "plain", **{"train.steps": 1})
        assert work(plain) == 0
        argosy.sample(plain.path, "x", best=True)


def lasting(**changes: Any) -> dict[str, Any]:
    """A run that learns nothing more after its first steps: the rate is so high that it gets worse."""
    return {
        "train.steps": 40, "evaluate.every": 2, "checkpoint.every": 100, "checkpoint.keep": 1, "optim.name": "adamw",
        "optim.lr": 50.0, "optim.schedule": "constant", "optim.clip": "none", "observe.sample_every": 100,
        "evaluate.patience": 2, "evaluate.keep_best": True, **changes,
    }  # fmt: skip


def test_all_ranks_end_early_together_and_the_best_is_there(
    make_run: Any, workers: Any, work: Any, tmp_path: Path
) -> None:
    run = make_run(tmp_path / "run", 2, **lasting())
    assert workers(run, "replicate2", 2) == [0, 0]
    rows = evaluations(run)
    best = [row["step"] for row in rows if row["best"]][-1]
    end = run.newest_step()
    assert end < 40 and end == best + 2 * 2, "two evaluations that were not better"
    assert rows[-1]["step"] == end, "the last step of a run is evaluated"
    kept = sorted(int(folder.name[5:]) for folder in run.checkpoints.glob("step-*"))
    assert kept == [best, end]
    assert marks(run.local, "enough") == [(end, 2.0, best)]
    assert marks(run.local, "finished") and not marks(run.local, "stopped")
    # Started again it has nothing to do; with more patience it goes on from there.
    assert work(run) == 0 and run.newest_step() == end
    longer = make_run(tmp_path / "longer", **lasting(**{"evaluate.patience": 2, "train.steps": 3}))
    assert work(longer) == 0 and longer.newest_step() == 3, "the last step comes before patience ends"


def test_the_best_stays_through_stops_and_other_checkpoints(make_run: Any, work: Any, tmp_path: Path) -> None:
    run = make_run(
        tmp_path / "run", **lasting(**{"checkpoint.every": 1, "evaluate.patience": "none", "train.steps": 8})
    )
    assert work(run) == 0
    best = [row["step"] for row in evaluations(run) if row["best"]][-1]
    assert best < 8
    kept = sorted(int(folder.name[5:]) for folder in run.checkpoints.glob("step-*"))
    assert kept == [best, 8]


@pytest.mark.parametrize("name", ["lamb", pytest.param("muon", marks=pytest.mark.long)])
def test_killed_at_any_step_it_ends_as_if_nothing_had_been(
    make_run: Any, work: Any, losses_of: Any, tmp_path: Path, name: str
) -> None:
    """What a kill leaves is the run up to a checkpoint: losses, moments, the best and the end are the same, bit for bit."""
    from argosy.checkpoint.store import newest

    kept = {"optim.name": name, "checkpoint.every": 1, "checkpoint.keep": 99}
    whole = make_run(tmp_path / "whole", **lasting(**kept))
    assert work(whole) == 0
    end, wanted = whole.newest_step(), losses_of(whole)
    assert end < 40
    # At the first evaluation, before the last one, and when it was clear that it was the last.
    for step in (2, end - 1, end):
        run = Run(tmp_path / f"killed-{step}")
        shutil.copytree(whole.path, run.path)
        for folder in run.checkpoints.glob("step-*"):
            if int(folder.name[5:]) > step:
                shutil.rmtree(folder)
        run.update_info(state="running")
        assert work(run) == 0 and losses_of(run) == wanted
        found, first = newest(run), newest(whole)
        assert found is not None and first is not None and found.step == first.step == end
        assert found.facts["best"] == first.facts["best"] and found.facts["optim"] == first.facts["optim"]
        assert contents(found.folder) == contents(first.folder)
        found.close()
        first.close()


def contents(folder: Path) -> dict[str, bytes]:
    """All tensors of a checkpoint that one rank wrote, as bytes, by name."""
    import safetensors.numpy

    files = list(folder.glob("*.safetensors"))
    assert len(files) == 1
    return {name: tensor.tobytes() for name, tensor in safetensors.numpy.load_file(files[0]).items()}
