"""Makes a prepared folder of what a scan found: tokenizer, shards, facts. No torch.

`make` works under a partial name and goes on where a killed attempt was; the caller holds the lock.
"""

from __future__ import annotations

import json
import os
import shutil
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from argosy.data import chat, shards, tokenizer
from argosy.data.chat import Template
from argosy.data.document import counts, each, held_out
from argosy.data.encode import DOCUMENTS, PLAN, SIZES, Encoder, Plan, shard_name
from argosy.data.pool import encode_all
from argosy.data.scan import Progress, Scan, texts
from argosy.data.sources.streams import packed
from argosy.data.sources.text import READS
from argosy.errors import INPUT, Refused
from argosy.job.schema import Trained
from argosy.quantities import bytes_text

SMALLEST_PART, LARGEST_PART = 1024 * 1024, 64 * 1024 * 1024  # bytes of text
LITTLE = 8 * 1024  # bytes of held-out text below which what is measured on it says little
SHARES = (0.05, 0.1, 0.2)  # that are offered then
NAMED = 2  # files that were passed over although they looked like text and are named on the screen
ALL_NAMED = "`argosy data stats --json` names all"
LEARNED_FROM = 256 * 1024 * 1024  # a tokenizer is trained on about so many bytes at most


@dataclass(frozen=True)
class Recipe:
    """How a text is prepared. content: the tokenizer's file, None = `spec` is trained on the text itself."""

    spec: Trained | str
    content: str | None
    template: Template
    held_out: float
    license: str = ""  # what the job says; "" = the source's own


def write(path: Path, content: str) -> None:
    """Write the file `path` whole or not at all. Raises OSError."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.writing")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)


def make(folder: Path, found: Scan, recipe: Recipe, progress: Progress, workers: int) -> None:
    """Make `folder` under its partial name and rename it. Parts that an earlier attempt finished are taken as they are."""
    partial = folder.with_suffix(".partial")
    partial.mkdir(exist_ok=True)
    for half in partial.glob("*.writing"):  # of a process that was killed; nobody else is here, the lock is held
        half.unlink()
    made = _make_tokenizer(partial, found, recipe, progress)
    if recipe.template.source:
        write(partial / chat.FILE, recipe.template.content)
    plan = Plan(found.source.files, found.documents, parts(found), found.piece, found.sizes)
    missing = [part for part in range(len(plan.parts)) if not (partial / shard_name(part)).is_file()]
    _refuse_too_small_disk(partial, plan, missing, made)
    if missing:
        plan.write(partial)
        try:
            encode_all(partial, plan, missing, Encoder(made, recipe.template), workers, progress)
        except Refused as error:
            if error.code == INPUT:  # this text will never be made of it
                shutil.rmtree(partial)
            raise
    finish(folder, partial, found, recipe, made, [shard_name(part) for part in range(len(plan.parts))])


def _make_tokenizer(partial: Path, found: Scan, recipe: Recipe, progress: Progress) -> tokenizer.Tokenizer:
    path = partial / tokenizer.FILE
    if recipe.content is not None:
        made = tokenizer.parse(recipe.content, str(recipe.spec))
    elif path.is_file():
        return tokenizer.open_tokenizer(path)
    else:
        assert isinstance(recipe.spec, Trained)
        made = trained([found], recipe.spec, progress)
    write(path, text_of(made))
    return made


def text_of(made: tokenizer.Tokenizer) -> str:
    """The text of a tokenizer's file."""
    return made.content if isinstance(made, tokenizer.Pieces) else tokenizer.BYTES


def trained(scans: Sequence[Scan], spec: Trained, progress: Progress) -> tokenizer.Tokenizer:
    """A tokenizer trained on all of `scans`, held-out text left out. Refused where there is no text in them."""
    size = sum(found.bytes for found in scans)
    for found in scans:
        if found.ids:
            raise Refused(
                "these tokens were made by somebody else's tokenizer, which is needed to read them.",
                where=found.source.where,
                do="Name it: --data.tokenizer FOLDER, or its tokenizer.json.",
            )
    progress("training the tokenizer", 0, size)

    def all_texts() -> Iterator[str]:
        """The training documents of all sources, or of each the same share."""
        for found in scans:
            # Held-out text stays unseen here too; of a large corpus a share chosen by hash is read.
            share = (found.documents["hash"] % 4096) < 4096 * min(1.0, LEARNED_FROM / size)
            yield from texts(found, (found.documents["held"] == 0) & share)

    made = tokenizer.parse(tokenizer.train_bpe(all_texts(), spec.vocabulary), "the trained tokenizer")
    progress("training the tokenizer", size, size)
    return made


