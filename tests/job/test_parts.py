"""Code that a job names: its forms, what is refused without running it, who is trusted, what an import may do."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

from argosy.errors import Refused
from argosy.job import parts
from argosy.job.load import job_from, load

CODE = """
import os
from math import *
from json import dumps as written

first, (second, *rest) = 1, (2, 3)
annotated: int = 4
if True:
    def inner(): ...
else:
    class Other: ...
class Model: ...
_hidden = 5
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(CODE.replace("from math import *\n", ""))
    return path


def test_a_part_is_a_file_or_a_module_and_a_name() -> None:
    for text in ("mine.py:Model", "/a b/mine.py:x", "../m.py:f", "package.module:f", "m:f"):
        assert parts.is_part(text)
    for text in (
        "mine.py",
        "python",
        "s3://bucket/a.py",
        "hf://datasets/a/b",
        "m.py:1",
        "a-b:c",
        ":x",
        "m:",
        "m:a.b",
    ):
        assert not parts.is_part(text)


def test_files_are_seen_from_the_job_that_says_them(tmp_path: Path) -> None:
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs/parent.toml").write_text('[train]\nloss = "own/loss.py:f"\ncallbacks = ["w.py:A", "pkg.m:B"]\n')
    (tmp_path / "job.toml").write_text(
        'extends = "jobs/parent.toml"\n[model]\nclass = "../m.py:M"\n[data]\nsource = "text.py:all"\n'
        '[[evaluate.sets]]\nname = "other"\nsource = "held.py:out"\n[[evaluate.sets]]\nname = "plain"\nsource = "texts"\n'
    )
    loaded = load(str(tmp_path / "job.toml"), [f"data.cache={tmp_path}"])
    assert list(parts.named(loaded.job)) == [
        ("model.class", f"{tmp_path.parent}/m.py:M"),
        ("train.loss", f"{tmp_path}/jobs/own/loss.py:f"),
        ("train.callbacks", f"{tmp_path}/jobs/w.py:A"),
        ("train.callbacks", "pkg.m:B"),
        ("data.source", f"{tmp_path}/text.py:all"),
        ("evaluate.sets", f"{tmp_path}/held.py:out"),
    ]
    assert loaded.job.evaluate.sets[1].source == f"{tmp_path}/texts"
    mixed = job_from({"data": {"mix": [{"source": "pkg.m:go"}, {"source": "texts"}]}}).job
    assert list(parts.named(mixed)) == [("data.mix", "pkg.m:go")]
    assert load("laptop", ["model.class=m:M", "model.preset=tiny"]).job.model.preset == "tiny"
    child = load(str(tmp_path / "job.toml"), ["model.preset=tiny"]).job  # another shape, the same class
    assert getattr(child.model, "class").endswith("m.py:M")


@pytest.mark.parametrize("name", ["os", "written", "first", "second", "rest", "annotated", "inner", "Other", "Model"])
def test_what_a_file_defines_at_its_top_is_there(file: Path, name: str) -> None:
    parts.check("model.class", f"{file}:{name}")


@pytest.mark.parametrize(
    "text, why",
    [
        ("{file}:Modle", r"mine.py has no Modle.*Did you mean Model\?"),
        ("{file}:dumps", "mine.py has no dumps. Found: os, written"),
        ("{folder}/gone.py:x", "cannot be read"),
        ("{folder}/folder.py:x", "no regular file"),
        ("{folder}/broken.py:x", "broken.py is no Python.*line 2|line 2.*broken.py is no Python"),
        ("no.such.module:x", "there is no module no.such.module.*PYTHONPATH"),
        ("json.nothing:x", "there is no module json.nothing"),
        ("plain", "names no code"),
    ],
)
def test_what_cannot_be_right_is_refused_before_anything_runs(file: Path, text: str, why: str) -> None:
    (file.parent / "folder.py").mkdir()
    (file.parent / "broken.py").write_text("raise SystemExit\ndef f(:\n")
    with pytest.raises(Refused, match=f"(?s)(job.toml:3.*)?{why}") as caught:
        parts.check("model.class", text.format(file=file, folder=file.parent), "job.toml:3")
    assert "job.toml:3" in caught.value.text and caught.value.code == 2


