"""The folder of a run that `argosy.fit` makes: what must be the same for it to go on, and what may change.

In: what the call asks for. Out: run.json, settings.json and the ledger, or Refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import blake2b
from pathlib import Path

import torch
from torch import nn

from argosy.errors import Refused
from argosy.job.schema import CheckpointSection, Job, TrainSection
from argosy.job.setting import Setting
from argosy.run import folder, rule
from argosy.run.folder import Run
from argosy.run.ledger import Entry, Ledger, append

_TEXT = "# Begun by argosy.fit in a program of yours: settings.json holds what is in force.\n"


def made(path: Path) -> Run:
    """The run folder, with nothing in it where there was none: whoever holds its lock writes there.

    Refused for a folder of anything else: a run is removed with all that lies in its folder.
    """
    found = rule.look(path)
    if found.kind in ("foreign", "file", "broken"):
        told = {"file": "this is a file, a run needs a folder.", "broken": "the run in this folder cannot be read."}
        raise Refused(
            told.get(found.kind, "this folder holds something that is no run."),
            where=str(path),
            found=found.sentence,
            do="Give a new or empty folder, such as runs/NAME.",
        )
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise Refused("a run cannot be made there.", where=str(path), found=error.strerror or str(error)) from None
    return Run(path)


def opened(run: Run, module: str, begun: Mapping[str, int], *, steps: int, save_every: int | str, keep: int) -> None:
    """Write what this call asks for into the locked folder. Refused where it holds a run of something else.

    begun: what cannot change in the middle, since the steps to come would draw and read something else.
    """
    path, seed = run.path, begun["train.seed"]
    job = Job(
        name="".join(letter if letter.isalnum() or letter in "._-" else "-" for letter in path.name) or "run",
        train=TrainSection(steps=steps, seed=seed),
        checkpoint=CheckpointSection(every=save_every, keep=keep),
    )
    written = dict.fromkeys(("train.steps", "train.seed", "checkpoint.every", "checkpoint.keep"), "argosy.fit")
    if not run.exists:
        folder.create(path, asked=job, text=_TEXT, origin={}, fit=module)
    elif run.info().get("fit") != module:
        raise Refused(
            "this folder holds a run of another module or optimizer.",
            where=str(path),
            do="Give another folder, or the module and optimizer that began it.",
        )
    if not (path / "ledger.jsonl").exists():
        Ledger(tuple(Entry(0, key, None, value, "start") for key, value in begun.items())).write(path / "ledger.jsonl")
    for key, old, new in ((entry.key, entry.new, begun.get(entry.key)) for entry in run.ledger().entries):
        if key in begun and old != new:
            name = key.rpartition(".")[2]
            raise Refused(
                f"this run was begun with {name} = {old}, this call says {name} = {new}.",
                where=str(path),
                do=f"Give another folder, or {name} = {old}.",
            )
    values = {"train.steps": steps, "train.seed": seed, "checkpoint.every": save_every, "checkpoint.keep": keep}
    settings = [Setting(name, value, value, "argosy.fit") for name, value in values.items()]
    folder.settle(run, job, written, settings, path, _TEXT)
    run.update_info(steps=steps)


def rated(run: Run, step: int, values: Mapping[str, object]) -> None:
    """Keep in the ledger what the steps after `step` are updated with, where it is not as before."""
    last = {entry.key: entry for entry in run.ledger().entries}
    entries = []
    for key, new in values.items():
        before = last.get(key)
        if before is None or before.new != new or before.from_step > step + 1:
            old, reason = (before.new, "argosy.fit") if before is not None else (None, "start")
            entries.append(Entry(step + 1 if before is not None else 0, key, old, new, reason))
    append(run.path / "ledger.jsonl", entries)


def fingerprint(module: nn.Module, optimizer: torch.optim.Optimizer) -> str:
    """What must be the same for a run to go on: names, shapes and types of all weights, and the optimizer's class."""
    rows = [f"{name} {tuple(tensor.shape)} {tensor.dtype}" for name, tensor in module.state_dict().items()]
    return blake2b("\n".join([type(optimizer).__name__, *rows]).encode(), digest_size=8).hexdigest()
