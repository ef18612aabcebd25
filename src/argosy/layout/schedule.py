"""Pipeline schedules as lists of actions: what each rank computes, sends and receives, in which order. No torch, no clock.

A rank's list is made in two steps: an order of forward and backward passes (the table `ORDERS`: a schedule is one function),
then the messages it takes (`messages`). SEND and RECV are actions of their own, as in MegaScale: RECV only opens a letter
box, before the computation in front of the one that needs it; SEND only posts; a computation waits for its own letter and for
nothing else. `times` plays lists against a table of durations, which is how formulas and benchmarks are checked.

Stages: p ranks hold v each; rank r holds r, r + p, r + 2p and so on. Micro-batches 0 to m - 1, in this order on every stage.
Sources: Huang et al., "GPipe", 2019; Narayanan et al., "PipeDream", 2019 (1F1B) and "Megatron-LM", 2021 (interleaved); Jiang
et al., "MegaScale", 2024, section 3.2 (sends and receives apart).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

FORWARD, BACKWARD = "F", "B"
SEND_F, RECV_F, SEND_B, RECV_B = "SEND_F", "RECV_F", "SEND_B", "RECV_B"
COMPUTE = (FORWARD, BACKWARD)


class Action(NamedTuple):
    """One thing that a rank does: `kind`, for which stage (its own) and which micro-batch."""

    kind: str
    stage: int
    micro: int

    def __str__(self) -> str:
        return f"{self.kind}{self.stage}.{self.micro}"


class Shape(NamedTuple):
    """The size of a pipeline: `ranks`, stages that each holds (`virtual`), `micro`-batches."""

    ranks: int
    virtual: int
    micro: int

    @property
    def stages(self) -> int:
        """All stages."""
        return self.ranks * self.virtual


Order = Callable[[Shape, int], list[Action]]  # (shape, rank) -> its forward and backward passes


def gpipe(shape: Shape, rank: int) -> list[Action]:
    """All forward passes, then all backward passes: simple, and every micro-batch's activations stand at once."""
    micro = range(shape.micro)
    return [Action(FORWARD, rank, m) for m in micro] + [Action(BACKWARD, rank, m) for m in micro]


def one_forward_one_backward(shape: Shape, rank: int) -> list[Action]:
    """As many forward passes as ranks follow, then one of each in turn: never more than `ranks` micro-batches stand."""
    forward = [Action(FORWARD, rank, m) for m in range(shape.micro)]
    backward = [Action(BACKWARD, rank, m) for m in range(shape.micro)]
    return _alternating(forward, backward, shape.ranks - rank - 1)


