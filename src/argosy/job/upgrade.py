"""Job files of older versions brought to this one, comments kept. Text in, text out; knows the schema's version only.

Each entry of UPGRADES takes a document of that version one version on. There is one version so far, so all that an upgrade
can find is a file that does not say its version.
"""

from __future__ import annotations

from collections.abc import Callable
from difflib import unified_diff

import tomlkit
from tomlkit.exceptions import TOMLKitError

from argosy.errors import Refused
from argosy.job.schema import VERSION

UPGRADES: dict[int, Callable[[tomlkit.TOMLDocument], None]] = {}


def upgrade(text: str, label: str) -> str:
    """`text` as a file of the newest version, comments and order kept. Refused for what is no job of a known version."""
    try:
        document = tomlkit.parse(text)
    except TOMLKitError as error:
        raise Refused(f"this is no TOML: {error}.", where=label, do="Mend the file, then upgrade it.") from None
    version = document.get("version", None)
    if version is None:
        return _with_version(text)
    found = version.unwrap() if hasattr(version, "unwrap") else version
    if not isinstance(found, int) or not min([*UPGRADES, VERSION]) <= found <= VERSION:
        raise Refused(
            f"no upgrade leads from version {found} to {VERSION}.", where=label, do="Was it written by a newer Argosy?"
        )
    for step in range(found, VERSION):
        UPGRADES[step](document)
        document["version"] = step + 1
    return tomlkit.dumps(document)


def _with_version(text: str) -> str:
    """`text` with the version before its first key or table; leading comments stay first."""
    rows = text.splitlines(keepends=True)
    first = next(
        (index for index, row in enumerate(rows) if row.strip() and not row.lstrip().startswith("#")), len(rows)
    )
    before = "".join(rows[:first])
    newline = "" if not before or before.endswith("\n") else "\n"
    return f"{before}{newline}version = {VERSION}\n{''.join(rows[first:])}"


def difference(old: str, new: str, label: str) -> str:
    """What an upgrade changes, as a unified diff; empty when nothing."""
    rows = unified_diff(old.splitlines(keepends=True), new.splitlines(keepends=True), label, f"{label} (upgraded)")
    return "".join(row if row.endswith("\n") else row + "\n" for row in rows)
