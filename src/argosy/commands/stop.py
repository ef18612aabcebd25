"""`argosy stop RUN`: ask a running job to save and stop, wait until it has, print the step."""

from __future__ import annotations

from typing import Annotated

import typer

from argosy.commands.runs import find
from argosy.commands.save import ask_and_wait

HELP = "Runs"


def stop(name: str | None = None, patience: float = 3600.0) -> int:
    """Ask the run `name` (None = the newest) to save and stop; the step it stopped at. Refused where it is not running."""
    return ask_and_wait(find(name), "stop", patience)


def register(app: typer.Typer) -> None:
    """Spell the command for the shell."""

    @app.command("stop", rich_help_panel=HELP)
    def command(
        run: Annotated[str | None, typer.Argument(metavar="[RUN]", help="A run; left out: the newest.")] = None,
    ) -> None:
        """Save and stop; the same `argosy train` goes on later."""
        print(f"stopped at step {stop(run):,}")
