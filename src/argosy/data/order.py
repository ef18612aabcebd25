"""Which tokens step n reads, found without replaying the steps before: a pure function of (seed, ledger, n). NumPy only.

All training text is one endless stream: epoch after epoch, each epoch all training documents once in an order of its own,
nothing between them. A step reads the next `batch.tokens` tokens of the stream; where the ledger changes that number, later
steps simply go on where the earlier ones ended, so nothing is dropped or repeated by a change or a restart.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from argosy import random
from argosy.data.shards import Shards
from argosy.errors import Refused
from argosy.run.ledger import Ledger

KEYS = ("batch.sequence", "batch.tokens")
KEPT = 3  # orders of epochs held in memory: this one, the next, and one for who looks back


class Read(NamedTuple):
    """What one step reads of the stream."""

    first_token: int  # counted over the whole run
    first_sequence: int  # likewise
    tokens: int
    sequence: int  # tokens in each sequence


class Span(NamedTuple):
    """Tokens [begin, end) of a document, in the order of the stream."""

    epoch: int
    document: int
    begin: int
    end: int


@dataclass(frozen=True)
class Epoch:
    """One epoch's order: documents [n], and where each begins in the epoch's stream [n + 1]."""

    documents: NDArray[np.int64]
    starts: NDArray[np.int64]


def read_at(step: int, ledger: Ledger) -> Read:
    """What `step` (counted from 1) reads: a sum over the ledger's changes, however many steps lie before. Pure."""
    if step < 1:
        raise ValueError(f"steps are counted from 1, not {step}")
    bounds = [at for at in ledger.changes(KEYS) if at <= step]
    token = sequence = 0
    for begin, end in zip(bounds, [*bounds[1:], step], strict=True):
        begin = max(1, begin)  # entry 0 is the start
        if end > begin:
            length, tokens = _sizes(begin, ledger)
            token += (end - begin) * tokens
            sequence += (end - begin) * (tokens // length)
    length, tokens = _sizes(step, ledger)
    return Read(token, sequence, tokens, length)


def tokens_before(step: int, ledger: Ledger) -> int:
    """Tokens that all steps before `step` read. Pure."""
    return read_at(step, ledger).first_token


def _sizes(step: int, ledger: Ledger) -> tuple[int, int]:
    length, tokens = (ledger.at(step, key) for key in KEYS)
    if not isinstance(length, int) or not isinstance(tokens, int) or length < 1 or tokens < 1 or tokens % length:
        raise Refused(
            "batch.tokens must be a multiple of batch.sequence.", where=f"step {step}", found=f"{tokens} and {length}"
        )
    return length, tokens


def epoch(seed: int, number: int, shards: Shards) -> Epoch:
    """The order of epoch `number` (from 0): training documents by the counter generator's bits. Pure, and remembered."""
    known: Epoch | None = shards.epochs.get((seed, number))
    if known is None:
        stream = random.key(seed, "data.order", number)
        ranks = random.bits(stream, shards.train_documents)
        documents = shards.train_documents[np.argsort(ranks, kind="stable")]
        starts = np.concatenate([[0], np.cumsum(shards.lengths[documents])])
        known = Epoch(documents, starts)
        for old in list(shards.epochs)[: max(0, len(shards.epochs) + 1 - KEPT)]:
            shards.epochs.pop(old, None)
        shards.epochs[seed, number] = known
    return known


def spans(first: int, count: int, seed: int, shards: Shards) -> Iterator[Span]:
    """Tokens [first, first + count) of the stream as stretches of documents, in order. Pure; O(log documents + stretches)."""
    size = shards.train_tokens
    while count > 0:
        number, at = divmod(first, size)
        order = epoch(seed, number, shards)
        stop = min(at + count, size)
        low = int(np.searchsorted(order.starts, at, side="right")) - 1
        high = int(np.searchsorted(order.starts, stop, side="left"))
        for place in range(low, high):
            start = int(order.starts[place])
            end = min(stop, int(order.starts[place + 1]))
            yield Span(number, int(order.documents[place]), max(at, start) - start, end - start)
        first, count = first + stop - at, count - (stop - at)
