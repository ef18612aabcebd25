"""Which combinations are right: a table of rules, asked before any process starts. Arithmetic only; knows no job and no torch.

A rule says what is wrong, with the numbers, and which ways there are out of it, the nearest first. A way is offered only
after it was tried: it mends the rule, breaks no other one and leaves no written key without effect. A rule that a dimension
needs stands here and nowhere else: `plan/` asks it for a job, `prove/scale.py` for the draws of one; the rules of the cases
that are drawn over everything (`prove/options.py`) are held against it by their tests.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from math import gcd
from typing import Any

from argosy.errors import Refused
from argosy.layout.asked import Asked, Remedy, Wrong, applied, remedy, without_effect
from argosy.layout.layout import LATER, Layout, divisors

PLAIN_SCHEDULES = ("gpipe", "1f1b")  # one stage a rank
OFFERED = 3  # most ways out that are named


@dataclass(frozen=True)
class Rule:
    """`broken`: the key to look at and what is wrong, None where nothing is. `ways`: out of it; of each list one is offered."""

    broken: Callable[[Asked], tuple[str, str] | None]
    ways: Callable[[Asked], Iterator[Iterable[Remedy]]]


def helps(asked: Asked, way: Remedy, rule: Rule | None = None) -> bool:
    """Whether `way` mends `rule`, breaks no other one and leaves no written key without effect that has one now."""
    return _helping(asked, rule)(way)


def _helping(asked: Asked, rule: Rule | None) -> Callable[[Remedy], bool]:
    """`helps` for many ways: what is wrong before any of them is looked at once."""
    before = {one for one in RULES if one is not rule and one.broken(asked) is not None}
    dead = {one.key for one in without_effect(asked)}

    def helping(way: Remedy) -> bool:
        """Whether `way` does."""
        after = applied(asked, way)
        if any(one.broken(after) is not None for one in RULES if one not in before):
            return False
        return {one.key for one in without_effect(after)} <= dead

    return helping


def _shapes(
    asked: Asked, axis: str, fits: Iterable[int], changes: Mapping[str, Any] | None = None
) -> Iterator[list[Remedy]]:
    """Shapes with a degree of `fits` along `axis`, the nearest first: the other degrees as they are; as many ranks as now."""
    layout, now = asked.layout, int(getattr(asked.layout, axis))
    near = sorted(fits, key=lambda degree: (abs(degree - now), degree))
    room = now * layout.dp_shard

    def shape(degree: int, **more: int) -> Layout:
        """The layout with another degree along `axis`."""
        degrees: dict[str, Any] = {axis: degree, **more}
        return replace(layout, **degrees)

    same = [shape(one, ep=1, dp_shard=room // one) for one in near if room % one == 0]
    for found in ([shape(one) for one in near], same):
        yield [remedy(asked, {"layout.shape": one.text(), **(changes or {})}) for one in found]


def _plainly(asked: Asked) -> Remedy:
    """One stage a rank."""
    return remedy(asked, {"layout.schedule": "1f1b", "layout.virtual": None})


def _unbuilt(asked: Asked) -> tuple[str, str] | None:
    """Context and expert parallelism have their axes, but nothing acts on them yet."""
    for axis, name in LATER.items():
        degree = int(getattr(asked.layout, axis))
        if degree > 1:
            return "layout.shape", f"{axis}{degree}: this version has no {name} parallelism."
    return None


def _built(asked: Asked) -> Iterator[Iterable[Remedy]]:
    layout = replace(asked.layout, cp=1, ep=1)
    more = replace(layout, dp_shard=layout.dp_shard * asked.layout.cp)
    yield [remedy(asked, {"layout.shape": shape.text()}) for shape in (more, layout)]


def _heads(asked: Asked) -> tuple[str, str] | None:
    """Every rank of tp computes as many query heads. All else may be cut unevenly, and key and value heads are repeated."""
    tp, counts = asked.layout.tp, sorted(set(asked.heads))
    if gcd(*counts) % tp == 0:
        return None
    return "layout.shape", f"tp{tp} must divide the {' and '.join(map(str, counts))} query heads."


def _heads_divided(asked: Asked) -> Iterator[Iterable[Remedy]]:
    yield from _shapes(asked, "tp", divisors(gcd(*asked.heads)))


def _each(asked: Asked) -> str:
    return f" x layout.virtual = {asked.layout.virtual}" if asked.layout.virtual > 1 else ""


def _list(asked: Asked) -> tuple[str, str] | None:
    """A list of layers has one number a stage and adds up to all layers."""
    listed, layout = list(asked.stages), asked.layout
    if not listed or layout.pp == 1:
        return None
    said = f"layout.stages = {listed}"
    if len(listed) != layout.stages:
        makes = f"pp{layout.pp}{_each(asked)} makes {layout.stages}"
        return "layout.stages", f"{said} names {len(listed)} stages; {makes}."
    if sum(listed) != asked.layers:
        return "layout.stages", f"{said} is {sum(listed)} layers of {asked.layers}."
    if 0 in listed[1:-1]:
        return "layout.stages", f"{said} leaves a stage without layers; only the first and the last have other work."
    return None


def _lists(asked: Asked) -> Iterator[Iterable[Remedy]]:
    layers, stages = asked.layers, asked.layout.stages
    empty = max(0, stages - layers)
    if empty <= 2:  # the first stage has the embedding to do, the last one the head; those between need a layer each
        parts, first = stages - empty, min(1, empty)
        even = [layers * (part + 1) // parts - layers * part // parts for part in range(parts)]
        yield [Remedy({"layout.stages": (*[0] * first, *even, *[0] * (empty - first))})]
    yield [Remedy({"layout.stages": None})]
    if stages > layers:
        yield from _fewer(asked)


def _layers(asked: Asked) -> tuple[str, str] | None:
    """Every stage of the pipeline has a layer, unless a list says otherwise."""
    layout, layers = asked.layout, asked.layers
    if layout.stages <= layers or asked.stages or layout.pp == 1:
        return None
    key = "layout.virtual" if layout.virtual > 1 and layout.pp <= layers else "layout.shape"
    return key, f"pp{layout.pp}{_each(asked)} makes {layout.stages} stages of {layers} layers: each needs one."


def _fewer(asked: Asked) -> Iterator[Iterable[Remedy]]:
    layout, layers = asked.layout, asked.layers
    if layout.virtual > 1:
        yield [remedy(asked, {"layout.virtual": one}) for one in range(layers // layout.pp, 1, -1)]
        yield [_plainly(asked)]
        if layout.pp > layers:
            plain = {"layout.schedule": None, "layout.virtual": None}
            yield from _shapes(asked, "pp", range(1, layers + 1), plain)
    yield from _shapes(asked, "pp", range(1, max(1, layers // layout.virtual) + 1))


def _schedule(asked: Asked) -> tuple[str, str] | None:
    """Interleaving needs several stages a rank, the others exactly one."""
    virtual, said = asked.layout.virtual, f'layout.schedule = "{asked.schedule}"'
    if asked.layout.pp == 1:
        return None
    if asked.schedule in PLAIN_SCHEDULES and virtual > 1:
        return "layout.virtual", f"layout.virtual = {virtual} gives a rank {virtual} stages; {said} runs one."
    if asked.schedule not in PLAIN_SCHEDULES and virtual == 1:
        return "layout.schedule", f"{said} needs at least two stages a rank, layout.virtual is 1."
    return None


def _schedules(asked: Asked) -> Iterator[Iterable[Remedy]]:
    if asked.schedule in PLAIN_SCHEDULES:
        yield [remedy(asked, {"layout.schedule": "interleaved"})]
        yield [remedy(asked, {"layout.virtual": 1})]
    else:
        yield [remedy(asked, {"layout.virtual": 2})]
        yield [remedy(asked, {"layout.schedule": "1f1b"})]


def _micro(asked: Asked) -> tuple[str, str] | None:
    """Interleaving sends a whole round of pp micro-batches through a rank's first stage before its second."""
    pp, micro = asked.layout.pp, asked.micro
    if asked.schedule in PLAIN_SCHEDULES or pp == 1 or micro is None or micro >= pp:
        return None
    said = f'layout.schedule = "{asked.schedule}"'
    return "layout.schedule", f"{said} needs at least pp = {pp} micro-batches a step, a rank has {micro}."


