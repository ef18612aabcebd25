"""What is in prepared text: tokens, lengths, sources, licences, duplicates by exact hash, what packing would pad. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from argosy.data import bins
from argosy.data.chat import KINDS
from argosy.data.shards import Part, Shards
from argosy.job.schema import Job

SHARES = (0, 10, 50, 90, 99, 100)  # of the documents that are not longer


@dataclass(frozen=True)
class Statistics:
    """One source, or all of them."""

    source: str
    digest: str
    license: str
    documents: int
    held_out_documents: int
    tokens: int  # held out ones among them
    held_out_tokens: int
    counted_tokens: int  # those that are learned from: all but masked ones
    bytes: int
    lengths: dict[str, int]  # tokens of a document: least, median, ...
    duplicates: int  # documents whose text occurred before
    duplicate_tokens: int
    kinds: dict[str, int]  # tokens of each speaker, where there are chats
    pairs: int
    padding: float  # share of places that best-fit packing leaves empty

    def row(self) -> dict[str, object]:
        """As JSON."""
        return asdict(self)


def statistics(shards: Shards, sequence: int, seed: int = 1) -> list[Statistics]:
    """Of each source, in the order of the mix. `sequence` is what packing is tried with. Reads all masks, no token."""
    return [_of(part, shards, sequence, seed) for part in shards.parts]


def duplicates(shards: Shards) -> tuple[int, int]:
    """(documents, tokens) whose text occurred before in any source."""
    first = _first(shards, 0, shards.documents)
    return int((~first).sum()), int(shards.lengths[~first].sum())


def _first(shards: Shards, begin: int, end: int) -> Any:
    """Which documents are the first of their text; the second answer of a pair is no copy of the first."""
    rows = [np.asarray(file.documents) for file in shards.files]
    documents = np.concatenate(rows)[begin:end]
    keys = np.stack([documents["hash"], documents["which"].astype(np.uint64)], axis=1)
    _, places = np.unique(keys, axis=0, return_index=True)
    found = np.zeros(end - begin, np.bool_)
    found[places] = True
    return found


def _of(part: Part, shards: Shards, sequence: int, seed: int) -> Statistics:
    begin, end = part.first, part.first + part.documents
    lengths, held = shards.lengths[begin:end], shards.held[begin:end]
    first = _first(shards, begin, end)
    files = [file for file, at in zip(shards.files, shards.first[:-1].tolist(), strict=True) if begin <= at < end]
    masked = sum(int((file.read("mask", 0, file.tokens) == 0).sum()) for file in files if file.has("mask"))
    kinds = np.zeros(len(KINDS), np.int64)
    for file in files:
        if file.has("kinds"):
            kinds += np.bincount(file.read("kinds", 0, file.tokens), minlength=len(KINDS))[: len(KINDS)]
    pairs = [file.pairs[file.pairs >= 0] for file in files if file.pairs is not None]
    facts = shards.facts[shards.parts.index(part)]
    return Statistics(
        source=part.source,
        digest=part.digest,
        license=part.license or "unknown",
        documents=part.documents,
        held_out_documents=int(held.sum()),
        tokens=int(lengths.sum()),
        held_out_tokens=int(lengths[held].sum()),
        counted_tokens=int(lengths.sum()) - masked,
        bytes=int(facts.get("bytes", 0)),
        lengths={_name(share): int(np.percentile(lengths, share, method="lower")) for share in SHARES},
        duplicates=int((~first).sum()),
        duplicate_tokens=int(lengths[~first].sum()),
        kinds={name: int(kinds[at]) for at, name in enumerate(KINDS) if kinds[1:].any() and kinds[at]},
        pairs=len(np.unique(np.concatenate(pairs))) if pairs else 0,
        padding=bins.whole(seed, part, sequence, shards).padding,
    )


def padding_note(folder: Path, job: Job) -> str:
    """What best-fit packing costs in the text of a run, as one sentence."""
    shards = Shards(folder)
    made = [bins.whole(job.train.seed, part, job.batch.sequence, shards) for part in shards.parts]
    share = [
        f"{one.padding:.1%}" + (f" of {part.source}" if len(made) > 1 else "")
        for one, part in zip(made, shards.parts, strict=True)
    ]
    return (
        f"best-fit packing leaves {', '.join(share)} of all places empty, in sequences of {job.batch.sequence:,} tokens"
    )


def _name(share: int) -> str:
    return {0: "least", 50: "median", 100: "most"}.get(share, f"{share}%")


def lines(found: Sequence[Statistics], shards: Shards, sequence: int, licences: Sequence[str] = ()) -> Iterator[str]:
    """The same for people. `licences`: what the job says of each, where it does."""
    for number, one in enumerate(found):
        yield f"{one.source}"
        terms = licences[number] if number < len(licences) else one.license
        size = one.bytes / max(1, one.tokens)
        yield f"  licence      {terms}"
        yield f"  documents    {one.documents:,}, {one.held_out_documents:,} of them held out"
        yield f"  tokens       {one.tokens:,}, {one.held_out_tokens:,} of them held out, {size:.2f} bytes each"
        if one.counted_tokens != one.tokens:
            yield f"  learned from {one.counted_tokens:,} tokens ({one.counted_tokens / one.tokens:.0%}); the others are masked"
        if one.kinds:
            yield "  speakers     " + ", ".join(f"{name} {count:,}" for name, count in one.kinds.items())
        if one.pairs:
            yield f"  pairs        {one.pairs:,}"
        yield "  lengths      " + ", ".join(f"{name} {length:,}" for name, length in one.lengths.items()) + " tokens"
        yield f"  duplicates   {one.duplicates:,} documents, {one.duplicate_tokens:,} tokens, by exact hash"
        padding = f"greedy 0%, best-fit {one.padding:.1%} in sequences of {sequence:,}"
        yield f"  padding      {padding}"
        yield ""
    if len(found) > 1:
        documents, tokens = duplicates(shards)
        yield f"all: {shards.documents:,} documents, {int(shards.lengths.sum()):,} tokens; {documents:,} documents"
        yield f"  ({tokens:,} tokens) occurred before, in this or another source"
