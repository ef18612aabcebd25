"""A model's class, a loss and callbacks of one's own: each receives what it must, on all ranks; such a run goes on."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from argosy.errors import Refused
from argosy.run import requests
from argosy.run.folder import Run
from argosy.run.incarnation import Incarnation
from argosy.run.requests import Request

OWN = """
from pathlib import Path

import torch

from argosy.model.decoder import Decoder, norm_of
from argosy.train.callbacks import Callback

class Normed(Decoder):
    # one more norm, right after the embedding
    def __init__(self, model, **more):
        super().__init__(model, **more)
        with torch.device("meta"):
            self.first_norm = norm_of(model.block, model.width).to(self.norm.weight.dtype)

    def embed(self, tokens, positions):
        return self.first_norm(super().embed(tokens, positions))

def doubled(model, batch):
    assert batch.tokens.shape == batch.labels.shape == batch.weights.shape
    hidden = model(batch.tokens, batch.positions, batch.segments)
    nats = torch.nn.functional.cross_entropy(
        model.logits(hidden).flatten(0, 1).float(), batch.labels.flatten().long(), reduction="none"
    )
    return 2 * (nats * batch.weights.flatten()).sum()

def numbered(model, batch, step):
    with (Path(__file__).parent / "steps").open("a") as file:
        file.write(f"{int(step)}\\n")
    return doubled(model, batch)

class Watch(Callback):
    def __init__(self):
        self.seen = []

    def start(self, trainer, facts):
        self.seen = list(facts.get("watched", []))
        self.tell(trainer, "start")

    def step(self, trainer, vote):
        self.seen.append(trainer.state.step)

    def save(self, trainer, facts):
        facts["watched"] = self.seen

    def end(self, trainer):
        self.tell(trainer, "end")

    def tell(self, trainer, word):
        with (Path(__file__).parent / f"watched-{trainer.rank}").open("a") as file:
            file.write(f"{word} {self.seen}\\n")

