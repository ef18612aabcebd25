"""Text to shards, once: read, split, train the tokenizer, encode in parallel, keep by content. No torch.

In goes the job's data section, out comes `Prepared`: a folder `CACHE/prepared/DIGEST` that never changes once it has this
name. A preparation that was killed goes on where it was (finished parts stay in DIGEST.partial); two at once wait for each
other; a full disk leaves what was there before. A mix is a folder that names those of its sources, which share a tokenizer.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryFile

from argosy.data import chat, mix, shards, tokenized, tokenizer
from argosy.data.cache import RULES, Asked, alias, alias_file, keep, known, locked, mix_seen, name_of, named, seen_of
from argosy.data.document import Source
from argosy.data.make import ALL_NAMED, make, notes, text_of, trained, write
from argosy.data.prepared import Prepared, cache_folder, full, locate
from argosy.data.scan import Progress, Scan, scan
from argosy.data.sources import find, own
from argosy.data.sources.streams import scheme
from argosy.errors import FULL, Refused
from argosy.job.parts import is_part
from argosy.job.schema import DataSection, Trained

__all__ = [
    "Prepared",
    "cache_folder",
    "changed",
    "found",
    "full",
    "joined",
    "licences",
    "locate",
    "mixture",
    "names",
    "prepare",
    "refuse_unwritable",
    "sources_of",
    "with_earlier",
]


def prepare(
    section: DataSection,
    *,
    base: Path,
    cache: Path,
    progress: Progress | None = None,
    workers: int = 1,
    strict: bool = False,
) -> Prepared:
    """The prepared text of `section`, made now unless it is in `cache`. Paths of the job are seen from `base`.

    `progress(what, done, total)` hears how far it is, `workers` processes encode. strict: the first record that cannot be used
    is refused. Refused for every kind of bad input (code 2) and for a disk that fills up on the way (code 4).
    """
    asked = Asked(section, base, cache / "prepared", progress or (lambda what, done, total: None), workers, strict)
    sources = found(section, base, cache)
    try:
        cache.mkdir(mode=0o700, parents=True, exist_ok=True)  # a new one: what was read is nobody else's business
        asked.home.mkdir(exist_ok=True)
        return _mixed(asked, sources) if section.mix else _one(asked, sources[0])
    except OSError as error:
        if error.errno in FULL:
            raise full(asked.home) from error
        raise _unwritable(Path(error.filename or asked.home), error.strerror or str(error)) from error


def sources_of(section: DataSection) -> list[DataSection]:
    """The section of each source: of a mix its entries, else itself."""
    return [
        section.model_copy(update={"mix": (), "source": one.source, "license": one.license, "field": one.field})
        for one in section.mix
    ] or [section]


def licensed(section: DataSection, source: Source | Prepared) -> str:
    """The licence of one source: what the job says, else what the source itself says, else "unknown"."""
    return section.license if section.license != "unknown" else source.license or "unknown"


def licences(section: DataSection, prepared: Prepared) -> str:
    """The licence of the text of `section`; of a mix, that of each source."""
    rows = mixture(section, prepared)
    return "; ".join(f"{row['source']}: {row['license']}" for row in rows) if section.mix else str(rows[0]["license"])


def found(section: DataSection, base: Path, cache: Path | None = None) -> list[Source]:
    """The files of each source of `section`. Refused where there are none, or where a licence is not allowed."""
    cache = cache_folder(section, base) if cache is None else cache
    return [_found(one, base, cache) for one in sources_of(section)]


def _files(section: DataSection, base: Path, cache: Path) -> Source:
    """The files of one source; those of code of one's own are kept in `cache`."""
    if is_part(section.source):
        return own.find(section.source, cache, section.field or "")
    return find(section.source, base, section.field or "")


def _found(section: DataSection, base: Path, cache: Path) -> Source:
    """The files of one source. Refused where its licence is not allowed."""
    source = _files(section, base, cache)
    terms = licensed(section, source)
    if section.licences and terms.lower() not in {allowed.lower() for allowed in section.licences}:
        raise Refused(
            f"its licence is {terms}, which data.licences does not allow.",
            where=source.where,
            found=f"data.licences = {', '.join(section.licences)}",
            do='Leave it out, or say its licence where you know it: data.license = "...".',
        )
    return source


