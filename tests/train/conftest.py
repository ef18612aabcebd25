"""Small runs to train in: a run folder as `argosy train` would keep it, without its parent processes."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from argosy.cluster.here import machine
from argosy.commands import held
from argosy.data.order import ORDER
from argosy.data.prepare import prepare
from argosy.data.reader import remove
from argosy.job.load import job_from
from argosy.plan.settle import settle
from argosy.prove.pool import Pool
from argosy.run import folder
from argosy.run.archive import Archive
from argosy.run.folder import Run
from argosy.run.incarnation import Incarnation
from argosy.run.ledger import Ledger

MakeRun = Callable[..., Run]

TINY: dict[str, Any] = {
    "model.preset": "tiny",
    "model.layers": 2,
    "model.width": 32,
    "model.block.heads": 2,
    "data.tokenizer": "bytes",
    "data.held_out": "20%",
    "batch.sequence": 32,
    "batch.tokens": 256,
    "batch.micro": 2,
    "train.steps": 8,
    "train.precision": "float32",
    "train.compile": False,
    "optim.lr": 0.01,
    "checkpoint.every": 3,
    "evaluate.every": 4,
    "evaluate.tokens": 512,
    "observe.sample_every": 4,
    "observe.sample_tokens": 4,
}


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 40 small text files."""
    place = tmp_path_factory.mktemp("text")
    draw = random.Random(7)
    words = ["the", "sea", "was", "calm", "and", "ships", "lay", "still", "in", "bay", "while", "men", "slept"]
    for number in range(40):
        (place / f"{number:02d}.txt").write_text(" ".join(draw.choices(words, k=60)) + ".\n")
    return place


@pytest.fixture
def make_run(text: Path, tmp_path_factory: pytest.TempPathFactory) -> MakeRun:
    """`make_run(path, workers, **{"optim.lr": 0.1})`: a run folder, ready for its first worker."""
    cache = tmp_path_factory.getbasetemp() / "prepared-cache"

    def made(path: Path, workers: int = 1, **changes: Any) -> Run:
        values: dict[str, Any] = {}
        for key, value in {**TINY, "data.source": str(text), **changes}.items():
            node = values
            *parts, last = key.split(".")
            for part in parts:
                node = node.setdefault(part, {})
            node[last] = value
        loaded = job_from(values)
        prepared = prepare(loaded.job.data, base=path.parent, cache=cache)
        settled = settle(loaded, machine(), {}, prepared.facts, workers, folder=path)
        run = folder.create(path, asked=loaded.job, text="", origin={})
        job = settled.job
        ledger = Ledger.start(
            data__order=ORDER,
            batch__sequence=job.batch.sequence,
            batch__tokens=job.batch.tokens,
            train__seed=job.train.seed,
        )
        ledger.write(path / "ledger.jsonl")
        sets = held.sets(loaded, prepared, lambda what, done, total: None, cache)
        folder.settle(run, loaded.job, loaded.written, settled.settings, prepared.folder, "", sets)
        return run

    return made


@contextmanager
def helpers(run: Run, number: int) -> Iterator[None]:
    """The reader and the snapshot process of an incarnation, as the parent starts them."""
    (run.local / "finish-snapshot").unlink(missing_ok=True)
    words = {"reader": "argosy.data.reader:main", "snapshot": "argosy.checkpoint.snapshot:main"}
    command = [sys.executable, "-P", "-m", "argosy.run.child"]
    children = {
        role: subprocess.Popen([*command, entry, role, str(run.path), str(number), str(os.getpid())])
        for role, entry in words.items()
    }
    try:
        yield
        (run.local / "finish-snapshot").touch()
        assert children["snapshot"].wait(timeout=60) == 0
    finally:
        for child in children.values():
            child.kill()
            child.wait()
        (run.local / "finish-snapshot").unlink(missing_ok=True)
        remove(run)


def worked(rank: int, ranks: int, board: str, asked: dict[str, Any]) -> int:
    """Be a worker: what `Workers` lets each rank of the pool do."""
    from argosy.train import worker

    return worker.main(asked["run"], rank, asked["incarnation"])


class Workers:
    """Trains a run with the pool's ranks, one incarnation a call."""

    def __init__(self, pool: Pool):
        self.pool = pool

    def __call__(self, run: Run, layout: str, ranks: int, entry: str = f"{Path(__file__)}:worked") -> list[Any]:
        number = Incarnation.next(run)
        Incarnation(number, ranks, layout, 1, parent=os.getpid()).write(run)
        run.update_info(incarnation=number)
        with helpers(run, number):
            asked = {"run": str(run.path), "incarnation": number}
            return self.pool.call(entry, asked, ranks=ranks)


@pytest.fixture
def workers(pool: Pool) -> Workers:
    """`workers(run, "replicate2", 2)` trains it with two ranks of the pool."""
    return Workers(pool)


def losses(run: Run) -> list[tuple[int, float]]:
    """(step, loss) of every line of metrics.jsonl, made anew from the record."""
    Archive(run).close()
    rows = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    return [(row["step"], row["loss"]) for row in rows]


@pytest.fixture
def losses_of() -> Callable[[Run], list[tuple[int, float]]]:
    """The function `losses`."""
    return losses


def alone(run: Run) -> int:
    """Train in this process, as `--workers 0` does."""
    from argosy.train import worker

    number = Incarnation.next(run)
    Incarnation(number, 1, "dp1", 1, parent=os.getpid()).write(run)
    run.update_info(incarnation=number)
    return worker.main(str(run.path), 0, number)


@pytest.fixture
def work() -> Callable[[Run], int]:
    """The function `alone`."""
    return alone
