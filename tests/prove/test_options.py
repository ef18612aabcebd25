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
from argosy.prove.options import RANKS, TOLERANCES, job_of, layers_listed, legal, plain, ranks_of, rows_of

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
     {"order": "turned"}, {"tp": 2, "order": "turned"}, {"stages": "ends"},
     {"pp": 4, "tp": 4, "schedule": "1f1b", "layers": 4}],
    ids=str,
)  # fmt: skip
def test_what_makes_no_sense_is_not_drawn(more: dict[str, object]) -> None:
    assert legal(plain())
    assert not legal({**plain(), **more})


def test_layers_are_listed_as_the_names_say() -> None:
    case = {**plain(), "schedule": "1f1b", "layers": 5}
    listed = {
        name: [layers_listed({**case, "pp": pp, "stages": name}) for pp in (2, 3, 4)]
        for name in ("even", "front", "back", "ends")
    }
    assert listed["even"] == [()] * 3
    assert listed["front"] == [(4, 1), (3, 1, 1), (2, 1, 1, 1)]
    assert listed["back"] == [(1, 4), (1, 1, 3), (1, 1, 1, 2)]
    assert listed["ends"] == [(0, 5), (0, 5, 0), (0, 4, 1, 0)]


# The table of tolerances a second time: whoever loosens it does so in two places, and on purpose.
MOST = {
    "float64": (1e-10, 1e-10, 1e-10, 1e-10, 1e-3),
    "float32": (1e-6, 1e-4, 1e-5, 1e-4, 1e-3),
    "bfloat16": (5e-3, 0.1, 2e-2, 0.1, 5e-2),
}


@pytest.mark.parametrize("precision", MOST)
def test_no_tolerance_is_looser_than_it_was_and_each_has_a_reason(precision: str) -> None:
    row = TOLERANCES[precision]
    found = (row.loss, row.gradient, row.norm, row.weight, row.floor)
    assert all(value <= most for value, most in zip(found, MOST[precision], strict=True)), found
    assert len(row.why) > 20 and set(TOLERANCES) == set(MOST)
