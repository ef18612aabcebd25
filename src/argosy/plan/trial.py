"""What is timed of a job before it starts: a request in plain data, made from the job in force. No torch, no clock.

`python -m argosy.train.trial` answers it (`cluster/here.py` starts that program and keeps answers). Two jobs with the same
request have the same answer on the same machine.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from argosy.cluster.here import Machine
from argosy.job.load import Loaded
from argosy.job.schema import BlockSection, Job, ModelSection, layers
from argosy.job.setting import Setting
from argosy.plan import flops, seconds
from argosy.plan.prepared import PreparedFacts
from argosy.plan.settle import Settled, settle

VERSION = 3  # of what is timed: answers to an older question are not taken for it
# FLOP that one pass over a piece should take at most on a CPU, for each thread: 0.15 s of a core that does 100 GFLOP/s.
WORK = 1.5e10
TOKENS = 16_384  # tokens of a pass at most
FEWEST = 32  # fewer say nothing about a step; a piece that is too large with these is not timed


def request(job: Job, workers: int, threads: int, device: str) -> dict[str, Any]:
    """The question for `job` in force, trained by `workers` of this machine with `threads` threads each on `device`.

    Keys: version, model (of one block), rows and sequence (of a pass over a block), ends (tokens of a pass over embedding,
    norm and loss), chunk, optim, kinds, workers, threads, device, block and head (shapes of weights). Empty where even a
    small pass would take too long.
    """
    model, block = job.model, job.model.block
    limit = (
        TOKENS if device != "cpu" else min(TOKENS, int(WORK * threads / seconds.work(model, block, job.batch.sequence)))
    )
    ends = TOKENS if device != "cpu" else min(TOKENS, int(WORK * threads / _ends(model)))
    if min(limit, ends) < FEWEST:
        return {}
    tokens = int(job.batch.micro) * job.batch.sequence
    sequence = min(job.batch.sequence, limit)
    kinds = ["float32", "bfloat16"] + ["float64"] * (job.train.precision == "float64")
    return {
        "version": VERSION,
        "model": {**model.model_dump(mode="json"), "layers": 1, "pattern": [], "init": "random"},
        "sequence": sequence,
        "rows": max(1, min(int(job.batch.micro), limit // sequence)),
        "ends": min(tokens, ends),
        "chunk": job.memory.loss_chunk,
        "optim": {"name": job.optim.name, "newton_schulz": job.optim.newton_schulz},
        "kinds": kinds,
        "workers": workers,
        "threads": threads,
        "device": device,
        "block": weights(model, block),
        "head": [[model.width, model.vocabulary]],
    }


def weights(model: ModelSection, block: BlockSection) -> list[list[int]]:
    """The weights (inner, outer) of one block as it multiplies with them: those that read the same input are one."""
    width, size, hidden = model.width or 0, flops.head_size(model, block), flops.hidden(model, block)
    heads, kv_heads = block.heads or 1, block.kv_heads or block.heads or 1
    qkv, inner = (heads + 2 * kv_heads) * size, hidden * (2 if block.activation == "swiglu" else 1)
    first = [[width, qkv + inner]] if block.parallel else [[width, qkv], [width, inner]]
    return [*first, [heads * size, width], [hidden, width]]


def passes(model: ModelSection) -> list[tuple[list[list[int]], int]]:
    """The weights of all matrix products of a step, each part with how often it runs: every kind of block, and the head."""
    counted = Counter(tuple(map(tuple, weights(model, block))) for block in layers(model))
    found = [([list(pair) for pair in part], times) for part, times in counted.items()]
    return [*found, ([[model.width or 0, model.vocabulary or 0]], 1)]


def settled(
    loaded: Loaded,
    machine: Machine,
    prepared: PreparedFacts,
    workers: int,
    ask: Callable[[dict[str, Any]], Mapping[str, Any]],
    kept: Mapping[str, Setting] | None = None,
    *,
    folder: Path | None = None,
    read: tuple[int, int] = (0, 0),
    local: int | None = None,
) -> tuple[Settled, dict[str, Any], Mapping[str, Any]]:
    """Settle the job twice: to know what to time, and with the answer. Gives also the request and its answer.

    The arguments are those of `settle`; `ask` answers a request; as many workers as are on this machine are timed beside each
    other. Refused as `settle` does, before anything is timed.
    """
    mine = workers if local is None else local
    draft = settle(loaded, machine, {}, prepared, workers, kept, folder=folder, read=read, local=local).job
    asked = request(draft, max(1, mine), machine.threads(mine), "cuda" if machine.devices else "cpu")
    answer = ask(asked) if asked else {"failed": "one block of this model is too large to be timed in a second"}
    found = settle(loaded, machine, answer, prepared, workers, kept, folder=folder, read=read, local=local)
    return found, asked, answer


def doubt(answer: Mapping[str, Any]) -> str:
    """A sentence where the machine was too busy to be measured, and what stands on it; nothing where it was quiet."""
    if answer.get("steady", True):
        return ""
    again = "a new run from an hour later on measures again"
    if "pieces" in answer:
        return f"this machine was busy while this model's layers were timed, so types and times may be off; {again}"
    return f"this machine was too busy to time this model's layers, so types and times are a guess; {again}"


def _ends(model: ModelSection) -> float:
    return 6.0 * (model.vocabulary or 0) * (model.width or 0)
