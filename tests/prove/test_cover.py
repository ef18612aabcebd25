"""The covering array: every legal pair occurs, what is called impossible is, and a seed always draws the same."""

from __future__ import annotations

from itertools import combinations, islice, product
from random import Random

from argosy.prove.cover import Cover, pairs
from argosy.prove.options import OPTIONS, Rule, legal

SMALL = {"a": (1, 2, 3), "b": (1, 2), "c": (0, 1, 2), "d": ("x", "y")}
RULES = (
    Rule(("a", "b"), lambda a, b: a * b <= 4),
    Rule(("b", "c"), lambda b, c: c == 0 or b == 2),
    Rule(("a", "c", "d"), lambda a, c, d: d == "x" or a + c < 4),
)


def test_what_is_legal_is_what_trying_everything_finds() -> None:
    cases = [dict(zip(SMALL, values, strict=True)) for values in product(*SMALL.values())]
    wanted = {pair for case in cases if legal(case, RULES) for pair in pairs(case, SMALL)}
    assert Cover(SMALL, RULES).legal == wanted


def test_every_legal_pair_occurs_and_no_case_breaks_a_rule() -> None:
    cover = Cover()
    cases = cover.cases(1)
    drawn = []
    while cover.open:
        drawn.append(next(cases))
    assert {pair for case in drawn for pair in pairs(case)} == cover.legal
    assert all(legal(case) for case in drawn)
    assert len(drawn) <= 90
    legal_pairs = len(cover.legal)
    all_pairs = sum(len(OPTIONS[one]) * len(OPTIONS[other]) for one, other in combinations(OPTIONS, 2))
    assert 0.9 * all_pairs < legal_pairs < all_pairs
    assert legal(next(cases))


def test_a_seed_draws_the_same_and_another_seed_another() -> None:
    first, again, other = (list(islice(Cover().cases(seed), 12)) for seed in (1, 1, 2))
    assert first == again != other


def test_pairs_that_were_not_drawn_stay_open() -> None:
    cover = Cover(SMALL, RULES)
    case = cover.anything(Random(0))
    before = len(cover.open)
    assert cover.draw(case) == len(list(pairs(case, SMALL))) == before - len(cover.open)
    assert cover.draw(case) == 0
    assert not set(pairs(case, SMALL)) & cover.open
