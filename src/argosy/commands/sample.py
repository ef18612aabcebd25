"""`argosy sample RUN [TEXT]`: let a trained model continue a text, shown as it is written."""

from __future__ import annotations

import math
import os
import select
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from argosy.commands.runs import find
from argosy.errors import Refused

if TYPE_CHECKING:
    from argosy.evaluate.trained import Trained

HELP = "Start here"
PLACE = 30
PATIENCE = 1.0  # seconds after which a pipe that is still empty is told of


def sample(
    run: str | Path | None = None,
    text: str = "",
    *,
    tokens: int = 200,
    temperature: float | None = None,
    seed: int = 0,
    show: Callable[[str], object] = lambda piece: None,
) -> str:
    """What the model of `run` (None = the newest) writes after `text`; `show` gets it piece by piece as it comes.

    temperature: 0 takes the likeliest token each time; left out, the run's own. The same seed gives the same text. Refused
    where there is no such run or no checkpoint in it.
    """
    from argosy.evaluate.trained import Trained

    return continued(Trained.open(find(run)), text, tokens, temperature, seed, show)


def continued(
    model: Trained, text: str, tokens: int, temperature: float | None, seed: int, show: Callable[[str], object]
) -> str:
    """What `model` writes after `text`."""
    from argosy.evaluate.generate import pieces

    readable(text)
    heat = model.job.observe.temperature if temperature is None else temperature
    if not math.isfinite(heat):
        raise Refused("a temperature is a number from 0 on.", where="--temperature", found=str(heat))
    prompt, ids = model.continued(text, tokens=tokens, temperature=heat, seed=seed)
    written = []
    for piece in pieces(model.tokenizer, ids, prompt):
        written.append(piece)
        show(piece)
    return "".join(written)


def readable(text: str) -> str:
    """`text`, Refused where bytes of the command line or of a pipe were none."""
    if text.encode("utf-8", "replace").decode() != text:
        raise Refused("the text to continue is no UTF-8.", found=repr(text[:80]))
    return text


def piped() -> str | None:
    """What was piped in, to its end, without its last line end; None where nothing was.

    A slow writer is waited for; stderr says so, for it may be a pipe to which nobody means to write.
    """
    source = sys.stdin.fileno()
    if not stat.S_ISFIFO(os.fstat(source).st_mode) and not stat.S_ISREG(os.fstat(source).st_mode):
        return None
    if not select.select([source], [], [], PATIENCE)[0]:
        print("waiting for the text to continue on standard input; </dev/null says that none comes", file=sys.stderr)
    text = sys.stdin.buffer.read().decode("utf-8", "surrogateescape")
    return text.removesuffix("\n") or None


def register(app: typer.Typer) -> None:
    """Spell the command for the shell."""

    @app.command("sample", rich_help_panel=HELP)
    def command(
        run: Annotated[str | None, typer.Argument(metavar="[RUN]", help="A run; left out: the newest.")] = None,
        text: Annotated[str | None, typer.Argument(metavar="[TEXT]", help="What the model goes on from.")] = None,
        tokens: Annotated[int, typer.Option(min=1, help="Most tokens to write.")] = 200,
        temperature: Annotated[
            float | None, typer.Option(min=0, help="0 takes the likeliest token; left out: the run's own.")
        ] = None,
        seed: Annotated[int, typer.Option(help="The same seed writes the same text.")] = 0,
    ) -> None:
        """Let a model continue TEXT, or what is piped in; without either, ask for it."""
        from argosy.evaluate.trained import Trained
        from argosy.observe.text import shown

        def show(piece: str) -> None:
            """Write a piece of the text as soon as it is there."""
            sys.stdout.write(shown(piece, sys.stdout))
            sys.stdout.flush()

        model = Trained.open(find(run))
        if text is None and sys.stdin.isatty() and sys.stdout.isatty():
            while True:
                try:
                    text = input("> ")
                except (EOFError, KeyboardInterrupt):
                    print()
                    return
                show(readable(text))
                continued(model, text, tokens, temperature, seed, show)
                print()
                seed += 1
        text = piped() if text is None else text
        begin = model.job.observe.prompts[0] if text is None and model.job.observe.prompts else text or ""
        show(readable(begin))
        continued(model, begin, tokens, temperature, seed, show)
        print()
