"""The table of options: every pair of values occurs, and a failing case becomes as plain as it can."""

from __future__ import annotations

from itertools import combinations

from argosy.prove.options import OPTIONS, covering, plain, ranks_of, shape_of, smallest


def test_every_pair_of_values_occurs() -> None:
    cases = covering()
    for first, second in combinations(OPTIONS, 2):
        found = {(case[first], case[second]) for case in cases}
        assert found == {(a, b) for a in OPTIONS[first] for b in OPTIONS[second]}, (first, second)
    assert len(cases) <= 2 * len(OPTIONS["layout"]) * len(OPTIONS["kv_heads"])
    assert covering() == cases


def test_a_failing_case_is_reduced_to_what_makes_it_fail() -> None:
    case = {name: values[-1] for name, values in OPTIONS.items()}
    small = smallest(case, lambda tried: ranks_of(tried["layout"]) >= 3 and tried["window"] == 5)
    assert {name for name in OPTIONS if small[name] != plain()[name]} == {"layout", "window"}
    assert small["layout"] == "replicate3"


def test_layouts_are_read_as_shape_and_stage() -> None:
    assert shape_of("replicate2 dp2 zero3") == ("replicate2 dp2", 3)
    assert ranks_of("replicate2 dp2 zero3") == 4
    assert shape_of("dp1") == ("dp1", 2)
