"""What the rules of layouts are asked, and what other keys would make of it. Arithmetic only; knows no job and no torch.

A `Remedy` is keys with other values: `applied` gives what would then be asked, `remedy` leaves out what would stand in the way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from argosy.layout.layout import AXES, Layout

# What the keys are where nobody says anything.
DEFAULTS: Mapping[str, Any] = {
    "layout.order": AXES,
    "layout.zero": 2,
    "layout.secondary": 0,
    "layout.sequence": True,
    "layout.schedule": "1f1b",
    "layout.virtual": 1,
    "layout.stages": (),
}


@dataclass(frozen=True)
class Asked:
    """A layout and what it has to fit. `written` are the keys that somebody wrote: only those can be without effect."""

    layout: Layout
    layers: int
    heads: Sequence[int]  # query heads of each kind of block
    sequence: int  # tokens of a sequence
    sequences: int  # of the global batch
    zero: int = 2
    secondary: int = 0
    schedule: str = "1f1b"
    stages: Sequence[int] = ()
    rows: int | None = None  # sequences of a micro-batch; None while not known
    written: Mapping[str, str] = field(default_factory=dict)  # key -> where
    launched: bool = False  # by a launcher, which sets how many ranks there are
    ranks: int | None = 0  # that there are; 0: as many as the layout has; None: as many as any shape makes

    @property
    def micro(self) -> int | None:
        """Micro-batches of a rank that has most of the batch; None while not known."""
        return None if self.rows is None else -(-self.own // self.rows)

    @property
    def own(self) -> int:
        """Sequences of a rank that has most of the batch."""
        return -(-self.sequences // self.layout.data)

    def says(self, key: str) -> bool:
        """Whether somebody wrote `key`, or it is not what it is by default: who asks by numbers alone names no keys.

        `layout.sequence` is no number here: of that it is known only where it is `written`.
        """
        values: Mapping[str, Any] = {
            "layout.order": self.layout.order,
            "layout.zero": self.zero,
            "layout.secondary": self.secondary,
            "layout.schedule": self.schedule,
            "layout.virtual": self.layout.virtual,
            "layout.stages": tuple(self.stages),
        }
        return key in self.written or values.get(key, DEFAULTS[key]) != DEFAULTS[key]


@dataclass(frozen=True)
class Remedy:
    """Keys with the values to write instead; None: the key is left out."""

    changes: Mapping[str, Any]

    def text(self, ranks: int | None = None, launched: bool = False) -> str:
        """As people type it: `layout.shape="dp4" --workers 4 without layout.virtual`.

        The workers are said where there are `ranks`, and another shape has not as many; of a launcher, in words of no shell.
        """
        said = [f"{key}={_word(key, value)}" for key, value in self.changes.items() if value is not None]
        out = [key for key, value in self.changes.items() if value is None]
        if ranks is not None and "layout.shape" in self.changes:
            needs = Layout.parse(self.changes["layout.shape"]).world
            said += [f"on {needs} ranks" if launched else f"--workers {needs}"] if needs != ranks else []
        if not said:
            return f"leave {' and '.join(out)} out"
        return " ".join(said) + (f" without {' and '.join(out)}" if out else "")


def _word(key: str, value: Any) -> str:
    """`value` as one word of a shell."""
    if isinstance(value, tuple):
        return f"[{','.join(map(str, value))}]"
    return f'"{value}"' if key == "layout.shape" else str(value)


@dataclass(frozen=True)
class Wrong:
    """A broken rule: what is wrong with the numbers, the nearest valid choice, and the key to look at."""

    key: str
    what: str
    do: str


@dataclass(frozen=True)
class Effect:
    """A key that acts only where `needs` says so; `without` is what the layout lacks."""

    key: str
    needs: Callable[[Layout], bool]
    without: str
    do: str


EFFECTS = (
    Effect(
        "layout.order",
        lambda layout: sum(degree > 1 for degree in layout.degrees) > 1,
        "it has one axis at most",
        "two axes",
    ),
    Effect("layout.zero", lambda layout: layout.dp_shard > 1, "nothing is sharded", "dp2"),
    Effect("layout.secondary", lambda layout: layout.dp_shard > 1, "nothing is sharded", "dp4"),
    Effect("layout.sequence", lambda layout: layout.tp > 1, "there is no tensor parallelism", "tp2"),
    Effect("layout.schedule", lambda layout: layout.pp > 1, "there is no pipeline", "pp2"),
    Effect("layout.virtual", lambda layout: layout.pp > 1, "there is no pipeline", "pp2"),
    Effect("layout.stages", lambda layout: layout.pp > 1, "there is no pipeline", "pp2"),
)


def without_effect(asked: Asked) -> Iterator[Wrong]:
    """Keys that somebody wrote and that do nothing in this layout."""
    for effect in EFFECTS:
        if effect.key in asked.written and not effect.needs(asked.layout):
            what = f'{effect.key} does nothing with layout.shape = "{asked.layout.text()}": {effect.without}.'
            yield Wrong(effect.key, what, f"Remove {effect.key}, or write a shape with {effect.do}.")


def applied(asked: Asked, remedy: Remedy) -> Asked:
    """`asked` with the keys of `remedy`."""
    written = {key: where for key, where in asked.written.items() if remedy.changes.get(key, "") is not None}
    written |= {key: "" for key, value in remedy.changes.items() if value is not None and key not in written}
    values: dict[str, Any] = {
        key: DEFAULTS.get(key) if value is None else value for key, value in remedy.changes.items()
    }
    layout, changes = asked.layout, dict[str, Any]()
    if "layout.shape" in values:
        layout = replace(Layout.parse(values["layout.shape"]), virtual=layout.virtual, order=layout.order)
    for key, name in (("layout.virtual", "virtual"), ("layout.order", "order")):
        layout = replace(layout, **{name: values[key]}) if key in values else layout
    for key in ("layout.zero", "layout.secondary", "layout.schedule", "layout.stages"):
        if key in values:
            changes[key.removeprefix("layout.")] = values[key]
    if "batch.tokens" in values:
        changes["sequences"] = values["batch.tokens"] // asked.sequence
    if "batch.micro" in values:
        changes["rows"] = values["batch.micro"]
    return replace(asked, layout=layout, written=written, **changes)


def remedy(asked: Asked, changes: Mapping[str, Any]) -> Remedy:
    """`changes`, and what stands in their way left out: keys that would do nothing, a list of other stages."""
    after = applied(asked, Remedy(changes))
    out = [effect.key for effect in EFFECTS if asked.says(effect.key) and not effect.needs(after.layout)]
    if asked.stages and after.layout.stages != asked.layout.stages:
        out.append("layout.stages")
    return Remedy({**changes, **{key: None for key in out if key not in changes}})
