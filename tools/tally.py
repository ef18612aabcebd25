"""A pytest plug-in that writes what happened to each test at once, so that the count survives a killed test run.

`pytest -p tally --tally FILE` (with tools/ on PYTHONPATH) appends one line a test, "passed|failed|skipped TAB name",
and "finished" at the end of the session. `read` counts such a file; one without "finished" is a run that was cut off.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest


@dataclass(frozen=True)
class Tally:
    """How many tests passed, failed and were skipped, and whether the session came to its end."""

    passed: int = 0
    failed: int = 0
    skipped: int = 0
    finished: bool = True

    def __add__(self, other: Tally) -> Tally:
        return Tally(
            self.passed + other.passed,
            self.failed + other.failed,
            self.skipped + other.skipped,
            self.finished and other.finished,
        )

    def __str__(self) -> str:
        return f"{self.passed} passed, {self.failed} failed, {self.skipped} skipped"


def read(path: Path) -> Tally:
    """Count a file written by this plug-in. A test that failed in several phases counts once."""
    outcomes: dict[str, str] = {}
    finished = False
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        outcome, _, name = line.partition("\t")
        if outcome == "finished":
            finished = True
        elif outcomes.get(name) != "failed":
            outcomes[name] = outcome
    counted = Tally(*(list(outcomes.values()).count(word) for word in ("passed", "failed", "skipped")))
    return replace(counted, finished=finished)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds --tally FILE."""
    parser.addoption("--tally", default="", help="append the outcome of each test to this file")


def _append(config: pytest.Config, line: str) -> None:
    path = config.getoption("--tally")
    if path:
        with open(path, "a", encoding="utf-8") as file:
            file.write(line + "\n")


class _Reports:
    def __init__(self, config: pytest.Config):
        self.config = config

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed or report.skipped or report.when == "call":
            _append(self.config, f"{report.outcome}\t{report.nodeid}")

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            _append(self.config, f"failed\t{report.nodeid}")


def pytest_configure(config: pytest.Config) -> None:
    """Registers the reporter, which needs the configuration."""
    config.pluginmanager.register(_Reports(config), "argosy-tally")


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Notes that the session was not cut off."""
    _append(session.config, "finished")
