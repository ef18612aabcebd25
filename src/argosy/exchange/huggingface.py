"""A folder as `transformers` writes it becomes a run: with its weights as the one checkpoint, and all that came with them.

`look` says what a folder holds, `bring` makes the run folder, `begin` fills the model of a run that starts from such a folder.
Tensors pass one at a time; nothing appears under the name that was asked for before all of it is there.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from glob import escape
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from argosy.checkpoint import store
from argosy.checkpoint.manifest import VERSION, Grid, Manifest, Sidecar, checksum, row
from argosy.checkpoint.plan import NodeFile, TensorSpec, node_file
from argosy.data.chat import FILE as CHAT
from argosy.data.chat import Template
from argosy.data.tokenizer import Pieces, parse, read_file
from argosy.errors import Refused
from argosy.exchange import config as configs
from argosy.exchange.mapping import Rules, Tensors
from argosy.exchange.source import TOKENIZER, Source
from argosy.exchange.weights import TYPES, Weights, fill, raw
from argosy.job import leaves
from argosy.job.load import job_from
from argosy.job.schema import Job, ModelSection, layers
from argosy.job.setting import Setting
from argosy.job.text import job_text
from argosy.layout.layout import Layout
from argosy.model.decoder import Decoder
from argosy.plan.flops import parameters
from argosy.quantities import bytes_text
from argosy.run import folder, guardian
from argosy.run.folder import Run, write_whole
from argosy.run.origin import origin

LONGEST = 4096  # tokens of the sequences that an imported model is read with, unless a job says more


@dataclass
class Known:
    """A folder of weights that was looked at: its model, and its tensors by our names."""

    source: Source
    rules: Rules
    model: ModelSection
    config: dict[str, Any]
    notes: list[str] = field(default_factory=list)

    @property
    def where(self) -> str:
        """The folder, as errors name it."""
        return str(self.source.folder)

    @property
    def context(self) -> int:
        """Its longest sequence."""
        said = self.config.get(self.rules.context) if self.rules.context else self.model.context
        return said if isinstance(said, int) and 0 < said < 10**9 else LONGEST

    def weights(
        self, shapes: Mapping[str, tuple[int, ...]] | None = None, model: ModelSection | None = None
    ) -> Weights:
        """Its weights, for a model of these shapes."""
        entries = self.source.entries()
        model = model or self.model
        # Before a model is drawn: a config.json may speak of ten thousand layers a billion wide.
        stored = sum(entry.end - entry.begin for entry in entries.values())
        count = parameters(self.model)
        if (self.model.layers or 0) > len(entries) or count > stored:
            raise Refused(
                f"config.json speaks of {self.model.layers:,} layers and {count:,} parameters.", where=self.where,
                found=f"{len(entries):,} tensors of {bytes_text(stored)} in all",
            )  # fmt: skip
        told = tensors_of(self.rules, self.model, shapes_of(self.model)).theirs()
        return Weights(entries, tensors_of(self.rules, model, shapes or shapes_of(model)), self.where, told)


def look(source: Source) -> Known:
    """What kind of model lies in `source`. Refused where no rules are there for it or they cannot say what it is."""
    rules, shape, config = configs.described(source)
    return Known(source, rules, configs.complete(shape), config)


def shapes_of(model: ModelSection) -> dict[str, tuple[int, ...]]:
    """Every parameter of `model` by name; nothing is given memory."""
    return {name: tuple(parameter.shape) for name, parameter in Decoder(model).named_parameters()}


def tensors_of(rules: Rules, model: ModelSection, shapes: Mapping[str, tuple[int, ...]]) -> Tensors:
    """The rules applied to `model`."""
    block = layers(model)[0]
    numbers = {f"block.{name}": value for name, value in block if isinstance(value, int)}
    return Tensors(rules, shapes, model.tied is True, numbers)


def begin(source: Source, decoder: Decoder, parameters: Mapping[str, Tensor]) -> None:
    """Fill this rank's `parameters` (by name) of `decoder` from `source`; each rank reads what it holds.

    Refused where the weights are those of another model.
    """
    known = look(source)
    fill(parameters, known.weights(shapes_of(decoder.section), decoder.section))


def bring(
    source: Source, out: Path, check: Callable[[Run, Known], object] = lambda run, known: None
) -> tuple[Run, Known]:
    """Make `out` a finished run with the weights of `source` as its one checkpoint, in float32. Refused where `out` exists.

    check: told of the run before it appears under its name; what it raises leaves nothing behind.
    """
    known = look(source)
    weights = known.weights()
    tokenizer = _tokenizer(known)
    with staged(out, mode=0o700) as place:  # as every run: samples to come tell what was read
        wide = "F64" in weights.types
        job = _job(known, out.name, "float64" if wide else "float32")
        # What `send` goes by: float32 holds bfloat16 and float16 exactly, so untouched weights go out as they came.
        kind = "F32" if len(weights.types) > 1 else next(iter(weights.types))
        came = {**source.facts, "family": known.rules.family, "type": kind}
        facts = {"state": "finished", "steps": 0, "place": str(out.resolve()), "init": came, "imported": True}
        text = job_text(leaves.leaves(job))
        run = folder.create(place, asked=job, text=text, origin=origin(), **facts)
        settings = [Setting(key, None, leaves.plain(value), "imported") for key, value in leaves.leaves(job).items()]
        folder.settle(run, job, {}, settings, Path(""), text)
        source.keep(run.path)
        if tokenizer is not None:
            write_whole(place / TOKENIZER, tokenizer)
        template = _template(known)
        if template:
            write_whole(place / CHAT, template)
        _checkpoint(run, weights, torch.float64 if wide else torch.float32)
        shutil.rmtree(run.local, ignore_errors=True)
        check(run, known)
    return Run(out), known


@contextmanager
def staged(out: Path, mode: int = 0o755) -> Iterator[Path]:
    """A folder beside `out` that becomes it at the end, and vanishes where there is an error. Refused where `out` is in use.

    What a killed process left of the same `out` goes as well.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise Refused("there is something already.", where=str(out), do="Name another folder: --out DIR.")
    place = out.parent / f".{out.name}.{os.getpid()}"
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        for left in out.parent.glob(f".{escape(out.name)}.*"):
            number = left.suffix.removeprefix(".")
            if number.isdecimal() and (left == place or not guardian.alive(int(number))):
                shutil.rmtree(left, ignore_errors=True)
        place.mkdir(mode=mode)
        yield place
        if out.exists():
            out.rmdir()
        os.replace(place, out)
    except OSError as error:
        if error.errno is None or not str(error.filename or "").startswith(str(out.parent)):
            raise
        raise Refused("this cannot be written.", where=str(out), found=error.strerror or str(error)) from None
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _tokenizer(known: Known) -> str | None:
    """The text of its tokenizer.json, checked; None where it has none, which is noted."""
    path = known.source.tokenizer
    if path is None:
        known.notes.append(f"{known.where} has no tokenizer.json: sampling and evaluating text need one")
        return None
    content = read_file(path)
    found = parse(content, str(path))
    if found.vocabulary > (known.model.vocabulary or 0):
        raise Refused(
            f"the tokenizer has {found.vocabulary:,} entries, the model {known.model.vocabulary:,}.", where=str(path),
            do="It belongs to another model.",
        )  # fmt: skip
    return found.content if isinstance(found, Pieces) else content


