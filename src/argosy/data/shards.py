"""The prepared text as a whole: all shard files of a folder as one list of documents, numbered over all of them. NumPy only.

In goes the folder that `prepare` made, out come documents' tokens and where they came from.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from argosy.data.shard_file import REMEDY, ShardFile
from argosy.errors import Refused

FACTS = "prepared.json"  # what a folder holds; written last
TOKEN_BYTES = "token-bytes.bin"  # i32 [vocabulary]: UTF-8 bytes each id stands for
FORMAT = 1


class Shards:
    """Documents of a prepared folder. Raises Refused where a file is missing or damaged.

    lengths [documents] counts tokens, the end mark among them; train_documents and held_documents are document numbers.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        facts = read_facts(folder)
        self.source = str(facts["source"])
        self.vocabulary = int(facts["vocabulary"])
        self.digest = str(facts["digest"])
        self.files = [ShardFile(folder / name) for name in facts["shards"]]
        self.first = np.cumsum(
            [0, *(len(file.documents) for file in self.files)]
        )  # number of each file's first document
        self.lengths: NDArray[np.int64] = np.concatenate([np.diff(file.boundaries) for file in self.files])
        held: NDArray[np.bool_] = np.concatenate([file.documents["held"] for file in self.files]).astype(np.bool_)
        hashes: NDArray[np.uint64] = np.concatenate([file.documents["hash"] for file in self.files])
        self.train_documents: NDArray[np.int64] = np.flatnonzero(~held)
        # By hash: so many of them are a fair sample of all, whatever the names of the files.
        self.held_documents: NDArray[np.int64] = np.flatnonzero(held)[np.argsort(hashes[held], kind="stable")]
        self.train_tokens = int(self.lengths[self.train_documents].sum())  # one epoch
        if not len(self.train_documents) or not len(self.held_documents):
            raise Refused("no document is left to train on or to hold out.", where=str(folder), do=REMEDY)
        self.masked = any(file.has("mask") for file in self.files)
        self.has_kinds = any(file.has("kinds") for file in self.files)
        self.epochs: dict[tuple[int, int], Any] = {}  # the last orders that were made; see order.epoch
        self._bytes_of: NDArray[np.int64] | None = None

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
    if not isinstance(facts, dict) or facts.get("version") != FORMAT:
        found = facts.get("version") if isinstance(facts, dict) else "no table"
        raise Refused(f"this has format version {found}, this Argosy reads {FORMAT}.", where=str(path))
    names = facts.get("shards")
    if not isinstance(names, list) or not names or not all(isinstance(name, str) and "/" not in name for name in names):
        raise Refused("this is damaged: it names no shards.", where=str(path), do="Remove its folder and start again.")
    return facts


def read_token_bytes(folder: Path, vocabulary: int) -> NDArray[np.int64]:
    """UTF-8 bytes that each id stands for [vocabulary]."""
    path = folder / TOKEN_BYTES
    try:
        sizes = np.fromfile(path, "<i4").astype(np.int64)
    except OSError as error:
        raise Refused("this cannot be read.", where=str(path), found=error.strerror or "") from error
    if len(sizes) != vocabulary:
        raise Refused(f"this has {len(sizes)} entries where the vocabulary has {vocabulary}.", where=str(path))
    return sizes
