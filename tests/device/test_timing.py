"""What repeated runs took, and the matrix products that are timed."""

from __future__ import annotations

import weakref
from itertools import count
from types import SimpleNamespace

import pytest

from argosy.device import products, timing
from argosy.device.device import Device
from argosy.device.products import Products
from argosy.device.timing import Timed

CPU = Device("cpu")


class Clock:
    """A clock that only moves when an action says so."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_actions_take_turns_and_the_shortest_counts() -> None:
    clock, order = Clock(), []
    taken = {"a": iter([9.0, 3.0, 2.0, 5.0] + [2.0] * 99), "b": iter([9.0, 1.0, 1.0, 1.0] + [1.0] * 99)}

    def action(name: str) -> None:
        order.append(name)
        clock.now += next(taken[name])

    found = timing.alternate({n: lambda n=n: action(n) for n in "ab"}, CPU, 60.0, clock=clock)  # type: ignore[misc]
    assert "".join(order[:8]) == "ababbaab"  # one uncounted, then forwards and backwards
    assert (found["a"].best, found["b"].best) == (2.0, 1.0)
    assert found["a"].found[:3] == [3.0, 2.0, 5.0]
    assert len(found["a"].found) == timing.ROUNDS  # steady then: nothing more to learn


def test_what_is_not_steady_is_repeated_until_the_time_is_up(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, numbers, ticks = Clock(), iter(range(1, 10**9)), count()
    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=lambda: next(ticks)))

    def growing() -> None:
        clock.now += next(numbers)

    found = timing.alternate({"a": growing}, CPU, 20.0, clock=clock)["a"]
    assert len(found.found) == 21
    assert found.spread > timing.STEADY
    assert len(timing.alternate({"a": growing}, CPU, 0.0, clock=clock)["a"].found) == timing.FEWEST


def test_it_ends_at_once_when_it_is_told_to_and_says_what_it_knows() -> None:
    ran: list[str] = []
    known: list[list[int]] = []
    found = timing.alternate(
        {name: lambda name=name: ran.append(name) for name in "ab"},  # type: ignore[misc]
        CPU,
        60.0,
        over=lambda: len(ran) == 7,
        seen=lambda found: known.append([len(one.found) for one in found.values()]),
    )
    assert "".join(ran) == "ababbaa"
    assert known == [[1, 1], [2, 2]]
    assert (len(found["a"].found), len(found["b"].found)) == (3, 2)
    assert not timing.alternate({"a": lambda: None}, CPU, 60.0, over=lambda: True)["a"].found


def test_spread() -> None:
    assert Timed([2.0, 1.0, 3.0]).spread == 2.0
    assert Timed([1.0]).spread == 1.0


def test_products_count_forward_and_backward() -> None:
    import torch

    made = Products([(8, 16), (16, 4)], 32, torch.bfloat16, CPU)
    assert made.flops == 3 * 2 * 32 * (8 * 16 + 16 * 4)
    assert {tensor.dtype for held in made.held for tensor in held} == {torch.bfloat16}
    assert [[tuple(tensor.shape) for tensor in held] for held in made.held] == [
        [(32, 8), (16, 8), (32, 16)],
        [(32, 16), (4, 16), (32, 4)],
    ]
    made()


class Part:
    """Stands for products: takes so many seconds of the test's clock."""

    def __init__(self, clock: Clock, flops: float, takes: float):
        self.clock, self.flops, self.takes, self.runs = clock, flops, takes, 0

    def __call__(self) -> None:
        self.clock.now += self.takes
        self.runs += 1


def test_a_part_that_runs_more_often_weighs_more() -> None:
    clock = Clock()
    block, head = Part(clock, 100.0, 2.0), Part(clock, 500.0, 5.0)
    assert products.rate([(lambda: block, 1)], CPU, 0.0, clock) == 50.0
    assert products.rate([(lambda: block, 4), (lambda: head, 1)], CPU, 0.0, clock) == (4 * 100 + 500) / (4 * 2 + 5)
    assert products.rate([(lambda: block, 0.5), (lambda: head, 1)], CPU, 0.0, clock) == (50 + 500) / (1 + 5)


def test_what_takes_long_is_run_twice_and_what_is_short_while_its_time_lasts() -> None:
    clock = Clock()
    long, short = Part(clock, 1.0, 10.0), Part(clock, 1.0, 0.25)
    products.rate([(lambda: long, 1), (lambda: short, 1)], CPU, 4.0, clock)
    assert long.runs == 2
    assert short.runs == 1 + 8


def test_one_part_is_held_at_a_time() -> None:
    clock = Clock()
    standing: list[weakref.ref[Part]] = []

    def make() -> Part:
        assert all(before() is None for before in standing)
        made = Part(clock, 1.0, 1.0)
        standing.append(weakref.ref(made))
        return made

    products.rate([(make, 1), (make, 1), (make, 1)], CPU, 0.0, clock)
    assert len(standing) == 3
