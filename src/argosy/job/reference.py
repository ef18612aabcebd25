"""What is generated from the tree: the schema for editors and the reference page. Text out; writes nothing.

`argosy job schema --write DIR` puts both into a checkout; a test compares what lies there with what this module makes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from argosy.job import leaves, presets, text
from argosy.job.schema import Job, ModelSection

SCHEMA = "src/argosy/jobs/job.schema.json"
PAGE = "docs/reference/job.md"


def schema_text() -> str:
    """JSON schema (2020-12) of a job file, as editors and `taplo lint` read it."""
    return for_editors(Job.model_json_schema(), "Argosy job")


def for_editors(schema: dict[str, Any], title: str) -> str:
    """A schema of pydantic's as the text of its file: with its dialect, without what TOML does not have."""
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": title}
    return json.dumps(_without_nulls(head), indent=1, ensure_ascii=False) + "\n"


def _without_nulls(node: Any) -> Any:
    """TOML has no null: drop it from unions, and default: null with it. Our own field metadata is no business of editors."""
    if isinstance(node, list):
        return [_without_nulls(one) for one in node]
    if not isinstance(node, dict):
        return node
    if "properties" not in node:
        node = {key: value for key, value in node.items() if key not in ("change", "path", "part")}
    cleaned = {key: _without_nulls(value) for key, value in node.items() if not (key == "default" and value is None)}
    options = cleaned.get("anyOf")
    if isinstance(options, list):
        options = [one for one in options if one != {"type": "null"}]
        cleaned["anyOf"] = options
        if len(options) == 1 and isinstance(options[0], dict):
            del cleaned["anyOf"]
            cleaned = {**options[0], **cleaned}
    return cleaned


def page(parameters: Mapping[str, int]) -> str:
    """The reference of all keys in Markdown; `parameters` holds the size of each preset, which plan/flops.py counts."""
    rows = [
        "# Job file",
        "",
        "<!-- Generated from src/argosy/job/schema.py by `argosy job schema --write .`: edit there. -->",
        "",
        "A job is a TOML file. What it leaves out takes the default below; *derived* means that the value follows from size,",
        "length and machine, and is printed with its reason (`argosy job show JOB`). Any key can be given on the command line:",
        '`--optim.lr 3e-4` or `optim.lr=3e-4`. Counts may be written `"1.3M"`, sizes `"8 GiB"`, durations `"90 s"`,',
        'bandwidths `"200 Gb/s"` (bits) or `"25 GB/s"` (bytes), shares `"2%"`. Paths are relative to the job file; `~`',
        "and `${NAME}` are expanded in them.",
        "",
    ]
    rows += _section(Job, "", "Top level")
    for name, field in Job.model_fields.items():
        inner = leaves.section_of(field)
        if inner is not None:
            rows += _section(inner, f"{name}.", f"[{name}]")
            for nested, nested_field in inner.model_fields.items():
                if (deeper := leaves.section_of(nested_field)) is not None:
                    rows += _section(deeper, f"{name}.{nested}.", f"[{name}.{nested}]")
    return "\n".join(rows + _presets(parameters)) + "\n"


def _section(section: type[BaseModel], prefix: str, title: str) -> list[str]:
    fields = {name: field for name, field in section.model_fields.items() if leaves.section_of(field) is None}
    about = " ".join((section.__doc__ or "").split())
    rows = [f"## {title}", "", about, "", "| key | values | default | |", "|---|---|---|---|"]
    for name, field in fields.items():
        description = " ".join((field.description or "").split()).replace("|", "\\|")
        rows.append(f"| `{prefix}{name}` | {kinds(field)} | {default(field)} | {description} |")
    return [*rows, ""]


def kinds(field: FieldInfo) -> str:
    """Which values a field takes, in words."""
    words = dict.fromkeys(_kinds(field.annotation, list(field.metadata)))
    return ", ".join(words) if words else "text"


_WORDS = {"int": "whole number", "float": "number", "str": "text", "bool": "true, false", "Trained": "table"}


def _kinds(kind: Any, metadata: list[Any]) -> list[str]:
    readers = " ".join(getattr(getattr(one, "func", None), "__name__", "") for one in metadata)
    for name, word in (
        ("count", "count"), ("fraction", "share"), ("_seconds", "duration"), ("_bandwidth", "bandwidth"),
        ("_interval", "steps, duration, share, `\"never\"`"), ("_without_clock", "steps, share, `\"never\"`"),
    ):  # fmt: skip
        if name in readers.split():
            return [word]
    if "<lambda>" in readers:
        return ["size"]
    if hasattr(kind, "__metadata__"):
        return _kinds(get_args(kind)[0], list(kind.__metadata__))
    inner = get_args(kind)
    if not inner:
        return [] if kind is type(None) else [_WORDS.get(kind.__name__, "table")]
    if "Literal" in str(getattr(kind, "__origin__", "")):
        return [f"`{text.toml(value)}`" for value in inner]
    if getattr(kind, "__origin__", None) is tuple:
        [word, *_] = _kinds(inner[0], [])
        return [f"list of {word}s" if word in _WORDS.values() else "list of texts"]  # which texts: its description says
    return [word for one in inner for word in _kinds(one, [])]


def default(field: FieldInfo) -> str:
    """What is taken when a field is left out."""
    value = field.get_default()
    if value is PydanticUndefined:
        return "required"
    return "left out" if value is None else f"`{text.toml(leaves.plain(value))}`"


def _presets(parameters: Mapping[str, int]) -> list[str]:
    rows = ["## Presets", "", "Values of `model.preset`. What is said beside the preset wins.", ""]
    rows += ["| preset | layers | width | heads | vocabulary | parameters |", "|---|---|---|---|---|---|"]
    for name, count in parameters.items():
        shape = presets.filled(ModelSection(preset=name))
        vocabulary = f"{shape.vocabulary:,}" if shape.vocabulary else "the tokenizer's"
        rows.append(f"| `{name}` | {shape.layers} | {shape.width} | {shape.block.heads} | {vocabulary} | {count:,} |")
    return [*rows, "", "`tiny` is counted without its embedding, whose rows are the tokenizer's."]
