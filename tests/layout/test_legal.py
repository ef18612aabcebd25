"""The table of rules: each names numbers, rule and nearest valid choice, and that choice is indeed valid."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from argosy.errors import Refused
from argosy.layout.asked import DEFAULTS, EFFECTS, Asked, without_effect
from argosy.layout.layout import Layout
from argosy.layout.legal import RULES, broken, check

PLAIN = Asked(Layout(), layers=4, heads=[12], sequence=64, sequences=16)


def asked(layout: Layout, **more: Any) -> Asked:
    return replace(PLAIN, layout=layout, **more)


WRONG = [
    (asked(Layout(cp=2)), r"cp2: this version has no context parallelism. Nearest: layout.shape=\"dp2\"\."),
    (asked(Layout(dp_shard=2, ep=2)), "ep2: this version has no expert parallelism"),
    (asked(Layout(tp=5)), r"tp5 must divide the 12 query heads. Nearest: layout.shape=\"tp4\" --workers 4, or .*\"dp5\"\."),
    (asked(Layout(tp=4), heads=[12, 6]), r"tp4 must divide the 6 and 12 query heads. Nearest: layout.shape=\"tp3\""),
    (asked(Layout(pp=8)), r"pp8 makes 8 stages of 4 layers.*\"pp4\" --workers 4, or layout.shape=\"pp4 dp2\"\."),
    (asked(Layout(pp=3, tp=8), layers=2), r"tp8 must.*\"pp3 tp6\" --workers 18,"),  # two things are wrong: one after the other
    (asked(Layout(pp=2, virtual=4), schedule="interleaved"), r"4 makes 8 stages of 4 layers.*Nearest: layout.virtual=2,"),
    (asked(Layout(pp=4, virtual=2), schedule="interleaved"), "Nearest: layout.schedule=1f1b without layout.virtual"),
    # No degree of pp fits as many stages a rank.
    (
        asked(Layout(pp=4, virtual=4), schedule="interleaved", layers=3),
        "pp4 x layout.virtual = 4 makes 16 stages of 3 layers.*"
        r"layout.shape=\"pp3\" --workers 3 without layout.schedule and layout.virtual,",
    ),
    (asked(Layout(pp=4, virtual=2), schedule="interleaved", layers=3), r"of 3 layers.*\"pp2 dp2\" without layout.schedule"),
    (asked(Layout(pp=2), stages=(1, 2, 1)), r"names 3 stages; pp2 makes 2. Nearest: layout.stages=\[2,2\], or leave"),
    (asked(Layout(pp=2), stages=(1, 2)), r"layout.stages = \[1, 2\] is 3 layers of 4"),
    (asked(Layout(pp=4), stages=(2, 0, 1, 1)), "leaves a stage without layers; only the first and the last"),
    (asked(Layout(pp=4), stages=(1, 1), layers=2), r"names 2 stages.*Nearest: layout.stages=\[0,1,1,0\], or .*\"pp2\""),
    (asked(Layout(pp=999_999_999), stages=(2, 2)), "names 2 stages; pp999999999 makes"),  # and no list of as many is made
    (asked(Layout(pp=2, virtual=2), schedule="interleaved", rows=16), "pp = 2 micro-batches a step, a rank has 1.*micro=8,"),
    (asked(Layout(pp=2, virtual=2), schedule="interleaved", rows=1, sequences=1), "Nearest: batch.tokens=128 batch.micro=1,"),
    (asked(Layout(pp=2, virtual=2)), 'layout.virtual = 2 gives a rank 2 stages; layout.schedule = "1f1b" runs one'),
    (asked(Layout(pp=2), schedule="interleaved"), "at least two stages a rank, layout.virtual is 1. Nearest: layout.virtual=2"),
    (asked(Layout(dp_shard=17)), r"17 data-parallel ranks share 16 sequences.*: batch.tokens=1088, or .*\"dp16\""),
    (asked(Layout(dp_shard=4), secondary=2), "layout.secondary = 2 does nothing with layout.zero = 2. Nearest: layout.zero=3"),
    (asked(Layout(dp_shard=4, tp=2), secondary=2, zero=3), r"layout.secondary = 2 does not go with tp2.*\"dp4\" --workers 4"),
    (asked(Layout(pp=2, dp_shard=4, virtual=2), schedule="interleaved", secondary=2, zero=3), "not go with several stages"),
    (asked(Layout(dp_shard=8), secondary=3, zero=3), "secondary = 3 must divide dp8 and be less. Nearest: layout.secondary=2"),
    (asked(Layout(dp_shard=8), secondary=1, zero=3), "secondary = 1 would keep whole weights.*Nearest: layout.secondary=2"),
    (asked(Layout(dp_shard=2), secondary=2, zero=3), "secondary = 2 must divide dp2 and be less. Nearest: layout.secondary=0"),
]  # fmt: skip


@pytest.mark.parametrize(("wrong", "words"), WRONG)
def test_what_cannot_be_right_is_refused_with_numbers_rule_and_remedy(wrong: Asked, words: str) -> None:
    with pytest.raises(Refused, match=words) as caught:
        check(wrong)
    assert caught.value.code == 2


def test_every_rule_is_broken_by_some_case() -> None:
    assert all(any(rule.broken(wrong) is not None for wrong, _ in WRONG) for rule in RULES)
    assert not list(broken(PLAIN))


def test_a_list_of_layers_may_leave_a_stage_without_any() -> None:
    check(asked(Layout(pp=2, virtual=3), schedule="interleaved", stages=(0, 1, 1, 1, 1, 0)))


def test_under_a_launcher_no_workers_are_offered() -> None:
    with pytest.raises(Refused, match=r"Nearest: layout.shape=\"tp4\" on 4 ranks, or .*\"dp5\"\.$"):
        check(asked(Layout(tp=5), launched=True))
    with pytest.raises(Refused, match=r"\"dp4\", or start 3 ranks\.$"):
        Layout.parse("dp3", 4, launched=True)


def test_the_place_of_the_key_is_named() -> None:
    with pytest.raises(Refused, match=r"^my\.toml:7: pp8"):
        check(asked(Layout(pp=8), written={"layout.shape": "my.toml:7"}))


@pytest.mark.parametrize("effect", EFFECTS, ids=lambda effect: effect.key)
def test_a_key_without_effect_is_told(effect: Any) -> None:
    everything = Layout(pp=2, dp_shard=2, tp=2)
    assert not list(without_effect(asked(everything, written={effect.key: "my.toml:3"})))
    (wrong,) = without_effect(asked(Layout(dp_replicate=2), written={effect.key: "my.toml:3"}))
    assert f'{effect.key} does nothing with layout.shape = "replicate2"' in wrong.what


# Every remedy that is printed is read as a person would, and typed.

degree = st.integers(1, 9)
layouts = st.builds(
    Layout,
    pp=degree,
    dp_replicate=st.integers(1, 3),
    dp_shard=degree,
    cp=st.integers(1, 2),
    tp=degree,
    virtual=st.integers(1, 5),
    order=st.sampled_from(
        [("pp", "dp_replicate", "dp_shard", "cp", "tp"), ("tp", "cp", "dp_shard", "dp_replicate", "pp")]
    ),
)
KEYS = (
    "layout.order",
    "layout.zero",
    "layout.secondary",
    "layout.sequence",
    "layout.schedule",
    "layout.virtual",
    "layout.stages",
)


@st.composite
def anything(draw: st.DrawFn) -> Asked:
    """Some layout and model, right or wrong; what differs from its default was written, and so may be what does not."""
    layout = draw(layouts)
    if layout.pp == 1:
        layout = replace(layout, virtual=1)  # as plan/layouts.py makes them
    zero, secondary = draw(st.sampled_from([(2, 0), (1, 0), (3, 0), (3, 2), (3, 3), (3, 1), (2, 2)]))
    found = Asked(
        layout,
        layers=draw(st.integers(1, 12)),
        heads=draw(st.sampled_from([(6,), (12, 8), (7,), (8,), (1,)])),
        sequence=32,
        sequences=draw(st.integers(1, 40)),
        zero=zero,
        secondary=secondary,
        schedule=draw(st.sampled_from(["1f1b", "gpipe", "interleaved"])),
        stages=tuple(draw(st.lists(st.integers(0, 3), max_size=6))),
        rows=draw(st.one_of(st.none(), st.integers(1, 8))),
    )
    return replace(found, written={key: "" for key in KEYS if found.says(key) or draw(st.booleans())})


def alternatives(do: str) -> Iterator[tuple[dict[str, str], list[str], str]]:
    """(keys and the values to write, keys to leave out, other workers) of each way that `do` names."""
    if not do:
        return
    assert do.startswith("Nearest: ") and do.endswith("."), do
    for way in do[len("Nearest: ") : -1].split(", or "):
        if match := re.fullmatch("leave (.*) out", way):
            yield {}, match[1].split(" and "), ""
            continue
        words, _, out = way.partition(" without ")
        words, _, workers = words.partition(" --workers ")
        yield dict(word.split("=", 1) for word in shlex.split(words)), out.split(" and ") if out else [], workers


def typed(wrong: Asked, words: dict[str, str], out: list[str]) -> Asked:
    """`wrong` with `words` typed and `out` left out: written by hand, apart from what the rules themselves try."""
    written = dict(wrong.written)
    for key in out:
        written.pop(key, None)
    values: dict[str, Any] = {key: DEFAULTS[key] for key in out} | words
    written |= dict.fromkeys(words, "command line")
    layout = wrong.layout
    if "layout.shape" in words:
        layout = replace(Layout.parse(words["layout.shape"]), virtual=layout.virtual, order=layout.order)
    if "layout.order" in out:
        layout = replace(layout, order=Layout().order)
    if "layout.virtual" in values:
        layout = replace(layout, virtual=int(values["layout.virtual"]))
    if layout.pp == 1:
        layout = replace(layout, virtual=1)
    stages = values.get("layout.stages", wrong.stages)
    if isinstance(stages, str):
        stages = tuple(int(count) for count in stages.strip("[]").split(","))
    return replace(
        wrong,
        layout=layout,
        written=written,
        stages=stages,
        zero=int(values.get("layout.zero", wrong.zero)),
        secondary=int(values.get("layout.secondary", wrong.secondary)),
        schedule=values.get("layout.schedule", wrong.schedule),
        sequences=int(words["batch.tokens"]) // wrong.sequence if "batch.tokens" in words else wrong.sequences,
        rows=int(words["batch.micro"]) if "batch.micro" in words else wrong.rows,
    )


def rules_broken(one: Asked) -> set[int]:
    return {number for number, rule in enumerate(RULES) if rule.broken(one) is not None}


@settings(max_examples=400)
@given(anything())
def test_every_remedy_that_is_printed_mends_its_rule_and_breaks_no_other(wrong: Asked) -> None:
    """Each broken rule names one at least; nothing that was right is wrong afterwards, no key is left without effect."""
    before, dead = rules_broken(wrong), {one.key for one in without_effect(wrong)}
    named = dict(zip(sorted(before), broken(wrong), strict=True))
    for number, one in named.items():
        ways = list(alternatives(one.do))
        assert ways or len(before) > 1, one
        for words, out, workers in ways:
            after = typed(wrong, words, out)
            assert rules_broken(after) <= before - {number}, (one, words, out)
            assert {each.key for each in without_effect(after)} <= dead, (one, words, out)
            assert after.layout.world == int(workers or wrong.layout.world)


@settings(max_examples=200)
@given(anything())
def test_who_follows_the_first_remedy_arrives(wrong: Asked) -> None:
    """Where several things are wrong they are told one after the other, and each round leaves fewer."""
    for _ in RULES:
        found = next(broken(wrong), None)
        if found is None:
            return
        words, out, _ = next(alternatives(found.do))
        wrong = typed(wrong, words, out)
    assert not rules_broken(wrong)


@pytest.mark.parametrize("effect", EFFECTS, ids=lambda effect: effect.key)
def test_a_key_that_does_nothing_can_be_removed(effect: Any) -> None:
    wrong = asked(Layout(dp_replicate=2), written=dict.fromkeys(KEYS, ""))
    told = next(one for one in without_effect(wrong) if one.key == effect.key)
    assert told.do.startswith(f"Remove {effect.key}, ")
    after = typed(wrong, {}, [effect.key])
    assert effect.key not in {one.key for one in without_effect(after)} and not rules_broken(after)
