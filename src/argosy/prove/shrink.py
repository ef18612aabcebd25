"""A failing case made as small as it can be while it still fails. Pure but for the question whether a case fails."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from argosy.prove.options import OPTIONS, RULES, Case, Rule, legal, plain


def smallest(
    case: Case,
    fails: Callable[[Case], bool],
    options: Mapping[str, Sequence[Any]] = OPTIONS,
    rules: Sequence[Rule] = RULES,
) -> Case:
    """`case` with as many plain values as still fail: by halves of what is not plain, then option by option.

    Each legal case is asked about once. The first value of each option is its plainest.
    """
    known: dict[str, bool] = {}

    def still(tried: Case) -> bool:
        """Whether another, legal case fails too; each is tried once."""
        if tried == case or not legal(tried, rules):
            return False
        name = str(sorted(tried.items()))
        if name not in known:
            known[name] = fails(tried)
        return known[name]

    size = max(1, len(_special(case, options)) // 2)
    while True:
        special = _special(case, options)
        for begin in range(0, len(special), size):
            names = special[begin : begin + size]
            tried = _with(case, {name: options[name][0] for name in names}, options, rules)
            if still(tried):
                case = tried
        if size == 1:
            break
        size //= 2
    while (better := _one_less(case, still, options, rules)) is not None:
        case = better
    return case


def _special(case: Mapping[str, Any], options: Mapping[str, Sequence[Any]]) -> list[str]:
    """The options whose value is not the plainest."""
    return [name for name, values in options.items() if case[name] != values[0]]


def _with(case: Case, changes: Mapping[str, Any], options: Mapping[str, Sequence[Any]], rules: Sequence[Rule]) -> Case:
    """`case` with `changes`, and the plainest values beside them where those it has would not be legal."""
    tried = {**case, **changes}
    for _ in options:
        broken = next((rule for rule in rules if not legal(tried, [rule])), None)
        if broken is None:
            break
        fits = [
            (place > values.index(tried[name]), place, name)
            for name, values in ((name, list(options[name])) for name in broken.options if name not in changes)
            for place, value in enumerate(values)
            if legal({**tried, name: value}, [broken])
        ]
        if not fits:
            tried |= {name: options[name][0] for name in broken.options if name not in changes}
            continue
        _, place, name = min(fits)  # a plainer value where one will do
        tried[name] = options[name][place]
    return tried


def _one_less(
    case: Case, still: Callable[[Case], bool], options: Mapping[str, Sequence[Any]], rules: Sequence[Rule]
) -> Case | None:
    """The first failing case in which one option has a plainer value; None where there is none."""

    def rank(one: Case) -> list[int]:
        """How simple a case is: the first values are the simplest."""
        return [list(values).index(one[name]) for name, values in options.items()]

    for name, values in options.items():
        for value in values[: list(values).index(case[name])]:
            tried = _with(case, {name: value}, options, rules)
            plainer = sum(rank(tried)) < sum(rank(case))
            if plainer and still(tried):
                return tried
    return None


def differs(case: Mapping[str, Any]) -> dict[str, Any]:
    """What of `case` is not plain: the short way to say it."""
    return {name: value for name, value in case.items() if value != plain()[name]}
