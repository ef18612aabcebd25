"""Commands shown in a page are run as shown, and a page that lies is reported."""

import os
import textwrap
import time
from pathlib import Path

import pytest

import shown


def page(folder: Path, text: str) -> Path:
    path = folder / "page.md"
    path.write_text(textwrap.dedent(text))
    return path


def test_blocks_share_a_folder_in_order_and_only_bash_is_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = tmp_path / "seen"
    path = page(
        tmp_path,
        f"""
        ```bash
        echo one > notes.txt
        ```
        1. in a list:
           ```bash
           cat notes.txt >> {seen}
           pwd >> {seen}
           echo "$HOME" >> {seen}
           ```
        ```text
        exit 1
        ```
        <!-- run: no, needs a cluster -->
        ```bash
        exit 1
        ```
        <!-- run: exit 2 -->

        ```bash
        exit 2
        ```
        """,
    )
    assert shown.run_pages([path], short=False) == 0
    lines = seen.read_text().split()
    assert lines[0] == "one"
    assert lines[1] == lines[2] != str(Path.cwd())
    assert not Path(lines[1]).exists()
    out = capsys.readouterr().out
    assert "needs a cluster" in out
    assert out.count("ok ") == 3


def test_a_lie_is_counted_with_its_line_and_output(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = page(
        tmp_path,
        """
        ```bash
        echo before
        false | true
        echo not reached
        ```
        ```bash
        true
        ```
        <!-- run: exit 2 -->
        ```bash
        true
        ```
        """,
    )
    assert shown.run_pages([path], short=False) == 2
    out = capsys.readouterr().out
    assert "FAILED page.md:3" in out
    assert "| before" in out
    assert "| not reached" not in out
    assert "exit code 0, expected 2" in out


@pytest.mark.parametrize(
    "line, expected",
    [
        ("argosy train", "argosy train --train.steps 20"),
        (
            "argosy train my.toml optim.lr=1e-3  # try it",
            "argosy train my.toml optim.lr=1e-3 --train.steps 20  # try it",
        ),
        ("argosy train my.toml > log 2>&1 &", "argosy train my.toml --train.steps 20 > log 2>&1 &"),
        ("A=1 argosy train | tee log", "A=1 argosy train --train.steps 20 | tee log"),
        ("argosy train \\\n  --data.source ~/notes", "argosy train --data.source ~/notes --train.steps 20"),
        ("argosy trains", "argosy trains"),
        ("argosy sample runs/laptop", "argosy sample runs/laptop"),
        ("echo argosy train", "echo argosy train"),
    ],
)
def test_training_is_shortened_and_nothing_else(line: str, expected: str) -> None:
    assert shown.shortened(line, "--train.steps 20") == expected


def test_a_page_is_shortened_only_when_it_says_so_and_is_asked(tmp_path: Path) -> None:
    program = tmp_path / "bin" / "argosy"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\necho "$@" >> "$SEEN"\n')
    program.chmod(0o755)
    text = "```bash\nargosy train my.toml\n```\n"
    path = tmp_path / "page.md"
    seen = tmp_path / "seen"
    environment = {**os.environ, "PATH": f"{program.parent}:{os.environ['PATH']}", "SEEN": str(seen)}
    for body, short in ((text, True), ("<!-- short: --train.steps 3 -->\n" + text, True), (text, False)):
        path.write_text(body)
        assert shown.run_page(path, tmp_path, environment, short) == 0
    assert seen.read_text().splitlines() == ["train my.toml", "train my.toml --train.steps 3", "train my.toml"]


def test_a_block_ends_with_what_it_left_running(tmp_path: Path) -> None:
    code, output = shown.run_block("sleep 600 & echo $!", tmp_path, dict(os.environ))
    assert code == 0
    pid = int(output)
    for _ in range(600):  # the kernel ends it in its own time
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return
        if state in "ZX":
            return
        time.sleep(0.1)
    pytest.fail(f"process {pid} lives on")


def test_a_block_that_hangs_is_ended(tmp_path: Path) -> None:
    code, output = shown.run_block("echo before; sleep 600", tmp_path, dict(os.environ), seconds=3.0)
    assert code == 124
    assert output == "before\n"