def interleaved(shape: Shape, rank: int) -> list[Action]:
    """1F1B over several stages a rank: groups of `ranks` micro-batches go through its first stage, then its second and so on.

    The bubble shrinks by the number of stages. Where the last group is smaller it is planned as if it were whole, and what is
    not there is left out: leaving out can make nobody wait in a circle, while planning with a smaller group does.
    """
    whole = -(-shape.micro // shape.ranks) * shape.ranks
    groups = [range(begin, begin + shape.ranks) for begin in range(0, whole, shape.ranks)]
    own = range(rank, shape.stages, shape.ranks)
    forward = [Action(FORWARD, stage, m) for group in groups for stage in own for m in group]
    backward = [Action(BACKWARD, stage, m) for group in groups for stage in reversed(own) for m in group]
    planned = _alternating(forward, backward, 2 * (shape.ranks - rank - 1) + (shape.virtual - 1) * shape.ranks)
    return [action for action in planned if action.micro < shape.micro]


def forward_only(shape: Shape, rank: int) -> list[Action]:
    """What evaluation runs, whatever the schedule."""
    return [action for action in interleaved(shape, rank) if action.kind == FORWARD]


ORDERS: Mapping[str, Order] = {"gpipe": gpipe, "1f1b": one_forward_one_backward, "interleaved": interleaved}


def _alternating(forward: Sequence[Action], backward: Sequence[Action], ahead: int) -> list[Action]:
    """`ahead` forward passes, then a forward and a backward pass in turn, then the backward passes that are left."""
    ahead = min(ahead, len(forward))
    found = list(forward[:ahead])
    for first, second in zip(forward[ahead:], backward, strict=False):
        found += [first, second]
    return found + list(backward[len(forward) - ahead :])


def needs(action: Action, stages: int) -> Action | None:
    """The computation of another stage whose result `action` cannot do without; None where it needs none from elsewhere."""
    if action.kind == FORWARD:
        return Action(FORWARD, action.stage - 1, action.micro) if action.stage > 0 else None
    return Action(BACKWARD, action.stage + 1, action.micro) if action.stage < stages - 1 else None


def _receives(action: Action, stages: int) -> list[Action]:
    if needs(action, stages) is None:
        return []
    return [Action(RECV_F if action.kind == FORWARD else RECV_B, action.stage, action.micro)]


def _sends(action: Action, stages: int) -> list[Action]:
    if action.kind == FORWARD:
        return [Action(SEND_F, action.stage, action.micro)] if action.stage < stages - 1 else []
    return [Action(SEND_B, action.stage, action.micro)] if action.stage > 0 else []


def messages(order: Sequence[Action], stages: int) -> list[Action]:
    """`order` with its messages: each RECV in front of the computation before the one that needs it, each SEND at once."""
    found: list[Action] = []
    for place, action in enumerate(order):
        following = order[place + 1] if place + 1 < len(order) else None
        if place == 0:
            found += _receives(action, stages)
        ahead = _receives(following, stages) if following is not None else []
        found += [*ahead, action, *_sends(action, stages)]
    return found


def actions(name: str, shape: Shape, rank: int) -> list[Action]:
    """The list of `rank` under the schedule `name` of `ORDERS`."""
    return messages(ORDERS[name](shape, rank), shape.stages)


def delivered(order: Sequence[Action], mine: int) -> dict[Action, list[Action]]:
    """For each forward pass of stage `mine`: which gradients, sent back by it, the stage before has surely taken by then.

    `order` is that of the rank before. Its forward pass of a micro-batch comes after some of its backward passes, so whoever
    holds the one's letter knows that those of the others have been read, and may let go of them without waiting.
    """
    found: dict[Action, list[Action]] = {}
    taken: list[Action] = []
    for action in order:
        if action.stage != mine - 1:
            continue
        if action.kind == BACKWARD:
            taken.append(Action(SEND_B, mine, action.micro))
        elif taken:
            found[Action(FORWARD, mine, action.micro)] = taken
            taken = []
    return found


class Played(NamedTuple):
    """How a schedule goes in time: the end of every computation, and when the last one ends."""

    ends: Mapping[Action, float]
    total: float

    def bubble(self, busy: float) -> float:
        """The share of the time in which a rank that computes for `busy` waits."""
        return 1 - busy / self.total


def _box(action: Action) -> Action:
    """The letter box that a SEND fills."""
    if action.kind == SEND_F:
        return Action(RECV_F, action.stage + 1, action.micro)
    return Action(RECV_B, action.stage - 1, action.micro)


def times(name: str, shape: Shape, forward: Sequence[float], backward: Sequence[float], delay: float = 0.0) -> Played:
    """Play the schedule where stage s takes `forward[s]` and `backward[s]`, and a letter is on its way for `delay`. Pure.

    ValueError where ranks wait for each other in a circle: then the lists are wrong.
    """
    lists = [actions(name, shape, rank) for rank in range(shape.ranks)]
    posted: dict[Action, float] = {}  # by box
    opened: dict[Action, float] = {}
    ends: dict[Action, float] = {}
    clocks, places = [0.0] * shape.ranks, [0] * shape.ranks

    def step(rank: int, action: Action) -> bool:
        """Whether `action` can be done by now; then it is."""
        if action.kind in (RECV_F, RECV_B):
            opened[action] = clocks[rank]
        elif action.kind in (SEND_F, SEND_B):
            posted[_box(action)] = clocks[rank]
        else:
            letters = _receives(action, shape.stages)
            if any(letter not in posted or letter not in opened for letter in letters):
                return False
            arrivals = [max(posted[letter] + delay, opened[letter]) for letter in letters]
            lasts = (forward if action.kind == FORWARD else backward)[action.stage]
            ends[action] = clocks[rank] = max([clocks[rank], *arrivals]) + lasts
        return True

    moved = True
    while moved:
        moved = False
        for rank, listed in enumerate(lists):
            while places[rank] < len(listed) and step(rank, listed[places[rank]]):
                places[rank] += 1
                moved = True
    stuck = [str(listed[place]) for place, listed in zip(places, lists, strict=True) if place < len(listed)]
    if stuck:
        raise ValueError(f"{name} {shape}: ranks wait for each other at {', '.join(stuck)}")
    return Played(ends, max(clocks, default=0.0))


def bubble(name: str, shape: Shape) -> float:
    """The share of time that ranks wait, by the formula, with equal stages: (p - 1) / (v m + p - 1); v is 1 but interleaved."""
    virtual = shape.virtual if name == "interleaved" else 1
    return (shape.ranks - 1) / (virtual * shape.micro + shape.ranks - 1)
