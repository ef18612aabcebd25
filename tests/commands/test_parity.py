"""`argosy parity`: what it prints, its exit codes, and what it refuses before any process starts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from argosy.commands import parity as command
from argosy.errors import Refused
from argosy.prove import parity as compared
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


def test_draws_are_told_with_the_pairs_that_were_not_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without ranks: what stands in for them answers that all agree."""
    monkeypatch.setattr(compared.Bench, "try_", lambda self, trial: Found(worst_gradient=("norm.weight", 1e-15)))
    outcome, shown = lines(seed=3, cases=5)
    assert outcome.code == 0 and outcome.draws == 5 and outcome.missing > 0
    assert sum("never drawn" in text for text in shown) == outcome.missing
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
    assert outcome.job_file in shown
    file = tmp_path / "smallest.toml"
    file.write_text(outcome.job_file, encoding="utf-8")
    again, shown = lines(job=file)
    assert again.code == 3 and len(again.failed) == again.draws


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"cases": 0}, "nothing to draw"),
        ({"minutes": 0.0}, "nothing to draw"),
        ({"job": "laptop"}, "chosen by the machine"),
        ({"job": "laptop", "overrides": ["layout.shape=tp5"]}, "tp5 must divide|query heads"),
        ({"job": "nosuch"}, "is no job file"),
    ],
)
def test_what_cannot_be_compared_is_refused(asked: dict[str, Any], said: str) -> None:
    with pytest.raises(Refused, match=said) as caught:
        lines(**asked)
    assert caught.value.code == 2
