"""The bubble of a pipeline: the share of a step in which ranks wait, beside the formula; and letters that travel slowly.

`python benchmarks/pipeline.py [--rounds 5] [--quick]`

Processes of this machine run the real schedule with real sends, while their stages *sleep*: forward, the gradient of the
input and the gradient of the weight take given times in torch's own backward pass. So eight ranks need no eight cores. What
is measured is 1 - (time that a rank's own work takes) / (time from the first begin to the last end of a step).

Equal stages: (p - 1) / (v m + p - 1), v stages a rank. Unequal stages, and links that delay each letter: the same lists played
against a table of times (`argosy.layout.schedule.times`). *Coupled* is how pipelines exchanged before MegaScale separated sends
from receives: after each pass a rank waits until what it sends has arrived and what it next needs is there. It has no formula,
and stands beside the same schedule with letters that go apart.

Real computation at p = 2 only: a small decoder on two cores, one thread each, beside one process with one thread.
"""

from __future__ import annotations

import argparse
import functools
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

# Seconds of a stage's forward pass of one micro-batch; both halves of the backward pass take as long. Long beside the
# millisecond that Python and gloo take for a pass when eight processes share two cores.
UNIT = 0.06
POINTS = 0.03  # how far from the formula a bubble may be


def resting() -> Any:
    """A function of autograd that takes `before` seconds forward and `after` seconds backward, and changes nothing."""
    import torch

    class Rest(torch.autograd.Function):
        """Sleeps."""

        @staticmethod
        def forward(ctx: Any, x: Any, before: float, after: float) -> Any:
            ctx.after = after
            time.sleep(before)
            return x.view_as(x)

        @staticmethod
        def backward(ctx: Any, gradient: Any) -> Any:
            time.sleep(ctx.after)
            return gradient, None, None

    return Rest.apply


def slow_links(mesh: Any, delay: float, coupled: bool) -> Any:
    """Links on which every letter takes `delay` seconds longer; its first number is the time at which it was posted."""
    from argosy.parallel.links import Links

    class Slow(Links):
        """Real letters, which nobody may read before their time."""

        def send(self, action: Any, letter: Any) -> None:
            letter = letter.detach().clone()
            letter.view(-1)[0] = time.monotonic()
            super().send(action, letter)

        def read(self, action: Any) -> Any:
            return self.due(super().read(action))

        def due(self, letter: Any) -> Any:
            """`letter`, when it has been on its way for long enough."""
            time.sleep(max(0.0, float(letter.view(-1)[0]) + delay - time.monotonic()))
            return letter

    class Coupled(Slow):
        """Sends and the receives for the next pass are one exchange, which ends when all of them are through."""

        def __init__(self, mesh: Any):
            super().__init__(mesh)
            self.boxes: dict[Any, Any] = {}  # to be opened in the next exchange
            self.come: dict[Any, Any] = {}

        def open(self, action: Any, buffer: Any) -> None:
            self.boxes[action] = buffer

        def exchange(self) -> None:
            """Open what is to be opened, wait for it, and until what was sent has been taken."""
            for action, buffer in self.boxes.items():
                super().open(action, buffer)
            posted = [letter for _, letter in self._sent.values()]
            self.let_go(list(self._sent))
            for letter in posted:
                self.due(letter)
            self.come |= {action: super(Coupled, self).read(action) for action in self.boxes}
            self.boxes = {}

        def send(self, action: Any, letter: Any) -> None:
            super().send(action, letter)
            self.exchange()

        def read(self, action: Any) -> Any:
            if action not in self.come:
                self.exchange()
            return self.come.pop(action)

    return (Coupled if coupled else Slow)(mesh)


