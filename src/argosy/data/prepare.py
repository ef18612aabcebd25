"""Text to shards, once: read, split, train the tokenizer, encode in parallel, keep by content. No torch.

In goes the job's data section, out comes `Prepared`: a folder `CACHE/prepared/DIGEST` that never changes once it has this
name. A preparation that was killed goes on where it was (finished parts stay in DIGEST.partial); two at once wait for each
other; a full disk leaves what was there before.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import numpy as np

from argosy.cluster import here
from argosy.data import shards, tokenizer
from argosy.data.document import Source, counts
from argosy.data.encode import DOCUMENTS, PLAN, Plan, shard_name
from argosy.data.pool import encode_all
from argosy.data.scan import Progress, Scan, fingerprint, scan, texts
from argosy.data.shard_file import REMEDY, ShardFile
from argosy.data.sources import find
from argosy.data.sources.text import READS, packed
from argosy.errors import FULL, MACHINE, Refused
from argosy.job import paths
from argosy.job.schema import DataSection, Trained
from argosy.plan.prepared import PreparedFacts
from argosy.quantities import bytes_text, count_text

SMALLEST_PART, LARGEST_PART = 1024 * 1024, 64 * 1024 * 1024  # bytes of text
LEARNED_FROM = 256 * 1024 * 1024  # a tokenizer is trained on about so many bytes at most
# Names everything in the code that decides what a folder holds. Raise a number whenever that changes: two machines, or two
# versions, that mean the same text by one name must hold the same tokens, on the same side.
RULES = f"argosy {shards.FORMAT}, held out 2"


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

    @property
    def tokenizer(self) -> Path:
        """The tokenizer's file."""
        return self.folder / tokenizer.FILE

    @property
    def summary(self) -> str:
        """One line for the screen."""
        of = f" of {self.version}" if self.version else ""
        return (
            f"{self.source}: {self.files:,} file{'s' * (self.files != 1)}{of}, {bytes_text(self.bytes)} → "
            f"{count_text(self.facts.tokens)} tokens, {self.tokenizer_name}, {self.facts.bytes_per_token:.1f} bytes/token"
        )

    @staticmethod
    def open(folder: Path) -> Prepared:
        """The prepared text in `folder`. Refused when there is none."""
        told = shards.read_facts(folder)
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
            )
        except (KeyError, TypeError, ValueError) as error:
            raise Refused("this is damaged.", where=str(folder / shards.FACTS), do=REMEDY) from error


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


def prepare(
    section: DataSection, *, base: Path, cache: Path, progress: Progress | None = None, workers: int = 1
) -> Prepared:
    """The prepared text of `section`, made now unless it is in `cache`. Paths of the job are seen from `base`.

    `progress(what, done, total)` hears how far it is, `workers` processes encode. Refused for every kind of bad input
    (code 2) and for a disk that fills up on the way (code 4).
    """
    progress = progress or (lambda what, done, total: None)
    source = find(section.source, base)
    key, content = _key(section, base)
    home = cache / "prepared"
    try:
        cache.mkdir(mode=0o700, parents=True, exist_ok=True)  # a new one: what was read is nobody else's business
        home.mkdir(exist_ok=True)
        seen = _seen(home, key, source)
        known = _known(home, seen)
        if known is not None:
            return known
        if content is not None:
            tokenizer.parse(content, f'data.tokenizer = "{section.tokenizer}"')  # refused before the text is read
        found = scan(source, section.held_out, progress)
        folder = home / _hash(key, source.name, found.digest)
        with _locked(folder.with_suffix(".lock"), progress):
            if not (folder / shards.FACTS).is_file():
                _make(folder, found, section, content, progress, workers)
        _write(seen, folder.name)
        return Prepared.open(folder)
    except OSError as error:
        if error.errno in FULL:
            raise full(home) from error
        raise _unwritable(Path(error.filename or home), error.strerror or str(error)) from error


def changed(section: DataSection, base: Path, folder: Path) -> bool:
    """Whether the files of `section` are others than those that `folder` was made of; they are not read for it."""
    try:
        source = find(section.source, base)
        seen = _seen(folder.parent, _key(section, base)[0], source)
        return seen.read_text(encoding="utf-8") != folder.name
    except (OSError, UnicodeDecodeError, Refused):
        return True


