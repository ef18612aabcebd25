"""Which combinations are right: a table of rules, asked before any process starts. Arithmetic only; knows no job and no torch.

Every rule is a function of `Asked`; it names the numbers, the rule and the nearest valid choice. A rule that a dimension needs
stands here and nowhere else: `plan/` asks it for a job, `prove/` for every draw.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import gcd, prod

from argosy.errors import Refused
from argosy.layout.layout import AXES, Layout, divisors, nearest

PLAIN_SCHEDULES = ("gpipe", "1f1b")  # one stage a rank
LATER = {"cp": "context", "ep": "expert"}  # axes whose dimension is not built yet


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
    micro: int | None = None  # micro-batches of a rank; None while not known
    written: Mapping[str, str] = field(default_factory=dict)  # key -> where


@dataclass(frozen=True)
class Wrong:
    """A broken rule: what is wrong with the numbers, the nearest valid choice, and the key to look at."""

    key: str
    what: str
    do: str


Rule = Callable[[Asked], Wrong | None]


def built(asked: Asked) -> Wrong | None:
    """Context and expert parallelism have their axes, but nothing acts on them yet."""
    for axis, name in LATER.items():
        degree = int(getattr(asked.layout, axis))
        if degree > 1:
            what = f"{axis}{degree}: this version has no {name} parallelism."
            return Wrong("layout.shape", what, f"Leave {axis} out; its ranks then go to dp.")
    return None


def _same_ranks(asked: Asked, axis: str, fits: Sequence[int]) -> str:
    """A shape of as many ranks, with the nearest degree of `axis` in `fits` and the rest in dp; "" where none is right."""
    layout = asked.layout
    if not fits:
        return ""
    room = layout.world // prod(getattr(layout, other) for other in AXES if other not in (axis, "dp_shard"))
    degree = nearest(getattr(layout, axis), [one for one in fits if room % one == 0])
    shape = replace(layout, **{axis: degree, "dp_shard": room // degree, "ep": 1})
    if next(broken(replace(asked, layout=shape)), None) is not None:
        return ""
    return f' With {layout.world} ranks: layout.shape="{shape.text()}".'


def heads_divide(asked: Asked) -> Wrong | None:
    """Every rank of tp computes as many query heads. All else may be cut unevenly, and key and value heads are repeated."""
    tp, counts = asked.layout.tp, sorted(set(asked.heads))
    fits = divisors(gcd(*counts))
    if tp in fits:
        return None
    numbers = " and ".join(str(count) for count in counts)
    return Wrong(
        "layout.shape",
        f"tp{tp} must divide the {numbers} query heads.",
        f"Nearest: tp{nearest(tp, fits)}.{_same_ranks(asked, 'tp', fits)}",
    )


def layers_suffice(asked: Asked) -> Wrong | None:
    """Every stage of the pipeline has a layer, unless a list says otherwise."""
    stages, layers = asked.layout.stages, asked.layers
    if stages <= layers or asked.stages:
        return None
    if asked.layout.virtual > 1 and asked.layout.pp <= layers:
        virtual = layers // asked.layout.pp
        what = (
            f"pp{asked.layout.pp} x layout.virtual = {asked.layout.virtual} makes {stages} stages of {layers} layers."
        )
        return Wrong("layout.virtual", what, _virtual(virtual))
    each = f" x layout.virtual = {asked.layout.virtual}" if asked.layout.virtual > 1 else ""
    what = f"pp{asked.layout.pp}{each} makes {stages} stages of {layers} layers: each needs one."
    fits = range(1, layers // asked.layout.virtual + 1)
    return Wrong("layout.shape", what, f"Nearest: pp{layers}.{_same_ranks(asked, 'pp', fits)}")


def _virtual(virtual: int) -> str:
    if virtual > 1:
        return f"Nearest: layout.virtual={virtual}."
    return "Nearest: layout.schedule=1f1b, which has one stage a rank (leave layout.virtual out)."


def stages_listed(asked: Asked) -> Wrong | None:
    """A list of layers has one number a stage and adds up to all layers."""
    if not asked.stages:
        return None
    listed, stages = list(asked.stages), asked.layout.stages
    even = [asked.layers * (part + 1) // stages - asked.layers * part // stages for part in range(stages)]
    do = f"For example layout.stages={even}, or leave it out."
    if len(listed) != stages:
        each = f" x layout.virtual = {asked.layout.virtual}" if asked.layout.virtual > 1 else ""
        what = f"layout.stages = {listed} names {len(listed)} stages; pp{asked.layout.pp}{each} makes {stages}."
        return Wrong("layout.stages", what, do)
    if sum(listed) != asked.layers:
        return Wrong("layout.stages", f"layout.stages = {listed} is {sum(listed)} layers of {asked.layers}.", do)
    if 0 in listed[1:-1]:
        what = (
            f"layout.stages = {listed} leaves a stage without layers; only the first and the last hold something else."
        )
        return Wrong("layout.stages", what, do)
    return None


def schedule_fits(asked: Asked) -> Wrong | None:
    """Interleaving needs several stages a rank, the others exactly one."""
    virtual = asked.layout.virtual
    if asked.layout.pp == 1:
        return None
    if asked.schedule in PLAIN_SCHEDULES and virtual > 1:
        what = (
            f'layout.virtual = {virtual} gives a rank {virtual} stages; layout.schedule = "{asked.schedule}" runs one.'
        )
        return Wrong("layout.virtual", what, "Nearest: layout.schedule=interleaved, or layout.virtual=1.")
    if asked.schedule not in PLAIN_SCHEDULES and virtual == 1:
        what = f'layout.schedule = "{asked.schedule}" needs at least two stages a rank, layout.virtual is 1.'
        return Wrong("layout.schedule", what, "Nearest: layout.virtual=2, or layout.schedule=1f1b.")
    return None


def micro_suffice(asked: Asked) -> Wrong | None:
    """Interleaving sends a whole round of pp micro-batches through a rank's first stage before its second."""
    pp, micro = asked.layout.pp, asked.micro
    if asked.schedule in PLAIN_SCHEDULES or pp == 1 or micro is None or micro >= pp:
        return None
    what = f'layout.schedule = "{asked.schedule}" needs at least pp = {pp} micro-batches a step, a rank has {micro}.'
    each = asked.sequences // asked.layout.data // pp
    fewer = f"batch.micro={each}" if each else f"batch.tokens={pp * asked.layout.data * asked.sequence} batch.micro=1"
    return Wrong("layout.schedule", what, f"Nearest: {fewer}, or layout.schedule=1f1b without layout.virtual.")


