"""A process that turns parts of a corpus into shard files: `python -m argosy.data.encode FOLDER`. No torch.

It reads the plan in FOLDER, then numbers of parts from standard input, a line each, and answers each on standard output with
a line of JSON: {"part", "tokens"} when the shard stands, or {"refused"|"disk"}. It ends when its input does.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from argosy.data import shard_file
from argosy.data.chat import Segment, Template
from argosy.data.document import Bad, File, Piece
from argosy.data.scan import read_all
from argosy.data.tokenizer import FILE, Tokenizer, open_tokenizer
from argosy.errors import Refused
from argosy.run import guardian

PLAN = "plan.json"
DOCUMENTS = "documents.bin"
SIZES = "sizes.bin"
AT_ONCE = 64  # documents given to the tokenizer together
BYTES_AT_ONCE = 2 * 1024 * 1024


@dataclass
class Plan:
    """What is to be encoded; the same for all processes. parts[k] = (first, last + 1) document."""

    files: list[File]
    documents: NDArray[Any]
    parts: list[tuple[int, int]]
    piece: int
    sizes: NDArray[np.uint64]  # [documents] UTF-8 bytes

    def write(self, folder: Path) -> None:
        """Write it into `folder`."""
        files = [
            [str(file.path), file.name, file.size, file.kind, file.url, file.stamp, file.field] for file in self.files
        ]
        (folder / DOCUMENTS).write_bytes(self.documents.tobytes())  # not tofile: it can lose the error of a full disk
        (folder / SIZES).write_bytes(self.sizes.tobytes())
        (folder / PLAN).write_text(json.dumps({"files": files, "parts": self.parts, "piece": self.piece}))

    @staticmethod
    def read(folder: Path) -> Plan:
        """The plan in `folder`."""
        plan = json.loads((folder / PLAN).read_text())
        documents = np.memmap(folder / DOCUMENTS, shard_file.DOCUMENT, "r")  # one copy for all processes
        files = [File(Path(path), *rest) for path, *rest in plan["files"]]
        parts = [(first, last) for first, last in plan["parts"]]
        return Plan(files, documents, parts, plan["piece"], np.memmap(folder / SIZES, np.uint64, "r"))

    def size(self, part: int) -> int:
        """UTF-8 bytes of a part."""
        first, last = self.parts[part]
        return int(self.sizes[first:last].sum())


def shard_name(part: int) -> str:
    """The file of a part."""
    return f"part-{part:05d}.shard"


@dataclass
class Encoded:
    """One document's tokens, and what is known of each; counted and kinds are empty where all are text."""

    tokens: NDArray[Any]
    counted: NDArray[np.uint8]
    kinds: NDArray[np.uint8]
    pair: int = -1


class Encoder:
    """Documents to tokens."""

    def __init__(self, tokenizer: Tokenizer, template: Template):
        self.tokenizer, self.template = tokenizer, template
        self.type = np.dtype(np.uint16 if tokenizer.vocabulary <= 2**16 else np.uint32)

    def __call__(self, group: list[Piece]) -> Iterator[Encoded]:
        """The documents of `group`, in order. Raises Bad, Refused."""
        plain = [piece.text.decode("utf-8") for piece in group if piece.chat is None and piece.ids is None]
        ids = iter(self.tokenizer.encode_many(plain))
        nothing = np.zeros(0, np.uint8)
        for piece in group:
            if piece.chat is not None:
                yield self._chat(self.template.segments(piece.chat, self.tokenizer.marks), piece.pair)
            elif piece.ids is not None:
                yield Encoded(self._known(piece.ids), nothing, nothing)
            else:
                yield Encoded(np.append(next(ids), self.tokenizer.end).astype(self.type), nothing, nothing)

    def _chat(self, segments: list[Segment], pair: int) -> Encoded:
        """Each stretch by itself: what is generated begins where the prompt's last token ends, and so does what is learned."""
        parts, counted, kinds = [], [], []
        for segment in segments:
            found = (self.tokenizer.encode_marked if segment.marked else self.tokenizer.encode)(segment.text)
            if segment.ended:
                found = [*found, self.tokenizer.end]
            parts += found
            counted += [int(segment.counted)] * len(found)
            kinds += [segment.kind] * len(found)
        if not parts:  # nothing but empty messages
            parts, counted, kinds = [self.tokenizer.end], [0], [0]
        return Encoded(np.array(parts, self.type), np.array(counted, np.uint8), np.array(kinds, np.uint8), pair)

    def _known(self, ids: NDArray[Any]) -> NDArray[Any]:
        if int(ids.max()) >= self.tokenizer.vocabulary:
            raise wrong_vocabulary(int(ids.max()), self.tokenizer.vocabulary)
        return ids.astype(self.type)


