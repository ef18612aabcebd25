"""`argosy save RUN`: ask a running job to save now, wait until it has, print the step."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import typer

from argosy.commands.runs import find
from argosy.errors import Refused

if TYPE_CHECKING:
    from argosy.run.folder import Run
    from argosy.run.requests import Wish

HELP = "Runs"


def save(name: str | None = None, patience: float = 3600.0) -> int:
    """Ask the run `name` (None = the newest) to save; the step that was saved. Refused where it is not running."""
    return ask_and_wait(find(name), "save", patience)


def ask_and_wait(run: Run, wish: Wish, patience: float) -> int:
    """Ask for `wish`, wait until its file vanishes; the step at which it was done.

    Refused where nobody trains, where the job leaves without doing it, and after `patience` seconds.
    """
    from argosy.run import requests

    if run.busy() is None:
        raise Refused(
            "it is not running.", where=str(run.path), do=f"Its newest checkpoint is step {run.newest_step():,}."
        )
    file = requests.ask(run, wish)
    last = time.monotonic() + patience
    while file.exists():
        if run.busy() is None and file.exists():
            file.unlink(missing_ok=True)
            raise Refused(
                "it left before it answered.", where=str(run.path), do=f"Newest: step {run.newest_step():,}.", code=4
            )
        if time.monotonic() > last:
            file.unlink(missing_ok=True)
            raise Refused(f"no answer within {patience:.0f} s.", where=str(run.path), code=4)
        time.sleep(0.05)
    step = requests.answer(run, wish)
    return run.newest_step() if step is None else step


def register(app: typer.Typer) -> None:
    """Spell the command for the shell."""

    @app.command("save", rich_help_panel=HELP)
    def command(
        run: Annotated[str | None, typer.Argument(metavar="[RUN]", help="A run; left out: the newest.")] = None,
    ) -> None:
        """Save now; prints the step."""
        print(f"saved step {save(run):,}")
