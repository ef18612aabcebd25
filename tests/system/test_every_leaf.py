"""Every key of a job arrives: changing it changes what model, optimizer, loader, executor, writer, fleet or screen *hold*.

For each leaf a changed value is started twice, up to the point where the first step would begin, through the very functions
that `argosy train` uses; then the receiver is asked, never the settings. A key that no receiver notices fails here, and so
does a new key without a row in ROWS.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from argosy.cluster.here import Trial
from argosy.commands import conduct, ledger
from argosy.errors import Refused
from argosy.job import leaves
from argosy.prove.pool import Pool
from argosy.run import folder
from argosy.run.incarnation import Incarnation

BASE = """
version = 1
extends = "parent.toml"
name    = "leaf"
[model]
layers = 2
width  = 32
block  = { heads = 2 }
[data]
source    = "texts"
held_out  = "20%"
[batch]
sequence = 32
tokens   = 256
micro    = 4
[train]
steps     = 12
precision = "float32"
compile   = false
[optim]
lr     = 1e-2
[observe]
sample_tokens = 6
[evaluate]
tokens = 256
"""
OWN = """
import torch

from argosy.model.decoder import Decoder, norm_of
from argosy.train.callbacks import Callback

class Normed(Decoder):
    def __init__(self, model, **more):
        super().__init__(model, **more)
        with torch.device("meta"):
            self.first_norm = norm_of(model.block, model.width)

    def embed(self, tokens, positions):
        return self.first_norm(super().embed(tokens, positions))

def doubled(model, batch):
    return 2 * model.loss(batch)

class Watch(Callback):
    pass
