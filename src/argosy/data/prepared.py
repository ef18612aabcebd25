"""A prepared folder as the rest of the program sees it: what it holds, where it is, what is said of it. No torch."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from argosy.cluster import here
from argosy.data import shards, tokenizer
from argosy.data.shard_file import REMEDY
from argosy.errors import MACHINE, Refused
from argosy.job import paths
from argosy.job.schema import DataSection
from argosy.plan.prepared import PreparedFacts
from argosy.quantities import bytes_text, count_text


@dataclass(frozen=True)
class Prepared:
    """A prepared folder and what is said about it."""

    folder: Path
    facts: PreparedFacts
    source: str
    version: str  # "CPython 3.11.7"; "" for one's own text
    license: str  # "" = not known by the source itself
    files: int
    bytes: int
    digest: str
    tokenizer_name: str  # "BPE 2048", "bytes", "tokenizer.json"
    notes: tuple[str, ...]  # what was passed over, a sentence each
    bad: int = 0  # records that cannot be used
    parts: tuple[Prepared, ...] = ()  # of a mix, its sources
    unread: tuple[str, ...] = ()  # a sentence for each file that looked like text and was passed over

    @property
    def tokenizer(self) -> Path:
        """The tokenizer's file."""
        return self.folder / tokenizer.FILE

    @property
    def summary(self) -> str:
        """One line for the screen."""
        if self.parts:
            facts = f"{bytes_text(self.bytes)} → {count_text(self.facts.tokens)} tokens, {self.tokenizer_name}"
            return f"{len(self.parts)} sources ({self.source}): {self.files:,} files, {facts}"
        of = f" of {self.version}" if self.version else ""
        return (
            f"{self.source}: {self.files:,} file{'s' * (self.files != 1)}{of}, {bytes_text(self.bytes)} → "
            f"{count_text(self.facts.tokens)} tokens, {self.tokenizer_name}, {self.facts.bytes_per_token:.1f} bytes/token"
        )

    @staticmethod
    def open(folder: Path) -> Prepared:
        """The prepared text in `folder`. Refused when there is none."""
        told = shards.read_facts(folder)
        if "parts" in told:
            return _together(folder, [Prepared.open(folder.parent / name) for name in told["parts"]])
        try:
            facts = PreparedFacts(
                vocabulary=int(told["vocabulary"]),
                tokens=int(told["tokens"]),
                documents=int(told["documents"]),
                held_out_documents=int(told["held_out_documents"]),
                bytes_per_token=float(told["bytes_per_token"]),
            )
            return Prepared(
                folder=folder,
                facts=facts,
                source=str(told["source"]),
                version=str(told["source_version"]),
                license=str(told["license"]),
                files=int(told["files"]),
                bytes=int(told["bytes"]),
                digest=str(told["digest"]),
                tokenizer_name=str(told["tokenizer"]),
                notes=tuple(map(str, told["notes"])),
                bad=int(told.get("bad", 0)),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise Refused("this is damaged.", where=str(folder / shards.FACTS), do=REMEDY) from error


def _together(folder: Path, parts: list[Prepared]) -> Prepared:
    """What is said of a mix, from what is said of its sources."""
    held = sum(part.facts.held_out_documents for part in parts)
    tokens = [part.bytes / part.facts.bytes_per_token for part in parts]  # held-out ones among them
    facts = PreparedFacts(
        vocabulary=parts[0].facts.vocabulary,
        tokens=sum(part.facts.tokens for part in parts),
        documents=sum(part.facts.documents for part in parts),
        held_out_documents=held,
        bytes_per_token=sum(part.bytes for part in parts) / sum(tokens),
    )
    return Prepared(
        folder=folder,
        facts=facts,
        source=", ".join(part.source for part in parts),
        version="",
        license="; ".join(f"{part.source}: {part.license or 'unknown'}" for part in parts),
        files=sum(part.files for part in parts),
        bytes=sum(part.bytes for part in parts),
        digest=folder.name,
        tokenizer_name=parts[0].tokenizer_name,
        notes=tuple(note for part in parts for note in part.notes),
        bad=sum(part.bad for part in parts),
        parts=tuple(parts),
    )


def cache_folder(section: DataSection, base: Path) -> Path:
    """Where prepared text is kept: `data.cache`, else $ARGOSY_CACHE, else ~/.cache/argosy."""
    return base / paths.expand(section.cache) if section.cache else here.cache_folder()


def locate(folder: Path, cache: Path) -> Path:
    """The prepared folder `folder`, or the one of its name in `cache` where the cache has moved. Refused when neither is."""
    for place in (folder, cache / "prepared" / folder.name):
        if (place / shards.FACTS).is_file():
            return place
    raise Refused(
        "the prepared text of this run is gone.",
        where=str(folder),
        found=f"nothing there and nothing named {folder.name} in {cache / 'prepared'}",
        do="Start the run again: it is prepared anew.",
    )


def full(folder: Path) -> Refused:
    """The error of a disk that filled up on the way."""
    free = bytes_text(shutil.disk_usage(folder).free) if folder.exists() else "nothing"
    return Refused(
        "the disk is full: the text could not be prepared, everything that was ready before is still there.",
        where=str(folder),
        found=f"{free} free",
        do="Free some space and start again, it goes on from here; or --data.cache FOLDER on another disk.",
        code=MACHINE,
    )