watch = Watch()
number = 7
many = lambda model, batch: torch.zeros(3)
"""


@pytest.fixture
def own(tmp_path: Path) -> Path:
    path = tmp_path / "code" / "own.py"
    path.parent.mkdir()
    path.write_text(OWN)
    return path


def first_loss(run: Run, losses_of: Any) -> float:
    return float(losses_of(run)[0][1])


def test_a_loss_gets_model_and_batch_and_is_what_is_minimised(
    make_run: Any, work: Any, losses_of: Any, own: Path, tmp_path: Path
) -> None:
    plain = make_run(tmp_path / "plain", **{"train.steps": 2})
    twice = make_run(tmp_path / "twice", **{"train.steps": 2, "train.loss": f"{own}:doubled"})
    named = make_run(tmp_path / "named", **{"train.steps": 2, "train.loss": f"{own}:numbered"})
    assert [work(run) for run in (plain, twice, named)] == [0, 0, 0]
    assert first_loss(twice, losses_of) == pytest.approx(2 * first_loss(plain, losses_of), rel=1e-5)
    assert first_loss(named, losses_of) == first_loss(twice, losses_of)
    steps = [int(line) for line in (own.parent / "steps").read_text().split()]
    assert set(steps) == {1, 2} and steps == sorted(steps)


def test_a_model_of_ones_own_is_trained_kept_and_gone_on_with(
    make_run: Any, workers: Any, work: Any, losses_of: Any, own: Path, tmp_path: Path
) -> None:
    import argosy
    from argosy.checkpoint.store import newest
    from argosy.exchange.send import send

    said = {"model.class": f"{own}:Normed", "train.callbacks": [f"{own}:Watch"], "train.steps": 6}
    whole = make_run(tmp_path / "whole", **said)
    assert work(whole) == 0
    plain = make_run(tmp_path / "plain", **{"train.steps": 1})
    assert work(plain) == 0
    assert first_loss(whole, losses_of) != first_loss(plain, losses_of)
    found = newest(whole)
    assert found is not None
    names = {spec.name for spec in found.manifest.specs}
    assert {"model.first_norm.weight", "optim.first_norm.weight.first"} <= names
    assert found.facts["watched"] == [1, 2, 3, 4, 5, 6], "the callback has seen the step that is saved"
    found.close()
    # Two ranks, each of which imports it, stopped and gone on: the same losses.
    parted = make_run(tmp_path / "parted", 2, **said)
    requests.tell(parted, Request(stop=True, reason="SIGTERM", number=1))
    assert workers(parted, "dp2", 2) == [0, 0]
    assert parted.newest_step() < 6
    (parted.local / "request").unlink()
    assert workers(parted, "replicate2", 2) == [0, 0]
    for (_, one), (_, other) in zip(losses_of(whole), losses_of(parted), strict=True):
        assert one == pytest.approx(other, rel=1e-4)
    lines = [(own.parent / f"watched-{rank}").read_text().splitlines() for rank in (0, 1)]
    assert lines[1] == ["start []", "end [1]", "start [1]", "end [1, 2, 3, 4, 5, 6]"]
    assert lines[0][2:] == lines[1]
    # Whoever only reads the run imports nothing of it unless that is trusted.
    with pytest.raises(Refused, match="a run folder by itself runs no code"):
        argosy.sample(whole.path, "the")
    with pytest.raises(Refused, match="a run folder by itself runs no code"):
        argosy.evaluate(whole.path)
    told = argosy.evaluate(whole.path, trust=True)
    rows = [json.loads(line) for line in (whole.path / "evaluations.jsonl").read_text().splitlines()]
    assert told["loss"] == pytest.approx(rows[-1]["loss"], rel=1e-6)
    assert isinstance(argosy.sample(whole.path, "the", tokens=4, trust=True), str)
    with pytest.raises(Refused, match="no family's rules are for a model of your own"):
        send(whole, tmp_path / "sent")
    assert not (tmp_path / "sent").exists()


def test_first_weights_of_the_plain_model_fit_and_what_is_new_keeps_its_own(
    make_run: Any, work: Any, losses_of: Any, own: Path, tmp_path: Path
) -> None:
    plain = make_run(tmp_path / "plain")
    assert work(plain) == 0
    grown = make_run(
        tmp_path / "grown", **{"model.init": str(plain.path), "model.class": f"{own}:Normed", "train.steps": 1}
    )
    assert work(grown) == 0


@pytest.mark.parametrize(
    "key, name, why",
    [
        ("model.class", "Watch", "this is no class of a model. Found: the class Watch"),
        ("model.class", "number", "this is no class of a model. Found: a int"),
        ("train.loss", "number", "this is no function. Found: a int"),
        ("train.loss", "many", "a loss is one number.*Found: torch.float32 .3."),
        ("train.callbacks", "doubled", "this is no callback. Found: a function"),
    ],
)
def test_what_is_of_another_kind_is_refused_with_its_key(
    make_run: Any, work: Any, own: Path, tmp_path: Path, key: str, name: str, why: str
) -> None:
    value: Any = f"{own}:{name}"
    run = make_run(tmp_path / "run", **{key: [value] if key == "train.callbacks" else value})
    with pytest.raises(Refused, match=f"{key} = .*own.py:{name}.*{why}") as caught:
        work(run)
    assert caught.value.code == 2


def test_a_callback_may_be_made_already(make_run: Any, work: Any, own: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", **{"train.callbacks": [f"{own}:watch"], "train.steps": 1})
    assert work(run) == 0
    assert (own.parent / "watched-0").read_text().splitlines() == ["start []", "end [1]"]


def test_a_vocabulary_grows_and_old_rows_stay(
    make_run: Any, work: Any, workers: Any, losses_of: Any, tmp_path: Path
) -> None:
    import torch

    from argosy.checkpoint.load import load
    from argosy.checkpoint.store import newest
    from argosy.train.worker import TABLES, Worker, meeting_of

    plain = make_run(tmp_path / "plain", **{"model.tied": False})
    assert work(plain) == 0
    said = {"model.init": str(plain.path), "model.vocabulary": 300, "model.tied": False, "train.steps": 1}
    run = make_run(tmp_path / "run", 2, **said)
    from argosy.parallel.mesh import joined
    from argosy.run.recorder import Recorder

    number = Incarnation(1, 1, "dp1", 1, parent=os.getpid())
    number.write(run)
    recorder = Recorder(run, 0, 1)
    one = Worker(run, number, 0, recorder)
    with joined(one.layout, 0, meeting_of(run, number), backend="gloo", kind="cpu") as mesh:
        one.build(mesh)
        fresh = {name: value.detach().clone() for name, value in one.applied.named().items()}
        one.saver = one.keeper(mesh)
        one.load(mesh)
        one.saver.close()
    recorder.finish()
    found = newest(plain)
    assert found is not None
    shapes = {spec.name: spec.shape for spec in found.manifest.specs}
    wanted = {name: torch.zeros(shapes[name]) for name in TABLES if name in shapes}
    load(plain, found, wanted, partial=True)
    found.close()
    assert len(wanted) == 2
    for name, value in wanted.items():
        now = one.applied.named()[name.removeprefix("model.")]
        assert value.shape[0] == 257 and now.shape[0] == 300
        assert torch.equal(now[:257], value), "what was learned"
        assert torch.equal(now[257:], fresh[name.removeprefix("model.")][257:]) and now[257:].std() > 0
    inner = "blocks.0.mlp.down.weight"
    assert not torch.equal(one.applied.named()[inner], fresh[inner])
    again = make_run(tmp_path / "again", 2, **said)
    assert workers(again, "dp2", 2) == [0, 0]
    assert losses_of(again)[0][1] < losses_of(plain)[1][1], "begins where the other one ended, its rows in shards too"