def steps(rank: int, ranks: int, board: str, asked: Mapping[str, Any]) -> list[tuple[float, float]]:
    """Begin and end of each step on this rank but the first, stages asleep as `asked` says. Runs in the pool."""
    import torch
    import torch.distributed as dist
    from torch import nn

    from argosy.layout.layout import Layout
    from argosy.parallel.data import Replicated
    from argosy.parallel.execute import Whole
    from argosy.parallel.mesh import Meeting, joined
    from argosy.parallel.pipeline import Pipeline

    layout, rest = Layout(pp=ranks, virtual=asked["virtual"]), resting()
    module = nn.ParameterDict({"weight": nn.Parameter(torch.ones(1, 1, 4, dtype=torch.float64))})

    def stage(index: int) -> Any:
        forward, inputs, weights = (asked[name][index] for name in ("forward", "inputs", "weights"))

        def compute(model: Any, x: Any, batch: Any) -> Any:
            x = torch.zeros(1, 1, 4, dtype=torch.float64, requires_grad=True) if x is None else x
            made = rest(x, forward, inputs) * rest(model["weight"], 0.0, weights)
            return made.sum() if index == layout.stages - 1 else made

        return compute

    found = []
    with joined(layout, rank, Meeting("pipeline/1", Path(board))) as mesh:
        whole, own = Whole(module), layout.stages_of(rank)
        data = Replicated((f"weight.{name}", parameter) for name, parameter in module.items())
        links = slow_links(mesh, asked["delay"], asked["coupled"])
        kind = torch.float64
        execute = Pipeline(
            layout, rank, asked["schedule"], whole, {index: stage(index) for index in own}, data, links,
            lambda batch: ((1, 1, 4), kind), kind, torch.device("cpu"),
        )  # fmt: skip
        micro = [SimpleNamespace() for _ in range(asked["micro"])]
        for _ in range(1 + asked["steps"]):
            dist.barrier()
            begin = time.monotonic()
            execute(micro, scale=1.0)
            found.append((begin, time.monotonic()))
    return found[1:]


def real(rank: int, ranks: int, board: str, asked: Mapping[str, Any]) -> list[tuple[float, float]]:
    """Begin and end of each step of a real decoder in `asked["job"]`'s layout. Runs in the pool."""
    import torch
    import torch.distributed as dist

    from argosy.job.schema import Job
    from argosy.parallel import apply
    from argosy.parallel.mesh import Meeting, joined
    from argosy.plan import layouts
    from argosy.prove.sample import batch_of
    from argosy.train.feed import cut, tensors

    job, device = Job.model_validate(asked["job"]), torch.device("cpu")
    layout = layouts.of(job.layout, ranks)
    rows = job.batch.tokens // job.batch.sequence
    batch = batch_of(1, rows=rows, sequence=job.batch.sequence, packed=False, vocabulary=job.model.vocabulary or 0)
    found = []
    with joined(layout, rank, Meeting("pipeline/2", Path(board))) as mesh:
        laid = apply.decoder(job, mesh, device)
        laid.applied.whole.train()
        micro = [tensors(part, device) for part in cut(batch, layout.data, 0, int(job.batch.micro))]
        for _ in range(1 + asked["steps"]):
            if mesh.world is not None:
                dist.barrier()
            begin = time.monotonic()
            laid.execute(micro, scale=1.0)
            found.append((begin, time.monotonic()))
    return found[1:]


def spans(rows: Sequence[Sequence[Sequence[float]]]) -> list[float]:
    """Seconds of each step: from the first rank's begin to the last rank's end."""
    return [max(end for _, end in step) - min(begin for begin, _ in step) for step in zip(*rows, strict=True)]


