from __future__ import annotations

import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from argosy import points

PASS_TWICE = "from argosy.points import point\nfor _ in range(2):\n    point('step.begin')\nprint('lived')"


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(points, "_passed", {})
    for name in ("ARGOSY_POINT", "ARGOSY_POINTS_LOG", "ARGOSY_POINT_ONCE"):
        monkeypatch.delenv(name, raising=False)


def test_without_variables_nothing_happens() -> None:
    points.point("step.begin")
    points.point("no such point, and nobody looks")


def test_it_acts_at_the_nth_passing_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARGOSY_POINT", "step.begin:2:raise")
    points.point("step.begin")
    points.point("step.vote.before")
    with pytest.raises(points.Pointed):
        points.point("step.begin")
    points.point("step.begin")


def test_a_kill_is_a_kill() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PASS_TWICE], env={"ARGOSY_POINT": "step.begin:2:kill"}, capture_output=True, check=False
    )
    assert (done.returncode, done.stdout) == (-9, b"")


def test_the_log_names_what_was_passed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ARGOSY_POINTS_LOG", str(tmp_path / "log"))
    points.point("step.begin")
    points.point("worker.end")
    assert (tmp_path / "log").read_text() == "step.begin\nworker.end\n"
    with pytest.raises(KeyError):
        points.point("no.such.point")


def test_once_over_all_processes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ARGOSY_POINT", "step.begin:1:raise")
    monkeypatch.setenv("ARGOSY_POINT_ONCE", str(tmp_path / "once"))
    with pytest.raises(points.Pointed):
        points.point("step.begin")
    monkeypatch.setattr(points, "_passed", {})
    points.point("step.begin")


def test_who_hangs_goes_on_when_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ARGOSY_POINT", "step.begin:1:hang")
    monkeypatch.setenv("ARGOSY_POINT_ONCE", str(tmp_path / "once"))
    hanging = threading.Thread(target=points.point, args=("step.begin",), daemon=True)
    hanging.start()
    while not (tmp_path / "once.step.begin").exists():
        time.sleep(0.01)
    hanging.join(0.1)
    assert hanging.is_alive()
    (tmp_path / "once.step.begin.on").touch()
    hanging.join(60)
    assert not hanging.is_alive()
    points.point("step.begin")  # once


def test_several_act_one_after_the_other(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ARGOSY_POINT", "step.vote.before:2:raise,step.begin:1:raise")
    monkeypatch.setenv("ARGOSY_POINT_ONCE", str(tmp_path / "once"))
    points.point("step.begin")  # waits for its turn
    points.point("step.vote.before")
    with pytest.raises(points.Pointed, match="vote"):
        points.point("step.vote.before")
    with pytest.raises(points.Pointed, match="begin"):
        points.point("step.begin")
    points.point("step.begin")
    points.point("step.vote.before")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["once.step.begin", "once.step.vote.before"]


def test_several_without_once_do_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARGOSY_POINT", "step.vote.before:1:raise,step.begin:1:raise")
    with pytest.raises(points.Pointed, match="begin"):
        points.point("step.begin")


def test_every_point_in_the_code_is_in_the_table_and_the_other_way_round() -> None:
    source = Path(points.__file__).parent
    called = {
        name
        for path in source.rglob("*.py")
        if path.name != "points.py"
        for name in re.findall(r"\bpoint\(\s*\"([^\"]+)\"\s*\)", path.read_text(encoding="utf-8"))
    }
    assert called == set(points.POINTS)
