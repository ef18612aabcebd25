"""Action lists: complete, in an order that ends, with every letter sent once and read once; bubbles as the formula says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import pairwise

import pytest

from argosy.layout import schedule
from argosy.layout.schedule import BACKWARD, FORWARD, RECV_B, RECV_F, SEND_B, SEND_F, Action, Shape

SIZES = [(name, p, v) for name in schedule.ORDERS for p in (2, 3, 4, 5, 8) for v in (1, 2, 3)]


def shapes(*, whole: bool = False) -> Iterator[tuple[str, Shape]]:
    """Every schedule with every small size; `whole`: only micro-batches that divide by the ranks."""
    for name, p, v in SIZES:
        if (name == "interleaved") == (v > 1):
            for m in range(1, 18):
                if not whole or m % p == 0:
                    yield name, Shape(p, v, m)


def test_every_pass_is_there_once_and_nobody_waits_in_a_circle() -> None:
    """Also with fewer micro-batches than ranks, and with numbers that do not divide."""
    for name, shape in shapes():
        played = schedule.times(name, shape, [1.0] * shape.stages, [2.0] * shape.stages)
        for rank in range(shape.ranks):
            order = schedule.ORDERS[name](shape, rank)
            own = range(rank, shape.stages, shape.ranks)
            every = [Action(kind, s, m) for kind in (FORWARD, BACKWARD) for s in own for m in range(shape.micro)]
            assert Counter(order) == Counter(every), (name, shape, rank)
        assert len(played.ends) == 2 * shape.stages * shape.micro


def test_a_last_group_that_is_planned_smaller_would_wait_in_a_circle(monkeypatch: pytest.MonkeyPatch) -> None:
    """Why `interleaved` plans whole groups: the plain way to a number that does not divide hangs, and `times` finds it."""

    def smaller(shape: Shape, rank: int) -> list[Action]:
        groups = [range(b, min(b + shape.ranks, shape.micro)) for b in range(0, shape.micro, shape.ranks)]
        own = range(rank, shape.stages, shape.ranks)
        forward = [Action(FORWARD, s, m) for group in groups for s in own for m in group]
        backward = [Action(BACKWARD, s, m) for group in groups for s in reversed(own) for m in group]
        ahead = min(2 * (shape.ranks - rank - 1) + (shape.virtual - 1) * shape.ranks, len(forward))
        pairs = [action for pair in zip(forward[ahead:], backward, strict=False) for action in pair]
        return [*forward[:ahead], *pairs, *backward[len(forward) - ahead :]]

    monkeypatch.setattr(schedule, "ORDERS", {"interleaved": smaller})
    schedule.times("interleaved", Shape(4, 3, 8), [1.0] * 12, [2.0] * 12)
    with pytest.raises(ValueError, match=r"ranks wait for each other at F8\.4"):
        schedule.times("interleaved", Shape(4, 3, 5), [1.0] * 12, [2.0] * 12)


def test_bubbles_are_those_of_the_formula() -> None:
    """Equal stages, whole groups: (p - 1) / (v m + p - 1), whatever backward takes."""
    for name, shape in shapes(whole=True):
        for backward in (1.0, 2.0):
            played = schedule.times(name, shape, [1.0] * shape.stages, [backward] * shape.stages)
            busy = (1 + backward) * shape.virtual * shape.micro
            assert played.bubble(busy) == pytest.approx(schedule.bubble(name, shape)), (name, shape)


@pytest.mark.parametrize("name, stand", [("gpipe", [12, 12, 12, 12]), ("1f1b", [4, 3, 2, 1])])
def test_how_many_micro_batches_stand_at_once(name: str, stand: list[int]) -> None:
    """What 1F1B is for."""
    for rank, most in enumerate(stand):
        standing = highest = 0
        for action in schedule.ORDERS[name](Shape(4, 1, 12), rank):
            standing += 1 if action.kind == FORWARD else -1
            highest = max(highest, standing)
        assert highest == most


def test_every_letter_is_sent_and_read_once_in_the_same_order_on_both_sides() -> None:
    """Per border of two stages and direction: channels keep their order, so both sides must have the same."""
    for name, shape in shapes():
        lists = [schedule.actions(name, shape, rank) for rank in range(shape.ranks)]
        for kinds, step in (((SEND_F, RECV_F), 1), ((SEND_B, RECV_B), -1)):
            sent: dict[int, list[int]] = {}
            read: dict[int, list[int]] = {}
            for action in (action for one in lists for action in one):
                if action.kind == kinds[0]:
                    sent.setdefault(action.stage + step, []).append(action.micro)
                elif action.kind == kinds[1]:
                    read.setdefault(action.stage, []).append(action.micro)
            assert sent == read, (name, shape)
            assert all(micro == list(range(shape.micro)) for micro in sent.values())


def test_a_letter_box_is_open_before_the_computation_in_front_of_the_one_that_reads() -> None:
    """So that a letter travels while the rank computes; the first computation has none in front of it."""
    for rank in range(3):
        listed = schedule.actions("1f1b", Shape(3, 1, 4), rank)
        passes = [action for action in listed if action.kind in schedule.COMPUTE]
        for before, action in pairwise(passes):
            wanted = Action(RECV_F if action.kind == FORWARD else RECV_B, action.stage, action.micro)
            if schedule.needs(action, 3) is not None:
                assert listed.index(wanted) < listed.index(before)
    listed = schedule.actions("1f1b", Shape(3, 1, 4), 1)
    assert [str(action) for action in listed[:5]] == ["RECV_F1.0", "RECV_F1.1", "F1.0", "SEND_F1.0", "RECV_B1.0"]


def test_slow_letters_that_go_apart_cost_their_delay_once_there_and_once_back() -> None:
    """MegaScale's reason to separate sends and receives: of letters that follow each other only the first is waited for."""
    for name, shape in shapes():
        given = (name, shape, [1.0] * shape.stages, [2.0] * shape.stages)
        for delay in (0.0, 0.5):
            rise = schedule.times(*given, delay).total - schedule.times(*given).total
            assert rise >= 0
            if name == "gpipe":
                assert rise == pytest.approx(delay * 2 * (shape.ranks - 1))


def test_gradients_said_to_be_read_have_been_read() -> None:
    """A forward pass of the stage before comes after the backward passes whose letters are let go."""
    seen = 0
    for name, shape in shapes():
        for stage in range(1, shape.stages):
            order = schedule.ORDERS[name](shape, (stage - 1) % shape.ranks)
            for forward, letters in schedule.delivered(order, stage).items():
                place = order.index(Action(FORWARD, stage - 1, forward.micro))
                for letter in letters:
                    assert letter.kind == SEND_B and letter.stage == stage
                    assert order.index(Action(BACKWARD, stage - 1, letter.micro)) < place
                    seen += 1
    assert seen > 1000