def parts(found: Scan) -> list[tuple[int, int]]:
    """Documents grouped into shards: a function of the text alone, so that any number of workers makes the same files."""
    limit = min(LARGEST_PART, max(SMALLEST_PART, found.bytes // 64))
    whole = [
        packed(file.path) for file in found.source.files
    ]  # reading on in its middle means unpacking from its beginning
    made, first, size = [], 0, 0
    for number, (length, file) in enumerate(zip(each(found.sizes), each(found.documents["file"]), strict=True)):
        middle = whole[file] and number > first and found.documents["file"][number - 1] == file
        if size and size + length > (LARGEST_PART if middle else limit):
            made.append((first, number))
            first, size = number, 0
        size += length
    return [*made, (first, len(found.sizes))]


def _refuse_too_small_disk(partial: Path, plan: Plan, missing: list[int], made: tokenizer.Tokenizer) -> None:
    text = sum(plan.size(part) for part in missing)
    tokens = (
        text if isinstance(made, tokenizer.Bytes) else text // 2
    )  # two bytes a token is what the poorest BPE reaches
    need = tokens * (2 if made.vocabulary <= 2**16 else 4) + 32 * len(plan.documents)
    free = shutil.disk_usage(partial).free
    if need > free:
        raise Refused(
            "not enough disk for the prepared text.",
            where=str(partial.parent),
            found=f"{bytes_text(free)} free where about {bytes_text(need)} are needed",
            do="Free some space, or --data.cache FOLDER on another disk.",
        )


def finish(
    folder: Path, partial: Path, found: Scan, recipe: Recipe, made: tokenizer.Tokenizer, names: Sequence[str]
) -> None:
    """Write the facts about the shards `names` in `partial`, and give it its name."""
    sizes = made.bytes_of.astype("<i4").tobytes()
    (partial / shards.TOKEN_BYTES).write_bytes(sizes)
    facts = _facts(partial, found, recipe, made, folder.name, names) | {shards.BYTES_SUM: zlib.crc32(sizes)}
    write(partial / shards.FACTS, json.dumps(facts, indent=1) + "\n")
    for name in (PLAN, DOCUMENTS, SIZES):
        (partial / name).unlink(missing_ok=True)
    if folder.exists():
        shutil.rmtree(folder)  # without its facts: somebody removed a part of it
    partial.rename(folder)


def _facts(
    partial: Path, found: Scan, recipe: Recipe, made: tokenizer.Tokenizer, digest: str, names: Sequence[str]
) -> dict[str, Any]:
    files = [shards.open_shard(partial / name) for name in names]
    held = sum(int(np.diff(file.boundaries)[file.documents["held"] == 1].sum()) for file in files)
    tokens = sum(file.tokens for file in files)
    size = sum(_text_bytes(file, made) for file in files) if found.ids else found.bytes
    spec = recipe.spec
    return {
        "version": shards.FORMAT,
        "digest": digest,
        "source": found.source.name,
        "source_version": found.source.version,
        "license": found.source.license,
        "files": len(np.unique(found.documents["file"])),
        "bytes": size,
        "vocabulary": made.vocabulary,
        "tokens": tokens - held,
        "documents": int((found.documents["held"] == 0).sum()),
        "held_out_documents": int((found.documents["held"] == 1).sum()),
        "held_out_tokens": held,
        "bytes_per_token": size / tokens,
        "tokenizer": f"BPE {made.vocabulary}" if isinstance(spec, Trained) else Path(spec).name,
        "bad": found.bad,
        "notes": notes(found, recipe.held_out),
        "shards": list(names),
    }


def _text_bytes(file: Any, made: tokenizer.Tokenizer) -> int:
    """UTF-8 bytes that the tokens of a shard stand for, a document at a time."""
    return sum(
        int(made.bytes_of[file.read("tokens", begin, end)].sum()) for begin, end in pairwise(file.boundaries.tolist())
    )


def notes(found: Scan, share: float) -> list[str]:
    """What was passed over, by its suffix or although it looked like text, bad records, and what copies do."""
    source = found.source
    told = list(source.notes)
    if source.passed_over:
        told.append(f"not read in {source.name}: {counts(source.passed_over)}. {READS}")
    if source.runs:
        told.append(f"run folders of Argosy in {source.name}: {source.runs:,} passed over")
    if source.unread:
        rest = len(source.unread) - NAMED
        more = f"; and {rest:,} more file{'s' * (rest > 1)}" if rest > 0 else ""
        told.append(f"{'; '.join(source.unread[:NAMED])}{more}: passed over" + (f". {ALL_NAMED}" if more else ""))
    if found.faults.count:
        told.append(found.faults.note(len(found.documents)))
    return [*told, *copied(found, share), *little(found, share)]


def little(found: Scan, share: float) -> list[str]:
    """That too little is held out to measure anything on: hashes choose documents, whatever their length."""
    held, size = int(found.sizes[found.documents["held"] == 1].sum()), found.bytes
    if held >= max(LITTLE, share * size / 4):
        return []
    amount = "" if found.ids else f"{bytes_text(held)}, "
    many = f"{int(found.documents['held'].sum()):,} of {len(found.documents):,} documents"
    larger = next((one for one in SHARES if one > share and _held(found, one) >= max(LITTLE, share * size / 4)), None)
    more = (
        f"--data.held_out {larger:.0%} holds out {_held(found, larger) / size:.0%} of it, or "
        if larger
        else "More text, or "
    )
    return [
        f"little text is held out: {amount}{100 * held / size:.2g}% of it ({many}), where {100 * share:.3g}% was asked for; "
        f"what is measured on so little says little. {more}name other text to measure on: evaluate.sets"
    ]


def _held(found: Scan, share: float) -> int:
    """Bytes of text that another share would hold out."""
    return int(found.sizes[held_out(found.documents["hash"], share)].sum())


def copied(found: Scan, share: float) -> list[str]:
    """What copies do to the share that is held out, where it is far from the asked one."""
    first = found.documents[found.documents["which"] == 0]
    held, whole = int(first["held"].sum()), len(first)
    copies = whole - len(np.unique(first["hash"]))
    if not copies or held <= max(1.0, 2 * share * whole):
        return []
    return [
        f"the text repeats itself: {copies:,} of {whole:,} documents are copies of others; copies stay together, and so "
        f"{held / whole:.0%} are held out, not {share:.0%}"
    ]
