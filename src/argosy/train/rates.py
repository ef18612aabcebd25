"""The learning rate of every step of a run, from its job, its ledger and its length. No torch: a fork asks for it too."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from argosy.data.order import read_at, tokens_before
from argosy.job.schema import OptimSection
from argosy.optim import schedule
from argosy.optim.schedule import Branch
from argosy.run.ledger import Entry, Ledger

BRANCH = "optim.branch"  # no key of a job: the ledger's word for where the run left its parent


def scheduled(section: OptimSection, ledger: Ledger, steps: int) -> Callable[[int], float]:
    """The share of the peak learning rate by step, keyed by tokens: what all steps before it read, over what `steps` read."""
    total, left = tokens_before(steps + 1, ledger), branch(ledger)

    def at(step: int) -> float:
        """The share of the peak rate in `step`."""
        read = read_at(step, ledger)
        # The middle of a step stands for it: neither the first nor the last one has a rate of zero.
        return schedule.rate(section, read.first_token + read.tokens / 2, total, left)

    return at


def branch(ledger: Ledger) -> Branch | None:
    """Where the run last left a parent; None for a run that began by itself."""
    entry = _leaving(ledger)
    if entry is None:
        return None
    height = float(entry.new["rate"]) if isinstance(entry.new, Mapping) else 1.0
    return Branch(float(tokens_before(entry.from_step, ledger)), height)


def left(ledger: Ledger) -> int:
    """The step after which the run last left a parent; 0 for a run that began by itself."""
    entry = _leaving(ledger)
    return 0 if entry is None else entry.from_step - 1


def _leaving(ledger: Ledger) -> Entry | None:
    return next((entry for entry in reversed(ledger.entries) if entry.key == BRANCH), None)


def leaving(section: OptimSection, ledger: Ledger, steps: int, step: int, place: str) -> Entry:
    """The entry of a run that leaves its parent at the end of `step`; the other arguments are the parent's own.

    place: the parent's folder.
    """
    total, read = tokens_before(steps + 1, ledger), tokens_before(step + 1, ledger)
    height = 1.0
    if read >= (section.warmup or 0):
        height = schedule.scheduled(section, read, total, branch(ledger) or Branch(0.0))
    return Entry(step + 1, BRANCH, None, {"run": place, "step": step, "rate": height}, "--fork")


def decays_from(section: OptimSection, ledger: Ledger, steps: int) -> int:
    """The step from which "wsd" falls."""
    total, left = tokens_before(steps + 1, ledger), branch(ledger)
    stays = max(float(section.warmup or 0), left.tokens if left is not None else 0.0)
    begin = max(total - (section.decay or 0.0) * total, stays)
    low, high = 1, max(1, steps)
    while low < high:  # the first step of which more than half lies behind it
        middle = (low + high) // 2
        read = read_at(middle, ledger)
        low, high = (low, middle) if read.first_token + read.tokens / 2 > begin else (middle + 1, high)
    return low