def sequences_suffice(asked: Asked) -> Wrong | None:
    """Every rank that reads its own sequences has one."""
    data, rows = asked.layout.data, asked.sequences
    if data <= rows:
        return None
    what = f"{data} data-parallel ranks share {rows} sequences a step: some would have nothing to do."
    return Wrong("batch.tokens", what, f"Nearest: batch.tokens={data * asked.sequence}, or fewer ranks.")


def secondary_fits(asked: Asked) -> Wrong | None:
    """The second shard lies over a part of dp, and only ZeRO-3 gives weights back after the forward pass."""
    if not asked.secondary:
        return None
    shard = asked.layout.dp_shard
    if asked.zero != 3:
        what = f"layout.secondary = {asked.secondary} does nothing with layout.zero = {asked.zero}."
        return Wrong("layout.secondary", what, "Nearest: layout.zero=3, or layout.secondary=0.")
    if asked.layout.tp > 1:
        what = f"layout.secondary = {asked.secondary} does not go with tp{asked.layout.tp}: torch cannot."
        return Wrong("layout.secondary", what, "Nearest: layout.secondary=0, or a shape without tp.")
    if asked.layout.virtual > 1:
        what = (
            f'layout.secondary = {asked.secondary} does not go with layout.schedule = "{asked.schedule}": torch cannot.'
        )
        return Wrong("layout.secondary", what, "Nearest: layout.secondary=0, or layout.schedule=1f1b.")
    fits = [parts for parts in divisors(shard) if 1 < parts < shard]
    if asked.secondary in fits:
        return None
    what = f"layout.secondary = {asked.secondary} must divide dp{shard} and be less."
    do = f"Nearest: layout.secondary={nearest(asked.secondary, fits)}." if fits else "Use layout.secondary=0."
    return Wrong("layout.secondary", what, do)


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


RULES: tuple[Rule, ...] = (
    built,
    heads_divide,
    stages_listed,
    layers_suffice,
    schedule_fits,
    micro_suffice,
    sequences_suffice,
    secondary_fits,
)


def broken(asked: Asked) -> Iterator[Wrong]:
    """Every rule of the table that `asked` breaks. Pure."""
    for rule in RULES:
        if (wrong := rule(asked)) is not None:
            yield wrong


def check(asked: Asked) -> None:
    """Refused (exit code 2), with numbers, rule and nearest valid choice, for the first broken rule."""
    wrong = next(broken(asked), None)
    if wrong is not None:
        raise Refused(wrong.what, where=asked.written.get(wrong.key, ""), do=wrong.do)