def wrong_vocabulary(largest: int, vocabulary: int, where: str = "data.tokenizer") -> Refused:
    """The error of token ids that belong to another tokenizer."""
    return Refused(
        "these tokens were made by another tokenizer.",
        where=where,
        found=f"the id {largest:,}, where the tokenizer has {vocabulary:,}",
        do="Name the one that made them: --data.tokenizer FOLDER.",
    )


def encode(folder: Path, plan: Plan, part: int, encoder: Encoder) -> int:
    """Make the shard of `part` and return its tokens. Raises Refused, OSError."""
    first, last = plan.parts[part]
    rows = np.array(plan.documents[first:last])
    found: list[Encoded] = []
    for group in _groups(read_all(plan.files, rows, plan.piece)):
        try:
            found += encoder(group)
        except Bad as error:  # it was good when it was scanned
            raise Refused(f"a chat {error}.", where=str(folder)) from None
    used, rows["file"] = np.unique(rows["file"], return_inverse=True)
    chats = any(len(one.kinds) for one in found)
    contents = shard_file.Contents(
        np.cumsum([0, *(len(one.tokens) for one in found)]).astype(np.uint64),
        rows,
        [plan.files[index].name for index in used.tolist()],
        np.concatenate([one.tokens for one in found]),
        mask=_whole(found, "counted", 1) if chats else None,
        kinds=_whole(found, "kinds", 0) if chats else None,
        pairs=np.array([one.pair for one in found], np.int64) if any(one.pair >= 0 for one in found) else None,
    )
    shard_file.write(folder / shard_name(part), contents)
    return len(contents.tokens)


def _whole(found: list[Encoded], name: str, plain: int) -> NDArray[np.uint8]:
    """What is known of each token, over all documents; `plain` where a document is text."""
    parts = [getattr(one, name) for one in found]
    return np.concatenate(
        [
            part if len(part) else np.full(len(one.tokens), plain, np.uint8)
            for part, one in zip(parts, found, strict=True)
        ]
    )


def _groups(pieces: Iterator[Piece]) -> Iterator[list[Piece]]:
    group: list[Piece] = []
    size = 0
    for piece in pieces:
        group.append(piece)
        size += len(piece.text)
        if len(group) == AT_ONCE or size >= BYTES_AT_ONCE:
            yield group
            group, size = [], 0
    if group:
        yield group


def answer(folder: Path, plan: Plan, part: int, encoder: Encoder) -> dict[str, Any]:
    """Encode `part` and say in a JSON table how it went."""
    try:
        return {"part": part, "tokens": encode(folder, plan, part, encoder)}
    except Refused as error:
        fields = {"what": error.what, "where": error.where, "found": error.found, "do": error.do, "code": error.code}
        return {"part": part, "refused": fields}
    except OSError as error:
        with suppress(OSError):
            (folder / (shard_name(part) + ".writing")).unlink(missing_ok=True)
        return {"part": part, "disk": [error.errno, error.strerror or str(error)]}


def main(folder: Path) -> None:
    """Answer each line of standard input until it ends."""
    guardian.watch(os.getppid())
    plan, encoder = Plan.read(folder), Encoder(open_tokenizer(folder / FILE), Template.of(folder))
    for line in sys.stdin:
        print(json.dumps(answer(folder, plan, int(line), encoder)), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
