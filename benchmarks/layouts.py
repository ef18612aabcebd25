"""Every dimension of a layout: at two ranks its step time beside PyTorch's own parts; at four and eight, whether it is right
and what it moves.

`python benchmarks/layouts.py [--rounds 5] [--dimensions replicate tensor ...] [--without-speed | --without-bytes]
[--quick]`

*Speed.* The real `argosy train` on two workers of one thread, against one worker of two threads and against what PyTorch offers
for that dimension in a minimal loop (`benchmarks/parts.py`). All train the 2M model (4 x 192) in float32, untied, with fused
AdamW, clipping, compiled blocks and the same micro-batches; every round starts each contestant anew, with a warm compile cache.

*Right, and bytes.* At four and eight ranks two cores say nothing of speed. There each layout is held against the reference in
float64 (as `argosy parity` does), and what every rank sends in a step of the 2M model (4 x 192), heard below the model, against
the closed forms of `argosy/plan/moved.py`.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cpu_training
import measure
import runs

if TYPE_CHECKING:
    from argosy.prove.pool import Pool

HERE = Path(__file__).resolve().parent
TOKENS, SEQUENCE, WARM = cpu_training.TOKENS, cpu_training.SEQUENCE, cpu_training.WARM
PARTS = 1.03  # most that a step may take beside PyTorch's parts
ALONE = "argosy, one worker of two threads"
# Dimension -> what `argosy train` is told. Data parallelism in two micro-batches, so that the ZeRO stages differ; one of all
# sequences for tensor parallelism; eight for the pipeline, as the laptop job would.
DIMENSIONS: dict[str, tuple[int, list[str]]] = {
    "replicate": (4, ["layout.shape=replicate2"]),
    "zero1": (4, ["layout.shape=dp2", "layout.zero=1"]),
    "zero2": (4, ["layout.shape=dp2", "layout.zero=2"]),
    "zero3": (4, ["layout.shape=dp2", "layout.zero=3"]),
    "tensor": (16, ["layout.shape=tp2"]),
    "pipeline": (2, ["layout.shape=pp2", "layout.schedule=1f1b", "layout.stages=[2,2]"]),
}
Case = dict[str, Any]
PIPE: Case = {"pp": 2, "schedule": "1f1b"}
TENSOR: Case = {"tp": 2, "sequence": True}
LARGER: dict[str, Case] = {
    "replicate4": {"replicate": 4},
    "dp4, ZeRO-1": {"shard": 4, "zero": 1},
    "dp4, ZeRO-2": {"shard": 4, "zero": 2},
    "dp4, ZeRO-3": {"shard": 4, "zero": 3},
    "dp4, ZeRO-3, second shard over 2": {"shard": 4, "zero": 3, "secondary": 2},
    "replicate2 dp2, ZeRO-3": {"replicate": 2, "shard": 2, "zero": 3},
    "dp2 tp2, ZeRO-2": {**TENSOR, "shard": 2, "zero": 2},
    "dp2 tp2, ZeRO-3, whole sequences": {"tp": 2, "shard": 2, "zero": 3},
    "pp4, 1F1B": {**PIPE, "pp": 4},
    "pp4, GPipe": {**PIPE, "pp": 4, "schedule": "gpipe"},
    "pp2 tp2": {**PIPE, **TENSOR},
    "pp2 dp2, ZeRO-1": {**PIPE, "shard": 2, "zero": 1},
    "pp2 dp2, ZeRO-3, interleaved": {**PIPE, "shard": 2, "zero": 3, "schedule": "interleaved", "virtual": 2},
    "replicate8": {"replicate": 8},
    "dp8, ZeRO-2": {"shard": 8, "zero": 2},
    "dp8, ZeRO-3": {"shard": 8, "zero": 3},
    "replicate2 dp4, ZeRO-3": {"replicate": 2, "shard": 4, "zero": 3},
    "dp4 tp2, ZeRO-3": {**TENSOR, "shard": 4, "zero": 3},
    "pp4 dp2, ZeRO-2": {**PIPE, "pp": 4, "shard": 2, "zero": 2},
    "pp2 dp4, ZeRO-3, second shard over 2": {**PIPE, "shard": 4, "zero": 3, "secondary": 2},
    "pp2 dp2 tp2, ZeRO-2": {**PIPE, **TENSOR, "shard": 2, "zero": 2},
    "pp2 replicate2 tp2": {**PIPE, **TENSOR, "replicate": 2},
    "pp2 dp2 tp2, ZeRO-3, interleaved": {
        **PIPE, **TENSOR, "shard": 2, "zero": 3, "schedule": "interleaved", "virtual": 2,
    },
}  # fmt: skip


# --- speed ------------------------------------------------------------------------------------------------------------


def parts(model: Path, dimension: str, micro: int, steps: int) -> measure.Taken:
    """Median seconds of a step of PyTorch's parts on two ranks of one thread."""
    command = [
        runs.program("torchrun"),
        "--standalone",
        "--nproc-per-node",
        "2",
        "--",
        str(HERE / "parts.py"),
        dimension,
    ]
    command += [str(model), "--steps", str(steps + WARM), "--micro", str(micro)]
    command += ["--tokens", str(TOKENS), "--sequence", str(SEQUENCE)]
    answer = subprocess.run(command, capture_output=True, text=True, env=runs.environment(OMP_NUM_THREADS="1"))
    if answer.returncode != 0:
        raise SystemExit(f"{' '.join(command)}\n{answer.stderr[-6000:]}")
    found = json.loads(answer.stdout.strip().splitlines()[-1])["seconds"][WARM:]
    return statistics.median(found), {"steps": found}


