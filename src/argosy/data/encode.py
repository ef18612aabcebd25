"""A process that turns parts of a corpus into shard files: `python -m argosy.data.encode FOLDER`. No torch.

It reads the plan in FOLDER, then numbers of parts from standard input, a line each, and answers each on standard output with
a line of JSON: {"part", "tokens"} when the shard stands, or {"refused"|"disk"}. It ends when its input does.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from argosy.data import shard_file
from argosy.data.document import File
from argosy.data.scan import read_documents
from argosy.data.tokenizer import FILE, Tokenizer, open_tokenizer
from argosy.errors import FULL, Refused
from argosy.run import guardian

PLAN = "plan.json"
DOCUMENTS = "documents.bin"
AT_ONCE = 64  # documents given to the tokenizer together
BYTES_AT_ONCE = 2 * 1024 * 1024


@dataclass
class Plan:
    """What is to be encoded; the same for all processes. parts[k] = (first, last + 1) document."""

    files: list[File]
    documents: NDArray[Any]
    parts: list[tuple[int, int]]
    piece: int

    def write(self, folder: Path) -> None:
        """Write it into `folder`."""
        files = [[str(file.path), file.name, file.size] for file in self.files]
        (folder / DOCUMENTS).write_bytes(self.documents.tobytes())  # not tofile: it can lose the error of a full disk
        (folder / PLAN).write_text(json.dumps({"files": files, "parts": self.parts, "piece": self.piece}))

    @staticmethod
    def read(folder: Path) -> Plan:
        """The plan in `folder`."""
        plan = json.loads((folder / PLAN).read_text())
        documents = np.fromfile(folder / DOCUMENTS, shard_file.DOCUMENT)
        files = [File(Path(path), name, size) for path, name, size in plan["files"]]
        return Plan(files, documents, [(first, last) for first, last in plan["parts"]], plan["piece"])


def shard_name(part: int) -> str:
    """The file of a part."""
    return f"part-{part:05d}.shard"


def encode(folder: Path, plan: Plan, part: int, tokenizer: Tokenizer) -> int:
    """Make the shard of `part` and return its tokens. Raises Refused, OSError."""
    first, last = plan.parts[part]
    rows = plan.documents[first:last].copy()
    pieces: list[NDArray[Any]] = []
    lengths = []
    kind = np.uint16 if tokenizer.vocabulary <= 2**16 else np.uint32
    end = np.array([tokenizer.end], kind)
    for group in _groups(_texts(plan, rows)):
        for ids in tokenizer.encode_many(group):
            pieces += [ids.astype(kind), end]
            lengths.append(len(ids) + 1)
    used, rows["file"] = np.unique(rows["file"], return_inverse=True)
    contents = shard_file.Contents(
        np.cumsum([0, *lengths]).astype(np.uint64),
        rows,
        [plan.files[index].name for index in used.tolist()],
        np.concatenate(pieces),
    )
    shard_file.write(folder / shard_name(part), contents)
    return len(contents.tokens)


def _texts(plan: Plan, rows: NDArray[Any]) -> Iterator[str]:
    borders = [0, *(np.flatnonzero(np.diff(rows["file"])) + 1).tolist(), len(rows)]
    for begin, end in pairwise(borders):
        yield from read_documents(plan.files[int(rows["file"][begin])], rows[begin:end], plan.piece)


def _groups(texts: Iterator[str]) -> Iterator[list[str]]:
    group: list[str] = []
    size = 0
    for text in texts:
        group.append(text)
        size += len(text)
        if len(group) == AT_ONCE or size >= BYTES_AT_ONCE:
            yield group
            group, size = [], 0
    if group:
        yield group


def answer(folder: Path, plan: Plan, part: int, tokenizer: Tokenizer) -> dict[str, Any]:
    """Encode `part` and say in a JSON table how it went."""
    try:
        return {"part": part, "tokens": encode(folder, plan, part, tokenizer)}
    except Refused as error:
        fields = {"what": error.what, "where": error.where, "found": error.found, "do": error.do, "code": error.code}
        return {"part": part, "refused": fields}
    except OSError as error:
        if error.errno not in FULL:
            raise
        (folder / (shard_name(part) + ".writing")).unlink(missing_ok=True)
        return {"part": part, "disk": error.strerror}


def main(folder: Path) -> None:
    """Answer each line of standard input until it ends."""
    guardian.watch(os.getppid())
    plan, tokenizer = Plan.read(folder), open_tokenizer(folder / FILE)
    for line in sys.stdin:
        print(json.dumps(answer(folder, plan, int(line), tokenizer)), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
