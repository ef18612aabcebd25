"""What `make test`, `make test-long`, `make docs` and CI run: `python tools/check.py [lint|test|test-long|docs|train ...]`.

All parts run even when one fails; the last line is "N passed, N failed, N skipped" over all pytest sessions, where a linter,
a command of the docs, a training run or a budget that failed counts as one more failure. `test` includes `lint`. Each test
part has a budget in minutes on two cores, printed beside the matrix-multiply rate of the same minute, because the same
machine is twice as fast at one hour as at another; only more than twice the budget fails. Arguments after `--` go to pytest.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import shown
from tally import Tally, read

ROOT = Path(__file__).resolve().parent.parent
BUDGETS = {"test": 11.0, "test-long": 32.0}  # minutes on two cores, lint included
SHORT_TRAIN = ("--train.steps", "20")
GEMM = """
import time, torch
a = torch.randn(2048, 2048); b = torch.randn(2048, 2048)
best = 0.0
end = time.perf_counter() + 1.5
while time.perf_counter() < end:
    began = time.perf_counter(); a @ b; best = max(best, 2 * 2048**3 / (time.perf_counter() - began))
print(f"{best / 1e9:.0f}")
"""


def gemm_rate() -> str:
    """This minute's float32 matrix-multiply rate (2048 x 2048, all cores), in words."""
    answer = subprocess.run([sys.executable, "-c", GEMM], capture_output=True, text=True, timeout=300)
    return f"{answer.stdout.strip()} GFLOP/s" if answer.returncode == 0 else "no GEMM rate: torch did not run"


def run(command: Sequence[str | Path], environment: dict[str, str] | None = None) -> int:
    """Run a command of this part in the checkout, showing it first."""
    print("$ " + " ".join(Path(word).name if Path(word).is_absolute() else str(word) for word in command), flush=True)
    return subprocess.call([str(word) for word in command], cwd=ROOT, env=environment)


def program(name: str) -> str:
    """The path of a program of this environment."""
    return str(Path(sys.executable).parent / name)


def lint() -> Tally:
    """ruff, mypy --strict, import-linter and the rules of forbidden.py."""
    commands = [
        [program("ruff"), "check", "."],
        [program("ruff"), "format", "--check", "."],
        [sys.executable, "tools/forbidden.py"],
        [program("lint-imports"), "--no-cache"],
        [program("mypy")],
    ]
    failed = [command for command in commands if run(command) != 0]
    for command in failed:
        print(f"FAILED lint: {' '.join(Path(word).name for word in command)}", flush=True)
    return Tally(failed=len(failed))


def pytest(marker: str, extra: Sequence[str]) -> Tally:
    """One pytest session over tests/ with `-m marker`."""
    with tempfile.TemporaryDirectory() as folder:
        counted = Path(folder) / "tally"
        paths = os.pathsep.join(filter(None, (str(ROOT / "tools"), os.environ.get("PYTHONPATH", ""))))
        command = [sys.executable, "-m", "pytest", "-q", "-m", marker, "-p", "tally", "--tally", str(counted)]
        code = run([*command, "--durations", "10", *extra], {**os.environ, "PYTHONPATH": paths})
        tally = read(counted)
    if code not in (0, 1, 5) or not tally.finished:
        print(
            f"FAILED: pytest ended with {code}{'' if tally.finished else ' before the end of the session'}", flush=True
        )
        tally += Tally(failed=1)
    return tally


def docs() -> Tally:
    """The commands that README.md and docs/ show."""
    pages = [page for page in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))] if page.exists()]
    return Tally(failed=shown.run_pages(pages, short=os.environ.get("ARGOSY_DOCS_SHORT") == "1"))


def train() -> Tally:
    """`make train`, short, into an empty folder of runs; its page must be there, whole and small."""
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "ARGOSY_RUNS": folder}
        make = shutil.which("make")
        arguments = " ".join(SHORT_TRAIN)
        command = (
            [make, "train", f"ARGS={arguments}"] if make else [sys.executable, "bootstrap.py", "train", *SHORT_TRAIN]
        )
        code = run(command, environment)
        pages = list({page.resolve() for page in Path(folder).glob("*/report.html")})  # runs/latest is a link
        good = code == 0 and len(pages) == 1 and 0 < pages[0].stat().st_size < 1_000_000
    if not good:
        print(f"FAILED: make train ended with {code} and left {len(pages)} pages", flush=True)
    return Tally(failed=0 if good else 1)


def within_budget(part: str, seconds: float) -> Tally:
    """Print a part's minutes beside the machine's rate; a failure above twice the budget."""
    minutes, budget = seconds / 60, BUDGETS[part]
    print(f"{part}: {minutes:.1f} min (budget {budget:g} min on two cores; now {gemm_rate()})", flush=True)
    if minutes <= 2 * budget:
        return Tally()
    print(f"FAILED: {part} took more than twice its budget", flush=True)
    return Tally(failed=1)


def parts(extra: Sequence[str]) -> dict[str, Callable[[], Tally]]:
    """What each name runs."""
    return {
        "lint": lint,
        "test": lambda: lint() + pytest("not long", extra),
        "test-long": lambda: pytest("long", extra),
        "docs": docs,
        "train": train,
    }


def main(arguments: Sequence[str]) -> int:
    """Run the named parts (all but a lone `lint` when none is named) and print the closing line."""
    names = list(arguments)
    extra: list[str] = []
    if "--" in names:
        extra = names[names.index("--") + 1 :]
        names = names[: names.index("--")]
    known = parts(extra)
    names = names or ["test", "test-long", "docs", "train"]
    if unknown := [name for name in names if name not in known]:
        print(f"error: no such part: {', '.join(unknown)}. There are {', '.join(known)}.", file=sys.stderr)
        return 2
    total, lines = Tally(), []
    for name in names:
        print(f"== {name}", flush=True)
        began = time.monotonic()
        tally = known[name]()
        seconds = time.monotonic() - began
        if name in BUDGETS and not extra:
            tally += within_budget(name, seconds)
        lines.append(f"{'ok    ' if tally.failed == 0 else 'FAILED'} {name}: {tally}, {seconds / 60:.1f} min")
        total += tally
    print("\n".join(["==", *lines]))
    print(total, flush=True)
    return 1 if total.failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
