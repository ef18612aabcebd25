"""What a start writes into the ledger of its run, and what it reads there. No command of its own, no torch."""

from __future__ import annotations

from itertools import pairwise

from argosy.data import order
from argosy.data.order import tokens_before
from argosy.data.prepare import Prepared, mixture
from argosy.job.schema import BatchSection, Job
from argosy.run.folder import Run
from argosy.run.ledger import Entry, Ledger, append
from argosy.run.rule import Verdict


def read(verdict: Verdict, source: Run, batch: BatchSection) -> tuple[int, int]:
    """(steps, tokens) before the batch last changes its number of tokens; nothing where it never does."""
    if not (source.path / "ledger.jsonl").is_file():
        sizes = order.ramp(batch)
        return sizes[-1][0] - 1, sum((after - step) * tokens for (step, tokens), (after, _) in pairwise(sizes))
    ledger = source.ledger()
    order.known(ledger)
    steps = max(0, ledger.changes(["batch.tokens"])[-1] - 1)
    if any(key == "batch.tokens" for key, *_ in verdict.changes):
        steps = verdict.step
    return steps, tokens_before(steps + 1, ledger)


def write(run: Run, job: Job, verdict: Verdict, prepared: Prepared) -> None:
    """Begin the ledger of `run`, or add what this start changes from the step after its newest checkpoint on."""
    path = run.path / "ledger.jsonl"
    mixed = mixture(job.data, prepared)
    if not path.exists():
        (_, first), *later = order.ramp(job.batch)
        start = Ledger.start(
            data__order=order.ORDER,
            data__mix=mixed,
            batch__sequence=job.batch.sequence,
            batch__tokens=first,
            batch__packing=job.batch.packing,
            train__seed=job.train.seed,
        )
        for step, tokens in later:
            start = start.changed(step, "batch.tokens", tokens, "batch.ramp")
        start.write(path)
    last = {entry.key: entry for entry in Ledger.read(path).entries}
    reason = "--fork" if verdict.action == "fork" else "--change"
    told = [row for row in verdict.changes if not row[0].startswith("data.")]  # those are told as one: the mix
    entries = [Entry(verdict.step + 1, key, old, new, reason) for key, old, new in told]
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