"""
pytestmark = pytest.mark.long

LEARNED = ("model.positions=learned",)
LAYERNORM = ("model.block.norm=layer",)


@dataclass(frozen=True)
class Row:
    """How one leaf is tried: the override, the receiver that must notice, and what else both starts are given."""

    change: str
    receiver: str
    given: tuple[str, ...] = ()


ROWS: dict[str, Row] = {
    "version": Row("version=2", "refused"),
    "extends": Row('extends="other.toml"', "optimizer"),
    "name": Row("other", "folder"),
    "model.preset": Row("gpt2-124m", "model", ("model.layers=2", "model.width=32", "model.block.heads=2")),
    "model.class": Row("own.py:Normed", "model"),
    "model.init": Row("parent-run", "first weights"),
    "model.layers": Row("3", "model"),
    "model.width": Row("48", "model"),
    "model.vocabulary": Row("300", "model"),
    "model.positions": Row("learned", "model"),
    "model.context": Row("40", "model", LEARNED),
    "model.rope_theta": Row("100.0", "loss"),
    "model.rope_scaling": Row('{ kind = "linear", factor = 4.0 }', "loss"),
    "model.softcap": Row("2.0", "loss"),
    "model.z_loss": Row("0.1", "z-loss"),
    "model.tied": Row("false", "model"),
    "model.scaling": Row("mup", "optimizer", ("model.tied=false",)),
    "model.base_width": Row("8", "optimizer", ("model.tied=false", "model.scaling=mup")),
    "model.pattern": Row("[{ window = 4 }, {}]", "loss"),
    "model.block.heads": Row("4", "loss"),
    "model.block.kv_heads": Row("1", "model"),
    "model.block.head_size": Row("8", "model"),
    "model.block.hidden": Row("40", "model"),
    "model.block.activation": Row("gelu", "model"),
    "model.block.parallel": Row("true", "model"),
    "model.block.norm": Row("layer", "loss"),
    "model.block.norm_placement": Row("peri", "model"),
    "model.block.softcap": Row("0.01", "loss"),
    "model.block.norm_epsilon": Row("0.1", "loss"),
    "model.block.norm_bias": Row("true", "model", LAYERNORM),
    "model.block.qk_norm": Row("head", "model"),
    "model.block.qkv_bias": Row("true", "model"),
    "model.block.attention_bias": Row("true", "model"),
    "model.block.mlp_bias": Row("true", "model"),
    "model.block.window": Row("4", "loss"),
    "model.block.dropout": Row("0.5", "loss"),
    "data.source": Row("more", "batches"),
    "data.mix": Row('[{ source = "more", weight = 2.0 }, { source = "texts" }]', "batches"),
    "data.field": Row("body", "batches", ("data.source=records.jsonl",)),
    "data.licences": Row('["MIT"]', "refused"),
    "data.tokenizer": Row('{ train = "bpe", vocabulary = 280 }', "batches"),
    "data.held_out": Row("50%", "batches"),
    "data.license": Row("CC0-1.0", "report"),
    "data.cache": Row("elsewhere", "prepared"),
    "batch.sequence": Row("16", "batches"),
    "batch.tokens": Row("512", "batches"),
    "batch.packing": Row("best-fit", "batches"),
    "batch.ramp": Row("{ start = 64, by = 64, tokens = 512 }", "batches"),
    "batch.micro": Row("2", "micro-batches"),
    "train.tokens": Row("2048", "rates"),
    "train.steps": Row("20", "rates"),
    "train.time": Row("90 s", "rates"),
    "train.precision": Row("bfloat16", "loss"),
    "train.precision_of.norm": Row("bfloat16", "loss"),
    "train.precision_of.embedding": Row("bfloat16", "loss"),
    "train.precision_of.head": Row("bfloat16", "loss"),
    "train.master": Row("float64", "model"),
    "train.reduce": Row("bfloat16", "reduction"),
    "train.compile": Row("true", "compile"),
    "train.seed": Row("2", "batches"),
    "train.deterministic": Row("true", "notes"),
    "train.collect_every": Row("7", "callbacks"),
    "train.loss": Row("own.py:doubled", "loss"),
    "train.callbacks": Row('["own.py:Watch"]', "callbacks"),
    "optim.name": Row("adamw", "optimizer"),
    "optim.lr": Row("2e-2", "optimizer"),
    "optim.schedule": Row("cosine", "rates"),
    "optim.warmup": Row("1024", "rates"),
    "optim.decay": Row("0.5", "rates"),
    "optim.final": Row("0.3", "rates"),
    "optim.rewarm": Row("1024", "rates of a branch"),
    "optim.weight_decay": Row("0.2", "optimizer"),
    "optim.clip": Row("0.5", "clip"),
    "optim.beta1": Row("0.8", "optimizer"),
    "optim.beta2": Row("0.99", "optimizer"),
    "optim.epsilon": Row("1e-6", "optimizer"),
    "optim.momentum": Row("0.9", "optimizer"),
    "optim.newton_schulz": Row("3", "optimizer"),
    "layout.shape": Row("dp2", "layout"),
    "layout.zero": Row("3", "layout", ("layout.shape=dp2",)),
    "layout.order": Row("tp replicate dp cp pp", "layout", ("layout.shape=pp2 tp2",)),
    "layout.secondary": Row("2", "layout", ("layout.shape=dp4", "layout.zero=3")),
    "layout.sequence": Row("false", "layout", ("layout.shape=tp2",)),
    "layout.schedule": Row("gpipe", "layout", ("layout.shape=pp2",)),
    "layout.virtual": Row("2", "layout", ("layout.shape=pp2", "layout.schedule=interleaved", "model.layers=8")),
    "layout.stages": Row("[3, 1]", "layout", ("layout.shape=pp2", "model.layers=4")),
    "memory.recompute": Row("block", "order"),
    "memory.limit": Row("100 MB", "refused"),
    "memory.loss_chunk": Row("64", "loss chunk"),
    "checkpoint.every": Row("3", "callbacks"),
    "checkpoint.keep": Row("5", "writer"),
    "checkpoint.bandwidth": Row("1 MB/s", "writer"),
    "faults.recover": Row("false", "fleet"),
    "faults.restarts": Row("2", "fleet"),
    "observe.sample_every": Row("5", "callbacks"),
    "observe.prompts": Row('["so", "all"]', "samples"),
    "observe.sample_tokens": Row("3", "samples"),
    "observe.temperature": Row("0.0", "samples"),
    "observe.numerics_every": Row("3", "numerics"),
    "observe.log_every": Row("1 s", "screen"),
    "evaluate.every": Row("5", "callbacks"),
    "evaluate.tokens": Row("64", "evaluation"),
    "evaluate.sets": Row('[{ name = "other", source = "more" }]', "evaluation"),
    "evaluate.by": Row("other", "best", ('evaluate.sets=[{ name = "other", source = "more" }]',)),
    "evaluate.keep_best": Row("true", "best"),
    "evaluate.patience": Row("3", "best"),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with texts and job files."""
    home = tmp_path_factory.mktemp("leaf")
    words = [
        "the",
        "sea",
        "was",
        "calm",
        "and",
        "a",
        "few",
        "ships",
        "lay",
        "still",
        "in",
        "every",
        "bay",
        "while",
        "men",
    ]
    for name, stride in (("texts", 7), ("more", 5)):
        (home / name).mkdir()
        for number in range(30):
            chosen = [words[(number * stride + index * (number + 3)) % len(words)] for index in range(60)]
            (home / name / f"{number:02d}.txt").write_text(" ".join(chosen) + ".\n", encoding="utf-8")
    records = [
        json.dumps({"text": f"{words[number % 15]} {number}", "body": f"{number} {words[number % 11]} ."})
        for number in range(200)
    ]
    (home / "records.jsonl").write_text("\n".join(records), encoding="utf-8")
    (home / "parent.toml").write_text("[optim]\nweight_decay = 0.1\n", encoding="utf-8")
    (home / "other.toml").write_text("[optim]\nweight_decay = 0.3\n", encoding="utf-8")
    (home / "base.toml").write_text(BASE, encoding="utf-8")
    (home / "own.py").write_text(OWN, encoding="utf-8")
    return home


