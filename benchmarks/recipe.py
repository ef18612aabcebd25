"""Which recipe the laptop job should have, and whether MegaScale's two changes of the model cost quality.

`python benchmarks/recipe.py search [--seconds 180] [--only NAME ...]` trains each candidate for the same seconds on all cores
and compares held-out bits per byte: size, vocabulary, optimizer and learning rate of the laptop job are the best of these.
First a short run of each measures its step, alternating, on an otherwise idle machine; the seconds become a number of steps
by that, so that a slow minute during a long run changes nothing (`--workers 1` then leaves other cores alone).
`python benchmarks/recipe.py quality [--steps 320] [--seeds 1 2 3]` trains at equal tokens, three seeds each: serial against
parallel block, full against sliding-window attention. Without a word both are done. `--quick`: a few steps, nothing written.

Candidates are compared on the same held-out documents in bits per byte, so that vocabularies compare. The rows of a search
are appended to benchmarks/results/ as they come: one that was interrupted goes on where it stopped.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import measure
import runs

BPE = 'data.tokenizer={{ train = "bpe", vocabulary = {} }}'
CANDIDATES: dict[str, list[str]] = {  # vocabulary 2048, width 192 and Muon where nothing else is said
    "3 layers, lr 5e-3": ["model.layers=3", "optim.lr=5e-3"],
    "3 layers, lr 9.2e-3": ["model.layers=3", "optim.lr=9.2e-3"],
    "2 layers, lr 5e-3": ["model.layers=2", "optim.lr=5e-3"],
    "4 layers, lr 2.5e-3": ["model.layers=4", "optim.lr=2.5e-3"],
    "4 layers, lr 5e-3": ["model.layers=4", "optim.lr=5e-3"],
    "4 layers, lr 9.3e-3": ["model.layers=4", "optim.lr=9.3e-3"],
    "4 layers, lr 2e-2": ["model.layers=4", "optim.lr=2e-2"],
    "6 layers, lr 9.2e-3": ["model.layers=6", "optim.lr=9.2e-3"],
    "4 layers, vocabulary 4096, lr 5e-3": ["model.layers=4", BPE.format(4096), "optim.lr=5e-3"],
    "4 layers, vocabulary 4096, lr 9.2e-3": ["model.layers=4", BPE.format(4096), "optim.lr=9.2e-3"],
    "4 layers, AdamW, lr 6e-3": ["model.layers=4", "optim.name=adamw", "optim.lr=6e-3"],
    "3 layers, AdamW, lr 3e-3": ["model.layers=3", "optim.name=adamw", "optim.lr=3e-3"],
    "3 layers, vocabulary 1024, lr 5e-3": ["model.layers=3", BPE.format(1024), "optim.lr=5e-3"],
    "3 layers, vocabulary 4096, lr 5e-3": ["model.layers=3", BPE.format(4096), "optim.lr=5e-3"],
    "3 layers x 256, lr 5e-3": ["model.layers=3", "model.width=256", "model.block.heads=8", "optim.lr=5e-3"],
    "3 layers, batch 2,048, lr 5e-3": ["model.layers=3", "batch.tokens=2048", "optim.lr=5e-3"],
    "3 layers, batch 8,192, lr 5e-3": ["model.layers=3", "batch.tokens=8192", "optim.lr=5e-3"],
    "3 layers, cosine, lr 5e-3": ["model.layers=3", "optim.schedule=cosine", "optim.lr=5e-3"],
}
SERIAL, PARALLEL, WINDOW = (
    "serial block, full attention",
    "parallel block",
    "sliding window of 64, every third layer full",
)
QUALITY: dict[str, list[str]] = {
    SERIAL: [],
    PARALLEL: ["model.block.parallel=true"],
    WINDOW: ["model.pattern=[{ window = 64 }, { window = 64 }, { window = 0 }]"],
}
OFTEN = "evaluate.every=10%"
Take = Callable[[], measure.Taken]


def pace(overrides: list[str], steps: int) -> measure.Taken:
    """Median seconds of a step of the laptop job with these overrides, on all cores."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        runs.complete(runs.train(run, [*overrides, *runs.QUIET, f"train.steps={steps}", "train.compile=true"], 2))
        seconds = runs.steady(runs.rows(run / "metrics.jsonl"), min(steps - 2, 4))
        return statistics.median(seconds), {"steps": len(seconds), "precision": runs.precision(run)}


