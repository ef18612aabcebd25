"""Which recipe the laptop job should have, and whether MegaScale's two changes of the model cost quality.

`python benchmarks/recipe.py search [--seconds 180] [--only NAME ...]` trains each candidate for the same seconds on all cores
and compares held-out bits per byte: size, vocabulary, optimizer and learning rate of the laptop job are the best of these.
`python benchmarks/recipe.py quality [--steps 320] [--seeds 1 2 3]` trains at equal tokens, three seeds each: serial against
parallel block, full against sliding-window attention. Without a word both are done. `--quick`: a few steps, nothing written.

Candidates are compared on the same held-out documents in bits per byte, so that vocabularies compare. The rows of a search
are appended to benchmarks/results/ as they come: one that was interrupted goes on where it stopped.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import measure
import runs

BPE = 'data.tokenizer={{ train = "bpe", vocabulary = {} }}'
CANDIDATES: dict[str, list[str]] = {
    "laptop as shipped": [],
    "adamw, lr 3e-3": ["optim.name=adamw", "optim.lr=3e-3"],
    "adamw, lr 6e-3": ["optim.name=adamw", "optim.lr=6e-3"],
    "muon, lr 5e-3": ["optim.lr=5e-3"],
    "muon, lr 1e-2": ["optim.lr=1e-2"],
    "muon, lr 2e-2": ["optim.lr=2e-2"],
    "muon, lr 4e-2": ["optim.lr=4e-2"],
    "vocabulary 1024": [BPE.format(1024)],
    "vocabulary 4096": [BPE.format(4096)],
    "3 layers x 192": ["model.layers=3"],
    "6 layers x 192": ["model.layers=6"],
    "4 layers x 256": ["model.width=256", "model.block.heads=8"],
    "6 layers x 256": ["model.layers=6", "model.width=256", "model.block.heads=8"],
    "batch 2,048": ["batch.tokens=2048"],
    "batch 8,192": ["batch.tokens=8192"],
    "cosine": ["optim.schedule=cosine"],
}
SERIAL, PARALLEL, WINDOW = (
    "serial block, full attention",
    "parallel block",
    "sliding window of 64, every second layer full",
)
QUALITY: dict[str, list[str]] = {
    SERIAL: [],
    PARALLEL: ["model.block.parallel=true"],
    WINDOW: ["model.pattern=[{ window = 64 }, { window = 0 }]"],
}
OFTEN = "evaluate.every=10%"


def held_out(overrides: list[str], keep: str = OFTEN) -> measure.Taken:
    """Train the laptop job with these overrides; held-out bits per byte at the end, and the curve against seconds."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        quiet = [
            word for word in ("checkpoint.every=never", "observe.sample_every=never", keep) if word not in overrides
        ]
        runs.complete(runs.train(run, [*overrides, *quiet], 2))
        found = runs.rows(run / "evaluations.jsonl")
        metrics = runs.rows(run / "metrics.jsonl")
    spent = list(itertools.accumulate(row["seconds"] for row in metrics))
    curve = [(round(spent[row["step"] - 1], 2), row["bits_per_byte"]) for row in found if row["step"]]
    return found[-1]["bits_per_byte"], {"curve": curve, "steps": len(metrics), "tokens": metrics[-1]["tokens"]}


def remembered(name: str, key: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows of an earlier, interrupted session that measured the same thing."""
    return [row for row in runs.rows(measure.RESULTS / f"{name}.jsonl") if row["key"] == key]


def one(table: measure.Table, contestant: str, round_: int, overrides: list[str], *, write: bool) -> None:
    """Measure a contestant once, or take what an interrupted session measured."""
    key = {"contestant": contestant, "round": round_, "overrides": overrides, "commit": measure.commit()}
    old = remembered(table.name, key) if write else []
    if old:
        table.samples.append(measure.Sample(**old[-1]["sample"]))
        return
    measure.alternate(part := measure.Table(table.name, table.unit), {contestant: lambda: held_out(overrides)}, 1)
    (sample,) = part.samples
    sample.round = round_
    table.samples.append(sample)
    if write:
        measure.RESULTS.mkdir(exist_ok=True)
        with open(measure.RESULTS / f"{table.name}.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps({"key": key, "sample": vars(sample)}) + "\n")


def search(options: argparse.Namespace) -> None:
    """Bits per byte after equal seconds."""
    table = measure.Table("recipe-search", "bits per byte")
    table.settings = {
        "what": f"held-out bits per byte after {options.seconds:g} s of training on all cores, two workers",
        "length": "train.time, which Argosy turns into steps by measured speed; the table has the seconds really spent",
    }
    length = (
        [*runs.SMALL, "evaluate.tokens=512", "train.steps=4"]
        if options.quick
        else [f"train.time={options.seconds:g} s"]
    )
    names = options.only or (["laptop as shipped", "muon, lr 2e-2"] if options.quick else list(CANDIDATES))
    for round_, name in itertools.product(range(options.rounds), names):
        one(table, name, round_, [*CANDIDATES[name], *length], write=not options.quick)
    lines = ["### recipe: bits per byte against seconds", "", *measure.markdown(table, 4), ""]
    best = min(names, key=table.median)
    lines += [f"Best: **{best}** with {table.median(best):.3f} bits per byte.", ""]
    lines += ["| recipe | steps | tokens | seconds of training | bits per byte at a quarter, half, the end |"]
    lines += ["| --- | --- | --- | --- | --- |"]
    for sample in sorted(table.samples, key=lambda sample: sample.value):
        curve = sample.details["curve"]
        points = [curve[len(curve) // 4], curve[len(curve) // 2], curve[-1]]
        shown = ", ".join(f"{value:.3f}" for _, value in points)
        details = f"{sample.details['steps']:,} | {sample.details['tokens']:,} | {points[-1][0]:.0f}"
        lines.append(f"| {sample.contestant} | {details} | {shown} |")
    measure.finish(table, lines, write=not options.quick)


def quality(options: argparse.Namespace) -> None:
    """Bits per byte after equal tokens, by seed."""
    table = measure.Table("recipe-quality", "bits per byte")
    steps = 4 if options.quick else options.steps
    table.settings = {"what": f"held-out bits per byte of the laptop job after {steps} steps, the same tokens for all"}
    seeds = options.seeds[:1] if options.quick else options.seeds
    table.settings["seeds"] = ", ".join(map(str, seeds))
    for round_, seed in enumerate(seeds):
        for name, overrides in QUALITY.items():
            length = [f"train.steps={steps}", f"train.seed={seed}"]
            if options.quick:
                length += [*runs.SMALL, "evaluate.tokens=512"]
            one(table, name, round_, [*overrides, *length], write=not options.quick)
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
