"""Seconds from the command to the end of the first step: first start, second start, and a bare torchrun program beside them.

`python benchmarks/start.py [--rounds 9] [--first 3] [--quick]`

The first start has empty caches (prepared text, compiled code, measured speeds), the second finds them. Argosy is the laptop
job with two workers; the other program is the same model, data parallel under torchrun, compiled by block, without data,
tokenizer, record or checkpoint. First starts alternate for a few rounds, second starts for more.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import measure
import runs

HERE = Path(__file__).resolve().parent
FIRST, SECOND = "argosy, first start", "argosy, second start"
BARE_FIRST, BARE_SECOND = "torchrun, first start", "torchrun, second start"


def caches(folder: Path, fresh: bool) -> dict[str, str]:
    """Variables that keep all caches in `folder`, emptied first where the start is to be a first one."""
    if fresh:
        shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    return {"XDG_CACHE_HOME": str(folder), "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor")}


def argosy(folder: Path, overrides: list[str], fresh: bool, types: list[str], workers: int = 2) -> measure.Taken:
    """One start of `argosy train`; notes the type that it computes in in `types`."""
    variables = caches(folder / "argosy", fresh)
    run = Path(tempfile.mkdtemp(dir=folder)) / "run"
    quiet = [word for word in runs.QUIET if word not in overrides]
    command = runs.train(run, [*overrides, "--train.steps", "2", "train.compile=true", *quiet], workers)
    began = time.time()
    runs.complete(command, **variables)
    types.append(runs.precision(run))
    first = runs.rows(run / "metrics.jsonl")[0]
    found = runs.first_step(run, first["incarnation"])
    parts = dict(found[1]) if found else {}
    born = parts.pop("born", None)
    parts = ({"command to the worker's birth": born - began} if born else {}) | parts
    return first["time"] - began, {"parts": parts}


def bare(folder: Path, model: Path, fresh: bool, types: list[str], workers: int = 2) -> measure.Taken:
    """One start of the program under torchrun, in the type that Argosy chose last."""
    precision = types[-1]  # a noisy machine may choose now this, now that
    variables = caches(folder / "bare", fresh)
    log = Path(tempfile.mkdtemp(dir=folder)) / "log"
    command = [runs.program("torchrun"), "--standalone", "--nproc-per-node", str(workers), str(HERE / "programs.py")]
    command += ["ranks", str(model), "--steps", "1", "--lines", str(log), "--precision", precision]
    command += ["--threads", str(max(1, (os.cpu_count() or 1) // workers))]
    began = time.time()
    answer = subprocess.run(
        command, env=runs.environment(OMP_NUM_THREADS="1", **variables), capture_output=True, text=True
    )
    if answer.returncode != 0:
        raise SystemExit(answer.stderr[-4000:])
    return max(row["time"] for row in runs.rows(log)) - began, {}


def main() -> None:
    """Read the options, measure, print, and write the page unless it was quick."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--first", type=int, default=3, help="rounds of the first starts")
    parser.add_argument("--quick", action="store_true", help="one round of a tiny model, nothing written")
    options = parser.parse_args()
    overrides = runs.SMALL if options.quick else []
    table, types = measure.Table("start", "seconds"), list[str]()
    table.settings = {
        "what": "command to the end of the first step; laptop job, two workers, blocks compiled",
        "first start": "no prepared text, no compiled code, no measured speeds; files of Python and torch are cached",
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = folder / "model.json"
        model.write_text(json.dumps(runs.section(overrides, 257 if options.quick else 2048)))
        first = {
            FIRST: functools.partial(argosy, folder, overrides, True, types),
            BARE_FIRST: functools.partial(bare, folder, model, True, types),
        }
        second = {
            SECOND: functools.partial(argosy, folder, overrides, False, types),
            BARE_SECOND: functools.partial(bare, folder, model, False, types),
        }
        # Argosy comes first, and chooses the type in which both compute.
        measure.alternate(table, first, 1 if options.quick else options.first)
        measure.alternate(table, second, 1 if options.quick else options.rounds)
    table.settings["numbers"] = f"{' and '.join(sorted(set(types)))} products, float32 weights"
    lines = ["### start", "", *measure.markdown(table), ""]
    ratio, low, high = table.ratio(SECOND, BARE_SECOND)
    lines.append(measure.verdict("second start beside a bare torchrun program", ratio, 0.9, at_least=False))
    lines.append(f"- that ratio within each round, quartiles: {low:.2f} to {high:.2f}")
    for contestant in (FIRST, SECOND):
        parts = ", ".join(f"{part} {seconds:.2f}" for part, seconds in table.parts(contestant).items())
        lines.append(f"- where the seconds of the {contestant.split(', ')[1]} go (medians): {parts}")
    measure.finish(table, lines, write=not options.quick)


if __name__ == "__main__":
    sys.exit(main())