def refuse_unwritable(section: DataSection, *, base: Path, cache: Path) -> None:
    """Refused (code 2) where nothing can be written in `cache` and the text of `section` is not prepared there already.

    Tried, not asked: permissions tell little of a folder like /proc, and nothing to root. Nothing is left behind.
    """
    place = cache
    while not os.path.exists(place):  # what is missing will be made in the nearest folder that is there
        place = place.parent
    try:
        with TemporaryFile(dir=place):
            return
    except OSError as error:
        source, home = find(section.source, base), cache / "prepared"
        if _known(home, _seen(home, _key(section, base)[0], source)) is None:
            raise _unwritable(cache, f"{place} takes no file: {error.strerror or error}") from error


def _unwritable(place: Path, found: str) -> Refused:
    do = "Name a folder that can be written: --data.cache FOLDER."
    return Refused("prepared text cannot be kept there.", where=str(place), found=found, do=do)


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


def _key(section: DataSection, base: Path) -> tuple[str, str | None]:
    """What names everything but the text in the cache, and the content of the tokenizer's file (see below)."""
    words, content = _tokenizer_key(section, base)
    return f"{RULES}; {words}; held out {section.held_out!r}", content


def _tokenizer_key(section: DataSection, base: Path) -> tuple[str, str | None]:
    """What names the tokenizer in the cache, and the content of its file where it is not trained here."""
    spec = section.tokenizer
    if isinstance(spec, Trained):
        return f"bpe {spec.vocabulary} tokenizers {version('tokenizers')}", None
    if spec == "bytes":
        return "bytes", tokenizer.BYTES
    path = base / paths.expand(spec)
    content = tokenizer.read_file(path / tokenizer.FILE if path.is_dir() else path)
    return f"{_hash(content)} tokenizers {version('tokenizers')}", content


def _hash(*words: str) -> str:
    return blake2b("\0".join(words).encode("utf-8", "surrogateescape"), digest_size=12).hexdigest()


def _seen(home: Path, key: str, source: Source) -> Path:
    """The file that names the folder which was made of just these files."""
    return home / f"{_hash(key, source.name, fingerprint(source))}.seen"


def _known(home: Path, seen: Path) -> Prepared | None:
    """The folder that was made of the very same files, found without reading them."""
    try:
        return Prepared.open(home / seen.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, Refused):
        return None


