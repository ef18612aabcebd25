"""Model shapes by name, from presets.toml beside this file; and what a model is when nothing, or only a part, was said."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from difflib import get_close_matches
from functools import cache
from importlib.resources import files
from typing import Any

from argosy.errors import Refused
from argosy.job import leaves
from argosy.job.schema import BlockSection, ModelSection

DEFAULT = "tiny"


@cache
def presets() -> dict[str, dict[str, Any]]:
    """Name -> dotted keys of the shape ("model.layers", "model.block.heads")."""
    table = tomllib.loads(files("argosy.job").joinpath("presets.toml").read_text(encoding="utf-8"))
    return {name: leaves.flat({"model": shape}) for name, shape in table.items()}


def shape(name: str | None) -> dict[str, Any]:
    """The keys that the preset `name` says (None = the default one). Unknown names are refused with the nearest one."""
    known = presets()
    name = name or DEFAULT
    if name not in known:
        close = get_close_matches(name, list(known), 1, 0.5)
        guess = f"Did you mean {close[0]}?" if close else f"There are: {', '.join(known)}."
        raise Refused(f'model.preset = "{name}" is no preset.', do=guess)
    return known[name]


def filled(model: ModelSection, given: Mapping[str, Any] | None = None) -> ModelSection:
    """`model` with its preset's values where it says none; heads and hidden sizes that follow from others are left None.

    A preset's pattern goes when the model says its own; a model without a preset starts from what is `given` (dotted keys, of
    the weights that it begins with), else from the default one.
    """
    said = {key: value for key, value in leaves.leaves_of(model, "model.").items() if value not in (None, ())}
    merged = {**(given or {}), **(shape(model.preset) if model.preset or not given else {}), **said}
    table = leaves.nested(merged)["model"]
    if "pattern" in table:
        table["pattern"] = tuple(
            block if isinstance(block, BlockSection) else BlockSection(**block) for block in table["pattern"]
        )
    return ModelSection.model_validate(table)