def case(
    schedule: str, ranks: int, micro: int, *, slow: bool = False, delay: float = 0.0, coupled: bool = False
) -> Any:
    """What ranks are told, with the play's prediction; `slow`: one stage takes half as long again."""
    from argosy.layout.schedule import Shape, times

    virtual = 2 if schedule == "interleaved" else 1
    count = ranks * virtual
    forward = [UNIT * (1.5 if slow and index == count // 2 else 1.0) for index in range(count)]
    shape = Shape(ranks, virtual, micro)
    played = times(schedule, shape, forward, [2 * seconds for seconds in forward], delay)
    busy = 3 * micro * sum(forward) / ranks  # of a rank, on average
    return {
        "schedule": schedule, "virtual": virtual, "micro": micro, "forward": forward, "inputs": forward, "weights": forward,
        "delay": delay, "coupled": coupled, "steps": 3, "busy": busy,
        "formula": None if coupled else played.bubble(busy),
    }  # fmt: skip


def cases(quick: bool) -> dict[str, tuple[int, Any]]:
    """Name -> (ranks, what they are told)."""
    found = {}
    for ranks in (2,) if quick else (2, 4, 8):
        for schedule in ("gpipe", "1f1b", "interleaved"):
            found[f"{schedule}, p = {ranks}, m = {2 * ranks}"] = (ranks, case(schedule, ranks, 2 * ranks))
            if not quick:
                name = f"{schedule}, p = {ranks}, m = {2 * ranks}, a slow stage"
                found[name] = (ranks, case(schedule, ranks, 2 * ranks, slow=True))
    ranks = 2 if quick else 4
    for schedule in ("gpipe", "1f1b"):
        for coupled in (False, True):
            way = "coupled" if coupled else "apart"
            told = case(schedule, ranks, 2 * ranks, delay=UNIT / 2, coupled=coupled)
            found[f"{schedule}, p = {ranks}, letters {UNIT / 2 * 1e3:.0f} ms, {way}"] = (ranks, told)
    return found


def job(shape: str, schedule: str) -> dict[str, Any]:
    """A decoder whose stages are about equal: eight layers, a small vocabulary; eight sequences one by one."""
    import json

    from argosy.job.schema import Job

    block = {
        "heads": 4, "kv_heads": 4, "head_size": 64, "hidden": 704, "activation": "swiglu", "norm": "rms", "norm_epsilon": 1e-5,
        "norm_bias": False, "qk_norm": "none", "qkv_bias": False, "attention_bias": False, "mlp_bias": False, "window": 0,
        "dropout": 0.0, "parallel": False,
    }  # fmt: skip
    section = {"shape": shape} | ({"schedule": schedule} if "pp" in shape else {})
    made = {
        "name": "pipeline",
        "model": {
            "layers": 8, "width": 256, "vocabulary": 512, "positions": "rotary", "rope_theta": 1e4, "tied": False,
            "block": block,
        },
        "batch": {"sequence": 256, "tokens": 8 * 256, "micro": 1},
        "train": {"steps": 1, "precision": "float32", "master": "float32", "reduce": "float32", "compile": False},
        "optim": {"name": "adamw", "lr": 1e-3, "warmup": 0},
        "layout": section,
    }  # fmt: skip
    told: dict[str, Any] = json.loads(Job.model_validate(made).model_dump_json())
    return told


def asleep(pool: Any, ranks: int, told: Mapping[str, Any]) -> list[tuple[float, dict[str, Any]]]:
    """The bubble of each step."""
    rows = pool.call(f"{Path(__file__).resolve()}:steps", told, ranks=ranks)
    return [(1 - told["busy"] / seconds, {"seconds": seconds, "formula": told["formula"]}) for seconds in spans(rows)]


def awake(pool: Any, schedule: str) -> list[tuple[float, dict[str, Any]]]:
    """The bubble at p = 2 from real steps: half of what one process takes is a rank's own work."""
    entry = f"{Path(__file__).resolve()}:real"
    alone = spans(pool.call(entry, {"job": job("dp1", schedule), "steps": 5}, ranks=1))
    both = spans(pool.call(entry, {"job": job("pp2", schedule), "steps": 5}, ranks=2))
    return [(1 - min(alone) / 2 / min(both), {"alone": alone, "both": both})]


def main() -> None:
    """Read the options, measure, print, and write the page unless it was quick."""
    import measure
    from argosy.layout.schedule import Shape, bubble
    from argosy.prove.pool import Pool

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="two ranks, one round, nothing written")
    options = parser.parse_args()
    rounds = 1 if options.quick else options.rounds
    table = measure.Table("pipeline", "bubble")
    table.settings = {
        "a stage's forward pass of a micro-batch": f"{UNIT * 1e3:.0f} ms, input and weight gradient as long; interleaved ranks "
        "have two stages"
    }
    asked = cases(options.quick)
    with Pool(max(ranks for ranks, _ in asked.values())) as pool:
        contestants: dict[str, Any] = {
            name: functools.partial(asleep, pool, ranks, told) for name, (ranks, told) in asked.items()
        }
        for schedule in ("gpipe", "1f1b"):
            contestants[f"{schedule}, p = 2, m = 8, a real decoder"] = functools.partial(awake, pool, schedule)
        measure.alternate(table, contestants, rounds)
    lines = ["### pipeline", "", *measure.markdown(table), "", *compared(table, asked)]
    real_formula = bubble("1f1b", Shape(2, 1, 8))
    for schedule in ("gpipe", "1f1b"):
        name = f"{schedule}, p = 2, m = 8, a real decoder"
        lines.append(f"- {name}: {table.median(name):.1%}, formula for equal stages {real_formula:.1%}")
    measure.finish(table, lines, write=not options.quick)


def compared(table: Any, asked: Mapping[str, tuple[int, Any]]) -> list[str]:
    """Each case beside its formula, with a verdict; coupled letters beside letters apart."""
    lines = []
    for name, (_, told) in asked.items():
        found, formula = table.median(name), told["formula"]
        if formula is None:
            apart = table.median(name.replace("coupled", "apart"))
            lines.append(f"- {name}: bubble {found:.1%}, apart {apart:.1%}")
            continue
        good = "reached" if abs(found - formula) <= POINTS else "missed"
        wanted = f"(wanted: within {POINTS * 100:.0f} points; {good})"
        lines.append(f"- {name}: bubble {found:.1%}, formula {formula:.1%} {wanted}")
    return lines


if __name__ == "__main__":
    main()
