"""What repeated runs took, and the matrix products that are timed."""

from __future__ import annotations

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
    assert len(timing.alternate({"a": growing}, CPU, 0.0, fewest=3, clock=clock)["a"].found) == 3


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


def test_a_part_that_runs_more_often_weighs_more() -> None:
    clock = Clock()

    class Part:
        def __init__(self, flops: float, takes: float):
            self.flops, self.takes = flops, takes

        def __call__(self) -> None:
            clock.now += self.takes

    block, head = Part(100.0, 2.0), Part(500.0, 5.0)
    assert products.rate([(block, 1)], CPU, 0.0, clock) == 50.0
    assert products.rate([(block, 4), (head, 1)], CPU, 0.0, clock) == (4 * 100 + 500) / (4 * 2 + 5)
