"""The prepared text as a whole: all shard files of a folder as one list of documents, numbered over all of them. NumPy only.

In goes the folder that `prepare` made, out come documents' tokens and where they came from.
"""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from argosy.data.borrowed import SUFFIX, BorrowedFile
from argosy.data.shard_file import REMEDY, ShardFile
from argosy.errors import Refused

FACTS = "prepared.json"  # what a folder holds; written last
TOKEN_BYTES = "token-bytes.bin"  # i32 [vocabulary]: UTF-8 bytes each id stands for
BYTES_SUM = "token_bytes"  # in FACTS: CRC-32 of that file
FORMAT = 1
MIXED = 2  # a folder that names those of several sources


@dataclass(frozen=True)
class Part:
    """One source: its documents within all that are open, and those that it trains on, in the order of its files."""

    digest: str
    source: str
    license: str
    first: int  # number of its first document
    documents: int
    train_documents: NDArray[np.int64]  # numbered over all sources
    train_tokens: int  # one epoch of it
    orders: dict[Any, Any] = field(default_factory=dict)  # the last orders that were made; see order.epoch and bins


def open_shard(path: Path) -> ShardFile | BorrowedFile:
    """One file of a prepared folder. Refused where it is damaged."""
    return BorrowedFile(path) if path.suffix == SUFFIX else ShardFile(path)


class Shards:
    """Documents of a prepared folder. Raises Refused where a file is missing or damaged.

    lengths [documents] counts tokens, the end mark among them; train_documents and held_documents are document numbers.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        told = read_facts(folder)
        places = [folder.parent / name for name in told["parts"]] if "parts" in told else [folder]
        self.facts = facts = [read_facts(place) for place in places]  # of each source
        self.source = ", ".join(str(one["source"]) for one in facts)
        self.vocabulary = int(facts[0]["vocabulary"])
        self.digest = str(told["digest"]) if "digest" in told else folder.name
        if any(int(one["vocabulary"]) != self.vocabulary for one in facts):
            raise Refused("the sources of this mix have different tokenizers.", where=str(folder), do=REMEDY)
        files = [[open_shard(place / name) for name in one["shards"]] for place, one in zip(places, facts, strict=True)]
        self.files = [file for some in files for file in some]
        self.first = np.cumsum(
            [0, *(len(file.documents) for file in self.files)]
        )  # number of each file's first document
        self.lengths: NDArray[np.int64] = np.concatenate([np.diff(file.boundaries) for file in self.files])
        self.held: NDArray[np.bool_] = np.concatenate([file.documents["held"] for file in self.files]).astype(np.bool_)
        hashes: NDArray[np.uint64] = np.concatenate([file.documents["hash"] for file in self.files])
        self.train_documents: NDArray[np.int64] = np.flatnonzero(~self.held)
        self._hashes = hashes
        self.held_documents: NDArray[np.int64] = self.by_hash(np.flatnonzero(self.held))
        self.train_tokens = int(self.lengths[self.train_documents].sum())  # one epoch of all
        if not len(self.train_documents) or not len(self.held_documents):
            raise Refused("no document is left to train on or to hold out.", where=str(folder), do=REMEDY)
        self.masked = any(file.has("mask") for file in self.files)
        self.has_kinds = any(file.has("kinds") for file in self.files)
        self.parts = self._parts(facts, [sum(len(file.documents) for file in some) for some in files])
        self._bytes_of: NDArray[np.int64] | None = None

    def _parts(self, facts: list[dict[str, Any]], counts: list[int]) -> list[Part]:
        found, first = [], 0
        for told, count in zip(facts, counts, strict=True):
            mine = first + np.flatnonzero(~self.held[first : first + count])
            tokens = int(self.lengths[mine].sum())
            terms = str(told.get("license") or "")
            found.append(Part(str(told["digest"]), str(told["source"]), terms, first, count, mine, tokens))
            first += count
        return found

    def by_hash(self, documents: NDArray[np.int64]) -> NDArray[np.int64]:
        """`documents` in the order of their hash: the first of them are a fair sample, whatever the names of the files."""
        return documents[np.argsort(self._hashes[documents], kind="stable")]

    def part_of(self, number: int) -> Part:
        """The source of a document."""
        return next(part for part in self.parts if number < part.first + part.documents)

    def known(self, digest: str) -> Part:
        """The source that was prepared under this digest. Refused where it is not among these."""
        for part in self.parts:
            if part.digest == digest:
                return part
        raise Refused(
            "the prepared text does not hold a source that this run reads.",
            where=str(self.folder),
            found=f"no {digest} among {', '.join(part.digest for part in self.parts)}",
            do="Start the run again: it is prepared anew.",
        )

    @property
    def documents(self) -> int:
        """How many there are, held out or not."""
        return len(self.lengths)

    @property
    def bytes_of(self) -> NDArray[np.int64]:
        """UTF-8 bytes that each id stands for [vocabulary]; 0 for the end mark."""
        if self._bytes_of is None:
            self._bytes_of = read_token_bytes(self.folder, self.vocabulary)
        return self._bytes_of

    def document(self, number: int) -> NDArray[np.int32]:
        """The tokens of a document, its end mark last."""
        return self.part(number, 0, int(self.lengths[number])).astype(np.int32)

    def part(self, number: int, begin: int, end: int, section: str = "tokens") -> NDArray[Any]:
        """Tokens [begin, end) of a document (or their "mask" or "kinds"; empty where absent) as a view into the file."""
        file = int(np.searchsorted(self.first, number, side="right")) - 1
        shard = self.files[file]
        at = int(shard.boundaries[number - self.first[file]])
        return shard.read(section, at + begin, at + end)

    def place(self, number: int) -> tuple[str, int, int]:
        """Where a document's text came from: name of the file, first and last + 1 byte of its unpacked text."""
        file = int(np.searchsorted(self.first, number, side="right")) - 1
        row = self.files[file].documents[number - self.first[file]]
        return self.files[file].names[int(row["file"])], int(row["begin"]), int(row["end"])


