"""`argosy checkpoint list|show|verify` on the stored checkpoint of version 1."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from argosy.commands import checkpoint
from argosy.errors import NO, Refused
from argosy.run.folder import Run

STORED = Path(__file__).parent.parent / "checkpoint" / "version-1"


@pytest.fixture
def run(tmp_path: Path) -> Run:
    shutil.copytree(STORED, tmp_path / "run" / "checkpoints")
    (tmp_path / "run" / "run.json").write_text('{"version": 1, "id": "a"}')
    return Run(tmp_path / "run")


def said(*words: str) -> tuple[int, str]:
    app = typer.Typer()
    checkpoint.register(app)
    done = CliRunner().invoke(app, ["checkpoint", *words])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.output


def test_list_show_and_verify_a_whole_one(run: Run) -> None:
    name = str(run.path)
    code, text = said("list", name)
    assert code == 0 and "step         3" in text and "3 tensors" in text and "dp1" in text
    code, text = said("show", name)
    assert code == 0 and "model.w" in text and "F32 4x3" in text and "scalar" in text
    assert said("verify", name) == (0, "whole: every byte is as it was written\n")
    assert json.loads(said("list", name, "--json")[1])[0]["step"] == 3
    assert json.loads(said("show", name, "--json")[1])["facts"]["tokens"] == 96


def test_a_damaged_one_is_named_with_exit_code_3(run: Run) -> None:
    (file,) = run.checkpoints.glob("step-000003/*.safetensors")
    file.write_bytes(file.read_bytes()[:-1] + b"\1")
    code, text = said("verify", str(run.path), "--step", "3")
    assert code == NO and "is damaged at bytes" in text
    file.unlink()
    code, text = said("verify", str(run.path))
    assert code == NO and "is missing" in text
    code, text = said("list", str(run.path))
    assert code == NO and "not usable" in text


def test_nothing_to_show_is_one_sentence(run: Run) -> None:
    with pytest.raises(Refused, match="step-000009"):
        said("show", str(run.path), "--step", "9")
    shutil.rmtree(run.checkpoints)
    for word in ("show", "verify"):
        with pytest.raises(Refused, match="there is no checkpoint"):
            said(word, str(run.path))
    assert "no checkpoint yet" in said("list", str(run.path))[1]
