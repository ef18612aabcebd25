"""`argosy data`: prepare the text of a job by itself, say what is in it, show what a step of a run read. No torch."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from argosy.errors import Refused

if TYPE_CHECKING:
    from argosy.data.prepare import Prepared
    from argosy.job.load import Loaded

HELP = "Data and models"
WORDS: dict[str, Any] = {"allow_extra_args": True, "ignore_unknown_options": True}


def prepare(
    job: str | None = None, overrides: Sequence[str] = (), *, workers: int = 0, strict: bool = False
) -> Prepared:
    """The prepared text of a job, made now unless it is cached; `workers` processes encode, 0 = one for each core.

    strict: refused at the first record that cannot be used.
    """
    from argosy.job.load import load

    return _prepared(load(job, overrides), workers, strict)


def _prepared(loaded: Loaded, workers: int, strict: bool) -> Prepared:
    from argosy.cluster import here
    from argosy.data import prepare as preparation

    said = ""

    def progress(what: str, done: int, total: int) -> None:
        """Show how far the preparation is, where somebody looks on."""
        nonlocal said
        line = f"  {what} … {100 * done // max(1, total)}%"
        if line != said and sys.stderr.isatty():
            print(f"\r{line:<70}", end="\n" if done >= total else "", file=sys.stderr, flush=True)
        said = line

    section = loaded.job.data
    cache = preparation.cache_folder(section, loaded.base)
    return preparation.prepare(
        section, base=loaded.base, cache=cache, progress=progress, workers=workers or here.cores(), strict=strict
    )


def stats(words: Sequence[str], *, as_json: bool = False, workers: int = 0) -> str:
    """What is in the text of a run, or of a job with overrides (prepared now unless it is cached), as JSON or for people."""
    from argosy.data import statistics
    from argosy.data.prepare import cache_folder, locate, mixture
    from argosy.data.shards import Shards
    from argosy.job.load import load, split
    from argosy.run.folder import Run

    name, overrides = split(words)
    if name is not None and not overrides and Run(Path(name)).exists:
        run = Run(Path(name))
        job, notes, unread = run.job(), [], list[str]()
        folder = locate(run.prepared(), cache_folder(job.data, Path.cwd()))
        licences: list[str] = []
    else:
        loaded = load(name, overrides)
        prepared = _prepared(loaded, workers, False)
        job, folder, notes, unread = loaded.job, prepared.folder, list(prepared.notes), list(prepared.unread)
        licences = [str(row["license"]) for row in mixture(job.data, prepared)]
    shards = Shards(folder)
    found = statistics.statistics(shards, job.batch.sequence, job.train.seed)
    if as_json:
        rows = [one.row() for one in found]
        for row, terms in zip(rows, licences, strict=False):
            row["license"] = terms
        return json.dumps({"sources": rows, "notes": notes, "passed_over": unread}, indent=1)
    told = list(statistics.lines(found, shards, job.batch.sequence, licences))
    return "\n".join([*told, *(f"note: {note}" for note in notes)])


def show(name: str | Path | None, step: int, *, as_json: bool = False) -> str:
    """What `step` of the run `name` read, as JSON or for people; from the run folder and its prepared text alone."""
    from argosy.commands.runs import find
    from argosy.data import prepare as preparation
    from argosy.data import show as showing
    from argosy.data.shards import Shards
    from argosy.data.tokenizer import open_tokenizer

    run = find(name)
    job, ledger = run.job(), run.ledger()
    last = int(run.info().get("steps") or job.train.steps or 0)
    if not 1 <= step <= (last or step):
        raise Refused("there is no such step.", where=f"--step {step}", found=f"{run.path} has steps 1 to {last:,}")
    folder = preparation.locate(run.prepared(), preparation.cache_folder(job.data, Path.cwd()))
    shards, seed = Shards(folder), job.train.seed
    if as_json:
        return json.dumps([stretch.row() for stretch in showing.stretches(step, seed, ledger, shards)])
    return "\n".join(showing.lines(step, seed, ledger, shards, open_tokenizer(folder)))


def register(app: typer.Typer) -> None:
    """Spell the command for the shell."""
    group = typer.Typer(no_args_is_help=True)
    app.add_typer(
        group, name="data", rich_help_panel=HELP, help="Prepare text; say what is in it; show what a step read."
    )

    @group.command("prepare", context_settings=WORDS, options_metavar="[JOB] [OPTIONS] [KEY=VALUE]...")
    def prepare_command(
        context: typer.Context,
        workers: Annotated[int, typer.Option(help="Processes; 0 = one for each core.")] = 0,
        strict: Annotated[bool, typer.Option("--strict", help="Stop at the first record that cannot be used.")] = False,
    ) -> None:
        """Read, split and encode the text of a job now; train does it by itself.

        One's own text: --data.source FOLDER.
        """
        from argosy.job.load import split

        job, overrides = split(context.args)
        prepared = prepare(job, overrides, workers=workers, strict=strict)
        facts = prepared.facts
        print(prepared.summary)
        print(f"{facts.held_out_documents:,} of {facts.documents + facts.held_out_documents:,} documents held out")
        for note in prepared.notes:
            print(f"note: {note}")
        print(prepared.folder)

    @group.command("stats", context_settings=WORDS, options_metavar="[RUN | JOB] [OPTIONS] [KEY=VALUE]...")
    def stats_command(
        context: typer.Context,
        as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
        workers: Annotated[int, typer.Option(help="Processes; 0 = one for each core.")] = 0,
    ) -> None:
        """What is in the text of a run or a job: tokens, lengths, licences, duplicates."""
        from argosy.observe.text import shown

        print(shown(stats(context.args, as_json=as_json, workers=workers), sys.stdout))

    @group.command("show")
    def show_command(
        step: Annotated[int, typer.Option(help="The step, counted from 1.")],
        run: Annotated[str | None, typer.Argument(metavar="[RUN]", help="A run; left out: the newest.")] = None,
        as_json: Annotated[
            bool,
            typer.Option("--json", help="[{source, document, begin, end}], begin and end in tokens of the document."),
        ] = False,
    ) -> None:
        """What did a step read? Every stretch of text of its whole global batch."""
        from argosy.observe.text import shown

        print(shown(show(run, step, as_json=as_json), sys.stdout))