def held_out(overrides: list[str], workers: int = 2) -> measure.Taken:
    """Train the laptop job with these overrides; held-out bits per byte at the end, and the curve against steps."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        quiet = ["checkpoint.every=never", "observe.sample_every=never", OFTEN]
        runs.complete(runs.train(run, [*overrides, *quiet], workers))
        found = runs.rows(run / "evaluations.jsonl")
        metrics = runs.rows(run / "metrics.jsonl")
    curve = [(row["step"], row["bits_per_byte"]) for row in found if row["step"]]
    return found[-1]["bits_per_byte"], {"curve": curve, "steps": len(metrics), "tokens": metrics[-1]["tokens"]}


def remembered(name: str, key: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows of an earlier, interrupted session that measured the same thing."""
    return [row for row in runs.rows(measure.RESULTS / f"{name}.jsonl") if row["key"] == key]


def one(
    table: measure.Table, contestant: str, round_: int, overrides: list[str], take: Take, *, write: bool
) -> measure.Sample:
    """Measure a contestant once, or take what an interrupted session measured."""
    key = {"contestant": contestant, "round": round_, "overrides": overrides}
    old, commit = (remembered(table.name, key) if write else []), measure.commit()
    if old:
        sample, commit = measure.Sample(**old[-1]["sample"]), old[-1]["commit"]
    else:
        measure.alternate(part := measure.Table(table.name, table.unit), {contestant: take}, 1)
        (sample,) = part.samples
        sample.round = round_
        if write:
            measure.RESULTS.mkdir(exist_ok=True)
            with open(measure.RESULTS / f"{table.name}.jsonl", "a", encoding="utf-8") as file:
                file.write(json.dumps({"key": key, "commit": commit, "sample": vars(sample)}) + "\n")
    table.samples.append(sample)
    commits = [*str(table.settings.get("trained at commit", "")).split(", "), commit]
    table.settings["trained at commit"] = ", ".join(dict.fromkeys(word for word in commits if word))
    return sample


def shape(name: str) -> list[str]:
    """The overrides of a candidate that change how long a step takes: all but the learning rate."""
    return [word for word in CANDIDATES[name] if not word.startswith("optim.lr=")]


def timed_as(name: str) -> str:
    """The name under which a candidate's step is timed; candidates that differ by their rate alone share it."""
    return " ".join(shape(name))


def paces(names: list[str], options: argparse.Namespace) -> measure.Table:
    """Seconds of a step of each shape among the candidates `names`, in alternating rounds."""
    table = measure.Table("recipe-pace", "seconds a step")
    steps, rounds = (4, 1) if options.quick else (24, 2)
    shapes = {timed_as(name): shape(name) for name in names}
    for round_, (name, words) in itertools.product(range(rounds), shapes.items()):
        overrides = [*words, *(runs.SMALL if options.quick else [])]
        one(table, name, round_, overrides, functools.partial(pace, overrides, steps), write=not options.quick)
    return table


def precision(timed: measure.Table, name: str) -> str:
    """The type in which a candidate's short runs computed: the same for any number of workers."""
    return str(next(sample.details["precision"] for sample in timed.samples if sample.contestant == name))