def _micros(asked: Asked) -> Iterator[Iterable[Remedy]]:
    pp, data = asked.layout.pp, asked.layout.data
    smaller = [remedy(asked, {"batch.micro": asked.own // pp})] if asked.own >= pp else []
    yield [*smaller, remedy(asked, {"batch.tokens": pp * data * asked.sequence, "batch.micro": 1})]
    yield [_plainly(asked)]


def _sequences(asked: Asked) -> tuple[str, str] | None:
    """Every rank that reads its own sequences has one."""
    data, rows = asked.layout.data, asked.sequences
    if data <= rows:
        return None
    return "batch.tokens", f"{data} data-parallel ranks share {rows} sequences a step: some would have nothing to do."


def _more_sequences(asked: Asked) -> Iterator[Iterable[Remedy]]:
    layout = asked.layout
    yield [remedy(asked, {"batch.tokens": layout.data * asked.sequence})]
    copies = min(layout.dp_replicate, max(1, asked.sequences))
    helping = _helping(asked, SEQUENCES)
    for shard in range(min(layout.dp_shard, max(1, asked.sequences // copies)), 0, -1):
        fewer = replace(layout, ep=1, dp_replicate=copies, dp_shard=shard)
        if helping(way := remedy(asked, {"layout.shape": fewer.text()})):
            yield [way]
            return


def _secondary(asked: Asked) -> tuple[str, str] | None:
    """The second shard lies over a part of dp, and only ZeRO-3 gives weights back after the forward pass."""
    shard, key, said = asked.layout.dp_shard, "layout.secondary", f"layout.secondary = {asked.secondary}"
    if not asked.secondary:
        return None
    if asked.zero != 3:
        return key, f"{said} does nothing with layout.zero = {asked.zero}."
    if asked.layout.tp > 1:
        return key, f"{said} does not go with tp{asked.layout.tp}: torch cannot shard tensor-parallel weights twice."
    if asked.layout.virtual > 1:
        return key, f"{said} does not go with several stages a rank: this version keeps a second shard for one."
    if asked.secondary == 1:
        return key, f"{said} would keep whole weights on every rank: 2 is the least."
    if shard % asked.secondary or asked.secondary >= shard:
        return key, f"{said} must divide dp{shard} and be less."
    return None


def _secondaries(asked: Asked) -> Iterator[Iterable[Remedy]]:
    fits = [parts for parts in divisors(asked.layout.dp_shard) if 1 < parts < asked.layout.dp_shard]
    near = sorted(fits, key=lambda parts: (abs(parts - asked.secondary), parts))
    if asked.zero != 3:
        yield [remedy(asked, {"layout.zero": 3})]
    elif asked.layout.tp > 1:
        yield from _shapes(asked, "tp", (1,))
    elif asked.layout.virtual > 1:
        yield [_plainly(asked)]
    else:
        yield [remedy(asked, {"layout.secondary": parts}) for parts in near]
    yield [Remedy({"layout.secondary": 0})]


SEQUENCES = Rule(_sequences, _more_sequences)
RULES: tuple[Rule, ...] = (
    Rule(_unbuilt, _built),
    Rule(_heads, _heads_divided),
    Rule(_list, _lists),
    Rule(_layers, _fewer),
    Rule(_schedule, _schedules),
    Rule(_micro, _micros),
    SEQUENCES,
    Rule(_secondary, _secondaries),
)


def broken(asked: Asked) -> Iterator[Wrong]:
    """Every rule of the table that `asked` breaks, with the ways out that were found to help. Pure."""
    for rule in RULES:
        if (wrong := rule.broken(asked)) is not None:
            helping = _helping(asked, rule)
            ways = (next(filter(helping, each), None) for each in rule.ways(asked))
            ranks = asked.layout.world if asked.ranks == 0 else asked.ranks
            said = (way.text(ranks, asked.launched) for way in ways if way is not None)
            found = list(dict.fromkeys(said))[:OFFERED]
            yield Wrong(*wrong, f"Nearest: {', or '.join(found)}." if found else "")


def holds(asked: Asked) -> bool:
    """Whether `asked` breaks no rule. Pure."""
    return all(rule.broken(asked) is None for rule in RULES)


def check(asked: Asked) -> None:
    """Refused (exit code 2), with numbers, rule and nearest valid choice, for the first broken rule."""
    wrong = next(broken(asked), None)
    if wrong is not None:
        raise Refused(wrong.what, where=asked.written.get(wrong.key, ""), do=wrong.do)
