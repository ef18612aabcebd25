"""Which cases are drawn: first a seeded covering array, in which every legal pair of values occurs, then at random. Pure."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from itertools import combinations
from random import Random
from typing import Any

from argosy.prove.options import DEAR, OPTIONS, RULES, Case, Rule

Options = Mapping[str, Sequence[Any]]
RARELY = 1_000  # more values than any option has: what no rule speaks of is chosen last
Pair = tuple[str, Any, str, Any]  # option, value, option, value; options in the table's order
_legal: set[Pair] = set()  # of the table of options, once it has been worked out: that takes seconds


class Cover:
    """The pairs of a table of options: which are legal, and which have been drawn."""

    def __init__(
        self, options: Options = OPTIONS, rules: Sequence[Rule] = RULES, dear: Collection[str] = DEAR
    ):  # of `dear` options, whose values are numbers, the smallest of equally good values is taken
        self.options, self.dear = options, dear
        self.rules_of = {name: [rule for rule in rules if name in rule.options] for name in options}
        # What rules speak of is chosen first: whatever is free then fits.
        self.bound = [name for name in options if self.rules_of[name]]
        self.names = [*self.bound, *(name for name in options if not self.rules_of[name])]
        known = _legal if (options, rules) == (OPTIONS, RULES) else set()
        if not known:
            known |= {pair for pair in self._all() if self._possible(pair)}
        self.legal = set(known)
        self.open = set(self.legal)
        self._sorted = sorted(self.legal, key=str)  # sets have no order, and a seed must draw the same everywhere
        self._places = {option: place for place, option in enumerate(options)}

    def draw(self, case: Mapping[str, Any]) -> int:
        """Note that `case` was drawn; how many pairs it is the first to hold."""
        found = self.open & set(pairs(case, self.options))
        self.open -= found
        return len(found)

    def covering(self, random: Random) -> Iterator[Case]:
        """Cases that close all open pairs, each as many as it can; every one must be `draw`n before the next is asked."""
        while self.open:
            first, a, second, b = random.choice([pair for pair in self._sorted if pair in self.open])
            chosen = {first: a, second: b}

            def gain(name: str, chosen: Mapping[str, Any]) -> Iterable[Any]:
                """Values of an option, those first that bring most pairs."""
                values = list(self.options[name])
                random.shuffle(values)
                return sorted(
                    values, key=lambda value: (-self._gain(chosen, name, value), value if name in self.dear else 0)
                )

            case = self.complete(chosen, gain)
            assert case is not None  # only legal pairs are open
            yield case

    def anything(self, random: Random) -> Case:
        """A legal case at random."""
        while True:

            def shuffled(name: str, chosen: Mapping[str, Any]) -> Iterable[Any]:
                """Values of an option in any order."""
                return random.sample(list(self.options[name]), len(self.options[name]))

            if (case := self.complete({}, shuffled)) is not None:
                return case

    def cases(self, seed: int) -> Iterator[Case]:
        """The draws of `seed`, without end: the covering array, then at random."""
        random = Random(seed)
        for case in self.covering(random):
            self.draw(case)
            yield case
        while True:
            yield self.anything(random)

    def complete(
        self, chosen: Mapping[str, Any], prefer: Callable[[str, Mapping[str, Any]], Iterable[Any]] | None = None
    ) -> Case | None:
        """A legal case with the values `chosen`, the others in the order that `prefer` tells; None where there is none."""
        case = self._filled(dict(chosen), self.names, prefer or (lambda name, chosen: self.options[name]))
        return None if case is None else {name: case[name] for name in self.options}

    def _filled(self, chosen: Case, names: Sequence[str], prefer: Callable[..., Iterable[Any]]) -> Case | None:
        """`chosen` with a value for each of `names`; the option with the fewest values left is chosen first."""
        left = [name for name in names if name not in chosen]
        if not left:
            return chosen
        fitting = {name: self._fitting(name, chosen) for name in left}
        name = min(left, key=lambda one: len(fitting[one]) if self.rules_of[one] else RARELY)
        for value in prefer(name, chosen):
            if value in fitting[name]:
                found = self._filled({**chosen, name: value}, left, prefer)
                if found is not None:
                    return found
        return None

    def _fitting(self, name: str, chosen: Mapping[str, Any]) -> Sequence[Any]:
        values = self.options[name]
        return (
            [value for value in values if self._holds(name, {**chosen, name: value})] if self.rules_of[name] else values
        )

    def _holds(self, name: str, chosen: Mapping[str, Any]) -> bool:
        """Whether the rules that speak of `name` hold, as far as their options are chosen."""
        return all(
            rule.holds(*(chosen[option] for option in rule.options))
            for rule in self.rules_of[name]
            if all(option in chosen for option in rule.options)
        )

    def _possible(self, pair: Pair) -> bool:
        first, a, second, b = pair
        bound = {name: value for name, value in ((first, a), (second, b)) if self.rules_of[name]}
        if len(bound) < 2:
            return True  # the table has no value that no case could have
        if not self._holds(first, bound):
            return False
        return self._filled(bound, self.bound, lambda name, chosen: self.options[name]) is not None

    def _all(self) -> Iterator[Pair]:
        for first, second in combinations(self.options, 2):
            for a in self.options[first]:
                for b in self.options[second]:
                    yield first, a, second, b

    def _gain(self, chosen: Mapping[str, Any], name: str, value: Any) -> int:
        """How many open pairs `value` closes with what is chosen already."""
        at = self._places[name]
        return sum(
            ((name, value, other, has) if at < self._places[other] else (other, has, name, value)) in self.open
            for other, has in chosen.items()
        )


def pairs(case: Mapping[str, Any], options: Options = OPTIONS) -> Iterator[Pair]:
    """Every pair of values that `case` holds."""
    for first, second in combinations(options, 2):
        yield first, case[first], second, case[second]