@pytest.fixture
def environment(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs and cache inside the folder; a machine of which the speeds are known."""
    monkeypatch.chdir(place)
    monkeypatch.setenv("ARGOSY_CACHE", str(place / "cache"))
    monkeypatch.setenv("ARGOSY_RUNS", str(place / "runs"))
    known = {"gemm": {"float32": 50.0, "bfloat16": 20.0}, "compile": True}
    monkeypatch.setattr(Trial, "begin", lambda self: None)
    monkeypatch.setattr(Trial, "ask", lambda self, request: known)


def started(place: Path, job: str, overrides: tuple[str, ...], workers: int = 1) -> conduct.Start:
    """What `argosy train` knows before the first worker starts."""
    from argosy.cluster.here import machine
    from argosy.observe import progress

    wanted = conduct.Wanted(job, overrides, workers=workers)
    loaded = wanted.loaded()
    _, verdict = conduct.judged(wanted, loaded, workers)
    screen = progress.screen("plain", io.StringIO())
    start = conduct.Start(wanted, loaded, verdict, machine(), workers, screen)
    conduct.ready(start)
    return start


def made(start: conduct.Start, path: Path) -> folder.Run:
    """The run folder of `start`, without asking git where we come from."""
    assert start.settled is not None
    assert start.prepared is not None
    job = start.settled.job
    run = folder.create(path, asked=start.loaded.job, text=start.loaded.text, origin={})
    run.local.mkdir(parents=True, exist_ok=True)
    ledger.write(run, job, start.verdict, start.prepared)
    settings, sets = start.settled.settings, start.sets
    folder.settle(run, start.loaded.job, start.loaded.written, settings, start.prepared.folder, "", sets)
    return run


def digest(*arrays: Any) -> str:
    """One hash of all arrays, types and shapes included."""
    found = hashlib.blake2b(digest_size=8)
    for array in arrays:
        whole = np.ascontiguousarray(array)
        found.update(f"{whole.dtype}{whole.shape}".encode())
        found.update(whole.tobytes())
    return found.hexdigest()


def engine(run: folder.Run) -> dict[str, Any]:
    """What a worker holds just before its first step."""
    from dataclasses import fields

    import torch

    from argosy.data.batch import Batch, global_batch
    from argosy.data.held import sets
    from argosy.data.reader import LocalBatches
    from argosy.data.shards import Shards
    from argosy.parallel.mesh import joined
    from argosy.run.recorder import Recorder
    from argosy.train import callbacks, worker
    from argosy.train.feed import cut, tensors

    # A parent that is not this process: no snapshot process is started, and batches are asked of the loader below.
    number = Incarnation(1, 1, run.job().layout.shape, 1, parent=os.getppid())
    number.write(run)
    recorder = Recorder(run, 0, 1)
    one = worker.Worker(run, number, 0, recorder)
    shards, entries, seed = Shards(run.prepared()), run.ledger(), one.job.train.seed
    batches = [global_batch(step, seed, entries, shards) for step in range(1, 13)]
    with joined(one.layout, 0, worker.meeting_of(run, number), backend="gloo", kind="cpu") as mesh:
        one.build(mesh)
        first = {name: digest(value.detach().numpy()) for name, value in one.applied.named().items()}
        one.saver = one.keeper(mesh)
        one.load(mesh)
        trainer = one.trainer(mesh)
        one.feed.batches = LocalBatches(seed, entries, shards, 1, lambda: sets(run, shards))  # no reader serves us
        part = cut(batches[0], 1, 0, int(one.job.batch.micro))
        found: dict[str, Any] = {
            "model": [(name, tuple(value.shape), value.dtype) for name, value in one.applied.named().items()],
            "first weights": first
            if one.job.model.init == "random"
            else {name: digest(value.detach().numpy()) for name, value in one.applied.named().items()},
            "rates": [one.state.rate(step) for step in range(1, one.steps + 1)],
            "rates of a branch": rates_of_a_branch(one),
            "numerics": [step for step in range(1, 13) if measured(one, step)],
            "clip": one.state.clip,
            "compile": one.compiled,
            "order": list(one.applied.order),
            "loss chunk": one.laid.chunk,
            "z-loss": one.decoder.z_loss,
            "reduction": str(one.applied.data.reduce),
            "micro-batches": [len(piece) for piece in part],
            "batches": [digest(*(getattr(batch, field.name) for field in fields(Batch))) for batch in batches],
            "optimizer": optimizer(one.optimizer),
            "callbacks": [
                (type(each).__name__, getattr(each, "every", None))
                for each in trainer.callbacks
                if isinstance(each, callbacks.Callback)
            ],
        }
        if not one.compiled:
            one.number.fill_(1)
            found["loss"] = one.laid.execute([tensors(part[0], torch.device("cpu"))], scale=1.0, backward=False).item()
            evaluate = next(each for each in trainer.callbacks if isinstance(each, callbacks.Evaluate))
            found["best"] = (evaluate.by, evaluate.keep, evaluate.patience)
            found["evaluation"] = [(held.documents, held.counted) for held in evaluate.measure()]
            next(each for each in trainer.callbacks if isinstance(each, callbacks.Sample)).write(1)
            rows = (run.path / "samples.jsonl").read_text(encoding="utf-8").splitlines()
            found["samples"] = [row.split('"incarnation"')[0] for row in rows]
        one.feed.close()
        one.saver.close()
    recorder.finish()
    return found


def measured(one: Any, step: int) -> bool:
    """Whether figures of every layer are taken of `step`."""
    one.numerics.begin(step, [])
    taken = bool(one.numerics.step)
    one.numerics.stop()
    return taken


def rates_of_a_branch(one: Any) -> list[float]:
    """The rates of a run that left its parent after the third step."""
    from argosy.run.ledger import Ledger
    from argosy.train.rates import leaving, scheduled

    left = Ledger((*one.ledger.entries, leaving(one.job.optim, one.ledger, one.steps, 3, "runs/parent")))
    return [scheduled(one.job.optim, left, one.steps)(step) for step in range(4, one.steps + 1)]


def optimizer(built: Any) -> Any:
    """What the update is made with."""
    groups = [{key: value for key, value in group.items() if key != "params"} for group in built.inner.param_groups]
    matrices = built.matrices and {
        name: str(value)
        for name, value in vars(built.matrices).items()
        if name in ("momentum", "iterations", "weight_decay", "kind", "beta1", "beta2", "epsilon", "decay", "rates")
    }
    return built.lr, built.describe(), [sorted(group.items(), key=str) for group in map(str_values, groups)], matrices


def str_values(table: Mapping[str, Any]) -> dict[str, str]:
    """Every value as text, so that groups can be compared."""
    return {key: str(value) for key, value in table.items()}


def others(start: conduct.Start, run: folder.Run, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What screen, fleet, snapshot process and report hold."""
    from argosy.checkpoint import snapshot
    from argosy.fleet.driver import Driver

    assert start.settled is not None
    assert start.prepared is not None
    writers: list[snapshot.Writer] = []

    class Kept(snapshot.Writer):
        def __init__(self, *arguments: Any, **named: Any):
            super().__init__(*arguments, **named)
            writers.append(self)

    with monkeypatch.context() as patch:
        patch.setattr(snapshot, "Writer", Kept)
        (run.local / "finish-snapshot").touch()
        assert snapshot.main(str(run.path), 1) == 0
    (run.local / "finish-snapshot").unlink(missing_ok=True)
    fleet = Driver(run, Incarnation(1, 1, "dp1", 1), start.screen, None).fleet  # type: ignore[arg-type]
    facts: Any = conduct._facts(start)
    return {
        "writer": [(one.keep, one.bandwidth) for one in writers],
        "fleet": (fleet.recover, fleet.limit),
        "screen": start.screen.log_every,
        "notes": start.settled.notes,
        "report": facts["data"]["license"],
        "prepared": start.prepared.folder.parent,
        "folder": start.verdict.path.name,
    }


Received = Callable[[str, tuple[str, ...]], dict[str, Any]]


@pytest.fixture
def received(place: Path, environment: None, monkeypatch: pytest.MonkeyPatch) -> Received:
    """`received(job file, overrides)`: everything that any receiver holds, by receiver."""
    count = iter(range(10_000))

    def all_of(job: str, overrides: tuple[str, ...]) -> dict[str, Any]:
        start = started(place, job, overrides)
        run = made(start, place / "held" / f"{next(count)}-{os.getpid()}")
        return {**others(start, run, monkeypatch), **engine(run)}

    return all_of


def test_every_leaf_has_its_row() -> None:
    assert set(ROWS) == set(leaves.fields())


def test_nothing_is_left_to_chance(received: Received) -> None:
    assert received("base.toml", ()) == received("base.toml", ())


def test_every_leaf_is_received_or_refused(received: Received, place: Path) -> None:
    known: dict[tuple[str, ...], dict[str, Any]] = {}
    unheard = {}
    for key, row in ROWS.items():
        if row.receiver in ("layout", "first weights"):
            continue
        if row.given not in known:
            known[row.given] = received("base.toml", row.given)
        before = known[row.given]
        try:
            if key in ("version", "extends"):
                old = "version = 1" if key == "version" else 'extends = "parent.toml"'
                (place / "changed.toml").write_text(BASE.replace(old, row.change), encoding="utf-8")
                after = received("changed.toml", ())
            else:
                after = received("base.toml", (*row.given, f"{key}={row.change}"))
        except Refused as refused:
            if row.receiver != "refused" or key.split(".")[-1] not in refused.text.replace("may take", "limit"):
                unheard[key] = f"refused: {refused.text}"
            continue
        if row.receiver == "refused" or before[row.receiver] == after[row.receiver]:
            unheard[key] = f"{row.receiver} holds the same as before: {before.get(row.receiver)}"
    assert not unheard, "\n".join(f"{key}: {why}" for key, why in unheard.items())


def test_first_weights_of_another_run_are_received(received: Received, place: Path) -> None:
    from argosy.train import worker

    parent = made(started(place, "base.toml", ("train.steps=1", "train.seed=5")), place / "parent-run")
    Incarnation(1, 1, "dp1", 1, parent=os.getpid()).write(parent)
    assert worker.main(str(parent.path), 0, 1) == 0
    before = received("base.toml", ())["first weights"]
    after = received("base.toml", (f"model.init={place / 'parent-run'}",))["first weights"]
    assert set(before) == set(after)
    assert all(before[name] != after[name] for name in before if "norm" not in name)


def laid(rank: int, ranks: int, board: str, asked: dict[str, Any]) -> dict[str, Any]:
    """On a rank of the pool: how a worker of the run is laid out."""
    from argosy.parallel.mesh import joined
    from argosy.run.recorder import Recorder
    from argosy.train import worker

    run = folder.Run(asked["run"])
    number = Incarnation.read(run, 1)
    recorder = Recorder(run, rank, 1)
    one = worker.Worker(run, number, rank, recorder)
    with joined(one.layout, rank, worker.meeting_of(run, number), backend="gloo", kind="cpu") as mesh:
        one.build(mesh)
        found = {
            "order": list(one.applied.order),
            "place": one.layout.at(rank),
            "blocks": list(one.decoder.held),
            "stages": list(one.layout.stages_of(rank)),
            "schedule": getattr(one.laid.execute, "name", ""),
            "summed": sorted(one.applied.data.summed.names) if one.applied.data.summed is not None else [],
        }
    recorder.finish()
    return found


LAID = {key: row for key, row in ROWS.items() if row.receiver == "layout"}


@pytest.mark.parametrize("key", LAID)
def test_layouts_are_received(place: Path, environment: None, pool: Pool, key: str) -> None:
    row, found = LAID[key], []
    for overrides in (row.given, (*row.given, f"{key}={row.change}")):
        workers = 4 if "pp2 tp2" in str(row.given) or "dp4" in str(row.given) else 2
        if key == "layout.virtual" and len(overrides) == len(row.given):
            overrides = (*overrides, "layout.virtual=4")
        start = started(place, "base.toml", (*overrides, "batch.micro=1"), workers=workers)
        run = made(start, place / "held" / f"{key}-{len(found)}")
        Incarnation(1, workers, run.job().layout.shape, 1, parent=os.getpid()).write(run)
        found.append(pool.call(f"{Path(__file__)}:laid", {"run": str(run.path)}, ranks=workers))
    assert found[0] != found[1]
