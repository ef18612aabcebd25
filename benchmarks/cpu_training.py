"""Training speed on a CPU: Argosy beside a bare compiled loop of the same model and beside transformers' Llama.

`python benchmarks/cpu_training.py [--sizes 2M 14M] [--rounds 9] [--precision float32] [--quick]`

All contestants train the same shape with the same batch, sequence length, causal mask, fused AdamW, clipping, types and
threads. Argosy is the real `argosy train`: launcher, reader, record, vote and all; the seconds are those between the ends of
successive steps in its metrics. Every round starts each contestant anew, with a warm compile cache.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import measure
import runs

HERE = Path(__file__).resolve().parent
TOKENS, SEQUENCE = 4096, 256
WARM = 3  # steps of each start that are not counted
ARGOSY, PAIR, BARE = "argosy, 1 worker", "argosy, 2 workers", "bare loop"
EAGER, COMPILED = "transformers, eager", "transformers, compiled"


def argosy(
    folder: Path, overrides: list[str], workers: int, steps: int, precision: str
) -> tuple[float, dict[str, Any]]:
    """Median seconds of a step of `argosy train` with so many workers over all cores."""
    run = Path(tempfile.mkdtemp(dir=folder)) / "run"
    length = [f"train.steps={steps + WARM}", f"train.precision={precision}", "train.compile=true", "optim.name=adamw"]
    runs.complete(runs.train(run, [*overrides, *length, *runs.QUIET, f"batch.tokens={TOKENS}", "--strict"], workers))
    seconds = runs.steady(runs.rows(run / "metrics.jsonl"), WARM - 1)
    shutil.rmtree(run.parent)
    return statistics.median(seconds), {"steps": seconds}


def loop(model: Path, contestant: str, steps: int, precision: str) -> tuple[float, dict[str, Any]]:
    """Median seconds of a step of a contestant of programs.py, on all cores."""
    words = [sys.executable, str(HERE / "programs.py"), "loop", str(model), "--contestant", contestant]
    words += ["--steps", str(steps + WARM), "--threads", str(os.cpu_count()), "--precision", precision]
    words += ["--tokens", str(TOKENS), "--sequence", str(SEQUENCE)]
    answer = subprocess.run(words, capture_output=True, text=True, env=runs.environment())
    if answer.returncode != 0:
        raise SystemExit(answer.stderr[-4000:])
    first, last = (json.loads(line) for line in answer.stdout.splitlines())
    seconds = last["seconds"][WARM:]
    return statistics.median(seconds), {**first, "steps": seconds}


def products(section: dict[str, Any]) -> dict[tuple[int, int, int], int]:
    """{(m, k, n): how often} of a step's matrix products over weights: forward, and the two of backward."""
    block, width, layers = section["block"], section["width"], section["layers"]
    queries = block["heads"] * block["head_size"]
    values = block["kv_heads"] * block["head_size"]
    gated = 2 if block["activation"] == "swiglu" else 1
    matrices = [(width, queries, 1), (width, values, 2), (queries, width, 1)]
    matrices += [(width, block["hidden"], gated), (block["hidden"], width, 1)]
    counted = [(inner, outer, times * layers) for inner, outer, times in matrices]
    counted.append((width, section["vocabulary"], 1))
    found: dict[tuple[int, int, int], int] = {}
    for inner, outer, times in counted:
        for shape in ((TOKENS, inner, outer), (TOKENS, outer, inner), (inner, TOKENS, outer)):
            found[shape] = found.get(shape, 0) + times
    return found


def gemm_seconds(section: dict[str, Any], precision: str, seconds: float) -> tuple[float, dict[str, Any]]:
    """Seconds that a step's matrix products would take at this minute's rate at their own shapes."""
    shapes = products(section)
    rates = measure.gemm(list(shapes), seconds=seconds, dtype=precision)
    total = sum(2 * m * k * n * times / rate for ((m, k, n), times), rate in zip(shapes.items(), rates, strict=True))
    return total, {"rates": dict(zip(map(str, shapes), rates, strict=True))}


def size(name: str, folder: Path, options: argparse.Namespace) -> measure.Table:
    """All rounds of one model size."""
    chosen = runs.SIZES[name]
    section = runs.section(chosen["overrides"], chosen["vocabulary"], SEQUENCE)
    model = folder / f"{name}.json"
    model.write_text(json.dumps(section))
    steps = 2 if options.quick else {"2M": 16, "14M": 6}.get(name, 24)
    text = runs.text(folder / name, SEQUENCE, chosen["vocabulary"])
    overrides = [*chosen["overrides"], *text]
    table = measure.Table(f"cpu_training-{name}-{options.precision}", "seconds a step")
    table.settings = {
        "model": f"{section['layers']} x {section['width']}, vocabulary {section['vocabulary']:,}",
        "batch": f"{TOKENS // SEQUENCE} sequences x {SEQUENCE} tokens, one document each (plain causal mask)",
        "numbers": f"{options.precision} products, float32 weights",
        "steps": f"median of {steps} after {WARM} to warm up, every round a new start with a warm compile cache",
        "threads": f"{os.cpu_count()} in all",
        "baselines": "fused AdamW, foreach clipping, SDPA, torch.compile(dynamic=False): bare by block, transformers whole",
    }
    train = functools.partial(argosy, folder, overrides, steps=steps, precision=options.precision)
    one = functools.partial(loop, model, steps=steps, precision=options.precision)
    contestants = {
        ARGOSY: functools.partial(train, workers=1),
        BARE: functools.partial(one, "bare"),
        EAGER: functools.partial(one, "transformers"),
        COMPILED: functools.partial(one, "transformers-compiled"),
        PAIR: functools.partial(train, workers=2),
        "matrix products alone": lambda: gemm_seconds(section, options.precision, 0.05 if options.quick else 0.2),
    }
    if not options.quick:
        for name_of in (ARGOSY, BARE, COMPILED, PAIR):  # fill the compile cache
            contestants[name_of]()
    return measure.alternate(table, contestants, 1 if options.quick else options.rounds)


def section_of(table: measure.Table) -> list[str]:
    """The lines of the page."""
    speed = lambda of, to: table.ratio(to, of)[0]  # noqa: E731 (speed is the inverse of seconds)
    share = table.ratio("matrix products alone", ARGOSY)
    return [
        f"### {table.name}",
        "",
        *measure.markdown(table),
        "",
        measure.verdict("speed beside the bare loop", speed(ARGOSY, BARE), 0.97, at_least=True),
        measure.verdict("speed beside compiled transformers", speed(ARGOSY, COMPILED), 1.05, at_least=True),
        measure.verdict("two workers of one thread beside one of two", speed(PAIR, ARGOSY), 0.95, at_least=True),
        f"- share of the step that its matrix products take at their own shapes: {share[0]:.0%}",
    ]


def main() -> None:
    """Read the options, measure, print, and write the page unless it was quick."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=list(runs.SIZES), default=["2M", "14M"])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--precision", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--quick", action="store_true", help="one short round of a tiny model, nothing written")
    options = parser.parse_args()
    if options.quick:
        options.sizes = ["tiny"]
    for name in options.sizes:
        with tempfile.TemporaryDirectory() as folder:
            table = size(name, Path(folder), options)
        measure.finish(table, section_of(table), write=not options.quick)


if __name__ == "__main__":
    main()
