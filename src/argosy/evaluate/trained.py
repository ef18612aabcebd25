"""A trained model from its run folder, ready to be asked: newest weights, tokenizer, the job that made it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from argosy.checkpoint.load import load
from argosy.checkpoint.store import refuse_lost, search
from argosy.data.batch import Batch, counted_bytes, held_out_batches
from argosy.data.shards import Shards
from argosy.data.tokenizer import Tokenizer, open_tokenizer
from argosy.device.device import Device, counts
from argosy.device.precision import dtype
from argosy.errors import INPUT, Refused
from argosy.evaluate.generate import continuation, logits, stream_of
from argosy.evaluate.held_out import Held, held_out
from argosy.job.schema import Job
from argosy.layout.layout import Layout
from argosy.model.decoder import Decoder
from argosy.parallel import apply
from argosy.parallel.execute import Plain
from argosy.parallel.mesh import Mesh
from argosy.plan.classes import of_classes
from argosy.run.folder import Run


@dataclass(frozen=True)
class Trained:
    """A model on one device, in evaluation mode."""

    run: Run
    job: Job
    step: int
    decoder: Decoder
    tokenizer: Tokenizer
    device: Device

    @staticmethod
    def open(run: Run) -> Trained:
        """The newest good checkpoint of `run`, on a GPU where there is one; newer ones that are not are told on stderr.

        Refused where there is no good checkpoint, and for a run of `argosy.fit`, whose module we do not have.
        """
        if run.info().get("fit"):
            raise Refused(
                "this run holds a module of your own.",
                where=str(run.path),
                do="Use it from Python: argosy.fit gives it back.",
            )
        job, (found, reasons) = run.job(), search(run.checkpoints)
        if found is None:
            refuse_lost(run, reasons, code=INPUT)
            raise Refused("it has no checkpoint yet.", where=str(run.path), do=f"Save one: argosy save {run.path}")
        for reason in reasons:
            print(f"note: {reason}; step {found.step:,} is used instead", file=sys.stderr)
        device = Device.open("cuda" if counts()["cuda"] else "cpu")
        compute, master = dtype(str(job.train.precision)), dtype(str(job.train.master))
        kinds = {name: dtype(kind) for name, kind in of_classes(job.train).items()}
        decoder = Decoder(job.model, seed=job.train.seed, compute=compute, master=master, kinds=kinds)
        decoder.to_empty(device=device.torch)
        decoder.prepare(device.kind, job.batch.sequence, compiled=False)
        weights = {f"model.{name}": parameter.detach() for name, parameter in decoder.named_parameters()}
        load(run, found, weights, partial=True)
        found.close()
        file = run.path / "tokenizer.json"
        tokenizer = open_tokenizer(file if file.is_file() else run.prepared())
        return Trained(run, job, found.step, decoder.eval(), tokenizer, device)

    def continued(
        self, text: str, *, tokens: int, temperature: float, seed: int = 0
    ) -> tuple[list[int], Iterator[int]]:
        """The ids of `text` (the end mark of the document before where it has none), and those that follow as they come."""
        prompt = self.tokenizer.encode(text) or [self.tokenizer.end]
        ids = continuation(
            lambda *arrays: logits(self.decoder, *arrays),
            prompt,
            tokens=tokens,
            temperature=temperature,
            context=self.job.batch.sequence,
            stream=stream_of(seed, text),
            end=self.tokenizer.end,
            vocabulary=self.tokenizer.vocabulary,
            device=self.device.torch,
        )
        return prompt, ids

    def measured(self, batches: Iterator[Batch], documents: int | None = None) -> Held:
        """How well it predicts `batches`."""
        device = self.device.torch
        with torch.no_grad():
            applied = apply.shard(self.decoder, (), Mesh(Layout(), 0))
            execute = Plain(
                applied.whole, lambda decoder, batch: decoder.loss(batch, self.job.memory.loss_chunk), applied.data
            )
            return held_out(
                batches,
                execute,
                lambda batch: [
                    Batch(**{name: torch.tensor(value, device=device) for name, value in vars(batch).items()})
                ],
                lambda batch: counted_bytes(batch, self.tokenizer.bytes_of),
                device=device,
                documents=documents,
            )

    def on_text(
        self, text: str, tokens: int | None = None, seen: Callable[[int, int], object] = lambda done, of: None
    ) -> Held:
        """How well it predicts one text: windows of the training's length, each read from its own beginning.

        tokens: the first so many only. seen(done, of) hears how many labels were predicted.
        """
        ids = [*self.tokenizer.encode(text), self.tokenizer.end][: None if tokens is None else tokens + 1]

        def told() -> Iterator[Batch]:
            """The windows of the text, each told of when it has been measured."""
            done = 0
            for batch in windows(ids, self.job.batch.sequence):
                yield batch
                done += int(batch.weights.sum())
                seen(done, len(ids) - 1)

        return self.measured(told(), documents=1)

    def on_held_out(self, shards: Shards, tokens: int) -> Held:
        """How well it predicts the held-out documents, at most so many tokens of them: the training's own measurement."""
        return self.measured(held_out_batches(shards, self.job.batch.sequence, 8, tokens))


def windows(ids: Sequence[int], sequence: int, rows: int = 8) -> Iterator[Batch]:
    """`ids` as batches [rows, sequence] in which each id but the first is a label once; the last is padded. Pure."""
    known = np.asarray(ids, np.int32)
    labels = len(known) - 1
    for begin in range(0, labels, rows * sequence):
        size = min(rows * sequence, labels - begin)
        tokens, targets, weights = (np.zeros(rows * sequence, kind) for kind in (np.int32, np.int32, np.float32))
        tokens[:size] = known[begin : begin + size]
        targets[:size] = known[begin + 1 : begin + size + 1]
        weights[:size] = 1
        shape = (rows, sequence)
        places = np.broadcast_to(np.arange(sequence, dtype=np.int32), shape).copy()
        segments = (weights > 0).astype(np.int32).reshape(shape)
        kinds = np.zeros(shape, np.int32)
        numbers = np.arange(rows, dtype=np.int64) + begin // sequence
        yield Batch(
            tokens.reshape(shape), targets.reshape(shape), segments, places, kinds, weights.reshape(shape), numbers
        )
