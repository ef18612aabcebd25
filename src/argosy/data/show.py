"""What did step n read? From the run folder and the prepared text alone. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass

from argosy.data.mix import mix_at
from argosy.data.order import Span, read_at, rows_at, spans_at
from argosy.data.shards import Shards
from argosy.data.sources.text import kind_of
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
        found.append(Stretch(shards.part_of(document).source, document_name(document, shards), begin, end))
    return found


def document_name(number: int, shards: Shards) -> str:
    """The file's name; "name@8192" for a document that begins at byte 8,192 of a file that was cut; "name, row 7"."""
    name, begin, _ = shards.place(number)
    if kind_of(name) in ("parquet", "mds"):
        return f"{name}, row {begin + 1:,}"
    return f"{name}@{begin}" if begin > 3 else name  # 3: a byte-order mark


def lines(step: int, seed: int, ledger: Ledger, shards: Shards, tokenizer: Tokenizer) -> Iterator[str]:
    """The same for people: a heading, then each stretch with its text."""
    reads = read_at(step, ledger)
    rows = rows_at(step, seed, ledger, shards)
    mixed = len(mix_at(step, ledger, shards)) > 1
    yield (
        f"Step {step} reads {reads.tokens:,} tokens as {len(rows)} sequences of {reads.sequence}, after"
        f" {reads.first_token:,} of the run, {_epochs(rows, shards)}."
    )
    for number, row in enumerate(rows, 1):
        at = 0
        for _, document, begin, end in row:
            yield ""
            length = int(shards.lengths[document])
            of = f"{shards.part_of(document).source}: " if mixed else ""
            yield (
                f"── sequence {number}, place {at}: "
                f"{of}{document_name(document, shards)}, tokens {begin:,} to {end:,} of {length:,}"
            )
            yield tokenizer.decode(shards.part(document, begin, end).tolist())
            at += end - begin
        if at < reads.sequence:
            yield ""
            yield f"── sequence {number}, place {at}: {reads.sequence - at:,} places of padding"


def _epochs(rows: list[list[Span]], shards: Shards) -> str:
    """Which epoch of which source a step reads: "in epoch 1", "in epoch 3 of a and 1 of b"."""
    first: dict[str, int] = {}
    for row in rows:
        for number, document, _, _ in row:
            first.setdefault(shards.part_of(document).source, 1 + number)
    if len(first) == 1:
        return f"in epoch {next(iter(first.values()))}"
    return "in epoch " + " and ".join(f"{number} of {source}" for source, number in first.items())