def speed(folder: Path, options: argparse.Namespace) -> measure.Table:
    """All rounds of all contestants."""
    chosen = runs.SIZES["tiny" if options.quick else "2M"]
    shape = [*chosen["overrides"], "model.tied=false"]
    if options.quick:  # four layers and two heads: what two stages and two tensor ranks need
        shape = ["model.layers=4", "model.width=32", "model.block.heads=2", "model.tied=false"]
    section = runs.section(shape, chosen["vocabulary"], SEQUENCE)
    model = folder / "model.json"
    model.write_text(json.dumps(section))
    overrides = [*shape, *runs.text(folder / "text", SEQUENCE, chosen["vocabulary"])]
    steps = 2 if options.quick else 16
    table = measure.Table("layouts", "seconds a step")
    table.settings = {
        "model": f"{section['layers']} x {section['width']}, vocabulary {section['vocabulary']:,}, head of its own",
        "batch": f"{TOKENS // SEQUENCE} sequences x {SEQUENCE} tokens, one document each (plain causal mask)",
        "numbers": "float32",
        "steps": f"median of {steps} after {WARM} to warm up, every round a new start with a warm compile cache",
        "sequences of a micro-batch": ", ".join(f"{name} {DIMENSIONS[name][0]}" for name in options.dimensions),
        "parts": "DistributedDataParallel, fully_shard, PipelineStage and Schedule1F1B around the same model; for tensor "
        "parallelism parallelize_module over a plain decoder of nn.Linear, which is all it takes",
    }
    train = functools.partial(cpu_training.argosy, folder, steps=steps, precision="float32")
    contestants: dict[str, Callable[[], measure.Taken]] = {
        ALONE: functools.partial(train, [*overrides, "batch.micro=16"], workers=1)
    }
    for name in options.dimensions:
        micro, told = DIMENSIONS[name]
        contestants[f"argosy, {name}"] = functools.partial(
            train, [*overrides, *told, f"batch.micro={micro}"], workers=2
        )
        contestants[f"parts, {name}"] = functools.partial(parts, model, name, micro, steps)
    if not options.quick:
        for contestant in contestants.values():  # fill the compile cache
            contestant()
    return measure.alternate(table, contestants, 1 if options.quick else options.rounds)


def speed_lines(table: measure.Table, dimensions: list[str]) -> list[str]:
    """The section of the page."""
    lines = ["### layouts", "", *measure.markdown(table), ""]
    for name in dimensions:
        ratio, low, high = table.ratio(f"argosy, {name}", f"parts, {name}")
        lines.append(measure.verdict(f"{name}: step time beside PyTorch's parts", ratio, PARTS, at_least=False))
        alone, near, far = table.ratio(f"argosy, {name}", ALONE)
        lines.append(
            f"  - within each round, quartiles {low:.2f} to {high:.2f}; beside one worker of two threads {alone:.2f} "
            f"({near:.2f} to {far:.2f})"
        )
    return lines


# --- correctness and bytes --------------------------------------------------------------------------------------------


def drawn(more: Case) -> Case:
    """A case of the layout fuzzer with this layout, and with what a model has that is easily got wrong."""
    from argosy.prove.options import plain

    return {
        **plain(), "micros": 4 if "pp" in more else 2, "micro": 1, "layers": 4, "heads": "4/2", "tied": True, "packed": True,
        "clip": 0.05, "update": "adamw", "dropout": 0.2, **more,
    }  # fmt: skip


