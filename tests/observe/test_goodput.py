"""Every second of a run in exactly one class."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from argosy.observe.goodput import CLASSES, Life, divide
from argosy.run import record

S = 1_000_000_000


def life(number: int, *rows: tuple[object, ...], loaded: int = 0) -> Life:
    """rows: (kind, name, step, entered, left) in seconds."""
    entries = np.zeros(len(rows), record.ENTRY)
    kinds = {name: kind for kind, name in record.KINDS.items()}
    for at, (kind, name, step, entered, left) in enumerate(rows):
        index = record.number(kinds[str(kind)], str(name)) if name else 0
        entries[at] = (
            at + 1,
            kinds[str(kind)],
            index,
            0,
            step,
            int(float(entered) * S),
            int(float(left) * S),
            0,
            0,
            0,
            0,
        )  # type: ignore[arg-type]
    return Life(number, entries, loaded)


def test_each_class_gets_its_seconds() -> None:
    one = life(
        1,
        ("phase", "start", 0, 12, 14),
        ("mark", "compiling", 0, 14, 14),
        ("mark", "compiled", 0, 18, 18),
        ("phase", "data", 1, 20, 21),
        ("phase", "forward_backward", 1, 21, 23),
        ("step", "", 1, 20, 24),
        ("phase", "evaluate", 1, 24, 27),
        ("phase", "sample", 1, 27, 28),
        ("phase", "save", 1, 28, 28.5),
        ("phase", "collect", 1, 28.5, 29),
        ("mark", "finished", 1, 29, 29),
    )
    journal = [{"what": "begun", "time": 10.0}, {"what": "ended", "time": 31.0}]
    found = divide([one], journal)
    assert found.total == 21
    assert {name: value for name, value in found.seconds.items() if value} == {
        "start": 6,  # 10 to 20 without compiling
        "compile": 4,
        "training": 3,
        "data": 1,
        "evaluation": 3,
        "samples": 1,
        "saving": 0.5,
        "garbage": 0.5,
        "other": 2,
    }


def test_recovery_and_lost_steps() -> None:
    first = life(1, *(("step", "", n, n, n + 1) for n in range(1, 6)))
    second = life(2, ("phase", "load", 0, 8, 9), *(("step", "", n, n + 6, n + 7) for n in range(4, 7)), loaded=3)
    found = divide([first, second], [])
    assert found.seconds["lost"] == 2  # steps 4 and 5
    assert found.seconds["recovery"] == 4  # from 6 to 10
    assert found.seconds["training"] == 6
    assert sum(found.seconds.values()) == found.total == 12


def test_time_away_is_not_counted() -> None:
    one, two = life(1, ("step", "", 1, 1, 2)), life(2, ("step", "", 2, 101, 102), loaded=1)
    journal = [
        {"what": "begun", "time": 0.0},
        {"what": "ended", "time": 3.0},
        {"what": "begun", "time": 100.0},
        {"what": "ended", "time": 103.0},
    ]
    found = divide([one, two], journal)
    assert (found.total, found.away) == (6, 97)
    assert sum(found.seconds.values()) == 6
    assert found.seconds["recovery"] == 0 and found.seconds["start"] == 2 and found.seconds["training"] == 2


def test_a_parent_that_was_killed_left_no_end() -> None:
    found = divide([life(1, ("step", "", 1, 5, 6))], [{"what": "begun", "time": 2.0}])
    assert found.total == 4 and found.seconds["start"] == 3


def test_nothing_recorded() -> None:
    assert divide([], []).total == 0


times = st.integers(0, 60)
span = st.tuples(st.sampled_from(record.PHASES), times, times).map(lambda s: ("phase", s[0], 1, min(s[1:]), max(s[1:])))
step = st.tuples(st.integers(1, 9), times, times).map(lambda s: ("step", "", s[0], min(s[1:]), max(s[1:])))


@given(st.lists(st.lists(st.one_of(span, step), min_size=1, max_size=8), min_size=1, max_size=3))
def test_classes_add_up_to_the_whole(rows: list[list[tuple[object, ...]]]) -> None:
    """However phases overlap, no second is counted twice and none is missing."""
    lives = [life(number + 1, *inside) for number, inside in enumerate(rows)]
    found = divide(lives, [])
    assert sum(found.seconds.values()) == pytest.approx(found.total)
    assert set(found.seconds) == set(CLASSES) and min(found.seconds.values()) >= 0
    assert sum(share for _, share in found.shares) == pytest.approx(1 if found.total else 0)
