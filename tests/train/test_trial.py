"""The program that times pieces of a job's model: what it prints, and who works beside it."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from argosy.cluster.here import Machine
from argosy.job.load import load
from argosy.plan import seconds, trial
from argosy.plan.prepared import PreparedFacts
from argosy.plan.settle import settle

SMALL = ["model.width=32", "model.block.heads=2", "model.vocabulary=64", "batch.sequence=32", "batch.tokens=128"]
PIECES = {"block", "ends", "block_update", "ends_update", "block_products", "ends_products"}


def request(*words: str, workers: int = 2) -> tuple[Any, dict[str, Any]]:
    machine = Machine(cores=2, memory_bytes=16 << 30, memory_available=16 << 30, compiler="g++")
    facts = PreparedFacts(64, 1_000_000, 100, 10, 3.0)
    job = settle(load("laptop", [*SMALL, *words]), machine, {}, facts, workers, folder=Path.cwd()).job
    return job, trial.request(job, workers, 1, "cpu")


def told(asked: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-m", "argosy.train.trial"]
    return subprocess.run(
        command, input=json.dumps(asked) + "\n", capture_output=True, text=True, timeout=500, check=True
    )


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("optim.name=adamw", "model.positions=learned", "model.tied=false", "model.block.parallel=true",
         "model.block.norm=layer", "model.block.dropout=0.1", "model.pattern=[{ window = 8 }, {}]", "train.precision=float64"),
    ],
)  # fmt: skip
def test_every_kind_of_model_is_timed(words: tuple[str, ...]) -> None:
    job, asked = request(*words)
    found = json.loads(told(asked).stdout)
    assert found["request"] == asked
    assert set(found["pieces"]) == set(asked["kinds"]) == set(found["gemm"])
    for one in found["pieces"].values():
        assert set(one) == PIECES
        assert all(taken > 0 for taken in one.values())
    assert found["spread"] >= 1 and found["bandwidth"] > 0 and isinstance(found["compile"], bool)
    assert seconds.basis(job, found) == "predicted from layers timed here"
    assert seconds.step_seconds(job, found, 2, 0) > 0


def test_what_was_disturbed_is_not_kept_unless_it_is_small() -> None:
    from argosy.device.timing import Timed
    from argosy.train.trial import summary

    quiet = summary({"float32 block": Timed([1.0, 1.1, 1.2]), "float32 ends": Timed([0.5, 0.5, 2.0])})
    assert quiet["pieces"] == {"float32": {"block": 1.0, "ends": 0.5}}
    assert (quiet["spread"], quiet["keep"]) == (1.067, True)
    assert summary({"float32 block": Timed([1.0, 2.0, 2.0])})["keep"] is False
    assert summary({"float32 block": Timed([0.001, 0.002, 0.002])})["keep"] is True


def test_nothing_asked_is_nothing_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from argosy.train.trial import main

    monkeypatch.setattr(sys, "stdin", io.StringIO(""))  # the starter has gone without a question
    main()
    assert capsys.readouterr().out == ""


def test_company_works_until_it_is_let_go(tmp_path: Path) -> None:
    script = f"""
import os, time
from pathlib import Path
from argosy.train.trial import company
place = Path({str(tmp_path)!r})
def work():
    (place / str(os.getpid())).touch()
with company(2, work):
    until = time.monotonic() + 300
    while len(list(place.iterdir())) < 2:
        assert time.monotonic() < until
        time.sleep(0.01)
"""
    subprocess.run([sys.executable, "-c", script], timeout=500, check=True)
    children = [int(path.name) for path in tmp_path.iterdir()]
    assert len(children) == 2
    for child in children:
        with pytest.raises(ProcessLookupError):
            os.kill(child, 0)
