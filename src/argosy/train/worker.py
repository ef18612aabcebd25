"""A rank from birth to end, top to bottom: the one place that composes the engine.

`main` gets (run folder, rank, incarnation) and nothing else: everything it does follows from the run folder. It returns 0 when
the run is finished or a stop was agreed, and raises Refused, with the exit code of the reason, where it cannot go on.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from argosy.checkpoint.load import load, tell_skipped
from argosy.checkpoint.save import Saver, specs_over
from argosy.checkpoint.store import Checkpoint, at, refuse_lost, search
from argosy.data.batch import counted_bytes
from argosy.data.held import sets
from argosy.data.order import refuse_backdated
from argosy.data.reader import LocalBatches, OwnReader, batches
from argosy.data.ring import Batches
from argosy.data.shards import Shards, read_token_bytes
from argosy.data.tokenizer import open_tokenizer
from argosy.device.device import Device
from argosy.device.precision import dtype
from argosy.device.threads import limit, restored
from argosy.device.torch_versions import compile_strictly
from argosy.errors import Refused
from argosy.evaluate.held_out import Held, held_out
from argosy.exchange.huggingface import begin
from argosy.exchange.source import Source
from argosy.job.schema import Job
from argosy.optim.build import build
from argosy.parallel import apply
from argosy.parallel.mesh import Meeting, Mesh, join
from argosy.plan import layouts
from argosy.plan.derive import growth
from argosy.points import point
from argosy.quantities import interval
from argosy.run.folder import Run, write_whole
from argosy.run.incarnation import Incarnation
from argosy.run.ledger import Ledger
from argosy.run.recorder import Recorder
from argosy.train import samples
from argosy.train.callbacks import Callback, Garbage, Sample, Save
from argosy.train.ending import explained
from argosy.train.feed import Feed, cut, tensors
from argosy.train.gauge import gauge
from argosy.train.numerics import numerics
from argosy.train.own import evaluation, own_callback
from argosy.train.rates import scheduled
from argosy.train.state import State
from argosy.train.trainer import Trainer
from argosy.train.vote import Agree
from argosy.train.wishes import Wishes

TABLES = ("model.embedding.weight", "model.head.weight", "model.positions.weight")  # first weights may have fewer rows


def main(run: str, rank: int, incarnation: int) -> int:
    """Live as `rank` of `incarnation` of the run in the folder `run`; 0 when all is done that was asked."""
    live(run, rank, incarnation)
    return 0


def live(run: str, rank: int, incarnation: int) -> str:
    """What `main` does, for whoever must know how it ended: FINISHED, or STOPPED by a vote."""
    place = Run(run)
    start = Incarnation.read(place, incarnation)
    recorder = Recorder(place, rank, incarnation)
    recorder.mark("born")
    point("worker.start")
    try:
        with restored():
            return Worker(place, start, rank, recorder).live()
    except BaseException as error:
        recorder.mark("failed")
        kind, refused = explained(error, rank)
        row = {"kind": kind, "sentence": refused.text if refused else f"{type(error).__name__}: {error}"}
        write_whole(place.local / f"failed-rank-{rank:04d}-{incarnation}.json", json.dumps(row) + "\n")
        if refused is None or refused is error:
            raise
        raise refused from error
    finally:
        recorder.finish()


class Worker:
    """One rank's life. Each method is one part of it, in the order of `live`."""

    def __init__(self, run: Run, start: Incarnation, rank: int, recorder: Recorder):
        self.run, self.start, self.rank, self.recorder = run, start, rank, recorder
        self.reader: OwnReader | None = None  # where this rank started it
        self.job: Job = run.job()
        self.layout = layouts.in_force(self.job, start.world, start.layout)
        self.ledger = run.ledger()
        per_node = max(1, start.local_world)
        limit(start.threads)
        if self.job.train.deterministic and start.device == "cuda":
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts
            torch.use_deterministic_algorithms(True)
        self.device = Device.open(start.device, rank % per_node if start.device == "cuda" else 0)

    def live(self) -> str:
        """From joining the groups to the last checkpoint: FINISHED or STOPPED."""
        with self.recorder.during("groups", 0):
            meeting = meeting_of(self.run, self.start)
            mesh = join(self.layout, self.rank, meeting, backend=self.device.backend, kind=self.device.kind)
        self.recorder.mark("joined")
        point("worker.group")
        end = self.train(mesh)
        mesh.close()  # not after an error: leaving politely can wait for peers that are gone
        point("worker.end")
        return end

    def train(self, mesh: Mesh) -> str:
        """Build, load, train, leave: FINISHED or STOPPED."""
        with self.recorder.during("build", 0):
            self.build(mesh)
        point("worker.built")
        self.saver = self.keeper(mesh)
        try:
            with self.recorder.during("load", 0):
                facts = self.load(mesh)
            self.recorder.mark("loaded", self.state.step)
            point("worker.loaded")
            trainer = self.trainer(mesh)
            try:
                end = trainer.run(facts)
                self.recorder.mark(end, self.state.step)
                return end
            finally:
                self.numerics.stop()
                self.feed.close()
                if self.reader is not None:
                    self.reader.close()
        finally:
            self.saver.close()

    def build(self, mesh: Mesh) -> None:
        """The model on this rank's device, sharded as the layout says, with first weights; optimizer and state."""
        job, device = self.job, self.device.torch
        self.compiled = job.train.compile is True
        if self.compiled:
            compile_strictly()
        self.laid = apply.decoder(job, mesh, device)
        self.decoder, self.applied, self.number = self.laid.module, self.laid.applied, self.laid.number
        kind = dtype(str(job.train.precision))
        wider = growth(job.model)
        self.optimizer = build(
            self.applied.named().items(), job.optim, self.device.kind, group=mesh.stage, kind=kind, growth=wider
        )
        self.state = State(
            self.decoder,
            self.optimizer,
            self.applied.data,
            self.recorder,
            rate=scheduled(job.optim, self.ledger, self.steps),
            clip=job.optim.clip,
            world=self.laid.world,
        )
        self.numerics = numerics(job, self.laid, self.recorder, self.ledger, self.steps)
        self.state.watched = self.numerics.around
        self.recorder.mark("built")

    @property
    def steps(self) -> int:
        """How long the run is."""
        if self.job.train.steps is None:
            raise Refused("train.steps is not settled.", where=str(self.run.path))
        return self.job.train.steps

    def keeper(self, mesh: Mesh) -> Saver:
        """Who takes this rank's share of every checkpoint; where it has no parent, the snapshot process runs from here on."""
        return Saver(
            self.run,
            self.rank,
            self.start.world,
            self.start.number,
            self.layout,
            specs_over(self.state.tensors(), self.layout, self.rank, mesh.pp),
            nodes=[self.start.local_world] * self.start.nodes,
            child=self.start.alone,
        )

    def load(self, mesh: Mesh) -> dict[str, Any]:
        """The newest good checkpoint, the same on all ranks; its facts, empty where the run begins."""
        found = self.agreed(self.run, mesh)
        if found is None:
            if self.job.model.init != "random":
                self.load_first(mesh)
            if self.rank == 0:
                samples.cut(self.run.path, 0)
            return {}
        facts = load(self.run, found, self.state.tensors(), elsewhere=self.saver.specs)
        self.state.restore(facts)
        found.close()
        kept = self.ledger.entries[: int(facts["ledger"]["length"])]
        if Ledger(kept).digest != facts["ledger"]["digest"]:
            raise Refused(
                "the ledger is not the one this checkpoint was made with.",
                where=str(self.run.path / "ledger.jsonl"),
                do="Restore the file, or begin a new run.",
            )
        refuse_backdated(self.run.path, self.ledger.entries[len(kept) :], self.state.step)
        if self.rank == 0:
            samples.cut(self.run.path, self.state.step)
        return facts

    def load_first(self, mesh: Mesh) -> None:
        """First weights from another run's newest checkpoint, or from another program's folder."""
        came = self.run.info().get("init") or {}
        if "folder" in came and "run" not in came:
            begin(Source.of(came), self.decoder, self.applied.named())
            return
        other = Run(Path(self.job.model.init))
        found = self.agreed(other, mesh)
        if found is None:
            raise Refused("there is no checkpoint to start from.", where=str(other.path))
        weights = {name: tensor for name, tensor in self.state.tensors().items() if name.startswith("model.")}
        if getattr(self.job.model, "class") is not None:  # what such a class adds keeps its first weights
            there = {spec.name for spec in found.manifest.specs}
            weights = {name: tensor for name, tensor in weights.items() if name in there}
        load(other, found, weights, partial=True, grown=TABLES)
        found.close()

    def agreed(self, run: Run, mesh: Mesh) -> Checkpoint | None:
        """The checkpoint that rank 0 finds newest. The others are told, since one may just be being committed.

        That can take long: what an earlier start announced is written first, at the disk's pace, and every byte is read.
        """
        own = run is self.run
        chosen: list[tuple[Checkpoint | None, list[str]]] = []

        def choose() -> None:
            """Look for the newest good checkpoint."""
            if own:
                self.saver.settle()
            chosen.append(search(run.checkpoints, aside=own))

        mesh.first(choose)
        found, reasons = chosen[0] if chosen else (None, [])
        if reasons and own:
            if found is None:
                refuse_lost(run, reasons)
            tell_skipped(run, found, reasons)
        step = torch.tensor([-1 if found is None else found.step], dtype=torch.int64, device=self.device.torch)
        if mesh.world is not None:
            dist.broadcast(step, 0, group=mesh.world)
        if self.rank != 0 and step.item() >= 0:
            found = at(run, int(step.item()))
        return found

    def trainer(self, mesh: Mesh) -> Trainer:
        """The loop with all its parts."""
        job, place, state = self.job, self.layout.data_index(self.rank), self.state
        self.feed = Feed(self.batches(), self.layout, self.rank, int(job.batch.micro), self.device.torch)
        bytes_of = read_token_bytes(self.run.prepared())
        execute = self.laid.execute
        agree = Agree(mesh.world, device=self.device.torch, copies=self.laid.copies)
        micro, rows = int(job.batch.micro), layouts.rows_at_once(job, self.layout)

        def measured(number: int) -> Held:
            """What the model makes of held-out set `number`; 0 is the job's own. A collective."""
            return held_out(
                self.feed.batches.held_out(number, rows),
                execute,
                lambda batch: [tensors(part, self.device.torch) for part in cut(batch, self.layout.data, place, micro)],
                lambda batch: counted_bytes(batch, bytes_of),
                mesh.world,
                self.device.torch,
                copies=agree.copies,
            )

        def measure() -> list[Held]:
            """What it makes of every held-out set. A collective."""
            self.applied.whole.eval()
            found = [measured(number) for number in range(1 + len(job.evaluate.sets))]
            self.applied.whole.train()
            return found

        callbacks: list[Callback] = [
            evaluation(measure, job, self.run, self.ledger),
            Sample(self.sampler(), interval(job.observe.sample_every)),
            *(own_callback(name) for name in job.train.callbacks),  # before the save, which asks them what to keep
            Keep(self.saver, job, self.ledger),
            Garbage(job.train.collect_every),
            gauge(job, self.device, self.layout.world, mesh.world, self.start.local_world),
        ]
        self.applied.whole.train()
        return Trainer(
            state,
            self.fed,
            execute,
            agree,
            steps=self.steps,
            rank=self.rank,
            callbacks=callbacks,
            asked=Wishes(self.run, looks=self.rank == 0),
            held=self.saver.held,
            after_first=self.after_first,
            device=self.device,
        )

    def batches(self) -> Batches:
        """Where batches come from: this machine's reader process; in a process that is the whole run, a thread of it.

        Under a launcher nobody but the machine's first rank is there to start the reader.
        """
        following, seed = self.state.step + 1, self.job.train.seed
        if self.start.parent == os.getpid():
            shards = Shards(self.run.prepared())
            return LocalBatches(seed, self.ledger, shards, following, lambda: sets(self.run, shards), self.waited)
        if self.start.alone and self.rank % self.start.local_world == 0:
            self.reader = OwnReader(self.run, self.start.number, self.rank)
        return batches(self.run, self.start.number, self.rank, self.waited)

    def waited(self, seconds: float, there: bool) -> None:
        """A batch did not come for long, or came at last: told at once, since the entry of the wait comes with its end."""
        self.recorder.mark("fed" if there else "starving", self.state.step + 1, seconds)

    def fed(self, step: int) -> Any:
        """The part of `step`; the first of this process is where the compiler works."""
        if self.compiled and self.state.computing != "compile" and not self.warm:
            self.recorder.mark("compiling", step)
            point("worker.compile")
            self.state.computing = "compile"
        part = self.feed(step)
        self.number.fill_(step)
        self.numerics.begin(step, part.micro)
        return part

    warm = False  # whether the first step of this process is done

    def after_first(self) -> None:
        """The first step is done: everything compiled stands, and every weight must have had a gradient."""
        self.applied.check_gradients()
        if self.compiled:
            self.recorder.mark("compiled", self.state.step)
        self.warm, self.state.computing = True, "forward_backward"

    def sampler(self) -> Any:
        """Writes the samples of a step: on rank 0 alone, with the help of all where weights are sharded."""
        job = self.job
        tokenizer = open_tokenizer(self.run.prepared())
        together = self.layout.world > self.layout.dp_replicate
        write = samples.Samples(
            self.applied.whole,
            tokenizer,
            job.observe.prompts,
            tokens=job.observe.sample_tokens,
            temperature=job.observe.temperature,
            context=job.batch.sequence,
            seed=job.train.seed,
            device=self.device.torch,
            scores=self.laid.scores,
            group=self.laid.mesh.world if together else None,
        )

        def sample(step: int) -> None:
            """Write this step's samples to the run folder; ranks that share the weights take part."""
            # Whole, also when a stop is asked for meanwhile: the weights of this step are gone when the run goes on.
            if self.rank == 0 or together:
                texts = write(step)
                self.applied.data.settle()
                if self.rank == 0:
                    samples.append(self.run.path, step, self.start.number, texts)

        return sample


class Keep(Save):
    """Saves with what every checkpoint of a run also holds: seed, layout, and which ledger it was made with."""

    def __init__(self, saver: Saver, job: Job, ledger: Ledger):
        super().__init__(saver, interval(job.checkpoint.every))
        self.job, self.ledger = job, ledger

    def save(self, trainer: Trainer, facts: dict[str, Any]) -> None:
        """Add them."""
        facts["seed"] = self.job.train.seed
        facts["layout"] = self.job.layout.shape
        facts["ledger"] = {"length": len(self.ledger.entries), "digest": self.ledger.digest}


def meeting_of(run: Run, start: Incarnation) -> Meeting:
    """Where the ranks of an incarnation meet."""
    prefix = f"{run.info()['id']}/{start.number}"
    if start.master is None:
        return Meeting(prefix, board=run.local / f"store-{start.number}")
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    hosted = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    return Meeting(f"{prefix}/{attempt}", master=start.master, hosted=hosted)