def _one(asked: Asked, source: Source, found: Scan | None = None) -> Prepared:
    """The prepared text of one source; `found` where it was scanned already."""
    home, recipe, progress = asked.home, asked.recipe, asked.progress
    seen = seen_of(asked, source)
    there = known(home, seen)
    if there is not None:
        return _strictly(asked, there)
    marks: tuple[str, ...] = ()
    if recipe.content is not None:  # refused before the text is read
        marks = tokenizer.parse(recipe.content, f'data.tokenizer = "{asked.section.tokenizer}"').marks
    tokens = None
    if found is None and all(file.kind == "megatron" for file in source.files):
        tokens = tokenized.look(source, recipe, progress)
        found = tokens.found
    elif found is None:
        found = _scanned(asked, source, marks)
    folder = home / name_of(asked.key, source.name, found.digest)
    if recipe.content is not None:  # the same text and ids may have been made when the tokenizer was trained
        folder = alias(home, recipe.content, recipe, source.name, found, folder)
    with locked(folder.with_suffix(".lock"), progress):
        if not (folder / shards.FACTS).is_file():
            if tokens is not None:
                tokenized.make(folder, tokens, recipe)
            else:
                make(folder, found, recipe, progress, asked.workers)
    content = (folder / tokenizer.FILE).read_text(encoding="utf-8")
    write(alias_file(home, content, recipe, source.name, found), folder.name)
    told = notes(found, recipe.held_out)  # the folder may have been made of the same text among other bad records
    made = replace(Prepared.open(folder), bad=found.bad, notes=tuple(told), unread=tuple(source.unread))
    return _strictly(asked, keep(seen, made))


def _scanned(asked: Asked, source: Source, marks: tuple[str, ...] = ()) -> Scan:
    template, share = asked.recipe.template, asked.recipe.held_out
    return scan(source, share, asked.progress, template=template, marks=marks, strict=asked.strict)


def _strictly(asked: Asked, prepared: Prepared) -> Prepared:
    """`prepared`, unless it was made with records left out that must not be."""
    if asked.strict and prepared.bad:
        # Of bad records, else of files of records that cannot be read.
        told = min(prepared.notes, key=lambda note: ("cannot be used" not in note, "passed over" not in note))
        told = told.replace(" and are passed over", "").removesuffix(f". {ALL_NAMED}").removesuffix(": passed over")
        do = "Mend them, or leave --strict away: they are then passed over."
        raise Refused(f"{told}.", where=prepared.source, do=do)
    return prepared


def _mixed(asked: Asked, sources: list[Source]) -> Prepared:
    """The prepared text of a mix. A tokenizer is trained on all of its sources together."""
    home = asked.home
    seen = mix_seen(asked, sources)
    there = known(home, seen)
    if there is not None:
        return _strictly(asked, there)
    scans: list[Scan | None] = [None] * len(sources)
    if asked.recipe.content is None:
        assert isinstance(asked.section.tokenizer, Trained)
        read = [_scanned(asked, source) for source in sources]
        scans = list(read)
        kept = home / f"{name_of('tokenizer', asked.key, *(found.digest for found in read))}.tokenizer"
        if not kept.is_file():
            write(kept, text_of(trained(read, asked.section.tokenizer, asked.progress)))
        asked = asked.with_tokenizer(kept.read_text(encoding="utf-8"))
    parts = [_one(asked, source, found) for source, found in zip(sources, scans, strict=True)]
    made = joined(parts, home, asked.progress)
    told = tuple(note for part in parts for note in part.notes)
    unread = tuple(sentence for part in parts for sentence in part.unread)
    bad = sum(part.bad for part in parts)
    return keep(seen, replace(made, bad=bad, notes=told, unread=unread, parts=tuple(parts)))


