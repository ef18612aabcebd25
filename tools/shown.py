"""Runs the commands that a Markdown page shows, so that the page cannot lie: `python tools/shown.py PAGE ...`.

Blocks fenced as ```bash are run in order; all blocks of a page share one fresh folder, which is also HOME, while caches are
shared by all pages. ```text and ```console blocks are output and not run. A comment on the line before a block changes that:

    <!-- run: no, REASON -->           the block is not run, and the reason is printed
    <!-- run: exit 2 -->               the block shows an error: it must end with this code

and one anywhere on the page, `<!-- short: --train.steps 20 -->`, is added to each of its `argosy train` commands when
ARGOSY_DOCS_SHORT=1, as CI does: the commands are the shown ones, the runs shorter.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

SECONDS = 900  # for one block
_FENCE = re.compile(r"^(\s*)```(\w*)\s*$")
_RUN = re.compile(r"<!--\s*run:\s*(?:no,\s*(?P<reason>.+?)|exit\s+(?P<code>\d+))\s*-->")
_SHORT = re.compile(r"<!--\s*short:\s*(?P<arguments>.+?)\s*-->")
_TRAIN = re.compile(r"^(?P<command>\s*(?:\w+=\S*\s+)*argosy train\b.*?)(?P<rest>\s*(?:&|\||>|2>|;|\s#).*)?$")


@dataclass(frozen=True)
class Block:
    """One block of shell commands: its first line in the page, its text, and how it is to be run."""

    line: int
    text: str
    reason: str = ""  # why it is not run
    code: int = 0


def blocks(page: str) -> list[Block]:
    """The ```bash blocks of a page's text."""
    found: list[Block] = []
    before, inside, start, language, indent = "", False, 0, "", ""
    lines: list[str] = []
    for number, line in enumerate(page.splitlines(), 1):
        fence = _FENCE.match(line)
        if not inside and fence:
            inside, start, indent, language, lines = True, number + 1, fence[1], fence[2], []
        elif inside and fence and not fence[2]:
            inside = False
            if language == "bash":
                note = _RUN.search(before)
                reason = (note["reason"] or "") if note else ""
                found.append(Block(start, "\n".join(lines), reason, int(note["code"] or 0) if note else 0))
            before = ""
        elif inside:
            lines.append(line.removeprefix(indent))
        elif line.strip():
            before = line
    return found


def shortened(text: str, arguments: str) -> str:
    """`text` with `arguments` added to each `argosy train` command, before its redirection, pipe or comment."""
    joined = re.sub(r"\\\n\s*", "", text)
    lines = []
    for line in joined.splitlines():
        found = _TRAIN.match(line)
        lines.append(f"{found['command'].rstrip()} {arguments}{found['rest'] or ''}" if found else line)
    return "\n".join(lines)


def run_block(text: str, folder: Path, environment: dict[str, str], seconds: float = SECONDS) -> tuple[int, str]:
    """Exit code and output of one block; what it left running in the background is ended with it."""
    command = ["bash", "-euo", "pipefail", "-c", text]
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            code = 124
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        output.seek(0)
        return code, output.read().decode(errors="replace")


def run_pages(pages: Sequence[Path], short: bool) -> int:
    """Run all blocks of all pages; how many failed."""
    failed = 0
    with tempfile.TemporaryDirectory(prefix="argosy-docs-") as shared:
        for page in pages:
            folder = Path(tempfile.mkdtemp(dir=shared))
            environment = {
                **os.environ,
                "PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", ""))),
                "HOME": str(folder),
                "XDG_CACHE_HOME": str(Path(shared) / "cache"),
                "COLUMNS": "100",
            }
            failed += run_page(page, folder, environment, short)
    return failed


def run_page(page: Path, folder: Path, environment: dict[str, str], short: bool) -> int:
    """Run the blocks of one page in `folder`; how many failed. After a failure the page's others are run all the same."""
    text = page.read_text(encoding="utf-8")
    note = _SHORT.search(text)
    failed = 0
    for block in blocks(text):
        where = f"{page.name}:{block.line}"
        if block.reason:
            print(f"  left   {where}  {block.reason}", flush=True)
            continue
        shown = shortened(block.text, note["arguments"]) if note and short else block.text
        code, output = run_block(shown, folder, environment)
        good = code == block.code
        print(f"  {'ok    ' if good else 'FAILED'} {where}  {shown.strip().splitlines()[0][:90]}", flush=True)
        if not good:
            failed += 1
            print(f"         exit code {code}, expected {block.code}. The block and its output:", flush=True)
            print("\n".join(f"         | {line}" for line in [*shown.splitlines(), "", *output.splitlines()[-60:]]))
    return failed


if __name__ == "__main__":
    sys.exit(1 if run_pages([Path(name) for name in sys.argv[1:]], os.environ.get("ARGOSY_DOCS_SHORT") == "1") else 0)
