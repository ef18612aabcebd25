"""What a source offers: files of text, the documents they are cut into, and what was passed over. NumPy only.

A *document* is a stretch of one file's text that is learned as a whole: attention never leaves it, and it is held out or
trained on as a whole. Most text files are one document (see `sources.text.piece_size` for the ones that are cut); of a file
of records every record is one, and a pair of answers is two.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Spot = Callable[[str, str], None]  # told of each record that cannot be used: where it is, and why, without a subject


class Unreadable(Exception):
    """A file that cannot be read after all; the message is a sentence without its subject."""


class Bad(Exception):
    """A record that cannot be used; the message is a sentence without its subject."""


@dataclass(frozen=True)
class File:
    """One readable file of a source."""

    path: Path
    name: str  # relative to the source, with "/" between folders; printable
    size: int  # bytes on disk
    kind: str = "text"  # how it is read: a module of `sources`
    url: str = ""  # its address, where it lies in an object store or on the Hub
    stamp: str = ""  # of a file with an address: changes when the file does
    field: str = ""  # the field of its records that is read; "" = the one that is found


@dataclass(frozen=True)
class Chat:
    """What was said by turns: tables with "role" and "content", and what else the record gave them."""

    messages: tuple[dict[str, Any], ...]
    counted: bool = True  # False: the rejected answer of a pair, kept and not learned from
    tools: tuple[Any, ...] = ()


class Piece(NamedTuple):
    """A document. Of a text file: bytes `begin` to `end` of the unpacked bytes, a byte-order mark left out.

    Of records, `begin` and `end` are the bytes of its line, or its number and the next one. `text` is what its hash is made of:
    UTF-8 text, a chat as JSON, or ids as bytes.
    """

    begin: int
    end: int
    text: bytes
    which: int = 0  # 1: the second document of its record
    chat: Chat | None = None
    ids: Any = None  # token ids [n], where somebody has tokenized it
    pair: int = -1  # shared by the two answers of a pair

    @property
    def size(self) -> int:
        """UTF-8 bytes of its text; of ids and chats an estimate."""
        return len(self.text) if self.ids is None else 4 * len(self.ids)


@dataclass
class Source:
    """Where text comes from: files in a fixed order, and what else lay there."""

    name: str  # "python", or the path as the job wrote it
    where: str  # how an error names the place: `data.source = "~/notes"`
    files: list[File]
    version: str = ""  # "CPython 3.11.7" for the built-in corpus
    license: str = ""  # "" = what the job says
    passed_over: Counter[str] = field(default_factory=Counter)  # suffix -> files that are no text by their suffix
    runs: int = 0  # folders passed over because each holds a run of Argosy
    unread: list[str] = field(
        default_factory=list
    )  # a sentence for each file that looked like text and could not be read
    notes: list[str] = field(default_factory=list)  # what else there is to say, a sentence each


def digest(text: bytes) -> int:
    """The hash of a document's UTF-8 bytes: 8 bytes of BLAKE2b, unsigned. It decides who is held out."""
    return int.from_bytes(blake2b(text, digest_size=8, person=b"argosy.document").digest(), "little")


def held_out(hashes: NDArray[np.uint64], share: float) -> NDArray[np.bool_]:
    """Which documents are never trained on: those whose hash, as a fraction of 2^64, lies below `share`.

    The side of a text that stands there once depends on itself alone, so it stays where it is when others are added; all
    copies of a text are on one side. Exceptions keep both sides filled: a text whose copies alone are more than `share` of
    all is trained on (and may be held out once so many others were added); when none lies below, the text with the fewest
    copies is held out; when all do, the largest hash is trained on. Takes at least two different documents. A change of this
    rule is a change of `cache.RULES`.
    """
    texts, place, copies = np.unique(hashes, return_inverse=True, return_counts=True)
    held = (texts.astype(np.float64) < share * 2.0**64) & (copies <= max(1.0, share * len(hashes)))
    if not held.any():
        held[np.argmin(copies)] = True  # of several, the first: the smallest hash
    elif held.all():
        held[-1] = False
    return np.asarray(held[place], np.bool_)


def counts(suffixes: Counter[str], most: int = 4) -> str:
    """Suffixes in words, commonest first: "312 .pdf, 4 .docx and 3 others"."""
    ranked = sorted(suffixes.items(), key=lambda item: (-item[1], item[0]))
    words = [f"{number} {suffix or 'without suffix'}" for suffix, number in ranked[:most]]
    rest = sum(number for _, number in ranked[most:])
    return ", ".join(words) + (f" and {rest} others" if rest else "")


def printable(name: str) -> str:
    """`name` as text that can be written anywhere: bytes that are no UTF-8 and control characters become "?"."""
    return "".join(letter if letter.isprintable() else "?" for letter in name)


def each(numbers: NDArray[Any]) -> Iterator[int]:
    """The numbers [n] one after the other, without a list of them all."""
    for at in range(0, len(numbers), 65_536):
        yield from numbers[at : at + 65_536].tolist()


def total_bytes(files: Iterable[File]) -> int:
    """Bytes on disk of all `files`."""
    return sum(file.size for file in files)