@contextmanager
def _locked(path: Path, progress: Progress) -> Iterator[None]:
    """Hold the lock `path`; the kernel lets go of it when this process ends, however it ends."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress("waiting for another process that prepares the same text", 0, 1)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _write(path: Path, content: str) -> None:
    temporary = path.with_name(f"{path.name}.{os.getpid()}.writing")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)


def _make(
    folder: Path, found: Scan, section: DataSection, content: str | None, progress: Progress, workers: int
) -> None:
    """Make `folder` under its partial name and rename it. Parts that an earlier attempt finished are taken as they are."""
    partial = folder.with_suffix(".partial")
    partial.mkdir(exist_ok=True)
    for half in partial.glob("*.writing"):  # of a process that was killed; nobody else is here, the lock is held
        half.unlink()
    made = _make_tokenizer(partial, found, section, content, progress)
    plan = Plan(found.source.files, found.documents, parts(found), found.piece)
    missing = [part for part in range(len(plan.parts)) if not (partial / shard_name(part)).is_file()]
    _refuse_too_small_disk(partial, plan, missing, made)
    if missing:
        plan.write(partial)
        encode_all(partial, plan, missing, made, workers, progress)
    (partial / shards.TOKEN_BYTES).write_bytes(made.bytes_of.astype("<i4").tobytes())
    _write(
        partial / shards.FACTS, json.dumps(_facts(partial, found, plan, section, made, folder.name), indent=1) + "\n"
    )
    for name in (PLAN, DOCUMENTS):
        (partial / name).unlink(missing_ok=True)
    if folder.exists():
        shutil.rmtree(folder)  # without its facts: somebody removed a part of it
    partial.rename(folder)


def _make_tokenizer(
    partial: Path, found: Scan, section: DataSection, content: str | None, progress: Progress
) -> tokenizer.Tokenizer:
    path = partial / tokenizer.FILE
    if content is not None:
        made = tokenizer.parse(content, str(section.tokenizer))
    elif path.is_file():
        return tokenizer.open_tokenizer(path)
    else:
        assert isinstance(section.tokenizer, Trained)
        size = found.bytes
        progress("training the tokenizer", 0, size)
        # Held-out text stays unseen here too; of a large corpus a share chosen by hash is read.
        share = (found.documents["hash"] % 4096) < 4096 * min(1.0, LEARNED_FROM / size)
        chosen = (found.documents["held"] == 0) & share
        made = tokenizer.parse(
            tokenizer.train_bpe(texts(found, chosen), section.tokenizer.vocabulary), "the trained tokenizer"
        )
        progress("training the tokenizer", size, size)
    _write(path, made.content if isinstance(made, tokenizer.Pieces) else tokenizer.BYTES)
    return made


def parts(found: Scan) -> list[tuple[int, int]]:
    """Documents grouped into shards: a function of the text alone, so that any number of workers makes the same files."""
    sizes = (found.documents["end"] - found.documents["begin"]).astype(np.int64)
    limit = min(LARGEST_PART, max(SMALLEST_PART, int(sizes.sum()) // 64))
    whole = [
        packed(file.path) for file in found.source.files
    ]  # reading on in its middle means unpacking from its beginning
    made, first, size = [], 0, 0
    for number, (length, file) in enumerate(zip(sizes.tolist(), found.documents["file"].tolist(), strict=True)):
        middle = whole[file] and number > first and found.documents["file"][number - 1] == file
        if size and size + length > (LARGEST_PART if middle else limit):
            made.append((first, number))
            first, size = number, 0
        size += length
    return [*made, (first, len(sizes))]


def _refuse_too_small_disk(partial: Path, plan: Plan, missing: list[int], made: tokenizer.Tokenizer) -> None:
    text = sum(
        int((plan.documents["end"][first:last] - plan.documents["begin"][first:last]).sum())
        for first, last in (plan.parts[part] for part in missing)
    )
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


def _facts(
    partial: Path, found: Scan, plan: Plan, section: DataSection, made: tokenizer.Tokenizer, digest: str
) -> dict[str, Any]:
    files = [ShardFile(partial / shard_name(part)) for part in range(len(plan.parts))]
    held = sum(int(np.diff(file.boundaries)[file.documents["held"] == 1].sum()) for file in files)
    tokens = sum(file.tokens for file in files)
    spec = section.tokenizer
    return {
        "version": shards.FORMAT,
        "digest": digest,
        "source": found.source.name,
        "source_version": found.source.version,
        "license": found.source.license,
        "files": len(np.unique(found.documents["file"])),
        "bytes": found.bytes,
        "vocabulary": made.vocabulary,
        "tokens": tokens - held,
        "documents": int((found.documents["held"] == 0).sum()),
        "held_out_documents": int((found.documents["held"] == 1).sum()),
        "held_out_tokens": held,
        "bytes_per_token": found.bytes / tokens,
        "tokenizer": f"BPE {made.vocabulary}" if isinstance(spec, Trained) else Path(spec).name,
        "notes": [*notes(found.source), *copied(found, section.held_out)],
        "shards": [file.path.name for file in files],
    }


def notes(source: Source) -> list[str]:
    """What was passed over, by its suffix or although it looked like text."""
    found = []
    if source.passed_over:
        found.append(f"not read in {source.name}: {counts(source.passed_over)}. {READS}")
    if source.runs:
        found.append(f"run folders of Argosy in {source.name}: {source.runs:,} passed over")
    if source.unread:
        more = f", and {len(source.unread) - 1} more files" if len(source.unread) > 1 else ""
        found.append(f"{source.unread[0]}{more}: passed over")
    return found


def copied(found: Scan, share: float) -> list[str]:
    """What copies do to the share that is held out, where it is far from the asked one."""
    held, whole = int(found.documents["held"].sum()), len(found.documents)
    copies = whole - len(np.unique(found.documents["hash"]))
    if not copies or held <= max(1.0, 2 * share * whole):
        return []
    return [
        f"the text repeats itself: {copies:,} of {whole:,} documents are copies of others; copies stay together, and so "
        f"{held / whole:.0%} are held out, not {share:.0%}"
    ]
