"""How long training stands still after kill -9 of a worker, beside PyTorch's own elastic launcher.

`python benchmarks/restart.py [--rounds 3] [--kills 4] [--elastic-kills 3] [--quick]`

Each round starts every contestant anew, lets it train, and kills a random worker several times; the seconds are those from the
kill to the end of the first step that the new workers finish. Argosy runs the laptop job as it is. The other contestant is
torchrun with `--max-restarts` around the same model (data parallel, compiled blocks, AdamW) with a checkpoint on disk every
ten steps, and with the store setting that makes its restarts reliable.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import measure
import runs

HERE = Path(__file__).resolve().parent
SETTLED = 6  # steps between a restart and the next kill


def argosy(
    overrides: list[str], workers: int, kills: int, chance: random.Random, types: list[str]
) -> list[measure.Taken]:
    """Kill workers of the laptop job; notes the type that it computes in in `types`."""
    taken: list[measure.Taken] = []
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        command = runs.train(run, [*overrides, "--train.steps", "1000000"], workers)
        with open(Path(folder) / "log", "wb") as log:
            process = subprocess.Popen(command, env=runs.environment(), stdout=log, stderr=log)
        metrics = run / "metrics.jsonl"

        def last() -> dict[str, Any]:
            if process.poll() is not None:
                raise SystemExit(
                    f"argosy ended with {process.returncode}:\n{(Path(folder) / 'log').read_text()[-4000:]}"
                )
            found = runs.rows(metrics)
            return found[-1] if found else {"step": 0, "incarnation": 0}

        try:
            for _ in range(kills):
                start = runs.waited(lambda: (row := last())["step"] > 0 and row, "the first step")
                types.append(runs.precision(run))
                goal = start["step"] + SETTLED
                now = runs.waited(lambda goal=goal: (row := last())["step"] >= goal and row, "steps")
                time.sleep(chance.random())
                victim = runs.pid_of(run, chance.randrange(workers), now["incarnation"])
                killed = time.time()
                os.kill(victim, signal.SIGKILL)
                following = now["incarnation"] + 1
                ended, parts = runs.waited(lambda new=following: runs.first_step(run, new), "the first new step")
                parts = {"noticed, forked": parts.pop("born") - killed, **parts}
                taken.append((ended - killed, {"parts": parts}))
                runs.waited(lambda new=following: last()["incarnation"] == new, "the new workers' metrics")
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(120)
    return taken


def elastic(model: Path, workers: int, kills: int, chance: random.Random, types: list[str]) -> list[measure.Taken]:
    """Kill workers of the program under torchrun, in the type that Argosy chose last."""
    precision = types[-1]  # a noisy machine may choose now this, now that
    taken: list[measure.Taken] = []
    with tempfile.TemporaryDirectory() as folder:
        log, checkpoint = Path(folder) / "log", Path(folder) / "checkpoint.safetensors"
        command = [runs.program("torchrun"), "--standalone", "--nproc-per-node", str(workers), "--max-restarts", "100"]
        command += [str(HERE / "programs.py"), "ranks", str(model), "--steps", "1000000", "--precision", precision]
        command += ["--lines", str(log), "--kept", str(checkpoint)]
        command += ["--threads", str(max(1, (os.cpu_count() or 1) // workers))]
        variables = runs.environment(TORCH_DISABLE_SHARE_RDZV_TCP_STORE="1", OMP_NUM_THREADS="1")
        with open(Path(folder) / "output", "wb") as output:
            process = subprocess.Popen(command, env=variables, stdout=output, stderr=output)

        def lines(attempt: int) -> list[dict[str, Any]]:
            if process.poll() is not None:
                raise SystemExit(f"torchrun ended:\n{(Path(folder) / 'output').read_text()[-4000:]}")
            return [row for row in runs.rows(log) if row["attempt"] == attempt]

        try:
            for number in range(kills):
                runs.waited(lambda n=number: len(lines(n)) >= SETTLED * workers, "steps", 600)
                time.sleep(chance.random())
                ranks = {row["rank"]: row["pid"] for row in lines(number)}
                killed = time.time()
                os.kill(ranks[chance.randrange(workers)], signal.SIGKILL)
                first = runs.waited(lambda n=number: lines(n + 1), "the first new step", 600)[0]
                taken.append((first["time"] - killed, {}))
        finally:
            for pid in {row["pid"] for row in runs.rows(log)} | {process.pid}:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            process.wait(60)
    return taken


def main() -> None:
    """Read the options, measure, print, and write the page unless it was quick."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--kills", type=int, default=4, help="of Argosy's workers, per contestant and round")
    parser.add_argument("--elastic-kills", type=int, default=3, help="of torchrun's, which take far longer")
    parser.add_argument("--workers", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--quick", action="store_true", help="one kill each of two workers of a tiny model, nothing written"
    )
    options = parser.parse_args()
    overrides = [*runs.SMALL, "train.compile=false"] if options.quick else []
    if options.quick:
        options.rounds, options.kills, options.elastic_kills, options.workers = 1, 1, 1, options.workers[:1]
    chance, types = random.Random(options.seed), list[str]()
    table = measure.Table("restart", "seconds")
    table.settings = {
        "model": "the laptop job's (1.7M parameters, 16 sequences x 256 tokens a step)",
        "moment": f"kill -9 of a random worker at a random moment at least {SETTLED} steps after the last start",
        "torchrun": "--max-restarts, spawned workers, checkpoint on disk every 10 steps, a store of its own per restart",
    }
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model.json"
        model.write_text(json.dumps(runs.section(overrides, 257 if options.quick else 2048)))
        contestants: dict[str, Any] = {}
        for workers in options.workers:
            contestants[f"argosy, {workers} workers"] = functools.partial(
                argosy, overrides, workers, options.kills, chance, types
            )
            contestants[f"torchrun, {workers} workers"] = functools.partial(
                elastic, model, workers, options.elastic_kills, chance, types
            )
        measure.alternate(table, contestants, options.rounds)
    table.settings["numbers"] = f"{' and '.join(sorted(set(types)))} products, float32 weights"
    lines = ["### restart", "", *measure.markdown(table), ""]
    for workers, limit in ((2, 2.5), (4, 4.0)):
        name = f"argosy, {workers} workers"
        if workers in options.workers:
            lines.append(measure.verdict(f"{name}: seconds, median", table.median(name), limit, at_least=False))
            parts = ", ".join(f"{part} {seconds:.2f}" for part, seconds in table.parts(name).items())
            lines.append(f"- where they go (medians, {workers} workers): {parts}")
    measure.finish(table, lines, write=not options.quick)


if __name__ == "__main__":
    sys.exit(main())
