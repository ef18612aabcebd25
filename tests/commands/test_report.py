"""`argosy report`: writes the page where it is wanted, refuses what is no run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from argosy.__main__ import main
from argosy.commands.report import report
from argosy.errors import Refused


@pytest.fixture
def run(tmp_path: Path) -> Path:
    path = tmp_path / "runs" / "small"
    path.mkdir(parents=True)
    (path / "run.json").write_text(json.dumps({"version": 1, "id": "x", "name": "small", "state": "new"}))
    return path


def test_the_page_lies_in_the_folder(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(run)]) == 0
    assert capsys.readouterr().out.strip() == str(run / "report.html")
    assert "<h1>small</h1>" in (run / "report.html").read_text()


def test_the_page_goes_elsewhere(run: Path, tmp_path: Path) -> None:
    assert main(["report", str(run), "--to", str(tmp_path / "page.html")]) == 0
    assert (tmp_path / "page.html").exists() and not (run / "report.html").exists()


def test_what_is_no_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_a_place_that_cannot_be_written_is_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(Refused, match="cannot be written"):
        report(run, tmp_path / "missing" / "page.html")
