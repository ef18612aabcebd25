"""`argosy import SRC --out DIR`, `argosy export RUN --to hf --out DIR`: models in and out, each ending with a logits check."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from argosy.commands.runs import find
from argosy.errors import Refused

if TYPE_CHECKING:
    from torch import Tensor

    from argosy.run.folder import Run

HELP = "Data and models"
PLACE = 30

Say = Callable[[str], object]


def bring(source: str, out: str | Path, *, check: bool = True, say: Say = lambda line: None) -> Run:
    """Make the folder or hf:// name `source` a finished run in the folder `out`, with its weights as the one checkpoint.

    check: compute logits with transformers too; `say` hears what is printed. Refused where it cannot be read, and, with exit
    code 3, where the logits differ; nothing is left then.
    """
    from argosy.exchange.config import described
    from argosy.exchange.source import find as located
    from argosy.run.folder import Run

    if Run(source).exists:
        raise Refused("this is a run already.", where=source, do=f"Use it as it is: argosy sample {source}")
    found = located(source)
    described(found)  # what is wrong with it is said before torch is loaded
    from argosy.exchange import check as checks
    from argosy.exchange.huggingface import Known
    from argosy.exchange.huggingface import bring as taken

    def compared(run: Run, known: Known) -> None:
        """Print how far the logits are from those of transformers."""
        ids = checks.tokens_for(known.model, known.context)
        _compared(lambda: (checks.theirs(found.folder, ids), checks.ours(run, ids)), check, source, say)

    run, known = taken(found, Path(out), compared)
    for note in known.notes:
        say(f"note: {note}")
    say(_told(run, known.rules.family, found.text))
    return run


def send(
    run: str | Path | None,
    out: str | Path,
    *,
    family: str | None = None,
    kind: str | None = None,
    shard: int | None = None,
    check: bool = True,
    say: Say = lambda line: None,
) -> Path:
    """Write the newest checkpoint of `run` as a folder that transformers loads; gives the folder.

    family, kind, shard: see `exchange.send`. Refused where no family can say what the model is, and, with exit code 3, where
    the logits differ; nothing is left then.
    """
    from argosy.exchange import check as checks
    from argosy.exchange import send as sending
    from argosy.exchange.weights import TYPES
    from argosy.quantities import bytes_text

    source, place = find(run), Path(out)

    def compared(staged: Path, sent: sending.Sent) -> None:
        """Print how far the logits are from those of transformers."""
        job, rounded = source.job(), TYPES[sending.WORDS[sent.kind]]
        ids = checks.tokens_for(job.model, job.batch.sequence)
        _compared(
            lambda: (checks.theirs(staged, ids), checks.ours(source, ids, rounded=rounded)), check, str(place), say
        )

    sent = sending.send(
        source, place, family=family, kind=kind, shard=sending.SHARD if shard is None else shard, check=compared
    )
    for note in sent.notes:
        say(f"note: {note}")
    files = f"{sent.files} file{'s' * (sent.files != 1)}, {bytes_text(sent.bytes)}"
    say(f"{place}: step {sent.step:,} of {source.path} as {sent.rules.family}, {sent.kind}, {files}")
    return place


def _compared(logits: Callable[[], tuple[Tensor, Tensor]], wanted: bool, where: str, say: Say) -> None:
    """Print how the logits compare, or why they are not compared. Refused where they differ."""
    from argosy.exchange import check as checks

    reason = checks.missing() if wanted else "--no-check"
    if reason:
        say(f"logits not checked: {reason}")
        return
    result = checks.compare(*logits())
    say(result.sentence)
    result.demand(where)


def _told(run: Run, family: str, source: str) -> str:
    from argosy.plan.flops import parameters
    from argosy.quantities import count_text

    model = run.job().model
    return f"{run.path}: {source}, {family}, {model.layers} layers x {model.width}, {count_text(parameters(model))} parameters"


def register(app: typer.Typer) -> None:
    """Spell the commands for the shell."""

    @app.command(
        "import", rich_help_panel=HELP, help="A Hugging Face folder, or hf://org/name@revision, becomes a run."
    )
    def import_command(
        source: Annotated[str, typer.Argument(metavar="SRC", help="A folder with a config.json, or hf://org/name.")],
        out: Annotated[Path, typer.Option(help="Folder of the run to be made.")],
        check: Annotated[bool, typer.Option("--check/--no-check", help="Compare logits with transformers.")] = True,
    ) -> None:
        """`argosy import`."""
        from argosy.commands.train import interrupted

        with interrupted():
            run = bring(source, out, check=check, say=print)
        print(f"Try it: argosy sample {run.path}   Train on: argosy train --model.init {run.path}")

    @app.command("export", rich_help_panel=HELP, help="A run becomes a folder that transformers, vLLM and others load.")
    def export_command(
        out: Annotated[Path, typer.Option(help="Folder to be made.")],
        run: Annotated[str | None, typer.Argument(metavar="[RUN]", help="A run; left out: the newest.")] = None,
        to: Annotated[Literal["hf"], typer.Option(help="The format.")] = "hf",
        family: Annotated[
            str | None, typer.Option(help="Family to write it as; else the one that it came from.")
        ] = None,
        kind: Annotated[
            str | None,
            typer.Option("--type", help="float32, bfloat16 or float16; else as it came, float32 where it was trained."),
        ] = None,
        shard: Annotated[str, typer.Option("--shard-size", help="Largest file of weights.")] = "5 GB",
        check: Annotated[bool, typer.Option("--check/--no-check", help="Compare logits with transformers.")] = True,
    ) -> None:
        """`argosy export`."""
        from argosy.commands.train import interrupted
        from argosy.quantities import size

        try:
            limit = size(shard)
        except ValueError as error:
            raise Refused(f"--shard-size: {error}.") from None
        with interrupted():
            send(run, out, family=family, kind=kind, shard=limit, check=check, say=print)
