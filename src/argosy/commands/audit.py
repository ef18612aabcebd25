"""`argosy audit RUN`: print what happened to a run and what was decided, from its journal; needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from argosy.commands.runs import find

HELP = "Runs"


def audit(run: Path | str | None = None) -> list[dict[str, Any]]:
    """The events of `run` (None = the newest), oldest first, as its journal holds them. Refused where there is no run."""
    from argosy.run.lines import rows

    return rows(find(run).path / "journal.jsonl")


def line(row: Mapping[str, Any]) -> str:
    """One event: its time (UTC), its kind, and the sentence for it. Pure."""
    try:
        when = f"{datetime.fromtimestamp(float(row['time']), UTC):%Y-%m-%dT%H:%M:%SZ}"
    except (KeyError, TypeError, ValueError, OverflowError, OSError):
        when = "-" * 20
    return f"{when}  {row.get('what', '?')!s:<9}  {sentence(row)}"


def sentence(row: Mapping[str, Any]) -> str:
    """What an event says. One of a kind, or with contents, that this version does not know is told as its facts. Pure."""
    try:
        told = _TOLD[str(row.get("what"))](row)
    except (KeyError, TypeError, ValueError):
        told = ""
    return told or ", ".join(f"{key} {value}" for key, value in row.items() if key not in ("time", "what"))


def _begun(row: Mapping[str, Any]) -> str:
    return f"{row['command']} ({row['because']})"


def _started(row: Mapping[str, Any]) -> str:
    world, step = int(row["world"]), int(row["step"])
    whence = f"from step {step:,}" if step else "from the beginning"
    return f"incarnation {row['incarnation']}: {world} worker{'' if world == 1 else 's'}, {whence}"


def _asked(row: Mapping[str, Any]) -> str:
    wishes = [word for word, wanted in (("save", row["save"]), ("save and stop", row["stop"])) if wanted]
    return f"to {' and '.join(wishes)} ({row['reason'] or 'argosy save'})" if wishes else "what was asked is done"


def _saved(row: Mapping[str, Any]) -> str:
    from argosy.quantities import bytes_text

    seconds = f"written and verified in {float(row['seconds']):.2f} s; training waited {float(row['waited']):.2f} s"
    return f"step {int(row['step']):,}, {bytes_text(int(row['bytes']))}, {seconds}"


def _decided(row: Mapping[str, Any]) -> str:
    return str(row["because"])


def _sentence(row: Mapping[str, Any]) -> str:
    return str(row["sentence"])


def _recovered(row: Mapping[str, Any]) -> str:
    return f"at step {int(row['step']):,}, {float(row['seconds']):.1f} s after the fault"


def _waiting(row: Mapping[str, Any]) -> str:
    return f"for the batch of step {int(row['step']):,}, which did not come for {float(row['seconds']):.0f} s"


def _waited(row: Mapping[str, Any]) -> str:
    return f"{float(row['seconds']):.1f} s for the batch of step {int(row['step']):,}"


def _ended(row: Mapping[str, Any]) -> str:
    because = f": {row['because']}" if row["because"] else ""
    return f"{row['state']} at step {int(row['step']):,}, exit code {row['code']}{because}"


_TOLD = {
    "begun": _begun,
    "started": _started,
    "asked": _asked,
    "saved": _saved,
    "decided": _decided,
    "damaged": _sentence,
    "noted": _sentence,
    "recovered": _recovered,
    "waiting": _waiting,
    "waited": _waited,
    "ended": _ended,
}


def register(app: typer.Typer) -> None:
    """Spell the command for the shell."""

    @app.command("audit", rich_help_panel=HELP)
    def command(
        run: Annotated[str | None, typer.Argument(help="A run's folder or name; left out: the newest.")] = None,
        json: Annotated[bool, typer.Option("--json", help="Print one JSON object a line.")] = False,
    ) -> None:
        """Print what happened to a run and why, oldest first."""
        import sys
        from json import dumps

        from argosy.observe.text import shown

        for row in audit(run):
            print(dumps(row) if json else shown(line(row), sys.stdout))
