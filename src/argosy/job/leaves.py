"""The leaves of a job: every dotted key that holds a value, with its field. Reads the schema, knows no file.

A list (model.pattern, observe.prompts) and data.tokenizer are one leaf each: they are replaced whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from argosy.job.kinds import Section
from argosy.job.schema import Job

# What other programs call it.
ALIASES = {
    "learning_rate": "optim.lr",
    "max_lr": "optim.lr",
    "min_lr": "optim.final",
    "warmup_steps": "optim.warmup",
    "warmup_iters": "optim.warmup",
    "optimizer": "optim.name",
    "scheduler": "optim.schedule",
    "grad_clip": "optim.clip",
    "max_grad_norm": "optim.clip",
    "batch_size": "batch.tokens",
    "global_batch_size": "batch.tokens",
    "micro_batch_size": "batch.micro",
    "gradient_accumulation_steps": "batch.micro",
    "block_size": "batch.sequence",
    "seq_len": "batch.sequence",
    "sequence_length": "batch.sequence",
    "max_seq_len": "batch.sequence",
    "max_steps": "train.steps",
    "max_iters": "train.steps",
    "epochs": "train.tokens",
    "dtype": "train.precision",
    "n_layer": "model.layers",
    "n_layers": "model.layers",
    "num_layers": "model.layers",
    "num_hidden_layers": "model.layers",
    "n_embd": "model.width",
    "hidden_size": "model.width",
    "d_model": "model.width",
    "dim": "model.width",
    "n_head": "model.block.heads",
    "n_heads": "model.block.heads",
    "num_attention_heads": "model.block.heads",
    "num_key_value_heads": "model.block.kv_heads",
    "n_kv_heads": "model.block.kv_heads",
    "head_dim": "model.block.head_size",
    "intermediate_size": "model.block.hidden",
    "ffn_dim": "model.block.hidden",
    "sliding_window": "model.block.window",
    "vocab_size": "model.vocabulary",
    "dataset": "data.source",
    "path": "data.source",
    "tie_word_embeddings": "model.tied",
    "save_every": "checkpoint.every",
    "save_interval": "checkpoint.every",
    "eval_interval": "evaluate.every",
    "eval_every": "evaluate.every",
}


def section_of(field: FieldInfo) -> type[Section] | None:
    """The section that `field` holds, or None where it is a leaf."""
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, Section) else None


def fields(section: type[BaseModel] = Job, prefix: str = "") -> dict[str, FieldInfo]:
    """Dotted key -> field, in the order of the schema."""
    found: dict[str, FieldInfo] = {}
    deeper: dict[str, FieldInfo] = {}  # after the values of their own table, as TOML wants it
    for name, field in section.model_fields.items():
        inner = section_of(field)
        if inner is None:
            found[prefix + name] = field
        else:
            deeper |= fields(inner, f"{prefix}{name}.")
    return found | deeper


def leaves(job: Job) -> dict[str, object]:
    """Dotted key -> value of `job`, in the order of the schema."""
    return leaves_of(job)


def leaves_of(section: BaseModel, prefix: str = "") -> dict[str, object]:
    """Dotted key, beginning with `prefix`, -> value of any section."""
    found: dict[str, object] = {}
    for key in fields(type(section)):
        value: Any = section
        for name in key.split("."):
            value = getattr(value, name)
        found[prefix + key] = value
    return found


def plain(value: object) -> object:
    """`value` as JSON and TOML know it: sections as tables without nulls, tuples as lists."""
    if isinstance(value, BaseModel):
        return {name: plain(inner) for name, inner in value if inner is not None}
    if isinstance(value, tuple | list):
        return [plain(inner) for inner in value]
    return value


def flat(values: Mapping[str, Any], section: type[BaseModel] = Job, prefix: str = "") -> dict[str, Any]:
    """A nested table as dotted keys; what is no key of the schema stays where it was found."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        field = section.model_fields.get(name)
        inner = section_of(field) if field is not None else None
        if inner is not None and isinstance(value, Mapping):
            found |= flat(value, inner, f"{prefix}{name}.")
        else:
            found[prefix + name] = value
    return found


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted keys as a nested table: the inverse of `flat`."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        *sections, name = key.split(".")
        table = found
        for section in sections:
            table = table.setdefault(section, {})
        table[name] = value
    return found


def nearest(key: str) -> str | None:
    """The key that was probably meant by the unknown `key`."""
    known, key = list(fields()), key.lower()
    last = key.rsplit(".", 1)[-1]
    if last in ALIASES:
        return ALIASES[last]
    if same := [candidate for candidate in known if candidate.rsplit(".", 1)[-1] == last]:
        return get_close_matches(key, same, 1, 0.0)[0]
    if close := get_close_matches(key, known, 1, 0.75):
        return close[0]
    by_name = {candidate.rsplit(".", 1)[-1]: candidate for candidate in reversed(known)}
    close = get_close_matches(last, list(by_name), 1, 0.7)
    return by_name[close[0]] if close else None


def accepts(field: FieldInfo, kind: type) -> bool:
    """Whether one of the plain types that `field` is annotated with is `kind`."""
    pending: list[Any] = [field.annotation]
    while pending:
        found = pending.pop()
        if found is kind:
            return True
        pending += get_args(found)
    return False
