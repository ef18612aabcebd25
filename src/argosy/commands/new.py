"""`argosy new NAME`: a commented job file to start from, with its schema beside it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from argosy.errors import Refused

HELP = "Start here"


def new(name: str, source: str = "laptop", folder: Path | None = None) -> Path:
    """Write NAME.toml, a copy of the shipped job `source` with its comments, and job.schema.json; gives the job's path.

    NAME may have folders before it. Refused when the file exists or no such job is shipped.
    """
    from importlib.resources import files

    from argosy.job.load import load, shipped
    from argosy.job.reference import schema_text

    path = (folder or Path.cwd()) / (name if name.endswith(".toml") else f"{name}.toml")
    if source not in shipped():
        raise Refused(f"--from {source} is no shipped job.", do=f"There are: {', '.join(shipped())}.")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", path.stem):
        raise Refused(
            f"{path.stem} cannot name a run.", do="Use letters, digits, . _ and -, beginning with one of the first."
        )
    if path.exists():
        raise Refused(f"{path} exists already.", do="Give another name, or remove it.")
    text = files("argosy.jobs").joinpath(f"{source}.toml").read_text(encoding="utf-8")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(renamed(text, source, path), encoding="utf-8")
        (path.parent / "job.schema.json").write_text(schema_text(), encoding="utf-8")
    except OSError as error:
        raise Refused(f"{path} cannot be written: {error.strerror}.", do="Choose a folder that is yours.") from None
    load(str(path))  # what we write is a job
    return path


def renamed(text: str, source: str, path: Path) -> str:
    """The job `text` under the name of `path`; its comments call the new file."""
    text = re.sub(r'(?m)^(name\s*=\s*)"[^"]*"', lambda match: f'{match[1]}"{path.stem}"', text, count=1)
    return re.sub(rf"(argosy (?:train|job show)) {re.escape(source)}\b", lambda match: f"{match[1]} {path.name}", text)


def register(app: typer.Typer) -> None:
    """Spell the command for the shell."""

    @app.command("new", rich_help_panel=HELP)
    def new_command(
        name: Annotated[str, typer.Argument(help="Its name, or a file in another folder: jobs/mine.toml.")],
        source: Annotated[str, typer.Option("--from", help="The shipped job to start from.")] = "laptop",
    ) -> None:
        """Write a commented job file to start from."""
        path = new(name, source)
        try:
            shown = path.relative_to(Path.cwd())
        except ValueError:
            shown = path
        print(f"{shown} written, its schema beside it. Next: argosy train {shown}")
