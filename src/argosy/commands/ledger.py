"""What a start writes into the ledger of its run, and what it reads there. No command of its own, no torch."""

from __future__ import annotations

from argosy.commands import fork
from argosy.data import order
from argosy.data.order import tokens_before
from argosy.data.prepare import Prepared, mixture
from argosy.job.schema import Job
from argosy.run.folder import Run
from argosy.run.ledger import Entry, Ledger, append
from argosy.run.rule import Verdict


def read(verdict: Verdict, source: Run, job: Job) -> tuple[int, int]:
    """(steps, tokens) before the batch last changes its number of tokens; nothing where it never does."""
    if verdict.action == "fork":
        ledger = fork.ledger(source, verdict.step)
    else:
        ledger = source.ledger() if (source.path / "ledger.jsonl").is_file() else _grown(_begun(job), job)
    if (source.path / "ledger.jsonl").is_file():
        order.known(ledger)
    steps = max(0, ledger.changes(["batch.tokens"])[-1] - 1)
    if any(key == "batch.tokens" for key, *_ in verdict.changes):
        steps = verdict.step
    if job.train.steps is not None:  # a batch that would still grow when the run is over
        steps = min(steps, max(verdict.step, job.train.steps))
    return steps, tokens_before(steps + 1, ledger)


def _begun(job: Job, **more: object) -> Ledger:
    """What the ledger of a new run begins with."""
    return Ledger.start(
        data__order=order.ORDER,
        **more,
        batch__sequence=job.batch.sequence,
        batch__tokens=order.ramp(job.batch)[0][1],
        batch__packing=job.batch.packing,
        train__seed=job.train.seed,
    )


def _grown(ledger: Ledger, job: Job) -> Ledger:
    """`ledger` with the sizes that the batch grows through."""
    for step, tokens in order.ramp(job.batch)[1:]:
        ledger = ledger.changed(step, "batch.tokens", tokens, "batch.ramp")
    return ledger


def write(run: Run, job: Job, verdict: Verdict, prepared: Prepared) -> None:
    """Begin the ledger of `run`, or add what this start changes from the step after its newest checkpoint on."""
    path = run.path / "ledger.jsonl"
    mixed = mixture(job.data, prepared)
    if not path.exists():
        _grown(_begun(job, data__mix=mixed), job).write(path)
    last = {entry.key: entry for entry in Ledger.read(path).entries}
    forks = verdict.action == "fork"
    reason = "--fork" if forks else "--change"
    told = [row for row in verdict.changes if not row[0].startswith("data.")]  # those are told as one: the mix
    entries = [Entry(verdict.step + 1, key, old, new, reason) for key, old, new in told]
    entries += [fork.leaving(verdict)] if forks else []
    if order.MIX not in last and mixed[0]["digest"] != (begun := Run(verdict.source or run.path).prepared().name):
        # Begun before the ledger named its text: what was read so far is said now.
        entry = Entry(0, order.MIX, None, [{"source": begun, "digest": begun, "weight": 1.0}], "start")
        append(path, [entry])
        last[order.MIX] = entry
    for key, new in zip(order.KEYS, (job.batch.sequence, job.batch.tokens, mixed), strict=True):
        # A start that was killed between the ledger and the settings may have left what is taken back now.
        if key in last and last[key].new != new and all(entry.key != key for entry in entries):
            entries.append(Entry(verdict.step + 1, key, last[key].new, new, reason))
    append(path, [entry for entry in entries if not _stands(entry, last.get(entry.key))])


def _stands(entry: Entry, last: Entry | None) -> bool:
    """Whether `last`, the newest entry of its key, says what `entry` says: it was killed right after writing it."""
    return last is not None and last.new == entry.new and last.from_step <= entry.from_step
