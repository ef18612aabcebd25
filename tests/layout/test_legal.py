"""The table of rules: each names numbers, rule and nearest valid choice, and that choice is indeed valid."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from argosy.errors import Refused
from argosy.layout.layout import Layout
from argosy.layout.legal import EFFECTS, RULES, Asked, broken, check, without_effect

PLAIN = Asked(Layout(), layers=4, heads=[12], sequence=64, sequences=16)


def asked(layout: Layout, **more: Any) -> Asked:
    return replace(PLAIN, layout=layout, **more)


WRONG = [
    (asked(Layout(cp=2)), "cp2: this version has no context parallelism"),
    (asked(Layout(dp_shard=2, ep=2)), "ep2: this version has no expert parallelism"),
    (asked(Layout(tp=5)), r"tp5 must divide the 12 query heads. Nearest: tp4\."),
    (asked(Layout(tp=4), heads=[12, 6]), "tp4 must divide the 6 and 12 query heads. Nearest: tp3"),
    (asked(Layout(pp=8)), r"pp8 makes 8 stages of 4 layers.*Nearest: pp4\. With 8 ranks: layout.shape=\"pp4 dp2\"\."),
    (asked(Layout(pp=3, tp=8), layers=2), r"Nearest: tp6\.$"),  # two things are wrong: one after the other
    (asked(Layout(pp=2, virtual=4), schedule="interleaved"), r"4 makes 8 stages of 4 layers. Nearest: layout.virtual=2"),
    (asked(Layout(pp=4, virtual=2), schedule="interleaved"), "makes 8 stages of 4 layers. Nearest: layout.schedule=1f1b"),
    (asked(Layout(pp=2), stages=(1, 2, 1)), r"\[1, 2, 1\] names 3 stages; pp2 makes 2. For example layout.stages=\[2, 2\]"),
    (asked(Layout(pp=2), stages=(1, 2)), r"layout.stages = \[1, 2\] is 3 layers of 4"),
    (asked(Layout(pp=4), stages=(2, 0, 1, 1)), "leaves a stage without layers; only the first and the last"),
    (asked(Layout(pp=2, virtual=2), schedule="interleaved", micro=1), "at least pp = 2 micro-batches a step.*batch.micro=8,"),
    (asked(Layout(pp=2, virtual=2), schedule="interleaved", micro=1, sequences=1), "Nearest: batch.tokens=128 batch.micro=1,"),
    (asked(Layout(pp=2, virtual=2)), 'layout.virtual = 2 gives a rank 2 stages; layout.schedule = "1f1b" runs one'),
    (asked(Layout(pp=2), schedule="interleaved"), "at least two stages a rank, layout.virtual is 1. Nearest: layout.virtual=2"),
    (asked(Layout(dp_shard=17)), "17 data-parallel ranks share 16 sequences a step.*Nearest: batch.tokens=1088"),
    (asked(Layout(dp_shard=4), secondary=2), "layout.secondary = 2 does nothing with layout.zero = 2. Nearest: layout.zero=3"),
    (asked(Layout(dp_shard=4, tp=2), secondary=2, zero=3), "layout.secondary = 2 does not go with tp2"),
    (asked(Layout(pp=2, dp_shard=4, virtual=2), schedule="interleaved", secondary=2, zero=3), "not go with layout.schedule"),
    (asked(Layout(dp_shard=8), secondary=3, zero=3), "secondary = 3 must divide dp8 and be less. Nearest: layout.secondary=2"),
    (asked(Layout(dp_shard=2), secondary=2, zero=3), "secondary = 2 must divide dp2 and be less. Use layout.secondary=0"),
]  # fmt: skip


@pytest.mark.parametrize(("wrong", "words"), WRONG)
def test_what_cannot_be_right_is_refused_with_numbers_rule_and_remedy(wrong: Asked, words: str) -> None:
    with pytest.raises(Refused, match=words) as caught:
        check(wrong)
    assert caught.value.code == 2


def test_every_rule_is_broken_by_some_case() -> None:
    assert all(any(rule(wrong) is not None for wrong, _ in WRONG) for rule in RULES)
    assert not list(broken(PLAIN))


def test_a_list_of_layers_may_leave_a_stage_without_any() -> None:
    check(asked(Layout(pp=2, virtual=3), schedule="interleaved", stages=(0, 1, 1, 1, 1, 0)))


def test_the_place_of_the_key_is_named() -> None:
    with pytest.raises(Refused, match=r"^my\.toml:7: pp8"):
        check(asked(Layout(pp=8), written={"layout.shape": "my.toml:7"}))


@pytest.mark.parametrize("effect", EFFECTS, ids=lambda effect: effect.key)
def test_a_key_without_effect_is_told(effect: Any) -> None:
    everything = Layout(pp=2, dp_shard=2, tp=2)
    assert not list(without_effect(asked(everything, written={effect.key: "my.toml:3"})))
    (wrong,) = without_effect(asked(Layout(dp_replicate=2), written={effect.key: "my.toml:3"}))
    assert f'{effect.key} does nothing with layout.shape = "replicate2"' in wrong.what


@given(st.integers(1, 12), st.lists(st.integers(1, 24), min_size=1, max_size=3))
def test_the_nearest_tp_that_is_named_is_right(tp: int, heads: list[int]) -> None:
    for wrong in broken(asked(Layout(tp=tp), heads=heads)):
        (nearest, *_) = re.findall(r"Nearest: tp(\d+)\.", wrong.do)
        assert not list(broken(asked(Layout(tp=int(nearest)), heads=heads)))


@given(
    st.integers(1, 12), st.integers(1, 12), st.integers(1, 4), st.sampled_from([(6,), (12, 8), (7,)]), st.integers(1, 9)
)
def test_the_shape_of_as_many_ranks_that_is_named_is_right(
    tp: int, pp: int, dp: int, heads: list[int], layers: int
) -> None:
    wrong = asked(Layout(tp=tp, pp=pp, dp_shard=dp), heads=heads, layers=layers, sequences=1000)
    for one in broken(wrong):
        for ranks, shape in re.findall(r"With (\d+) ranks: layout.shape=\"(.*)\"", one.do):
            layout = Layout.parse(shape)
            assert layout.world == wrong.layout.world == int(ranks)
            assert not list(broken(replace(wrong, layout=layout)))
