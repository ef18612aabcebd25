"""`argosy evaluate RUN [FILE]`: how well a trained model predicts text: bits per byte and perplexity."""

from __future__ import annotations

import json as json_
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from argosy.commands.runs import find
from argosy.errors import Refused
from argosy.job import paths

if TYPE_CHECKING:
    from argosy.evaluate.held_out import Held
    from argosy.evaluate.trained import Trained

HELP = "Data and models"
PLACE = 20


def evaluate(
    run: str | Path | None = None,
    file: str | Path | None = None,
    *,
    tokens: int | None = None,
    best: bool = False,
    trust: bool = False,
    seen: Callable[[int, int], object] = lambda done, of: None,
) -> dict[str, Any]:
    """How well the newest checkpoint of `run` (None = the newest run) predicts the text in `file`, or its held-out documents.

    tokens: at most so many; left out, all of a file, and of held-out documents as many as the run's own evaluations read.
    best: the best checkpoint instead of the newest. trust: code that the run names may be imported. seen(done, of) hears how
    many tokens of a file are done. Gives step, text, documents, tokens, bytes, loss (nats per token), bits_per_byte,
    perplexity, and where no file is named the same of each named held-out set in `sets`. Refused where there is nothing to
    measure. What is measured is the likelihood of the text, whatever train.loss was minimised.
    """
    from argosy.evaluate.trained import Trained

    text = None if file is None else paths.content(Path(file), most=None)
    model = Trained.open(find(run), best=best, trust=trust)
    most, sets = tokens or model.job.evaluate.tokens, {}
    if text is not None:
        held, name = model.on_text(text, tokens, seen), str(file)
    else:
        held, name = model.on_held_out(_shards(model, None), most), "held-out documents"
        for set_name, folder in model.run.held_sets():
            sets[set_name] = _figures(model.on_held_out(_shards(model, folder), most, every=True))
    if not held.counted:
        raise Refused("there is nothing to predict: a text needs at least two tokens.", where=name)
    return {
        "run": str(model.run.path),
        "step": model.step,
        "text": name,
        **_figures(held),
        **({"sets": sets} if sets else {}),
    }


def _figures(held: Held) -> dict[str, Any]:
    return {
        "documents": held.documents,
        "tokens": held.counted,
        "bytes": held.bytes,
        "loss": held.loss,
        "bits_per_byte": held.bits_per_byte,
        "perplexity": held.perplexity,
    }


def _shards(model: Trained, folder: Path | None) -> Any:
    """The prepared text of the run, or that of a set in `folder`, found again where the cache has moved.

    Refused for a run that was imported.
    """
    if model.run.info().get("imported"):
        raise Refused(
            "this run was imported and has no text of its own.",
            where=str(model.run.path),
            do="Give a file to measure it on.",
        )
    from argosy.data.prepare import cache_folder, locate
    from argosy.data.shards import Shards

    return Shards(locate(folder or model.run.prepared(), cache_folder(model.job.data, Path.cwd())))


def register(app: typer.Typer) -> None:
    """Spell the command for the shell."""

    @app.command("evaluate", rich_help_panel=HELP)
    def command(
        run: Annotated[str | None, typer.Argument(metavar="[RUN]", help="A run; left out: the newest.")] = None,
        file: Annotated[
            str | None, typer.Argument(metavar="[FILE]", help="A text; left out: the run's held-out documents.")
        ] = None,
        tokens: Annotated[int | None, typer.Option(min=1, help="Most tokens to read.")] = None,
        best: Annotated[bool, typer.Option("--best", help="The best checkpoint instead of the newest.")] = False,
        json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
        trust: Annotated[bool, typer.Option("--trust", help="Import code that the run names.")] = False,
    ) -> None:
        """Bits per byte and perplexity on FILE, or on the held-out documents."""
        from argosy.quantities import bytes_text

        def seen(done: int, of: int) -> None:
            """Show how far it is, where somebody looks on."""
            if sys.stderr.isatty():
                print(f"\r  {done:,} of {of:,} tokens", end="\n" if done == of else "", file=sys.stderr, flush=True)

        found = evaluate(run, file, tokens=tokens, best=best, trust=trust, seen=seen)
        if json:
            print(json_.dumps(found))
            return
        for name, one in {found["text"]: found, **found.get("sets", {})}.items():
            of = f"{one['tokens']:,} tokens of {one['documents']:,} document{'s' * (one['documents'] != 1)}"
            print(f"{found['run']}, step {found['step']:,}, on {name}: {of}, {bytes_text(one['bytes'])}")
            bits = f"{one['bits_per_byte']:.3f} bits/byte" if one["bits_per_byte"] is not None else "no bytes to count"
            print(f"  {bits}   perplexity {one['perplexity']:.2f} per token   loss {one['loss']:.4f} nats per token")
