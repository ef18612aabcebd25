"""The table of options: what it calls legal the rules of layouts call legal too, and every case is a job."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from argosy.layout import legal as layouts_legal
from argosy.layout.layout import share
from argosy.plan import layouts
from argosy.prove.cover import Cover
from argosy.prove.options import OPTIONS, RANKS, TOLERANCES, job_of, legal, plain, ranks_of, rows_of

COVER = Cover()


@given(st.integers(0, 10_000))
def test_a_legal_case_is_a_job_that_the_rules_of_layouts_take(seed: int) -> None:
    case = COVER.anything(Random(seed))
    assert legal(case)
    job, ranks = job_of(case), ranks_of(case)
    layout = layouts.of(job.layout, ranks)
    assert layout.world == ranks <= RANKS
    assert not list(layouts_legal.broken(layouts.asked(job, layout, {})))
    rows = job.batch.tokens // job.batch.sequence
    assert rows == rows_of(case)
    most = max(len(share(rows, layout.data, part)) for part in range(layout.data))
    assert -(-most // case["micro"]) == case["micros"]
    assert case["uneven"] == (rows % (layout.data * case["micro"]) != 0)


@pytest.mark.parametrize(
    "more",
    [{"pp": 2}, {"shard": 2}, {"zero": 1}, {"sequence": True}, {"tp": 3}, {"stages": "front"}, {"virtual": 2},
     {"secondary": 2}, {"window": "every other"}, {"layers": 3}, {"uneven": True}, {"micros": 6},
     {"pp": 4, "tp": 4, "schedule": "1f1b", "layers": 4}],
    ids=str,
)  # fmt: skip
def test_what_makes_no_sense_is_not_drawn(more: dict[str, object]) -> None:
    assert legal(plain())
    assert not legal({**plain(), **more})


def test_half_of_the_draws_clip() -> None:
    assert len(OPTIONS["clip"]) == 2


def test_every_tolerance_has_a_reason_and_float64_has_ten_digits() -> None:
    assert all(len(row.why) > 20 for row in TOLERANCES.values())
    wide = TOLERANCES["float64"]
    assert max(wide.loss, wide.gradient, wide.norm, wide.weight) <= 1e-10
