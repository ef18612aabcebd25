"""Figures of single layers on their way from the record to metrics.jsonl, before and after it is rotated."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from argosy.run.archive import Archive
from argosy.run.recorder import Recorder

SECOND = 1_000_000_000


@dataclass(frozen=True)
class Run:
    path: Path

    @property
    def local(self) -> Path:
        return self.path / "local"


def rows(run: Run) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]


def test_layers_stand_in_the_line_of_their_step_also_when_it_is_made_anew(tmp_path: Path) -> None:
    run = Run(tmp_path)
    archive = Archive(run)
    archive.begin(1)
    recorder = Recorder(run, 0, 1)
    for step in (1, 2, 3):
        if step == 2:
            for layer, value in enumerate((0.123456789, math.nan, 1e-9)):
                recorder.scalar("layer_gradient_norm", step, value, layer)
            recorder.scalar("layer_attention_logit", step, -math.inf, 0)
        recorder.scalar("loss", step, 1.5)
        recorder.scalar("tokens", step, 64 * step)
        recorder.step(step, step * SECOND, step * SECOND + 1)
    recorder.finish()
    archive.poll()
    archive.close()
    wanted = {"gradient_norm": [0.123457, None, 1e-9], "attention_logit": [None]}
    assert [row.get("layers") for row in rows(run)] == [None, wanted, None]
    before = (tmp_path / "metrics.jsonl").read_bytes()
    Archive(run).rotate()
    (tmp_path / "metrics.jsonl").unlink()
    Archive(run).close()
    assert (tmp_path / "metrics.jsonl").read_bytes() == before
