"""What all benchmarks share: alternating rounds, medians and quartiles, the machine's load and rate beside them, the page.

A benchmark is a list of contestants and a number of rounds. In each round every contestant runs once, in an order that turns
by one each round, so that a slow minute hits all of them; a matrix-multiply rate is measured before each. What other
programs took of the cores while a contestant ran is read from /proc/stat and reported beside the result: a figure from a
busy machine says so itself. All samples are kept in `benchmarks/results/`, and `docs/benchmarks.md` is made from them.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "benchmarks.md"
RESULTS = ROOT / "benchmarks" / "results"
PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
GEMM = """
import sys, time, torch
threads, seconds, dtype = int(sys.argv[1]), float(sys.argv[2]), getattr(torch, sys.argv[3])
torch.set_num_threads(threads)
for text in sys.argv[4:]:
    m, k, n = map(int, text.split("x"))
    a, b = torch.randn(m, k).to(dtype), torch.randn(k, n).to(dtype)
    out = torch.empty(m, n, dtype=dtype)
    times, end = [], time.perf_counter() + seconds
    while len(times) < 5 or time.perf_counter() < end:
        began = time.perf_counter()
        torch.mm(a, b, out=out)
        times.append(time.perf_counter() - began)
    times.sort()
    print(2 * m * k * n / times[len(times) // 2])
"""


@dataclass
class Sample:
    """One contestant in one round."""

    contestant: str
    round: int
    value: float  # what is compared, in the benchmark's unit
    foreign: float  # share of all cores that other programs took meanwhile
    gemm: float  # FLOP/s of a float32 2048 x 2048 product just before
    seconds: float  # how long this round of the contestant took in all
    details: dict[str, Any] = field(default_factory=dict)


@dataclass
class Table:
    """All samples of a benchmark, and what they were taken on."""

    name: str
    unit: str
    samples: list[Sample] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)

    def values(self, contestant: str) -> list[float]:
        """The values of one contestant, by round."""
        return [sample.value for sample in self.samples if sample.contestant == contestant]

    def contestants(self) -> list[str]:
        """Names, in the order of their first run."""
        return list(dict.fromkeys(sample.contestant for sample in self.samples))

    def median(self, contestant: str) -> float:
        """The median of one contestant's values."""
        return spread(self.values(contestant))[0]

    def parts(self, contestant: str, key: str = "parts") -> dict[str, float]:
        """The medians of the seconds that its samples' details[`key`] name."""
        found: dict[str, list[float]] = {}
        for sample in self.samples:
            if sample.contestant == contestant:
                for name, seconds in sample.details.get(key, {}).items():
                    found.setdefault(name, []).append(seconds)
        return {name: spread(values)[0] for name, values in found.items()}

    def ratio(self, of: str, to: str) -> tuple[float, float, float]:
        """Median and quartiles, over rounds, of `of` / `to` in the same round."""
        pairs: dict[int, dict[str, float]] = {}
        for sample in self.samples:
            pairs.setdefault(sample.round, {})[sample.contestant] = sample.value
        return spread([pair[of] / pair[to] for pair in pairs.values() if of in pair and to in pair])


def spread(values: Sequence[float]) -> tuple[float, float, float]:
    """Median, lower and upper quartile."""
    if len(values) < 2:
        return (values[0],) * 3 if values else (float("nan"),) * 3
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return middle, low, high


def _busy() -> float:
    """CPU seconds that all programs of this machine used since it started."""
    fields = [int(word) for word in Path("/proc/stat").read_text().splitlines()[0].split()[1:]]
    user, nice, system, _idle, _wait, irq, softirq, steal = (fields + [0] * 8)[:8]
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def _own() -> float:
    """CPU seconds of this process and of all its descendants: of those that live, and of those that were waited for."""
    seconds = 0.0
    for process in (psutil.Process(), *_descendants()):
        with suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            seconds += times.user + times.system + times.children_user + times.children_system
    return seconds


def _descendants() -> list[psutil.Process]:
    return psutil.Process().children(recursive=True)


def adopt() -> None:
    """Have orphaned descendants handed to this process, so that their CPU seconds can be counted (Linux)."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def reap(standing: Collection[psutil.Process] = (), seconds: float = 15.0) -> None:
    """Wait until all descendants of a contestant have ended, so that their CPU seconds are counted as our own.

    Those that were `standing` before it, a pool of ranks say, may stay.
    """
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        if all(one in standing for one in _descendants()):
            return
        time.sleep(0.02)


@contextmanager
def load() -> Iterator[dict[str, float]]:
    """Measures, over the block, "seconds" and "foreign": the share of all cores that went to other programs.

    The block's end waits for descendants that began in it.
    """
    adopt()
    standing = _descendants()
    found: dict[str, float] = {}
    began, busy, own = time.monotonic(), _busy(), _own()
    yield found
    reap(standing)
    found["seconds"] = time.monotonic() - began
    other = (_busy() - busy) - (_own() - own)
    found["foreign"] = max(0.0, other / (found["seconds"] * (os.cpu_count() or 1)))


def gemm(
    shapes: Sequence[tuple[int, int, int]] = ((2048, 2048, 2048),),
    *,
    threads: int = 0,
    seconds: float = 0.5,
    dtype: str = "float32",
) -> list[float]:
    """FLOP/s (median) of products [m, k] x [k, n] in a process of their own."""
    words = ["x".join(str(number) for number in shape) for shape in shapes]
    command = [sys.executable, "-c", GEMM, str(threads or os.cpu_count() or 1), str(seconds), dtype, *words]
    answer = subprocess.run(command, capture_output=True, text=True, check=True)
    return [float(line) for line in answer.stdout.split()]


Taken = tuple[float, dict[str, Any]]  # a value and its details


def alternate(table: Table, contestants: Mapping[str, Callable[[], Taken | list[Taken]]], rounds: int) -> Table:
    """Run every contestant once a round, the order turned by one each round; each returns one value, or several."""
    names = list(contestants)
    for number in range(rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            (rate,) = gemm()
            with load() as measured:
                taken = contestants[name]()
            for value, details in taken if isinstance(taken, list) else [taken]:
                sample = Sample(name, number, value, measured["foreign"], rate, measured["seconds"], details)
                table.samples.append(sample)
                print(
                    f"round {number + 1}/{rounds}  {name:<28} {value:9.4g} {table.unit}"
                    f"   foreign load {sample.foreign:4.0%}   GEMM {rate / 1e9:.0f} GFLOP/s",
                    flush=True,
                )
    return table


# --- what is written --------------------------------------------------------------------------------------------------


def hardware() -> str:
    """This machine in one line."""
    name = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []:
        if line.startswith("model name"):
            name = line.split(":", 1)[1].strip()
            break
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{name}, {os.cpu_count()} cores, {memory:.0f} GiB, {platform.system()}"


def software() -> str:
    """The versions that matter."""
    return f"Python {platform.python_version()}, torch {version('torch')}, transformers {version('transformers')}"


def commit() -> str:
    """The commit of this checkout, marked when files differ from it."""

    def git(*words: str) -> str:
        answer = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True)
        return answer.stdout.strip() if answer.returncode == 0 else ""

    changed = (
        " with uncommitted changes"
        if git("status", "--porcelain", "--", "src", "benchmarks", ":!benchmarks/results")
        else ""
    )
    return (git("rev-parse", "--short", "HEAD") or "no commit") + changed


def row(table: Table, contestant: str, digits: int = 3) -> str:
    """One line of a Markdown table: name, median, quartiles, rounds, foreign load, GEMM rate."""
    chosen = [sample for sample in table.samples if sample.contestant == contestant]
    middle, low, high = spread([sample.value for sample in chosen])
    foreign = statistics.median(sample.foreign for sample in chosen)
    rate = statistics.median(sample.gemm for sample in chosen)
    return (
        f"| {contestant} | {middle:.{digits}g} | {low:.{digits}g} to {high:.{digits}g} | {len(chosen)} "
        f"| {foreign:.0%} | {rate / 1e9:.0f} |"
    )


def markdown(table: Table, digits: int = 3) -> list[str]:
    """The table of all contestants, with what they were measured on above it."""
    lines = [
        f"{datetime.now(UTC):%Y-%m-%d}, {hardware()}; {software()}; commit {commit()}.",
        "",
        *(f"- {key}: {value}" for key, value in table.settings.items()),
        "",
        f"| contestant | median ({table.unit}) | quartiles | rounds | foreign load | GEMM GFLOP/s |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    return lines + [row(table, name, digits) for name in table.contestants()]


def verdict(claim: str, found: float, limit: float, *, at_least: bool) -> str:
    """One line of a claim and what was measured: reached or missed."""
    good = found >= limit if at_least else found <= limit
    sign = "at least" if at_least else "at most"
    return f"- {claim}: **{found:.2f}** (wanted: {sign} {limit:g}; {'reached' if good else 'missed'})"


def write_section(name: str, lines: Sequence[str], page: Path = PAGE) -> None:
    """Replace the section `name` of the page, between its markers; append it where the page has none."""
    begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
    text = page.read_text(encoding="utf-8") if page.exists() else "# Benchmarks\n"
    body = "\n".join([begin, *lines, end])
    if begin in text and end in text:
        text = text[: text.index(begin)] + body + text[text.index(end) + len(end) :]
    else:
        text = f"{text.rstrip()}\n\n{body}\n"
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(text, encoding="utf-8")


def keep(table: Table) -> Path:
    """Write all samples to benchmarks/results/NAME.json."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{table.name}.json"
    content = {
        "name": table.name,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "hardware": hardware(),
        "software": software(),
        "commit": commit(),
        "unit": table.unit,
        "settings": table.settings,
        "samples": [vars(sample) for sample in table.samples],
    }
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return path


def finish(table: Table, lines: Sequence[str], *, write: bool) -> None:
    """Print a benchmark's section; keep its samples and write the page when the measurement was a real one."""
    print("\n" + "\n".join(lines) + "\n", flush=True)
    if write:
        keep(table)
        write_section(table.name, lines)