def read_facts(folder: Path) -> dict[str, Any]:
    """What `prepare` wrote about the folder, checked as far as its readers rely on it. Refused when there is none."""
    path = folder / FACTS
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise Refused(
            "there is no prepared text.", where=str(folder), do="Start the run again: it is prepared anew."
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise Refused("this is damaged.", where=str(path), do="Remove its folder and start again.") from error
    if not isinstance(facts, dict) or facts.get("version") not in (FORMAT, MIXED):
        found = facts.get("version") if isinstance(facts, dict) else "no table"
        raise Refused(f"this has format version {found}, this Argosy reads {FORMAT} and {MIXED}.", where=str(path))
    names = facts.get("shards" if facts["version"] == FORMAT else "parts")
    if not isinstance(names, list) or not names or not all(isinstance(name, str) and "/" not in name for name in names):
        raise Refused("this is damaged: it names no shards.", where=str(path), do="Remove its folder and start again.")
    return facts


def read_token_bytes(folder: Path, vocabulary: int | None = None) -> NDArray[np.int64]:
    """UTF-8 bytes that each id stands for [vocabulary]. Refused where it has another length; None = not known here.

    Refused too where it is not what was written: every figure in bits per byte is a quotient of these.
    """
    path = folder / TOKEN_BYTES
    try:
        content = path.read_bytes()
    except OSError as error:
        raise Refused("this cannot be read.", where=str(path), found=error.strerror or "", do=REMEDY) from error
    sizes = np.frombuffer(content[: len(content) // 4 * 4], "<i4").astype(np.int64)
    if vocabulary is not None and len(sizes) != vocabulary:
        raise Refused(
            f"this has {len(sizes)} entries where the vocabulary has {vocabulary}.", where=str(path), do=REMEDY
        )
    told = read_facts(folder)
    if "parts" in told:  # of a mix, whose sources share a tokenizer: a copy of the first one's
        told = read_facts(folder.parent / told["parts"][0])
    known = told.get(BYTES_SUM)
    if (zlib.crc32(content) != known) if known is not None else not _derived(folder, sizes):
        raise Refused("this is damaged: it does not match its checksum.", where=str(path), do=REMEDY)
    return sizes


def _derived(folder: Path, sizes: NDArray[np.int64]) -> bool:
    """Whether `sizes` are the tokenizer's own: a folder that was made before there was a checksum is compared with it."""
    from argosy.data import tokenizer

    if not (folder / tokenizer.FILE).is_file():
        return True  # nothing to compare with
    made = tokenizer.open_tokenizer(folder).bytes_of
    return len(made) != len(sizes) or bool((made == sizes).all())