def large(case: Case, quick: bool) -> dict[str, Any]:
    """The laptop job's shape in the layout of `case`, in force."""
    from argosy.job.schema import Job
    from argosy.prove.options import job_of

    size = runs.SIZES["tiny" if quick else "2M"]
    shape = ["model.layers=4", "model.width=64", "model.block.heads=2"] if quick else size["overrides"]
    rows = case["replicate"] * case["shard"] * (4 if case["pp"] > 1 else 2)
    told: dict[str, Any] = {
        "name": "moved",
        "model": runs.section(shape, size["vocabulary"], SEQUENCE),
        "batch": {"sequence": SEQUENCE, "tokens": rows * SEQUENCE, "micro": 1},
        "train": {"steps": 1, "precision": "float32", "master": "float32", "reduce": "float32", "compile": False},
        "optim": {"name": "adamw", "lr": 1e-3, "warmup": 0},
        "layout": job_of(case).layout.model_dump(mode="json"),
    }
    return json.loads(Job.model_validate(told).model_dump_json())  # type: ignore[no-any-return]


def larger(pool: Pool, names: list[str], quick: bool) -> measure.Table:
    """Each layout of LARGER once: largest error against the reference, and bytes sent, heard and by the closed form."""
    from argosy.plan.moved import Move
    from argosy.prove.options import TOLERANCES, ranks_of
    from argosy.prove.parity import Bench, Trial

    table = measure.Table("layouts-moved", "bytes that the busiest rank sends in a step")
    table.settings = {
        "right": f"three steps against the reference in float64, every gradient within {TOLERANCES['float64'].gradient:g}",
        "bytes": "heard below the model on every rank in one step of the 2M model (4 x 192), eager, tied, float32; a "
        "micro-batch is one sequence, a rank has two, four in a pipeline",
        "counted as": "what an algorithm optimal in bytes sends: (n - 1) / n of a tensor, twice that in an all-reduce",
    }
    bench = Bench(pool)
    try:
        for name in names:
            case = drawn(LARGER[name])
            ranks = ranks_of(case)
            with measure.load() as load:
                found = bench.try_(Trial.of(case))
                answers = pool.call("argosy.prove.traffic:step", {"jobs": [large(case, quick)]}, ranks=ranks)
            off = [rank for rank, (answer,) in enumerate(answers) if answer["heard"] != answer["formula"]]
            sent = [
                sum(Move(row["kind"], tuple(row["ranks"]), row["size"]).sent for row in answer["heard"])
                for (answer,) in answers
            ]
            details = {
                "ranks": ranks, "wrong": found.wrong, "loss": found.worst_loss, "gradient": list(found.worst_gradient),
                "weight": list(found.worst_weight), "ranks off the closed form": off, "sent": sent,
                "busiest": answers[sent.index(max(sent))][0],
            }  # fmt: skip
            table.samples.append(measure.Sample(name, 0, max(sent), load["foreign"], 0.0, load["seconds"], details))
            print(_row(table.samples[-1]), flush=True)
    finally:
        bench.close()
    return table


def _row(sample: measure.Sample) -> str:
    told = sample.details
    off = told["ranks off the closed form"]
    right = told["wrong"] or f"{max(told['loss'], told['gradient'][1], told['weight'][1]):.0e}"
    equal = "equal on every rank" if not off else f"differs on ranks {off}"
    return f"| {sample.contestant} | {told['ranks']} | {right} | {sample.value / 1e6:.2f} | {equal} |"


def larger_lines(table: measure.Table) -> list[str]:
    """The section of the page."""
    good = sum(not sample.details["wrong"] for sample in table.samples)
    equal = sum(not sample.details["ranks off the closed form"] for sample in table.samples)
    return [
        "### layouts-moved",
        "",
        *measure.markdown(measure.Table("", "", [], table.settings))[:-3],
        "",
        "| layout | ranks | largest error against the reference | MB sent by the busiest rank | closed form |",
        "| --- | --- | --- | --- | --- |",
        *map(_row, table.samples),
        "",
        f"- right: **{good} of {len(table.samples)}**; bytes equal the closed form: **{equal} of {len(table.samples)}**",
    ]


def main() -> None:
    """Read the options, measure, print, and write the page unless it was quick."""
    from argosy.prove.parity import Bench
    from argosy.prove.pool import Pool

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dimensions", nargs="+", choices=list(DIMENSIONS), default=list(DIMENSIONS))
    parser.add_argument("--without-speed", action="store_true", help="only what is right and what is moved")
    parser.add_argument("--without-bytes", action="store_true", help="only step times")
    parser.add_argument("--quick", action="store_true", help="one short round of a tiny model, nothing written")
    options = parser.parse_args()
    if not options.without_bytes:
        names = list(LARGER)[5::8] if options.quick else list(LARGER)
        with Pool(Bench.ranks()) as pool:
            table = larger(pool, names, options.quick)
        measure.finish(table, larger_lines(table), write=not options.quick)
    if not options.without_speed:
        with tempfile.TemporaryDirectory() as folder:
            table = speed(Path(folder), options)
        measure.finish(table, speed_lines(table, options.dimensions), write=not options.quick)


if __name__ == "__main__":
    main()
