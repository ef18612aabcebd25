"""What the values of a job may look like: counts, sizes, durations and their spellings, and the section that holds them.

Knows no key; `schema.py` puts these together.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from argosy import quantities


def _seconds(value: object) -> float:
    return value if isinstance(value, float) else quantities.seconds(value)


def _bandwidth(value: object) -> float:
    return value if isinstance(value, float) else quantities.bandwidth(value)


def _size(value: object) -> int:
    # A size in force is written as a plain number of bytes; nobody means fewer than a page.
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 4096 else quantities.size(value)


def _interval(value: object) -> object:
    quantities.interval(value)
    return value


def _without_clock(value: object) -> object:
    """An interval that every rank can count by itself: refuses one by the clock."""
    found = _interval(value)
    if quantities.interval(found).seconds is not None:
        raise ValueError(
            f'{value!r} goes by the clock, which only checkpoint.every can; write steps (200) or a share ("10%")'
        )
    return found


def _whole(value: object) -> object:
    """A whole number may be written 1e6, as a count may."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def none(value: object) -> object:
    """TOML has no null: "none" says that a default is switched off."""
    return None if value == "none" else value


def _words(value: object) -> object:
    """A word alone is a list of one; "none" an empty one."""
    return () if value == "none" else (value,) if isinstance(value, str) else value


def _auto(read: Any) -> Any:
    """`read`, with "auto" and null let through."""
    return lambda value: value if value is None or value == "auto" else read(value)


def _spelling(description: str, *kinds: str) -> WithJsonSchema:
    """What editors are told about a quantity: the kinds of TOML values it may be written as."""
    return WithJsonSchema({"anyOf": [{"type": kind} for kind in kinds], "description": description})


_COUNT = _spelling('A count: 4096 or "1.3M".', "integer", "number", "string")
Whole: TypeAlias = Annotated[int, BeforeValidator(_whole), Field(le=10**9)]
Count: TypeAlias = Annotated[int, BeforeValidator(quantities.count), Field(ge=1, le=10**15), _COUNT]
Tokens: TypeAlias = Annotated[int, BeforeValidator(quantities.count), Field(ge=0, le=10**15), _COUNT]
Size: TypeAlias = Annotated[
    int,
    BeforeValidator(_auto(_size)),
    Field(gt=0, le=10**18),
    _spelling('Bytes with their unit: "8 GiB".', "string", "integer"),
]
Share: TypeAlias = Annotated[
    float, BeforeValidator(quantities.fraction), _spelling('A share: "2%" or 0.02.', "number", "string")
]
Seconds: TypeAlias = Annotated[
    float,
    BeforeValidator(_seconds),
    Field(ge=0.001, le=quantities.AGES),
    _spelling('A duration: "90 s".', "string", "number"),
]
Bandwidth: TypeAlias = Annotated[
    float,
    BeforeValidator(_bandwidth),
    Field(gt=0, le=1e15),
    _spelling('A bandwidth: "200 Gb/s" (bits) or "25 GB/s" (bytes).', "string", "number"),
]
Recompute: TypeAlias = Annotated[
    tuple[Literal["block", "attention", "mlp", "norm"], ...],
    BeforeValidator(_words),
    _spelling('"none", "block" or a list of operators: "attention", "mlp", "norm".', "string", "array"),
]
Every: TypeAlias = Annotated[int | str, BeforeValidator(_interval)]  # read it with quantities.interval
Counted: TypeAlias = Annotated[int | str, BeforeValidator(_without_clock)]  # the same, but not by the clock
Type: TypeAlias = Literal["float64", "float32", "bfloat16"]


class Section(BaseModel):
    """A table of the job file: frozen, strict about unknown keys and types (true is no 1, "6" no 6); numbers are finite."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        protected_namespaces=(),
    )
