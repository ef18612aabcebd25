"""A trained model from its run folder, ready to be asked: newest weights, tokenizer, the job that made it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch

from argosy.checkpoint.load import load
from argosy.checkpoint.manifest import Damaged
from argosy.checkpoint.store import Checkpoint, at, best_step, refuse_lost, search
from argosy.data.batch import Batch, counted_bytes, held_out_batches
from argosy.data.chat import Template
from argosy.data.shards import Shards
from argosy.data.tokenizer import Tokenizer, open_tokenizer
from argosy.device.device import Device, counts
from argosy.device.precision import dtype
from argosy.errors import INPUT, Refused
from argosy.evaluate.cached import Cached
from argosy.evaluate.generate import Again, Reader, Written, continuations, logits, stream_of
from argosy.evaluate.held_out import Held, held_out
from argosy.evaluate.prompts import Prompt, ends
from argosy.exchange.send import same_tokenizer
from argosy.exchange.source import KEPT, TOKENIZER
from argosy.job import parts
from argosy.job.schema import Job
from argosy.layout.layout import Layout
from argosy.model.decoder import Decoder
from argosy.model.own import decoder_of
from argosy.parallel import apply
from argosy.parallel.execute import Plain
from argosy.parallel.mesh import Mesh
from argosy.plan.classes import of_classes
from argosy.run.folder import Run

AT_ONCE = 16  # texts that are continued side by side


@dataclass
class Continued:
    """What follows one prompt. ended: "end" at a mark, "stop" at a stop text, "tokens" when there were enough of them."""

    prompt: Prompt
    text: str = ""
    tokens: int = 0
    ended: str = "tokens"


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
    def open(run: Run, *, best: bool = False, trust: bool = False) -> Trained:
        """The newest good checkpoint of `run`, on a GPU where there is one; newer ones that are not are told on stderr.

        best: the one that its evaluations found best (evaluate.keep_best). trust: a model of the run's own code may be
        imported. Refused where there is no good checkpoint, and for a run of `argosy.fit`, whose module we do not have.
        """
        if run.info().get("fit"):
            raise Refused(
                "this run holds a module of your own.",
                where=str(run.path),
                do="Use it from Python: argosy.fit gives it back.",
            )
        job = run.job()
        parts.refuse_untrusted(job, str(run.path), trust=trust)
        found, reasons = search(run.checkpoints)
        if found is None:
            refuse_lost(run, reasons, code=INPUT)
            raise Refused("it has no checkpoint yet.", where=str(run.path), do=f"Save one: argosy save {run.path}")
        for reason in reasons:
            print(f"note: {reason}; step {found.step:,} is used instead", file=sys.stderr)
        if best:
            found = best_of(run, found)
        device = Device.open("cuda" if counts()["cuda"] else "cpu")
        compute, master = dtype(str(job.train.precision)), dtype(str(job.train.master))
        kinds = {name: dtype(kind) for name, kind in of_classes(job.train).items()}
        decoder = decoder_of(job.model)(job.model, seed=job.train.seed, compute=compute, master=master, kinds=kinds)
        decoder.to_empty(device=device.torch)
        decoder.prepare(device.kind, job.batch.sequence, compiled=False)
        weights = {f"model.{name}": parameter.detach() for name, parameter in decoder.named_parameters()}
        saved = decoder.state_dict()
        weights |= {f"model.{name}": buffer for name, buffer in decoder.named_buffers() if name in saved}
        load(run, found, weights, partial=True)
        found.close()
        file = run.path / "tokenizer.json"
        tokenizer = open_tokenizer(file if file.is_file() else run.prepared())
        return Trained(run, job, found.step, decoder.eval(), tokenizer, device)

    @cached_property
    def template(self) -> Template:
        """How a chat is written for it."""
        return Template.of(self.run.path)

    @cached_property
    def ends(self) -> tuple[int, ...]:
        """The ids after which it says nothing more."""
        kept = self.run.path / KEPT
        own = (kept / TOKENIZER).is_file() and same_tokenizer(self.run.path / TOKENIZER, kept / TOKENIZER)
        return ends(self.tokenizer, self.template, kept if own else None)

    @cached_property
    def opening(self) -> tuple[int, ...]:
        """The ids that a text begins with: those of its tokenizer where nobody has trained it here, whose texts have none."""
        return self.tokenizer.opening if self.run.info().get("imported") else ()

    def continued(
        self, prompts: Sequence[Prompt], *, tokens: int, temperature: float, top_p: float = 1.0,
        stops: Sequence[str] = (), seed: int = 0, show: Callable[[int, str], object] = lambda number, piece: None,
        cached: bool = True,
    ) -> list[Continued]:  # fmt: skip
        """What follows each of `prompts`; show(number, piece) hears the text as it grows.

        A prompt that is given again draws otherwise. cached: keys and values are kept; without, every token is computed
        from all before it, and the text is the same.
        """
        found = [Continued(prompt) for prompt in prompts]
        times: dict[str, int] = {}
        streams = []
        for prompt in prompts:
            times[prompt.key] = times.get(prompt.key, -1) + 1
            again = (times[prompt.key],) if times[prompt.key] else ()
            streams.append(stream_of(seed, prompt.key, *again))
        for first in range(0, len(found), AT_ONCE):
            some = slice(first, first + AT_ONCE)
            options = {"tokens": tokens, "temperature": temperature, "top_p": top_p, "streams": streams[some]}

            def told(row: int, piece: str, first: int = first) -> None:
                """Show a piece of one of these prompts under its number among all."""
                show(first + row, piece)

            self._some(found[some], stops, told, cached, **options)
        return found

    def _some(
        self, found: Sequence[Continued], stops: Sequence[str], show: Callable[[int, str], object], cached: bool,
        **options: Any,
    ) -> None:  # fmt: skip
        """Continue the prompts of `found` side by side."""
        context, device = self.job.batch.sequence, self.device.torch
        begun = [one.prompt.ids for one in found]
        longest = min(context, max(map(len, begun), default=1) + int(options["tokens"]))
        read: Reader = Again(partial(logits, self.decoder), context=context, device=device)
        if cached and type(self.decoder) is Decoder:  # of a class of one's own nobody knows what it looks at
            read = Cached(self.decoder, len(found), longest, device)
        texts = [Written(self.tokenizer, one.prompt.ids, stops) for one in found]
        done: set[int] = set()
        for chosen in continuations(
            read, begun, context=context, ends=self.ends, vocabulary=self.tokenizer.vocabulary, done=done, **options
        ):
            for row, new in enumerate(chosen):
                if new is not None:
                    found[row].tokens += 1
                    piece = texts[row].add(new)
                    if piece:
                        show(row, piece)
                    if texts[row].stopped:
                        done.add(row)
        for row, one in enumerate(found):
            rest = texts[row].rest()
            if rest:
                show(row, rest)
            one.text, stopped = texts[row].text, texts[row].stopped
            one.ended = "stop" if stopped else "end" if row in done else "tokens"

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
        ids = [*self.opening, *self.tokenizer.encode(text), self.tokenizer.end]
        ids = ids[: None if tokens is None else tokens + 1]

        def told() -> Iterator[Batch]:
            """The windows of the text, each told of when it has been measured."""
            done = 0
            for batch in windows(ids, self.job.batch.sequence):
                yield batch
                done += int(batch.weights.sum())
                seen(done, len(ids) - 1)

        return self.measured(told(), documents=1)

    def on_held_out(self, shards: Shards, tokens: int, *, every: bool = False) -> Held:
        """How well it predicts the held-out documents, at most so many tokens of them: the training's own measurement.

        every: of a named held-out set all documents are read, the fairest sample first.
        """
        documents = shards.by_hash(np.arange(shards.documents)) if every else None
        return self.measured(held_out_batches(shards, self.job.batch.sequence, 8, tokens, documents))


def best_of(run: Run, newest: Checkpoint) -> Checkpoint:
    """The checkpoint that the evaluations of `run` found best, by what its `newest` one says. Refused where there is none."""
    step = best_step(newest.manifest)
    newest.close()
    if step is None:
        raise Refused(
            "no best checkpoint was kept of this run.",
            where=str(run.path),
            do="Train with --evaluate.keep_best, or use the newest: leave --best away.",
        )
    try:
        return at(run, step)
    except Damaged as reason:
        raise Refused(
            f"the best checkpoint cannot be used: {reason}.", do="Use the newest: leave --best away."
        ) from None


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
