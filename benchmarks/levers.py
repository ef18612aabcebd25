"""What MegaScale's and others' levers do to quality: held-out bits per byte at equal tokens, three seeds each.

`python benchmarks/levers.py batch`: AdamW at a batch of B tokens against LAMB at 3 B and 4 B (MegaScale's claim: four times the
batch at the same loss). The best of three rates is looked for first, for each of them alike, with the first seed.
`python benchmarks/levers.py leaks`: documents that never see each other against attention over everything in a sequence.
`python benchmarks/levers.py schedule`: warm-up, stay, decay against a half cosine.
Without a word all three. `--tokens`, `--seeds`; `--quick`: a few steps, nothing written.

All runs are the laptop job, on the same tokens: the length is a multiple of every batch. Samples are appended to
benchmarks/results/ as they come, and what was interrupted goes on where it stopped.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import measure
import recipe
import runs

B = 4096  # tokens of a step of the laptop job
LONG = 27 * 12 * B  # 1.3M tokens: 324 steps of B, 108 of 3 B, 81 of 4 B
QUIET = ["checkpoint.every=never", "observe.sample_every=never", "observe.numerics_every=never", recipe.OFTEN]
ADAMW, LAMB3, LAMB4 = "AdamW, batch B", "LAMB, batch 3 B", "LAMB, batch 4 B"
BATCHES: dict[str, tuple[list[str], tuple[float, ...]]] = {  # and the rates that are tried
    ADAMW: (["optim.name=adamw"], (3.5e-3, 7e-3, 1.4e-2)),
    LAMB3: (["optim.name=lamb", f"batch.tokens={3 * B}"], (1.6e-2, 3.2e-2, 6.4e-2)),
    LAMB4: (["optim.name=lamb", f"batch.tokens={4 * B}"], (1.6e-2, 3.2e-2, 6.4e-2)),
}
SEALED, LEAKING = "documents apart", "attention crosses documents"
WSD, COSINE = "warm-up, stay, decay", "cosine"


def length(options: argparse.Namespace, seed: int) -> list[str]:
    """The overrides that all contestants share."""
    kind = [f"train.precision={options.precision}", f"train.seed={seed}"]
    if options.quick:
        return [*kind, *runs.SMALL, "train.tokens=12288", "evaluate.tokens=512"]
    return [*kind, f"train.tokens={options.tokens}"]


def words(options: argparse.Namespace, overrides: list[str], seed: int) -> list[str]:
    """The overrides of one run; those of a contestant come last, but for --quick its batch is small."""
    own = [word.replace(str(B), "256").replace(str(3 * B), "768").replace(str(4 * B), "1024") for word in overrides]
    return [*length(options, seed), *(own if options.quick else overrides)]


def trained(overrides: list[str], workers: int, *, leaking: bool = False) -> measure.Taken:
    """Held-out bits per byte at the end of a run, in which documents never leak; `leaking`: in training they do."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        command = runs.train(run, [*overrides, *QUIET], workers)
        if leaking:
            command = [sys.executable, __file__, "leak", "--run", str(run), "--words", *overrides, *QUIET]
        runs.complete(command)
        found, metrics = runs.rows(run / "evaluations.jsonl"), runs.rows(run / "metrics.jsonl")
    curve = [(row["step"], row["bits_per_byte"]) for row in found if row["step"]]
    return found[-1]["bits_per_byte"], {"curve": curve, "steps": len(metrics), "tokens": metrics[-1]["tokens"]}


def leak(run: Path, overrides: list[str]) -> None:
    """Train the laptop job in this process, with every sequence as one document for attention and positions alone.

    Which labels count stays as it is, and so does the text that the run is measured on.
    """
    from dataclasses import replace

    import torch

    from argosy.commands.train import train
    from argosy.train.feed import Feed

    as_it_is = Feed.__call__

    def across(feed: Feed, step: int) -> Any:
        part = as_it_is(feed, step)
        return replace(part, micro=[joined(batch) for batch in part.micro])

    def joined(batch: Any) -> Any:
        places = torch.arange(batch.segments.shape[1], dtype=batch.positions.dtype, device=batch.positions.device)
        segments = (batch.segments != 0).to(batch.segments.dtype)
        return replace(batch, segments=segments, positions=places.expand(batch.positions.shape).contiguous())

    Feed.__call__ = across  # type: ignore[method-assign]
    train("laptop", *overrides, run=run, workers=0, quiet=True)


def by_seed(
    table: measure.Table, options: argparse.Namespace, contestants: dict[str, tuple[list[str], bool]]
) -> list[int]:
    """Train every contestant (overrides, leaking) with every seed; gives the seeds."""
    seeds: list[int] = options.seeds[:1] if options.quick else options.seeds
    table.settings["seeds"] = ", ".join(map(str, seeds))
    for round_, seed in enumerate(seeds):
        for name, (overrides, leaking) in contestants.items():
            asked = words(options, overrides, seed)
            take = functools.partial(trained, asked, options.workers, leaking=leaking)
            recipe.one(table, name, round_, asked, take, write=not options.quick)
    return seeds