def test_looking_runs_nothing(tmp_path: Path) -> None:
    marker, code = tmp_path / "ran", "from pathlib import Path\nPath({!r}).touch()\nclass Model: ...\n"
    package = tmp_path / "ownpackage"
    package.mkdir()
    (package / "__init__.py").write_text(code.format(str(marker)))
    (package / "inner.py").write_text(code.format(str(marker)))
    (tmp_path / "mine.py").write_text(code.format(str(marker)))
    sys.path.insert(0, str(tmp_path))
    try:
        importlib.invalidate_caches()
        parts.check("model.class", f"{tmp_path}/mine.py:Model")
        parts.check("model.class", "ownpackage.inner:Model")
        with pytest.raises(Refused, match=r"inner.py has no Mode"):
            parts.check("model.class", "ownpackage.inner:Mode")
        assert not marker.exists()
        assert parts.load("model.class", "ownpackage.inner:Model").__module__ == "ownpackage.inner"
        assert marker.exists()
    finally:
        sys.path.remove(str(tmp_path))


def test_a_file_is_run_once_and_may_import_what_lies_beside_it(tmp_path: Path) -> None:
    (tmp_path / "beside_mine.py").write_text("number = 7\n")
    (tmp_path / "mine.py").write_text(
        "from dataclasses import dataclass\nfrom beside_mine import number\n\n@dataclass\nclass Model:\n    x: int = number\n"
    )
    one, two = (parts.load("model.class", f"{tmp_path}/mine.py:Model") for _ in range(2))
    assert one is two and one().x == 7
    (tmp_path / "other.py").write_text("1 / 0\nx = 1\n")
    with pytest.raises(Refused, match=r"other.py:x, line 1: it cannot be imported: ZeroDivisionError"):
        parts.load("train.loss", f"{tmp_path}/other.py:x")
    (tmp_path / "late.py").write_text("if False:\n    x = 1\n")
    with pytest.raises(Refused, match=r"late.py has no x"):
        parts.load("train.loss", f"{tmp_path}/late.py:x")


DOWNLOADED = {
    "a run folder": ["run/run.json"],
    "a folder of weights": ["model/config.json", "model/model.safetensors"],
    "pickled weights": ["model/config.json", "model/pytorch_model.bin"],
}


@pytest.mark.parametrize("kind", DOWNLOADED)
def test_nothing_that_was_downloaded_is_run(kind: str, tmp_path: Path) -> None:
    for name in DOWNLOADED[kind]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}")
    inside = (tmp_path / DOWNLOADED[kind][0]).parent / "deep" / "mine.py"
    inside.parent.mkdir()
    inside.write_text("class Model: ...\n")
    (tmp_path / "link.py").symlink_to(inside)
    for path in (inside, tmp_path / "link.py"):
        with pytest.raises(Refused, match=r"code is not run from there.*copy the file beside your job"):
            parts.load("model.class", f"{path}:Model")
    (tmp_path / "mine.py").write_text("class Model: ...\n")
    parts.check("model.class", f"{tmp_path}/mine.py:Model")  # beside such a folder is no part of it


def test_nothing_in_a_cache_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache/mine.py").write_text("class Model: ...\n")
    parts.check("model.class", f"{tmp_path}/cache/mine.py:Model")
    for name in ("HF_HOME", "HF_MODULES_CACHE", "ARGOSY_CACHE"):
        with monkeypatch.context() as patch:
            patch.setenv(name, str(tmp_path / "cache"))
            with pytest.raises(Refused, match="is a cache of what was downloaded"):
                parts.check("model.class", f"{tmp_path}/cache/mine.py:Model")


def test_what_a_run_names_is_imported_only_where_the_user_trusts_it(file: Path) -> None:
    job = load("laptop", [f"model.class={file}:Model"]).job
    with pytest.raises(Refused, match=r"a run folder by itself runs no code.*--trust"):
        parts.refuse_untrusted(job, "runs/x")
    parts.refuse_untrusted(job, "runs/x", trust=True)
    parts.refuse_untrusted(load("laptop").job, "runs/x")
    # A loss, a callback and a source of a run are never needed by whoever reads it.
    parts.refuse_untrusted(load("laptop", [f"train.loss={file}:Model"]).job, "runs/x")


def test_what_the_code_was_is_kept(file: Path) -> None:
    job = load("laptop", [f"train.loss={file}:Model", 'train.callbacks=["m:f"]']).job
    before = parts.facts(job)
    assert [(row["key"], row["name"]) for row in before] == [
        ("train.loss", f"{file}:Model"),
        ("train.callbacks", "m:f"),
    ]
    file.write_text(CODE + "\n")
    after = parts.facts(job)
    assert before[0]["digest"] != after[0]["digest"] and before[1] == after[1]
