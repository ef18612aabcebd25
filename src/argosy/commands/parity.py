"""`argosy parity`: random layouts of small models on real ranks, compared with a transformer from the formulas."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from argosy.errors import NO, Refused

if TYPE_CHECKING:
    from argosy.prove.fuzz import Draw, Fuzzer

HELP = "Check and change"
CASES = 100
LISTED = 20  # pairs of options that are named one by one, at most
_WORDS = {"allow_extra_args": True, "ignore_unknown_options": True}


@dataclass
class Outcome:
    """How many draws there were, which failed, and the first failure, as small as it could be made, as a job file."""

    draws: int
    failed: list[Draw]
    job_file: str = ""
    missing: int = 0  # legal pairs of options that were never drawn

    @property
    def code(self) -> int:
        """The exit code."""
        return NO if self.failed else 0


def parity(
    *,
    seed: int | None = None,
    cases: int | None = None,
    minutes: float | None = None,
    job: Path | str | None = None,
    overrides: Sequence[str] = (),
    as_json: bool = False,
    show: Callable[[str], None] = print,
) -> Outcome:
    """Draw, compare, shrink the first failure, and tell. Refused for a job whose layout is not said or not legal."""
    from argosy.prove.fuzz import Fuzzer
    from argosy.prove.parity import Bench
    from argosy.prove.pool import Pool

    if (cases is not None and cases < 1) or (minutes is not None and minutes <= 0):
        raise Refused("nothing to draw.", found=f"--cases {cases}, --minutes {minutes}", do="Give at least one.")
    if job is not None and (seed is not None or minutes is not None):
        given = "--seed" if seed is not None else "--minutes"
        raise Refused(
            f"{given} does nothing with a job, whose draws are always the same few.",
            do=f"Leave {given} out; --cases N takes the first N.",
        )
    planned = None if job is None else _planned(str(job), overrides)
    with Pool(Bench.ranks()) as pool:
        bench = Bench(pool)
        try:
            if planned is not None:
                return _one_job(bench, planned, cases, as_json, show)
            limit = CASES if cases is None and minutes is None else cases
            return _many(Fuzzer(bench, seed or 0), limit, minutes, as_json, show)
        finally:
            bench.close()


def _planned(job: str, overrides: Sequence[str]) -> list[tuple[dict[str, Any], Any]]:
    """The draws of a job file, before any process starts."""
    from argosy.job import parts
    from argosy.job.load import load
    from argosy.prove.scale import trials

    found = load(job, overrides)
    own = [f"{key} = {name}" for key, name in parts.named(found.job) if key in ("model.class", "train.loss")]
    if own:
        raise Refused(
            "the formulas that a layout is compared with are those of the decoder and of its own loss.",
            where=str(job),
            found=", ".join(own),
            do="Take that out of a copy of the job to check its layout; code of your own is yours to check.",
        )
    return list(trials(found.job))


def _one_job(bench: Any, planned: Any, cases: int | None, as_json: bool, show: Callable[[str], None]) -> Outcome:
    """The draws of one job: itself where it is small, and its layout with other batches and updates."""
    from argosy.prove.fuzz import Draw, job_file

    outcome = Outcome(0, [])
    for number, (varied, trial) in enumerate(planned[:cases], 1):
        options = {**varied, "layout": trial.job.layout.shape, "ranks": trial.ranks}
        draw = Draw(number, options, trial.precision, bench.try_(trial))
        outcome.draws += 1
        if not draw.found.ok:
            outcome.failed.append(draw)
            outcome.job_file = outcome.job_file or job_file(trial, draw.found.wrong)
        show(json.dumps(draw.row()) if as_json else line(draw, ", ".join(f"{k} {v}" for k, v in options.items())))
    _end(outcome, "As a job file:", as_json, show, of=len(planned))
    return outcome


def _many(
    fuzzer: Fuzzer, cases: int | None, minutes: float | None, as_json: bool, show: Callable[[str], None]
) -> Outcome:
    """Draws over the whole table."""
    from argosy.prove.fuzz import job_file, told
    from argosy.prove.parity import Trial

    outcome = Outcome(0, [])
    for draw in fuzzer.draws(cases, minutes):
        outcome.draws += 1
        show(json.dumps(draw.row()) if as_json else line(draw, told(draw.case)))
        if not draw.found.ok:
            outcome.failed.append(draw)
            if not outcome.job_file:
                small, found = fuzzer.smallest(draw)
                head = f"Draw {draw.number} of seed {fuzzer.seed}: {draw.found.wrong}.\nSmallest: {told(small)}: {found.wrong}."
                outcome.job_file = job_file(Trial.of(small, draw.precision), head)
    outcome.missing = len(fuzzer.cover.open)
    if not as_json:
        _coverage(fuzzer, show)
    _end(outcome, "The first one, as small as it still fails:", as_json, show)
    return outcome


def line(draw: Draw, text: str) -> str:
    """One draw on one line."""
    name, error = draw.found.worst_gradient
    ranks = draw.row()["ranks"]
    verdict = f"gradient {error:.0e} {name}" if draw.found.ok else f"WRONG: {draw.found.wrong}"
    precision = "" if draw.precision == "float64" else f" {draw.precision},"
    return f"{draw.number:>4}  {ranks} rank{'s' * (ranks != 1):<1}  {draw.found.seconds:5.2f} s  {verdict}  |{precision} {text}"


def _coverage(fuzzer: Fuzzer, show: Callable[[str], None]) -> None:
    """How many legal pairs of options were drawn, and which were not."""
    legal, still = len(fuzzer.cover.legal), fuzzer.cover.open
    show(f"pairs of options drawn: {legal - len(still)} of {legal} legal ones")
    for first, a, second, b in sorted(still, key=str)[:LISTED]:
        show(f"  never drawn: {first} {a} with {second} {b}")
    if len(still) > LISTED:
        show(f"  never drawn: {len(still) - LISTED:,} more; --cases {CASES} draws all")


def _end(outcome: Outcome, head: str, as_json: bool, show: Callable[[str], None], of: int | None = None) -> None:
    """The last words, with `head` above the job file of what failed; `of` is how many draws there are, where that is known."""
    if as_json:
        if outcome.failed:
            show(json.dumps({"draw": None, "job_file": outcome.job_file}))
        return
    if not outcome.failed:
        number = f"{outcome.draws} draws" if of is None else f"{outcome.draws} of the {of} draws of this job"
        show(f"{number} agree with the reference.")
        return
    numbers = ", ".join(str(draw.number) for draw in outcome.failed)
    show(f"{len(outcome.failed)} of {outcome.draws} draws differ: {numbers}. {head}")
    show(outcome.job_file)


def register(app: typer.Typer) -> None:
    """Spell the command for the shell."""

    @app.command(
        "parity", rich_help_panel=HELP, context_settings=_WORDS, options_metavar="[JOB] [OPTIONS] [KEY=VALUE]..."
    )
    def command(
        context: typer.Context,
        seed: Annotated[int | None, typer.Option(help="Another seed draws other cases.", show_default="0")] = None,
        cases: Annotated[int | None, typer.Option(help="How many draws.", show_default=str(CASES))] = None,
        minutes: Annotated[float | None, typer.Option(help="Stop drawing after so many minutes.")] = None,
        job: Annotated[Path | None, typer.Option(help="The same as JOB: check its layout, at small sizes.")] = None,
        as_json: Annotated[bool, typer.Option("--json", help="One JSON object a draw, and the job file.")] = False,
    ) -> None:
        """Does every layout, or that of JOB, train the same model? Draws cases and compares them with the formulas.

        Exit code 0 when all agree, 3 when not. The first failure is printed as a job file; without JOB the smallest like it.
        """
        from argosy.job.load import split

        name, overrides = split(context.args)
        if name is not None and job is not None:
            raise Refused(f"two jobs were given, {name} and --job {job}.", do="Name one.")
        if overrides and name is None and job is None:
            raise Refused("keys of a job were given without a job.", do="Name one: argosy parity JOB KEY=VALUE.")
        outcome = parity(
            seed=seed,
            cases=cases,
            minutes=minutes,
            job=job or name,
            overrides=overrides,
            as_json=as_json,
            show=lambda text: print(text, flush=True),
        )
        if outcome.code:
            raise typer.Exit(outcome.code)