def search(options: argparse.Namespace) -> None:
    """Bits per byte after equal seconds."""
    table = measure.Table("recipe-search", "bits per byte")
    table.settings = {
        "what": f"held-out bits per byte after the steps that {options.seconds:g} s on all cores have room for",
        "length": "seconds / seconds a step, timed alternating in short runs, alone on the machine; long runs need no quiet",
    }
    names = options.only or (["3 layers, lr 5e-3", "4 layers, lr 2e-2"] if options.quick else list(CANDIDATES))
    timed = paces(names, options)
    for round_, name in itertools.product(range(options.rounds), names):
        steps = 4 if options.quick else max(20, int(options.seconds / timed.median(timed_as(name))))
        small = [*runs.SMALL, "evaluate.tokens=512"] if options.quick else []
        overrides = [
            *CANDIDATES[name],
            *small,
            f"train.steps={steps}",
            f"train.precision={precision(timed, timed_as(name))}",
        ]
        take = functools.partial(held_out, overrides, options.workers)
        asked = [*CANDIDATES[name], *small, f"{options.seconds:g} s"]
        one(table, name, round_, asked, take, write=not options.quick)
    lines = ["### recipe: bits per byte against seconds", "", *measure.markdown(table, 4), ""]
    best = min(names, key=table.median)
    lines += [f"Best: **{best}** with {table.median(best):.3f} bits per byte.", ""]
    lines += ["| recipe | seconds a step | steps | tokens | bits per byte at a quarter, half, the end of the time |"]
    lines += ["| --- | --- | --- | --- | --- |"]
    for sample in sorted(table.samples, key=lambda sample: sample.value):
        curve = sample.details["curve"]
        shown = ", ".join(f"{curve[at][1]:.3f}" for at in (len(curve) // 4, len(curve) // 2, -1))
        details = f"{sample.details['steps']:,} | {sample.details['tokens']:,}"
        lines.append(f"| {sample.contestant} | {timed.median(timed_as(sample.contestant)):.3f} | {details} | {shown} |")
    measure.finish(table, lines, write=not options.quick)


def quality(options: argparse.Namespace) -> None:
    """Bits per byte after equal tokens, by seed."""
    table = measure.Table("recipe-quality", "bits per byte")
    steps = 4 if options.quick else options.steps
    table.settings = {"what": f"held-out bits per byte of the laptop job after {steps} steps, the same tokens for all"}
    seeds = options.seeds[:1] if options.quick else options.seeds
    first = next(iter(CANDIDATES))
    kind = precision(paces([first], options), timed_as(first))
    table.settings["seeds"] = ", ".join(map(str, seeds))
    for round_, seed in enumerate(seeds):
        for name, overrides in QUALITY.items():
            length = [f"train.steps={steps}", f"train.seed={seed}", f"train.precision={kind}"]
            if options.quick:
                length += [*runs.SMALL, "model.layers=3", "evaluate.tokens=512"]
            words = [*overrides, *length]
            one(
                table, name, round_, words, functools.partial(held_out, words, options.workers), write=not options.quick
            )
    lines = ["### recipe: quality at equal tokens", "", *measure.markdown(table, 4), ""]
    for name in (PARALLEL, WINDOW):
        pairs = [theirs - ours for ours, theirs in zip(table.values(SERIAL), table.values(name), strict=True)]
        spread = statistics.stdev(table.values(SERIAL)) if len(seeds) > 1 else 0.0
        lines.append(
            f"- {name} against {SERIAL}: {statistics.mean(pairs):+.4f} bits per byte (mean over seeds; "
            f"the serial block's own seeds differ by {spread:.4f}, standard deviation)"
        )
    measure.finish(table, lines, write=not options.quick)


def main() -> None:
    """Read the options and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", nargs="?", choices=("search", "quality"))
    parser.add_argument("--seconds", type=float, default=180.0)
    parser.add_argument("--rounds", type=int, default=1, help="of the search")
    parser.add_argument("--only", nargs="+", choices=list(CANDIDATES), metavar="NAME")
    parser.add_argument("--workers", type=int, default=2, help="of the long runs: any number trains the same")
    parser.add_argument("--steps", type=int, default=320, help="of the comparison at equal tokens")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--quick", action="store_true", help="a few steps each, nothing written")
    options = parser.parse_args()
    if options.part in (None, "search"):
        search(options)
    if options.part in (None, "quality"):
        quality(options)


if __name__ == "__main__":
    sys.exit(main())
