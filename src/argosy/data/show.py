"""What did step n read? From the run folder and the prepared text alone. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass

from argosy.data.order import read_at, spans_at
from argosy.data.shards import Shards
from argosy.data.tokenizer import Tokenizer
from argosy.run.ledger import Ledger


@dataclass(frozen=True)
class Stretch:
    """Tokens [begin, end) of one document. A file that was cut into several documents is named with its first byte."""

    source: str
    document: str
    begin: int
    end: int

    def row(self) -> dict[str, object]:
        """As JSON."""
        return asdict(self)


def stretches(step: int, seed: int, ledger: Ledger, shards: Shards) -> list[Stretch]:
    """The whole global batch of `step`, in the order of its sequences. Pure."""
    found = []
    for _, document, begin, end in spans_at(step, seed, ledger, shards):
        found.append(Stretch(shards.source, document_name(document, shards), begin, end))
    return found


def document_name(number: int, shards: Shards) -> str:
    """The file's name; "name@8192" for a document that begins at byte 8,192 of a file that was cut."""
    name, begin, _ = shards.place(number)
    return f"{name}@{begin}" if begin > 3 else name  # 3: a byte-order mark


def lines(step: int, seed: int, ledger: Ledger, shards: Shards, tokenizer: Tokenizer) -> Iterator[str]:
    """The same for people: a heading, then each stretch with its text."""
    reads = read_at(step, ledger)
    rows = reads.tokens // reads.sequence
    epochs = 1 + reads.first_token // shards.train_tokens
    yield (
        f"Step {step} reads {reads.tokens:,} tokens as {rows} sequences of {reads.sequence}, after"
        f" {reads.first_token:,} of the run, in epoch {epochs}."
    )
    at = 0
    for _, document, begin, end in spans_at(step, seed, ledger, shards):
        yield ""
        length = int(shards.lengths[document])
        yield (
            f"── sequence {at // reads.sequence + 1}, place {at % reads.sequence}: "
            f"{document_name(document, shards)}, tokens {begin:,} to {end:,} of {length:,}"
        )
        yield tokenizer.decode(shards.part(document, begin, end).tolist())
        at += end - begin