def joined(parts: Sequence[Prepared], home: Path, progress: Progress) -> Prepared:
    """The folder of a mix of `parts`, which all lie in `home` and share a tokenizer."""
    names = list(dict.fromkeys(part.folder.name for part in parts))
    if len(names) < len(parts):
        twice = next(
            part.source for part in parts if [other.folder.name for other in parts].count(part.folder.name) > 1
        )
        raise Refused(
            "data.mix names the same text twice.", where=twice, do="Give it once, with the sum of the weights."
        )
    folder = home / name_of("mix", RULES, *names)
    with locked(folder.with_suffix(".lock"), progress):
        if not (folder / shards.FACTS).is_file():
            partial = folder.with_suffix(".partial")
            partial.mkdir(exist_ok=True)
            shards.read_token_bytes(home / names[0])  # refused where it lies, before its damage is copied
            for name in (tokenizer.FILE, shards.TOKEN_BYTES, chat.FILE):
                if (home / names[0] / name).is_file():
                    shutil.copyfile(home / names[0] / name, partial / name)
            write(partial / shards.FACTS, json.dumps({"version": shards.MIXED, "parts": names}) + "\n")
            if folder.exists():
                shutil.rmtree(folder)
            partial.rename(folder)
    return Prepared.open(folder)


def with_earlier(prepared: Prepared, digests: Sequence[str], progress: Progress) -> Prepared:
    """`prepared` and those sources `digests`, which its run read before, that are still there.

    So what a step of the past read can be shown, and a rollback beyond a change of the mix finds its text.
    """
    home = prepared.folder.parent
    own = list(prepared.parts or (prepared,))
    others = [name for name in digests if name not in names(prepared) and (home / name / shards.FACTS).is_file()]
    return joined([*own, *(Prepared.open(home / name) for name in others)], home, progress) if others else prepared


def names(prepared: Prepared) -> list[str]:
    """The sources of `prepared`, by digest."""
    return [part.folder.name for part in prepared.parts or (prepared,)]


def changed(section: DataSection, base: Path, folder: Path) -> bool:
    """Whether the files of `section` are others than those that `folder` was made of; they are not read for it.

    What lies elsewhere counts as unchanged: a run that goes on needs no network.
    """
    if any(scheme(one) for one in (str(section.tokenizer), *(one.source for one in sources_of(section)))):
        return False
    try:
        made = folder.parent / named(_seen_of(section, base, folder.parent))
        return not set(_names(made)) <= set(_names(folder))
    except (OSError, UnicodeDecodeError, Refused):
        return True


def _names(folder: Path) -> list[str]:
    """The sources of a prepared folder, by digest."""
    return [str(name) for name in shards.read_facts(folder).get("parts", [folder.name])]


def mixture(section: DataSection, prepared: Prepared) -> list[dict[str, object]]:
    """What the ledger says of the sources of `section`, which were prepared as `prepared`, or are the first of its parts."""
    asked = sources_of(section)
    weights = [one.weight for one in section.mix] or [1.0]
    parts = (prepared.parts or (prepared,))[: len(asked)]
    return mix.rows(
        [
            (part.source, part.folder.name, weight, licensed(one, part))
            for one, part, weight in zip(asked, parts, weights, strict=True)
        ]
    )


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
        home = cache / "prepared"
        if known(home, _seen_of(section, base, home)) is None:
            raise _unwritable(cache, f"{place} takes no file: {error.strerror or error}") from error


def _unwritable(place: Path, found: str) -> Refused:
    do = "Name a folder that can be written: --data.cache FOLDER."
    return Refused("prepared text cannot be kept there.", where=str(place), found=found, do=do)


def _seen_of(section: DataSection, base: Path, home: Path) -> Path:
    """The file in `home` that names the folder which was made of just the files that `section` means now."""
    asked = Asked(section, base, home, lambda what, done, total: None, 1, False)
    sources = [_files(one, base, home.parent) for one in sources_of(section)]
    return mix_seen(asked, sources) if section.mix else seen_of(asked, sources[0])
