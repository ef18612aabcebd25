"""`argosy parity`: what it prints, its exit codes, and what it refuses before any process starts."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from argosy import __main__ as program
from argosy.commands import parity as command
from argosy.errors import Refused
from argosy.prove import parity as compared
from argosy.prove.fuzz import job_file
from argosy.prove.options import plain
from argosy.prove.parity import Found


def lines(**asked: Any) -> tuple[command.Outcome, list[str]]:
    shown: list[str] = []
    outcome = command.parity(show=shown.append, **asked)
    return outcome, shown


def test_a_jobs_layout_is_compared(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('extends = "laptop"\n[layout]\nshape = "replicate2"\n', encoding="utf-8")
    outcome, shown = lines(job=file, cases=3, as_json=True)
    assert outcome.code == 0 and len(shown) == 3
    rows = [json.loads(text) for text in shown]
    assert [row["draw"] for row in rows] == [1, 2, 3]
    assert all(row["ok"] and row["ranks"] == 2 and row["options"]["layout"] == "replicate2" for row in rows)
    assert all(row["worst_gradient"]["error"] <= 1e-10 and row["worst_gradient"]["name"] for row in rows)


def test_json_is_json_also_where_nothing_was_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """A gradient that is missing differs infinitely, which JSON cannot say; a rank that raised compared nothing."""

    def no(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    missing = Found(worst_gradient=("norm.weight", math.inf), worst_loss=math.nan, worst_norm=0.5, wrong="differs")
    for found, name, loss, norm in (
        (missing, "norm.weight", None, 0.5),
        (Found(wrong="rank 1 died", raised=True), None, None, None),
    ):
        monkeypatch.setattr(compared.Bench, "try_", lambda self, trial, found=found: found)
        _, shown = lines(seed=3, cases=1, as_json=True)
        row = json.loads(shown[0], parse_constant=no)
        assert row["worst_gradient"] == {"name": name, "error": None} and row["wrong"] == found.wrong
        assert (row["worst_loss"], row["worst_norm"], row["ok"]) == (loss, norm, False)


def test_draws_are_told_with_the_pairs_that_were_not_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without ranks: what stands in for them answers that all agree."""
    monkeypatch.setattr(compared.Bench, "try_", lambda self, trial: Found(worst_gradient=("norm.weight", 1e-15)))
    outcome, shown = lines(seed=3, cases=5)
    assert outcome.code == 0 and outcome.draws == 5 and outcome.missing > 0
    assert sum("never drawn" in text for text in shown) == command.LISTED + 1
    assert f"never drawn: {outcome.missing - command.LISTED:,} more; --cases 100" in "\n".join(shown)
    assert shown[-1] == "5 draws agree with the reference."
    outcome, shown = lines(seed=3, cases=100)
    assert outcome.missing == 0 and any(text.startswith("pairs of options drawn: ") for text in shown)


def test_a_failure_is_made_small_and_printed_as_a_job(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def try_(self: compared.Bench, trial: compared.Trial) -> Found:
        bad = trial.job.layout.zero == 3 and trial.job.model.tied
        return Found(wrong="gradient of embedding.weight differs by 1.0e-01, allowed 1e-10" if bad else "")

    monkeypatch.setattr(compared.Bench, "try_", try_)
    outcome, shown = lines(seed=3, cases=60)
    assert outcome.code == 3 and outcome.failed
    assert "Smallest: shard 2, zero 3, tied True: gradient of embedding.weight differs" in outcome.job_file
    assert shown[-2].endswith("The first one, as small as it still fails:") and shown[-1] == outcome.job_file
    _, rows = lines(seed=3, cases=60, as_json=True)
    assert json.loads(rows[-1]) == {"draw": None, "job_file": outcome.job_file} and len(rows) == 61
    file = tmp_path / "smallest.toml"
    file.write_text(outcome.job_file, encoding="utf-8")
    again, shown = lines(job=file)
    assert again.code == 3 and len(again.failed) == again.draws
    assert shown[-2].endswith("As a job file:") and shown[-1] == again.job_file
    _, rows = lines(job=file, as_json=True)
    assert json.loads(rows[-1]) == {"draw": None, "job_file": again.job_file}


def test_a_job_says_how_many_draws_it_has_and_a_small_one_is_tried_as_it_stands(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What the fuzzer prints fails again, in its own type and with its own batch."""
    tried: list[compared.Trial] = []
    monkeypatch.setattr(compared.Bench, "try_", lambda self, trial: tried.append(trial) or Found())
    _, shown = lines(job="tp2", cases=50)
    assert len(tried) == 16 and shown[-1] == "16 of the 16 draws of this job agree with the reference."
    tried.clear()
    case = {**plain(), "replicate": 2, "micro": 2, "micros": 2, "uneven": True, "order": "usual", "vocabulary": 29}
    file = tmp_path / "small.toml"
    drawn = compared.Trial.of(case, "bfloat16")
    file.write_text(job_file(drawn, "told"), encoding="utf-8")
    _, shown = lines(job=file, cases=4)
    assert shown[-1] == "4 of the 20 draws of this job agree with the reference."
    assert {trial.precision for trial in tried} == {"bfloat16"}
    assert {(trial.packed, trial.update) for trial in tried} == {
        (packed, update) for packed in (False, True) for update in ("sgd", "adamw")
    }
    for trial in tried:
        told = trial.payload()
        assert told["batch"] | {"packed": False} == drawn.payload()["batch"] and trial.ranks == 2
        assert job_file(trial, "told") == file.read_text(encoding="utf-8")


def test_the_shell_takes_a_job_in_both_ways(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(compared.Bench, "try_", lambda self, trial: Found())
    for words in (["tp2"], ["--job", "tp2"]):
        assert program.main(["parity", *words, "--cases", "1", "layout.sequence=false"]) == 0
        assert "1 of the 16 draws of this job agree" in capsys.readouterr().out
    assert program.main(["parity", "tp2", "--job", "pp2"]) == 2
    assert "two jobs were given, tp2 and --job pp2" in capsys.readouterr().err
    assert program.main(["parity", "layout.sequence=false"]) == 2
    assert "without a job" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"cases": 0}, "nothing to draw"),
        ({"minutes": 0.0}, "nothing to draw"),
        ({"job": "tp2", "minutes": 1.0}, "--minutes does nothing with a job"),
        ({"job": "tp2", "seed": 0}, "--seed does nothing with a job"),
        ({"job": "laptop"}, "chosen by the machine"),
        ({"job": "laptop", "overrides": ["layout.shape=tp5"]}, "tp5 must divide|query heads"),
        ({"job": "nosuch"}, "is no job file"),
    ],
)
def test_what_cannot_be_compared_is_refused(asked: dict[str, Any], said: str) -> None:
    with pytest.raises(Refused, match=said) as caught:
        lines(**asked)
    assert caught.value.code == 2


@pytest.mark.parametrize("own", ["model.class=mine.py:Model", "train.loss=mine.py:loss"])
def test_code_of_ones_own_is_not_passed_over(own: str) -> None:
    """Compared would be the plain decoder, and nobody would know."""
    with pytest.raises(Refused, match=r"formulas .* are those of the decoder.*mine\.py") as caught:
        lines(job="tp2", overrides=[own])
    assert caught.value.code == 2
