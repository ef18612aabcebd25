"""What lists and tables of a job must be in themselves: a batch that grows, a mix, held-out sets, code of one's own."""

from __future__ import annotations

from collections.abc import Mapping

from argosy.errors import Refused
from argosy.job import parts
from argosy.job.schema import OWN, Job

MOST_HELD = 0.9  # share of the text that may be held out
MOST_SIZES = 1000  # that a batch may grow through


def check(job: Job, origins: Mapping[str, str]) -> None:
    """Refused where one of them cannot be. origins: who wrote a key."""
    _held_out(job, origins)
    _ramp(job, origins)
    _mix(job, origins)
    _sets(job, origins)
    _parts(job, origins)


def _held_out(job: Job, origins: Mapping[str, str]) -> None:
    """Refused where next to nothing is left to train on."""
    share = job.data.held_out
    if share > MOST_HELD:
        raise Refused(
            f"data.held_out = {share:.4g} leaves {1 - share:.2%} of the text to train on.",
            where=origins.get("data.held_out", "default"),
            do=f"At most data.held_out={MOST_HELD:.0%}; usual are 2% to 10%.",
        )


def _ramp(job: Job, origins: Mapping[str, str]) -> None:
    """Refused where the batch cannot grow as it is said."""
    batch, ramp = job.batch, job.batch.ramp
    if ramp is None:
        return
    growth = batch.tokens - ramp.start
    wrong = ""
    if ramp.start % batch.sequence or ramp.by % batch.sequence:
        wrong = f"start = {ramp.start} and by = {ramp.by} must be multiples of batch.sequence = {batch.sequence}"
    elif growth <= 0:
        wrong = f"it starts with {ramp.start}, which is not less than batch.tokens = {batch.tokens}"
    elif growth // ramp.by > MOST_SIZES:
        wrong = f"it grows in {growth // ramp.by} sizes, {MOST_SIZES} are taken"
    elif growth % ramp.by:
        wrong = f"by = {ramp.by} does not divide the growth from {ramp.start} to {batch.tokens}"
    elif job.train.tokens and job.train.tokens < ramp.tokens:
        wrong = f"it grows for {ramp.tokens} tokens, the run has {job.train.tokens}"
    if wrong:
        do = (
            "Nearest: " + _nearest_ramp(batch.tokens, batch.sequence)
            if not wrong.startswith("it grows")
            else "Shorten it."
        )
        raise Refused(f"batch.ramp: {wrong}.", where=origins.get("batch.ramp", "default"), do=do)


def _nearest_ramp(tokens: int, sequence: int) -> str:
    return f"start = {sequence}, by = {sequence}." if tokens > sequence else "leave it out, a step is one sequence."


def _mix(job: Job, origins: Mapping[str, str]) -> None:
    """Refused where a mix sums to nothing or names a source twice."""
    where = origins.get("data.mix", "default")
    if job.data.mix and not sum(one.weight for one in job.data.mix):
        raise Refused("the weights of data.mix sum to nothing.", where=where, do="Give one of them a weight above 0.")
    names = [(one.source, one.field) for one in job.data.mix]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise Refused(f"data.mix names {twice[0]} twice.", where=where, do="Give it once, with the sum of the weights.")


def _parts(job: Job, origins: Mapping[str, str]) -> None:
    """Refused where what should name code has not the form of such a name; whether it is there is asked before a start."""
    for key, name in parts.named(job):
        if not parts.is_part(name):
            where = origins.get(key, "default")
            raise Refused(f'{key} = "{name}" names no code.', where=where, do=parts.WRITE)


def _sets(job: Job, origins: Mapping[str, str]) -> None:
    """Refused where held-out sets cannot be told apart, or where what is best goes by one that is not there."""
    names = [one.name for one in job.evaluate.sets]
    twice = next((name for name in names if names.count(name) > 1 or name == OWN), None)
    if twice is not None:
        what = (
            f"evaluate.sets names {twice} twice." if twice != OWN else f"{OWN} is the name of the run's own documents."
        )
        raise Refused(what, where=origins.get("evaluate.sets", "default"), do="Give each set a name of its own.")
    if job.evaluate.by not in (OWN, *names):
        raise Refused(
            f"evaluate.by = {job.evaluate.by} is no held-out set.",
            where=origins.get("evaluate.by", "default"),
            do=f"There are: {', '.join((OWN, *names))}.",
        )
