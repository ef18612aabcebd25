"""What a job adds to the callbacks of every run: how it is evaluated, and callbacks of its owner's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from argosy.errors import Refused
from argosy.evaluate.held_out import Held
from argosy.job import parts
from argosy.job.schema import OWN, Job
from argosy.quantities import interval
from argosy.run.folder import Run
from argosy.run.ledger import Ledger
from argosy.train.callbacks import Callback, Evaluate
from argosy.train.rates import left


def evaluation(measure: Callable[[], Sequence[Held]], job: Job, run: Run, ledger: Ledger) -> Evaluate:
    """The callback that measures the held-out documents of `run` itself and every named set, as `job` says."""
    section = job.evaluate
    text = dict(run.held_sets()).get(section.by) or run.prepared()
    return Evaluate(
        measure,
        interval(section.every),
        sets=(OWN, *(one.name for one in section.sets)),
        by=section.by,
        keep=section.keep_best,
        patience=section.patience,
        text=f"{section.tokens} tokens of {text.name}",
        since=left(ledger),
    )


def own_callback(name: str) -> Callback:
    """The callback that the job names, made. Refused where it is none."""
    made = parts.load("train.callbacks", name)
    found = made() if isinstance(made, type) else made
    if not isinstance(found, Callback):
        raise Refused(
            "this is no callback.",
            where=f"train.callbacks = {name}",
            found=f"a {type(found).__name__}",
            do="Derive it from argosy.train.callbacks.Callback; it is made without arguments.",
        )
    return found
