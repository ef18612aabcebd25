from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from argosy.cluster import accelerators
from argosy.commands import job
from argosy.data.prepare import prepare
from argosy.errors import INPUT, NO, Refused
from argosy.job.load import load


@pytest.fixture(autouse=True)
def _inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ARGOSY_CACHE", str(tmp_path / "cache"))


def run(*words: str) -> tuple[int, str]:
    app = typer.Typer()
    job.register(app)
    app.command("other")(lambda: None)
    result = CliRunner().invoke(app, ["job", *words])
    if isinstance(result.exception, Refused):
        raise result.exception
    return result.exit_code, result.output


def test_show_tells_value_origin_and_reason() -> None:
    code, text = run("show", "laptop", "--optim.lr", "3e-4", "--train.tokens", "1.3M", "--workers", "1")
    assert code == 0
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert "lr = 0.0003 # command line" in lines
    assert any(line.startswith("warmup = 126976 # derived: 31 of 318 steps") for line in lines)
    assert any(line.startswith("width = 192 # preset tiny") for line in lines)
    assert any(line.startswith("sequence = 256 # laptop.toml:") for line in lines)
    assert "nothing was measured on this machine yet" in text


def test_show_as_json_holds_every_setting() -> None:
    rows = json.loads(run("show", "--json", "smoke", "train.steps=5")[1])["settings"]
    steps = next(row for row in rows if row["key"] == "train.steps")
    assert (steps["asked"], steps["used"], steps["origin"]) == (5, 5, "command line")


def test_secrets_are_masked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_TOKEN", "canary-in-a-mine")
    text = run("show", "smoke", "data.source=https://me:canary2@host/x", "observe.prompts=['canary-in-a-mine']",
               "observe.sample_every=5")[1]  # fmt: skip
    assert "canary" not in text


def test_check_says_good_or_refuses(tmp_path: Path) -> None:
    assert run("check", "smoke")[1].startswith("smoke.toml is good: ")
    with pytest.raises(Refused, match=r"Did you mean optim\.lr"):
        run("check", "smoke", "optim.learning_rate=1")
    assert "note: train.steps is given twice" in run("check", "smoke", "train.steps=3", "train.steps=4")[1]
    for word, said in (
        ("model.init=/nope", "there is no run with a checkpoint there"),
        ("data.source=/nope", "there is no such file"),
        ("layout.shape=", "write a text that is not empty"),
        ("memory.limit=-5GB", "write more than 0"),
        ("model.preset=gpt3-175b", "not enough memory"),
    ):
        with pytest.raises(Refused, match=said):
            run("check", "smoke", word)
    with pytest.raises(Refused, match="0 text files there"):
        run("check", "smoke", f"data.source={tmp_path}")


def test_check_tries_whether_prepared_text_could_be_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "text").mkdir()
    for number in range(30):
        (tmp_path / "text" / f"{number}.txt").write_text(f"one and {number}\n" * 50, encoding="utf-8")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(
        Refused, match=r"file/x: prepared text cannot be kept there\. Found: .*file takes no"
    ) as refused:
        run("check", "smoke", f"data.cache={tmp_path / 'file' / 'x'}")
    assert refused.value.code == INPUT and "--data.cache FOLDER" in refused.value.do
    words = ["smoke", "data.source=text", f"data.cache={tmp_path / 'new' / 'cache'}"]
    assert run("check", *words)[0] == 0
    assert sorted(tmp_path.rglob("*")) == before, "nothing is left behind"

    def full(dir: Path) -> Any:
        raise OSError(errno.EROFS, "Read-only file system")

    job_of = load("smoke", words[1:])
    prepare(job_of.job.data, base=job_of.base, cache=tmp_path / "new" / "cache")
    monkeypatch.setattr("argosy.data.prepare.TemporaryFile", full)
    assert run("check", *words)[0] == 0, "what is prepared already needs no room"
    (tmp_path / "text" / "more.txt").write_text("three\n" * 200, encoding="utf-8")
    with pytest.raises(Refused, match="Read-only file system"):
        run("check", *words)


def test_devices_that_nobody_can_name_are_a_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(accelerators, "DEVICES", tmp_path)
    (tmp_path / "nvidia0").touch()
    program = tmp_path / "bin/nvidia-smi"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\necho 'cannot talk to the driver' >&2\nexit 9\n", encoding="utf-8")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)
    for word in ("show", "check"):
        code, text = run(word, "smoke")
        assert code == 0
        assert "note: there are GPUs here" in text and "Found: cannot talk to the driver." in text
        assert "This is for the CPU." in text


def test_diff_answers_with_its_exit_code() -> None:
    code, text = run("diff", "laptop", "smoke")
    assert code == NO
    said = [" ".join(line.split()) for line in text.splitlines()]
    assert said[:2] == ["model.layers 3 → 2", "model.width left out → 64"]
    assert "train.tokens 3500000 → left out" in said
    assert run("diff", "smoke", "smoke") == (0, "The jobs ask for the same.\n")


def test_schema_and_presets() -> None:
    assert json.loads(run("schema")[1])["title"] == "Argosy job"
    assert "8,030,261,248 parameters" in run("schema", "--presets")[1]
    names = run("schema", "--write", ".")[1].splitlines()
    assert [Path(name).is_file() for name in names] == [True] * 3


def test_upgrade_shows_before_it_writes(tmp_path: Path) -> None:
    file = tmp_path / "old.toml"
    file.write_text("# mine\nname = 'old'\n", encoding="utf-8")
    assert "+version = 1" in run("upgrade", "old.toml")[1]
    assert "version" not in file.read_text(encoding="utf-8")
    run("upgrade", "old.toml", "--write")
    assert file.read_text(encoding="utf-8") == "# mine\nversion = 1\nname = 'old'\n"
    assert "newest version" in run("upgrade", "old.toml")[1]
    file.write_bytes(b"\xef\xbb\xbfname = 'old'\r\n")  # as Windows writes it
    assert "+version = 1" in run("upgrade", "old.toml", "--write")[1]
    assert "is good" in run("check", "old.toml")[1]
    with pytest.raises(Refused, match="cannot be read"):
        run("upgrade", "none.toml")
