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
    from argosy.evaluate.trained import Trained

HELP = "Data and models"
PLACE = 20


def evaluate(
    run: str | Path | None = None,
    file: str | Path | None = None,
    *,
    tokens: int | None = None,
    seen: Callable[[int, int], object] = lambda done, of: None,
) -> dict[str, Any]:
    """How well the newest checkpoint of `run` (None = the newest run) predicts the text in `file`, or its held-out documents.

    tokens: at most so many; left out, all of a file, and of held-out documents as many as the run's own evaluations read.
    seen(done, of) hears how many tokens of a file are done. Gives step, text, documents, tokens, bytes, loss (nats per
    token), bits_per_byte, perplexity. Refused where there is nothing to measure.
    """
    from argosy.evaluate.trained import Trained

    text = None if file is None else paths.content(Path(file), most=None)
    model = Trained.open(find(run))
    if text is not None:
        held, name = model.on_text(text, tokens, seen), str(file)
    else:
        held, name = model.on_held_out(_shards(model), tokens or model.job.evaluate.tokens), "held-out documents"
    if not held.counted:
        raise Refused("there is nothing to predict: a text needs at least two tokens.", where=name)
    return {
        "run": str(model.run.path),
        "step": model.step,
        "text": name,
        "documents": held.documents,
        "tokens": held.counted,
        "bytes": held.bytes,
        "loss": held.loss,
        "bits_per_byte": held.bits_per_byte,
        "perplexity": held.perplexity,
    }


def _shards(model: Trained) -> Any:
    """The prepared text of the run, found again where the cache has moved."""
    from argosy.data.prepare import cache_folder, locate
    from argosy.data.shards import Shards

    return Shards(locate(model.run.prepared(), cache_folder(model.job.data, Path.cwd())))


def register(app: typer.Typer) -> None:
    """Spell the command for the shell."""

    @app.command("evaluate", rich_help_panel=HELP)
    def command(
        run: Annotated[str | None, typer.Argument(metavar="[RUN]", help="A run; left out: the newest.")] = None,
        file: Annotated[
            str | None, typer.Argument(metavar="[FILE]", help="A text; left out: the run's held-out documents.")
        ] = None,
        tokens: Annotated[int | None, typer.Option(min=1, help="Most tokens to read.")] = None,
        json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    ) -> None:
        """Bits per byte and perplexity on FILE, or on the held-out documents."""
        from argosy.quantities import bytes_text

        def seen(done: int, of: int) -> None:
            """Show how far it is, where somebody looks on."""
            if sys.stderr.isatty():
                print(f"\r  {done:,} of {of:,} tokens", end="\n" if done == of else "", file=sys.stderr, flush=True)

        found = evaluate(run, file, tokens=tokens, seen=seen)
        if json:
            print(json_.dumps(found))
            return
        of = f"{found['tokens']:,} tokens of {found['documents']:,} document{'s' * (found['documents'] != 1)}"
        print(f"{found['run']}, step {found['step']:,}, on {found['text']}: {of}, {bytes_text(found['bytes'])}")
        bits = f"{found['bits_per_byte']:.3f} bits/byte" if found["bits_per_byte"] is not None else "no bytes to count"
        print(f"  {bits}   perplexity {found['perplexity']:.2f} per token   loss {found['loss']:.4f} nats per token")