def compared(table: measure.Table, base: str, others: list[str], seeds: list[int]) -> list[str]:
    """A sentence for each of `others`: its mean difference from `base` over seeds, beside what seeds alone do."""
    spread = statistics.stdev(table.values(base)) if len(seeds) > 1 else 0.0
    lines = []
    for name in others:
        pairs = [theirs - ours for ours, theirs in zip(table.values(base), table.values(name), strict=True)]
        lines.append(
            f"- {name} against {base}: {statistics.mean(pairs):+.4f} bits per byte, {min(pairs):+.4f} to {max(pairs):+.4f} "
            f"over seeds (those of {base} alone differ by {spread:.4f}, standard deviation)"
        )
    return lines


def table_of(options: argparse.Namespace, name: str, what: str) -> measure.Table:
    """An empty table of bits per byte."""
    table = measure.Table(f"levers-{name}", "bits per byte")
    table.settings = {
        "what": f"held-out bits per byte of the laptop job after {options.tokens:,} tokens: {what}",
        "precision": options.precision,
    }
    return table


def batch(options: argparse.Namespace) -> None:
    """AdamW at B against LAMB at 3 B and 4 B, each at the best of its rates."""
    search = table_of(options, "batch-search", "which rate, first seed")
    chosen: dict[str, tuple[list[str], bool]] = {}
    for name, (overrides, rates) in BATCHES.items():
        for rate in rates[:1] if options.quick else rates:
            asked = words(options, [*overrides, f"optim.lr={rate}"], options.seeds[0])
            take = functools.partial(trained, asked, options.workers)
            recipe.one(search, f"{name}, lr {rate:g}", 0, asked, take, write=not options.quick)
        best = min((rate for rate in rates if search.values(f"{name}, lr {rate:g}")),
                   key=lambda rate, name=name: search.median(f"{name}, lr {rate:g}"))  # type: ignore[misc]  # fmt: skip
        chosen[name] = ([*overrides, f"optim.lr={best}"], False)
    lines = ["### levers: rates of AdamW and LAMB", "", *measure.markdown(search, 4), ""]
    measure.finish(search, lines, write=not options.quick)
    table = table_of(options, "batch", "equal tokens, each batch with the best of its rates")
    table.settings["rates"] = "; ".join(f"{name}: {overrides[-1]}" for name, (overrides, _) in chosen.items())
    seeds = by_seed(table, options, chosen)
    lines = ["### levers: AdamW against LAMB at three and four times the batch", "", *measure.markdown(table, 4), ""]
    measure.finish(table, [*lines, *compared(table, ADAMW, [LAMB3, LAMB4], seeds)], write=not options.quick)


def leaks(options: argparse.Namespace) -> None:
    """Documents apart against attention over everything in a sequence."""
    table = table_of(options, "leaks", "measured on documents apart in both cases")
    seeds = by_seed(table, options, {SEALED: ([], False), LEAKING: ([], True)})
    lines = ["### levers: packing with and without leaks", "", *measure.markdown(table, 4), ""]
    measure.finish(table, [*lines, *compared(table, SEALED, [LEAKING], seeds)], write=not options.quick)


def schedule(options: argparse.Namespace) -> None:
    """Warm-up, stay, decay against a half cosine."""
    table = table_of(options, "schedule", "the same peak rate and warm-up")
    seeds = by_seed(
        table, options, {WSD: (["optim.schedule=wsd"], False), COSINE: (["optim.schedule=cosine"], False)}
    )  # fmt: skip
    lines = ["### levers: schedules", "", *measure.markdown(table, 4), ""]
    measure.finish(table, [*lines, *compared(table, WSD, [COSINE], seeds)], write=not options.quick)


PARTS: dict[str, Callable[[argparse.Namespace], None]] = {"batch": batch, "leaks": leaks, "schedule": schedule}


def main() -> None:
    """Read the options and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", nargs="?", choices=(*PARTS, "leak"), help="leak is what a run of `leaks` is made of")
    parser.add_argument("--tokens", type=int, default=LONG)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--workers", type=int, default=2, help="any number trains the same")
    parser.add_argument("--precision", default="float32", help="of all runs")
    parser.add_argument("--quick", action="store_true", help="a few steps each, nothing written")
    parser.add_argument("--run", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--words", nargs="*", default=[], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part == "leak":
        leak(options.run, options.words)
        return
    for name, part in PARTS.items():
        if options.part in (None, name):
            part(options)


if __name__ == "__main__":
    sys.exit(main())
