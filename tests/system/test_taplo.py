"""An editor that knows JSON schemas helps with job files: `taplo lint`, offline, through the first line of the file."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TAPLO = shutil.which("taplo")

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(TAPLO is None, reason="taplo is not installed (npm install -g @taplo/cli)"),
]


def linted(file: Path) -> tuple[int, str]:
    answer = subprocess.run(
        [str(TAPLO), "lint", file.name], cwd=file.parent, capture_output=True, text=True, timeout=240
    )
    return answer.returncode, answer.stdout + answer.stderr


@pytest.mark.parametrize("job", ["laptop", "smoke"])
def test_a_job_file_is_checked_against_the_schema_beside_it(tmp_path: Path, job: str) -> None:
    command = [sys.executable, "-m", "argosy", "new", "mine", "--from", job]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, timeout=240)
    file = tmp_path / "mine.toml"
    assert file.read_text().startswith("#:schema ./job.schema.json")
    code, text = linted(file)
    assert code == 0, text
    file.write_text(re.sub(r"(?m)^\[train\]$", "[train]\nsteeps = 3", file.read_text()))
    code, text = linted(file)
    assert code != 0
    assert "steeps" in text
