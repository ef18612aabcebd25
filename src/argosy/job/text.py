"""A job as text: TOML from values, with comments where wanted. Knows the schema, no file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from argosy.job import leaves


def toml(value: object) -> str:
    """`value` as TOML on one line."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return _string(value)
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{key} = {toml(inner)}" for key, inner in value.items() if inner is not None) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(toml(inner) for inner in value) + "]"
    return str(leaves.plain(value)) if not isinstance(value, int) else str(value)


def _string(text: str) -> str:
    # JSON's escapes are TOML's, but for DEL, which TOML wants escaped and JSON does not.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def job_text(values: Mapping[str, Any]) -> str:
    """Dotted keys -> a job file, one table per section, keys in the order of the schema, None left out."""
    tables: dict[str, list[str]] = {}
    for key in leaves.fields():
        value = leaves.plain(values.get(key))
        if value is None:
            continue
        section, _, name = key.rpartition(".")
        tables.setdefault(section, []).append(f"{name} = {toml(value)}")
    parts = ["\n".join(rows) if not section else f"[{section}]\n" + "\n".join(rows) for section, rows in tables.items()]
    return "#:schema ./job.schema.json\n" + "\n\n".join(parts) + "\n"
