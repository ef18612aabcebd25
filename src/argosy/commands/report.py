"""`argosy report RUN`: write the page of a run anew, and say where it lies. Reads the run folder alone; needs no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from argosy.errors import Refused

HELP = "Runs"


def report(run: Path | str | None = None, to: Path | str | None = None) -> Path:
    """Write the page of `run` (None = the newest), into its folder or to the file `to`; gives its path.

    Refused where there is no run.
    """
    from argosy.commands.runs import find
    from argosy.observe import report as pages

    place = find(run)
    if to is None:
        try:
            return pages.write(place)
        except OSError as error:
            do = "Give a place where you may write: --to FILE."
            raise Refused(
                "the page cannot be written.", where=str(place.path), found=error.strerror or str(error), do=do
            ) from None
    path = Path(to)
    try:
        path.write_text(pages.page(place), encoding="utf-8")
    except OSError as error:
        raise Refused("the page cannot be written.", where=str(path), found=error.strerror or str(error)) from None
    return path


def register(app: typer.Typer) -> None:
    """Spell the command for the shell."""

    @app.command("report", rich_help_panel=HELP)
    def command(
        run: Annotated[str | None, typer.Argument(help="A run's folder or name; left out: the newest.")] = None,
        to: Annotated[Path | None, typer.Option(help="Write the page to this file instead.")] = None,
    ) -> None:
        """Write a run's page anew: one file to keep or send."""
        print(report(run, to))
