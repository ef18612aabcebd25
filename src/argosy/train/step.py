"""One beat of training: compute, agree, update. Read this file first, `vote.py` second.

Every rank runs this function for every step, with its own micro-batches of the same global batch. Nothing else makes ranks
agree, and nothing else changes weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from argosy.parallel.execute import Executor
from argosy.points import point
from argosy.train.state import State
from argosy.train.vote import Agree, Tally


def step(state: State, micro: Sequence[Any], execute: Executor, agree: Agree) -> Tally:
    """Train on `micro`, this rank's part of the global batch, and return what all ranks agreed on.

    With `agree.late` nothing here waits for the device: it clips and skips by itself.

    The loss is a sum over counted labels divided by `state.counted`, the count of the whole global batch, which every rank
    knows beforehand: so neither the number of ranks nor of micro-batches changes the gradient.
    """
    point("step.begin")
    with state.recorder.during("forward_backward", state.step):
        loss = execute(micro, scale=1 / state.counted)
    point("step.vote.before")
    with state.recorder.during("vote", state.step):
        tally = agree.tally(loss, state.norm2())
        vote = None if agree.late else tally.vote()
    point("step.vote.after")
    with state.recorder.during("update", state.step):
        if vote is None:
            state.update_there(tally)
        else:
            state.update(vote)
    point("step.update.after")
    return tally
