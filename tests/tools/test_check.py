"""The closing line counts what happened, also when a session is cut off, and every failure reaches the exit code."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import check
import tally
from tally import Tally

ROOT = Path(__file__).resolve().parents[2]


def session(folder: Path, text: str) -> tuple[int, Tally]:
    """Run a test file with the plug-in in a process of its own."""
    (folder / "test_sample.py").write_text(text)
    counted = folder / "tally"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "tally", "--tally", str(counted)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "tools")}
    answer = subprocess.run([*command, str(folder)], cwd=folder, env=environment, capture_output=True, timeout=240)
    return answer.returncode, tally.read(counted)


def test_outcomes_are_counted_once_each(tmp_path: Path) -> None:
    text = """
import pytest

def test_good(): pass
def test_bad(): assert False
@pytest.mark.skip(reason="here")
def test_left(): pass
@pytest.fixture
def broken():
    yield
    raise ValueError
def test_twice(broken): assert False
def test_end(broken): pass
"""
    assert session(tmp_path, text) == (1, Tally(1, 3, 1))


def test_a_session_that_is_cut_off_keeps_its_count_and_says_so(tmp_path: Path) -> None:
    text = "import os\ndef test_good(): pass\ndef test_end(): os._exit(0)\ndef test_never(): pass\n"
    assert session(tmp_path, text) == (0, Tally(1, 0, 0, finished=False))


def test_a_file_that_cannot_be_collected_is_a_failure(tmp_path: Path) -> None:
    assert session(tmp_path, "import no_such_module_at_all\n")[1] == Tally(0, 1, 0)


@pytest.fixture
def made_of(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """`check.main` with parts that return what is said here."""

    def run(names: list[str], **tallies: Tally) -> int:
        monkeypatch.setattr(check, "parts", lambda extra: {name: lambda t=t: t for name, t in tallies.items()})
        return check.main(names)

    return run


def test_all_parts_run_and_the_last_line_sums_them(
    made_of: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert made_of(["first", "second"], first=Tally(3, 1, 2), second=Tally(4)) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "7 passed, 1 failed, 2 skipped"
    assert any(line.startswith("FAILED first") for line in lines)
    assert any(line.startswith("ok     second") for line in lines)
    assert made_of(["second"], first=Tally(failed=1), second=Tally(4)) == 0
    assert made_of(["third"], first=Tally()) == 2


def test_a_budget_fails_above_twice_itself_only(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(check, "gemm_rate", lambda: "100 GFLOP/s")
    budget = check.BUDGETS["test"] * 60
    assert check.within_budget("test", 1.99 * budget).failed == 0
    assert check.within_budget("test", 2.01 * budget).failed == 1
    assert "now 100 GFLOP/s" in capsys.readouterr().out


def test_a_linter_that_complains_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(command: list[str | Path], environment: dict[str, str] | None = None) -> int:
        return int("mypy" in str(command[0]) or "forbidden" in str(command[-1]))

    monkeypatch.setattr(check, "run", run)
    assert check.lint() == Tally(failed=2)


def test_make_train_must_leave_a_page(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(size: int, code: int = 0) -> Callable[..., int]:
        def train(command: list[str], environment: dict[str, str]) -> int:
            folder = Path(environment["ARGOSY_RUNS"], "laptop")
            folder.mkdir()
            (folder / "report.html").write_bytes(b"x" * size)
            folder.with_name("latest").symlink_to(folder)
            return code

        return train

    for size, code, failed in ((500, 0, 0), (500, 4, 1), (0, 0, 1), (2_000_000, 0, 1)):
        monkeypatch.setattr(check, "run", run(size, code))
        assert check.train().failed == failed