def _template(known: Known) -> str:
    """Its chat template as a run keeps it; one that is none is noted, and no reason to leave the weights."""
    try:
        found = Template.of(known.source.folder)
    except Refused as refused:
        known.notes.append(f"its chat template cannot be used here: {refused.text}")
        return ""
    return found.content if found.source else ""


def _job(known: Known, name: str, kind: str) -> Job:
    """The job, in force, of an imported model: enough to sample, to evaluate, to start from and to send out again."""
    loaded = job_from({
        "name": "".join(c if c.isalnum() or c in "._-" else "-" for c in name).lstrip("._-")[:100] or "imported",
        "batch": {"sequence": min(known.context, LONGEST), "tokens": min(known.context, LONGEST), "micro": 1},
        "train": {"steps": 1, "precision": kind, "master": kind, "reduce": kind, "compile": False},
        "layout": {"shape": "dp1"},
    })  # fmt: skip
    return loaded.job.model_copy(update={"model": known.model.model_copy(update={"init": known.source.text})})


def _checkpoint(run: Run, weights: Weights, kind: torch.dtype) -> None:
    """Write the one checkpoint of an imported run: step 0, weights alone, a piece at a time."""
    word = next(name for name, one in TYPES.items() if one == kind)
    specs = [TensorSpec(f"model.{name}", word, tuple(shape)) for name, shape in weights.tensors.shapes.items()]
    plan = node_file(specs, Layout(), (1,), 0)
    place = run.checkpoints / store.folder_name(0)
    place.mkdir(parents=True)
    name = "node-0000-inc-0001.safetensors"
    sums = _data(place / name, plan, weights, kind)
    sidecar = Sidecar(0, 1, plan.bytes, checksum(plan.header), sums)
    store.write_synced(place / name.replace(".safetensors", ".json"), sidecar.text())
    manifest = Manifest(
        version=VERSION, step=0, incarnation=1, argosy=version("argosy"), torch=torch.__version__, created=time.time(),
        grid=Grid.of(Layout(), (1,)), tensors=tuple(tuple(row(spec)) for spec in specs), facts={"step": 0},
        files=(store.file_of(name, sidecar),),
    )  # fmt: skip
    store.commit(place, manifest)


def _data(path: Path, plan: NodeFile, weights: Weights, kind: torch.dtype) -> tuple[str, ...]:
    """Write the data file; gives the checksum of each piece."""
    sums = []
    with path.open("wb") as file:
        file.write(plan.header)
        for piece in plan.pieces:
            part = weights.rows(piece.tensor.removeprefix("model."), piece.begin[0], piece.end[0])
            part = part[(slice(None), *(slice(b, e) for b, e in zip(piece.begin[1:], piece.end[1:], strict=True)))]
            data = raw(part.to(kind))
            sums.append(checksum(data))
            file.write(data)
        file.flush()
        os.fsync(file.fileno())
    weights.forget()
    return tuple(sums)
