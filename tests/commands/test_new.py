from __future__ import annotations

from pathlib import Path

import pytest

from argosy.commands.new import new
from argosy.errors import Refused
from argosy.job.load import load, shipped


@pytest.mark.parametrize("source", shipped())
def test_a_new_job_is_the_shipped_one_under_its_name(tmp_path: Path, source: str) -> None:
    path = new("jobs/mine", source, tmp_path)
    assert path == tmp_path / "jobs" / "mine.toml"
    text = path.read_text(encoding="utf-8")
    assert text.startswith("#:schema ./job.schema.json\n")
    assert (path.parent / "job.schema.json").is_file()
    made, original = load(str(path)).job, load(source).job
    assert made.name == "mine"
    assert made.model_copy(update={"name": source}) == original
    assert f"argosy train {source}" not in text
    assert "argosy train mine.toml" in text


def test_nothing_is_overwritten_and_names_are_names(tmp_path: Path) -> None:
    new("mine.toml", folder=tmp_path)
    with pytest.raises(Refused, match="exists already"):
        new("mine", folder=tmp_path)
    with pytest.raises(Refused, match="cannot name a run"):
        new("-x y", folder=tmp_path)
    with pytest.raises(Refused, match="no shipped job"):
        new("other", "latop", tmp_path)
