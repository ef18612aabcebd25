"""The one mapping language: a family of models is a file of rules, and these are the rules. Pure, no torch, no weights.

A file (`families/*.toml`, and those in the folder `$ARGOSY_FAMILIES`) says which keys of the family's config.json mean which
keys of our model section (`config.py` reads them both ways), and which of its tensors are which of ours:

    [[tensor]]
    theirs = "model.layers.*.self_attn.qkv_proj.*"  # a star is one word between dots; the n-th of ours is the n-th of theirs
    ours = ["blocks.*.attention.query.*", "blocks.*.attention.key.*", "blocks.*.attention.value.*"]
    transpose = true        # theirs is [in, out], ours [out, in]; vectors are as they are
    interleave = "block.kv_heads"   # theirs holds the parts of each group beside each other, not one part after the other
    tie = "embedding.weight"        # where the model is tied there is no such tensor: it is this one
    pad = true              # ours may have more rows than theirs

Several tensors of ours in one of theirs lie along its outputs: fused queries, keys and values, gate and up. Reading splits,
writing merges. In: a family's file, names, shapes. Out: which box of which tensor of theirs each tensor of ours is.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from argosy.errors import Refused
from argosy.job import paths

FAMILIES = "ARGOSY_FAMILIES"  # a folder with more files of rules
LARGEST_FILE = 1 << 20
Value = bool | int | float | str
Shapes = Mapping[str, tuple[int, ...]]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class TensorRule(_Strict):
    """One line of `[[tensor]]`; see above."""

    theirs: str = Field(min_length=1)
    ours: tuple[str, ...] = Field(min_length=1)
    transpose: bool = False
    interleave: str = ""
    tie: str = ""
    pad: bool = False

    @field_validator("ours", mode="before")
    @classmethod
    def _listed(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value

    @field_validator("ours")
    @classmethod
    def _same_stars(cls, value: tuple[str, ...], info: Any) -> tuple[str, ...]:
        stars = str(info.data.get("theirs", "")).split(".").count("*")
        if any(name.split(".").count("*") != stars for name in value):
            raise ValueError("needs as many stars on both sides")
        return value


class KeyRule(_Strict):
    """What one key of config.json means: `ours` of the model section, one or several that are always equal.

    absent: what a missing key means there. optional: missing or null, it follows from other numbers, there as here.
    values: their words for ours; the first one that fits is written.
    """

    ours: tuple[str, ...] = Field(min_length=1)
    absent: Value | None = None
    optional: bool = False
    values: dict[str, Value] = {}

    @field_validator("ours", mode="before")
    @classmethod
    def _listed(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value


class WindowRule(_Strict):
    """The keys that say which layers have a sliding window.

    Its size (null = none); and where given a switch, the first layer that has one, and a list with a word for each layer.
    """

    size: str
    switch: str = ""
    first: str = ""
    kinds: str = ""
    absent: int | None = None


class Rules(_Strict):
    """A family: one file."""

    family: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")
    about: str
    model_type: str = Field(min_length=1)
    architecture: str = Field(pattern=r"^[A-Za-z0-9_]+$")
    context: str = ""  # the key for the longest sequence, where it is no number of rows
    rotary: float = 0.0  # their base of the rotary angles where config.json has none; 0 = no rotary positions
    prefix: str = ""  # of their tensors' names, which some folders leave out
    keys: dict[str, KeyRule]
    aliases: dict[str, str] = {}  # another name of a key of theirs: that key
    fixed: dict[str, Value] = {}  # ours: what the family always is
    must: dict[str, tuple[Value | None, ...]] = {}  # theirs: the values that are understood, the first one written
    windows: WindowRule | None = None
    ignore: tuple[str, ...] = ()  # tensors of theirs that hold nothing learnt
    tensor: tuple[TensorRule, ...] = Field(min_length=1)

    @field_validator("keys", mode="before")
    @classmethod
    def _short(cls, value: object) -> object:
        if not isinstance(value, dict):
            return value
        return {key: rule if isinstance(rule, dict) else {"ours": rule} for key, rule in value.items()}

    @field_validator("must", "ignore", "tensor", mode="before")
    @classmethod
    def _tuples(cls, value: object) -> object:
        if isinstance(value, dict):
            return {key: tuple(one) if isinstance(one, list) else one for key, one in value.items()}
        return tuple(value) if isinstance(value, list) else value


@dataclass(frozen=True)
class Origin:
    """Where a tensor of ours comes from: a tensor of theirs by one rule, which holds `parts`, of which this is one."""

    rule: TensorRule
    theirs: str
    parts: tuple[str, ...]
    part: int


class Tensors:
    """A family's rules applied to the tensors of one model: `shapes` of ours by name, `numbers` that interleaved rules name."""

    def __init__(self, rules: Rules, shapes: Shapes, tied: bool, numbers: Mapping[str, int] | None = None):
        self.rules, self.shapes, self.tied, self.numbers = rules, shapes, tied, numbers or {}
        self.origins: dict[str, Origin] = {}
        for name in shapes:
            found = self._origin(name)
            if found is None:
                raise Refused(
                    f"no rule of the family {rules.family} is for {name}.",
                    found=f"nearest: {self.nearest(name, ours=True)}",
                    do="Add a [[tensor]] with it to the family's file.",
                )
            self.origins[name] = found

    def _origin(self, name: str) -> Origin | None:
        for rule in self.rules.tensor:
            for part, pattern in enumerate(rule.ours):
                words = stars(pattern, name)
                if words is None:
                    continue
                parts = tuple(filled(one, words) for one in rule.ours)
                if all(one in self.shapes for one in parts):
                    return Origin(rule, filled(rule.theirs, words), parts, part)
        return None

    def theirs(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of every tensor that a folder of this model holds, in the order of ours."""
        found: dict[str, tuple[int, ...]] = {}
        for origin in self.origins.values():
            rows = sum(self.shapes[part][0] for part in origin.parts)
            rest = self.shapes[origin.parts[0]][1:]
            shape = (rows, *rest)
            found[origin.theirs] = shape[::-1] if origin.rule.transpose and len(shape) == 2 else shape
        return found

    def rows(self, name: str, held: int | None = None) -> Rows:
        """Where the rows of our tensor `name` lie among those of theirs; `held`: how many theirs has, where ours is padded."""
        origin = self.origins[name]
        sizes = [self.shapes[part][0] for part in origin.parts]
        if held is not None and len(sizes) == 1:
            sizes = [min(sizes[0], held)]
        groups = 1
        if origin.rule.interleave and len(sizes) > 1:
            groups = self.numbers.get(origin.rule.interleave, 0)
            if groups < 1 or any(size % groups for size in sizes):
                raise Refused(
                    f"{origin.theirs} cannot be split: parts of {sizes} rows in {origin.rule.interleave} = {groups} groups."
                )
        return Rows(tuple(size // groups for size in sizes), origin.part, groups)

    def ignored(self, theirs: str) -> bool:
        """Whether a tensor of theirs holds nothing that we need: a table that follows from config.json, or a tied copy."""
        known = any(stars(pattern, theirs) is not None for pattern in self.rules.ignore)
        return known or self._tied(theirs) is not None

    def _tied(self, theirs: str) -> str | None:
        """The tensor of theirs that `theirs` is tied to; None where it is not."""
        found = next((rule for rule in self.rules.tensor if rule.tie and stars(rule.theirs, theirs) is not None), None)
        return self.origins[found.tie].theirs if self.tied and found is not None and found.tie in self.origins else None

    def copies(self, names: Iterable[str]) -> Iterator[tuple[str, str]]:
        """Of `names` of theirs those that are tied, each with the tensor that it has to equal."""
        for name in names:
            origin = self._tied(name)
            if origin is not None:
                yield name, origin

    def full(self, theirs: str) -> str:
        """The whole name of a tensor of theirs, whose prefix the folder may have left out."""
        patterns = (*self.rules.ignore, *(rule.theirs for rule in self.rules.tensor))
        known = any(stars(pattern, theirs) is not None for pattern in patterns)
        return theirs if known or not self.rules.prefix else self.rules.prefix + theirs

    def meant(self, theirs: str) -> str:
        """What a tensor of theirs would be of ours, or the nearest rule: for a sentence about one that does not belong."""
        for rule in self.rules.tensor:
            words = stars(rule.theirs, theirs)
            if words is not None:
                return (
                    f"the rule for {rule.theirs} makes it {filled(rule.ours[0], words)}, which this model does not have"
                )
        return f"the nearest rule is for {self.nearest(theirs)}"

    def nearest(self, name: str, *, ours: bool = False) -> str:
        """The pattern most like `name`."""
        patterns = [one for rule in self.rules.tensor for one in (rule.ours if ours else (rule.theirs,))]
        spelt = {re.sub(r"\.\d+(?=\.|$)", ".*", pattern): pattern for pattern in patterns}
        close = get_close_matches(re.sub(r"\.\d+(?=\.|$)", ".*", name), list(spelt), 1, 0.0)
        return spelt[close[0]] if close else patterns[0]


@dataclass(frozen=True)
class Rows:
    """Which rows of a fused tensor are those of one part: `groups` times the parts of `sizes` rows, of which it is `part`."""

    sizes: tuple[int, ...]
    part: int
    groups: int = 1

    @property
    def whole(self) -> bool:
        """Whether there is but one part."""
        return len(self.sizes) == 1

    @property
    def count(self) -> int:
        """Rows of this part."""
        return self.sizes[self.part] * self.groups

    @property
    def all(self) -> int:
        """Rows of all parts."""
        return sum(self.sizes) * self.groups

    def runs(self, begin: int, end: int) -> Iterator[tuple[int, int, int]]:
        """(first row of theirs, first row of ours, how many) of every run of rows that makes our rows [begin, end)."""
        size, offset, stride = self.sizes[self.part], sum(self.sizes[: self.part]), sum(self.sizes)
        row = begin
        while row < min(end, self.count):
            group, place = divmod(row, size)
            length = min(end, self.count, (group + 1) * size) - row
            yield group * stride + offset + place, row, length
            row += length


def stars(pattern: str, name: str) -> tuple[str, ...] | None:
    """The words of `name` at the stars of `pattern`, None where it does not match. A star is one word between dots."""
    mine, given = pattern.split("."), name.split(".")
    if len(mine) != len(given) or any(one not in ("*", other) for one, other in zip(mine, given, strict=True)):
        return None
    return tuple(other for one, other in zip(mine, given, strict=True) if one == "*")


def filled(pattern: str, words: Sequence[str]) -> str:
    """`pattern` with its stars replaced by `words`, one after the other."""
    left = iter(words)
    return ".".join(next(left) if one == "*" else one for one in pattern.split("."))


def read(text: str, where: str) -> Rules:
    """The rules that a file holds. Refused, naming the first thing that is wrong."""
    try:
        table = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise Refused(f"this is no TOML: {str(error)[:200]}.", where=where) from None
    try:
        return Rules.model_validate(table)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise Refused(f"these are no rules of a family: {place}: {first['msg'].lower()}.", where=where) from None


@cache
def _shipped() -> dict[str, Rules]:
    found = {}
    for entry in sorted(files("argosy.exchange").joinpath("families").iterdir(), key=lambda one: one.name):
        if entry.name.endswith(".toml"):
            rules = read(entry.read_text(encoding="utf-8"), entry.name)
            found[rules.family] = rules
    return found


def families() -> dict[str, Rules]:
    """All families by name: those of the package, and those in the folder that `$ARGOSY_FAMILIES` names."""
    found, more = dict(_shipped()), os.environ.get(FAMILIES)
    if not more:
        return found
    folder = Path(more)
    if not folder.is_dir():
        raise Refused(f"${FAMILIES} names no folder.", found=more)
    for path in sorted(folder.glob("*.toml")):
        rules = read(paths.content(path, most=LARGEST_FILE), str(path))
        found[rules.family] = rules
    return found


def family_of(model_type: object, where: str) -> Rules:
    """The rules for what a config.json calls `model_type`. Refused with the ones there are."""
    known = {rules.model_type: rules for rules in families().values()}
    if isinstance(model_type, str) and model_type in known:
        return known[model_type]
    raise Refused(
        f"no rules are there for model_type = {str(model_type)[:60]!r}.",
        where=where,
        found=f"rules for {', '.join(sorted(known))}",
        do=f"A family is one file of rules: write one, and name its folder in ${FAMILIES} (docs/how-to/models.md).",
    )
