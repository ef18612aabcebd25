"""The built wheel, in an empty folder, does all that a checkout does."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-build-isolation", "--no-deps", "--no-index"]
    subprocess.run([*command, "-w", str(folder), str(ROOT)], check=True, timeout=300)
    (built,) = folder.glob("argosy-*.whl")
    return built


@pytest.fixture(scope="module")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which the wheel is installed."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", str(folder)]
    subprocess.run([*command, str(wheel)], check=True, timeout=300)
    return folder


def test_the_wheel_holds_every_file_of_the_package(wheel: Path) -> None:
    held = set(zipfile.ZipFile(wheel).namelist())
    package = ROOT / "src" / "argosy"
    files = {
        f"argosy/{path.relative_to(package).as_posix()}"
        for path in package.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert files - held == set()
    assert "argosy/py.typed" in held
    assert any(name.endswith("/licenses/LICENSE") for name in held)
    assert any(name.startswith("argosy/jobs/") and name.endswith(".toml") for name in held)


def test_an_empty_folder_and_the_wheel_are_enough(site: Path, tmp_path: Path) -> None:
    """Look at a job, write one, look at the machine, train three steps with two workers, from nothing but the wheel."""
    work, home = tmp_path / "work", tmp_path / "home"
    work.mkdir()
    home.mkdir()
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("ARGOSY_")},
        "PYTHONPATH": str(site),
        "HOME": str(home),
        "COLUMNS": "100",
    }

    def run(*command: str) -> str:
        answer = subprocess.run(
            [sys.executable, *command], cwd=work, env=environment, capture_output=True, text=True, timeout=600
        )
        assert answer.returncode == 0, f"{command}: {answer.stdout[-4000:]}\n{answer.stderr[-4000:]}"
        return answer.stdout

    assert run("-c", "import argosy.errors as e; print(e.__file__)").startswith(str(site))
    from_checkout = subprocess.run(
        [sys.executable, "-m", "argosy", "--help"],
        env={**environment, "PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert run("-m", "argosy", "--help") == from_checkout.stdout
    run("-m", "argosy", "job", "check", "laptop")
    run("-m", "argosy", "new", "mine")
    assert (work / "mine.toml").exists()
    run("-m", "argosy", "job", "check", "mine.toml")
    run("-m", "argosy", "doctor")
    run("-m", "argosy", "train", "mine.toml", "--train.steps", "3", "--workers", "2")
    page = work / "runs" / "mine" / "report.html"
    assert page.stat().st_size > 1000
    assert len((page.parent / "metrics.jsonl").read_text().splitlines()) == 3
