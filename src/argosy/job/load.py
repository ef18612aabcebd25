"""A job from TOML files and overrides: every value with the file and line that said it. Knows no machine.

In: the name of a shipped job or a path, and overrides in either spelling. Out: `Loaded`, whose `job` is as asked (None and
"auto" where nothing was said). Later levels replace earlier ones: parents first, then the file, then the command line.
"""

from __future__ import annotations

import datetime
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from argosy.errors import Refused
from argosy.job import check, leaves, parts, paths
from argosy.job.check import COMMAND_LINE
from argosy.job.lines import line, lines
from argosy.job.schema import VERSION, Job
from argosy.job.text import job_text

_PAIR = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*=")  # KEY=VALUE, told from a path that holds "="
LENGTH = ("train.tokens", "train.steps", "train.time")
OWN = ("model.init", "model.class")  # keys of the model that are no part of its shape


@dataclass(frozen=True)
class Level:
    """What one file, or the command line, says: dotted key -> value, and where each stands."""

    name: str
    base: Path
    values: dict[str, Any]
    origins: dict[str, str]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Loaded:
    """A job as asked. written: leaf key -> origin ("my.toml:14", "command line") for what somebody wrote."""

    job: Job
    written: dict[str, str]
    chain: list[str]  # the files, parents first
    base: Path  # the folder of the job file; relative paths start there
    strict: bool = False  # refuse where asked and in force would differ
    values: dict[str, Any] = field(default_factory=dict)  # leaf key -> value as written
    notes: tuple[str, ...] = ()  # what was said that has no effect
    shape: Mapping[str, Any] = field(default_factory=dict)  # dotted keys that the first weights say about the model

    @property
    def text(self) -> str:
        """All that was said, parents and overrides included, as one job file: what a run folder keeps."""
        return job_text(self.values)


def shipped() -> list[str]:
    """Names of the jobs that come with the package."""
    return sorted(entry.name[:-5] for entry in files("argosy.jobs").iterdir() if entry.name.endswith(".toml"))


def load(name: str | None = None, overrides: Sequence[str] = (), *, strict: bool = False) -> Loaded:
    """The job `name` (None = "laptop") with `overrides`: "optim.lr=3e-4", "--optim.lr=3e-4" or "--optim.lr", "3e-4".

    Refused, with place and remedy, for whatever is no job.
    """
    levels, chain = _chain(name or "laptop")
    base = levels[-1].base
    said = _overrides(overrides)
    return _join([*levels, said] if said.values else levels, chain, base, strict)


def job_from(values: Mapping[str, Any], overrides: Sequence[str] = (), *, strict: bool = False) -> Loaded:
    """The job that a nested dict describes, as the Python API takes it; "extends" and `overrides` work as in `load`."""
    text = _plain_table(values)
    level = _level(text, "job", Path.cwd(), {})
    parents, chain = ([], []) if text.get("extends") is None else _chain(str(text["extends"]))
    said = _overrides(overrides)
    levels = [*parents, level, said] if said.values else [*parents, level]
    return _join(levels, [*chain, "job"], Path.cwd(), strict)


def _plain_table(values: Mapping[str, Any]) -> dict[str, Any]:
    """Nested dicts, dotted keys resolved, sections as tables, None left out."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        value = leaves.plain(value)
        if value is None:
            continue
        table = found
        *sections, last = key.split(".")
        for section in sections:
            table = table.setdefault(section, {})
        if isinstance(value, Mapping):
            table.setdefault(last, {}).update(_plain_table(value))
        else:
            table[last] = value
    return found


def _chain(
    name: str, seen: tuple[str, ...] = (), asked_by: str = "", base: Path | None = None
) -> tuple[list[Level], list[str]]:
    """The levels of the job `name`, parents first, and their names."""
    text, label, folder, identity = _text(name, base or Path.cwd(), asked_by)
    if identity in seen:
        raise Refused(
            f'extends = "{name}" leads back to {label}.', where=asked_by, do="A job cannot be its own parent."
        )
    values, places = _parse(text, label)
    level = _level(values, label, folder, places)
    parent = values.get("extends")
    if parent is None:
        return [level], [label]
    if not isinstance(parent, str):
        raise Refused(
            "extends names one parent, as text.", where=level.origins.get("extends", label), found=repr(parent)
        )
    above, names = _chain(parent, (*seen, identity), level.origins.get("extends", label), folder)
    return [*above, level], [*names, label]


def _text(name: str, base: Path, asked_by: str) -> tuple[str, str, Path, str]:
    """Text, label for messages, folder and identity of the job file that `name` means."""
    known = shipped()
    if name in known:
        return (
            files("argosy.jobs").joinpath(f"{name}.toml").read_text(encoding="utf-8"),
            f"{name}.toml",
            Path.cwd(),
            name,
        )
    path = Path(paths.resolve(name, base))
    if not path.exists():
        close = get_close_matches(name, known, 1)
        guess = (
            f"Did you mean {close[0]}?" if close else f"Shipped jobs: {', '.join(known)}. `argosy new NAME` writes one."
        )
        raise Refused(f"{name} is no job file and no shipped job.", where=asked_by, do=guess)
    if path.is_dir():
        hint = (
            f"Give the file: {name}/job.toml"
            if (path / "job.toml").exists()
            else "Give a .toml file, or a shipped job."
        )
        raise Refused(f"{name} is a folder, not a job file.", where=asked_by, do=hint)
    text = paths.content(path, where=": ".join(filter(None, (asked_by, name))), do="A job is a TOML file in UTF-8.")
    label = str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
    return text, label, path.parent, str(path.resolve())


def _parse(text: str, label: str) -> tuple[dict[str, Any], dict[tuple[str, ...], int]]:
    text = text.replace("\r\n", "\n")
    try:
        return tomllib.loads(text), lines(text)
    except tomllib.TOMLDecodeError as error:
        place = re.search(r" \(at line (\d+), column \d+\)", str(error))
        where = f"{label}:{place[1]}" if place else label
        what = str(error).replace(place[0], "") if place else str(error)
        do = 'Texts and quantities are quoted: tokens = "1.3M".'
        raise Refused(f"this is no TOML: {what}.", where=where, do=do) from None
    except RecursionError:
        raise Refused("this is no job: its brackets go too deep.", where=label) from None


def _level(values: dict[str, Any], label: str, base: Path, places: dict[tuple[str, ...], int]) -> Level:
    flat = leaves.flat(values)
    origins = {}
    for key in flat:
        number = line(places, tuple(key.split(".")))
        origins[key] = f"{label}:{number}" if number else label
    version = flat.get("version", VERSION)
    if version != VERSION:
        newer = isinstance(version, int) and version > VERSION
        raise Refused(
            f"this Argosy reads job files of version {VERSION}.",
            where=origins.get("version", label),
            found=f"version = {version}",
            do="Install a newer Argosy." if newer else f"Upgrade the file: argosy job upgrade {label} --write",
        )
    return Level(label, base, flat, origins)


def split(words: Sequence[str]) -> tuple[str | None, list[str]]:
    """The job that the words of a command line name, None where they name none, and its overrides."""
    names, pairs = spelt(words)
    if len(names) > 1:
        raise Refused(
            f"{names[1]} is neither an option nor KEY=VALUE.",
            where=COMMAND_LINE,
            do=f"The job is {names[0]}. Write --optim.lr 3e-4 or optim.lr=3e-4; quote a value with spaces.",
        )
    return (names[0] if names else None), [f"{key}={text}" for key, text in pairs]


def _overrides(words: Sequence[str]) -> Level:
    values: dict[str, Any] = {}
    notes = []
    names, pairs = spelt(words)
    if names:
        raise Refused(
            f"{names[0]} is neither an option nor KEY=VALUE.",
            where=COMMAND_LINE,
            do="Write --optim.lr 3e-4 or optim.lr=3e-4; quote a value with spaces.",
        )
    for key, text in pairs:
        if key in ("extends", "version"):
            raise Refused(f"{key} belongs into a job file.", where=COMMAND_LINE, found=f"{key}={text}")
        value = _value(key, text)
        if values.setdefault(key, value) != value:
            notes.append(f"{key} is given twice, the last counts: {text}")
        values[key] = value
    flat = leaves.flat(_plain_table(values))
    return Level(COMMAND_LINE, Path.cwd(), flat, dict.fromkeys(flat, COMMAND_LINE), tuple(notes))


def spelt(words: Sequence[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """The words that are no overrides, and (key, text) of each override, whichever way it is spelt."""
    known = leaves.fields()
    names: list[str] = []
    pairs: list[tuple[str, str]] = []
    index = 0
    while index < len(words):
        word = words[index]
        index += 1
        option = word.startswith("--")
        key, equals, text = word.removeprefix("--").partition("=")
        if equals and (option or _PAIR.match(word)):
            pairs.append((key.strip(), text))
        elif not option:
            names.append(word)
        elif key in known and leaves.accepts(known[key], bool) and not _boolean(words[index : index + 1]):
            if words[index : index + 1] and words[index].lower() in ("yes", "no", "on", "off", "0", "1"):
                raise Refused(f"--{key} {words[index]}: write true or false.", where=COMMAND_LINE)
            pairs.append((key, "true"))
        elif index < len(words) and (key in known or "." in key) and not _is_pair(words[index]):
            pairs.append((key, words[index]))
            index += 1
        else:
            raise _no_value(key, key in known)
    return names, pairs


def _no_value(key: str, known: bool) -> Refused:
    if known:
        return Refused(f"--{key} has no value.", where=COMMAND_LINE, do=f"Write --{key} VALUE or {key}=VALUE.")
    guess = leaves.nearest(key)
    do = f"Did you mean --{guess}?" if guess else "`argosy job schema` lists all keys."
    return Refused(f"--{key} is no option and no key.", where=COMMAND_LINE, do=do)


def _boolean(words: Sequence[str]) -> bool:
    """Whether the next word is the value of a switch, rather than the job or another option."""
    return bool(words) and words[0].lower() in ("true", "false", "auto")


def _is_pair(word: str) -> bool:
    """Whether `word` is an option or override of its own, and so no value."""
    key, equals, _ = word.partition("=")
    return (word.startswith("--") and len(word) > 2) or (bool(equals) and key in leaves.fields())


def _value(key: str, text: str) -> Any:
    """The value an override means: TOML where it is TOML, a bare word as text."""
    known = leaves.fields().get(key)
    try:
        value: Any = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
    if isinstance(value, datetime.date | datetime.time | datetime.datetime):
        return text
    if known is not None and isinstance(value, int | float):
        wanted = float if isinstance(value, float) else bool if isinstance(value, bool) else int
        numeric = leaves.accepts(known, wanted) or leaves.accepts(known, float) or leaves.accepts(known, int)
        if leaves.accepts(known, str) and not numeric:
            return text
    return value


def _join(levels: list[Level], chain: list[str], base: Path, strict: bool) -> Loaded:
    """All levels in one job, checked."""
    known = leaves.fields()
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    ranks: dict[str, int] = {}
    for rank, level in enumerate(levels):
        for key in _replaced(level, values):
            del values[key], origins[key], ranks[key]
        for key, value in level.values.items():
            if key in known:
                value = _located(key, value, level)
            values[key], origins[key], ranks[key] = value, level.origins[key], rank
    if unknown := [key for key in values if key not in known]:
        found = [check.unknown(unknown, values, origins)]
        try:  # the other mistakes are told with them
            _validated({key: value for key, value in values.items() if key in known}, origins)
        except Refused as error:
            found.append(error)
        raise check.together(found)
    for key in check.overruled(values, ranks):
        del values[key], origins[key], ranks[key]
    values.pop("extends", None)
    origins.pop("extends", None)
    job = _validated(values, origins)
    check.check(job, values, origins)
    return Loaded(job, origins, chain, base, strict, values, levels[-1].notes)


def _replaced(level: Level, below: Mapping[str, Any]) -> list[str]:
    """Keys of lower levels that `level` makes void: another length, or the shape that its preset or first weights bring."""
    said = [key for key in LENGTH if key in level.values]
    if len(said) > 1:
        raise Refused(
            f"{said[0]} and {said[1]} both say how long the run is.",
            where=level.origins[said[1]],
            do="Keep one of train.tokens, train.steps, train.time.",
        )
    void = [key for key in LENGTH if said and key in below and key not in level.values]
    started = level.values.get("model.init", "random") != "random"
    if "model.preset" in level.values or started:
        void += [key for key in below if key.startswith("model.") and key not in level.values and key not in OWN]
    if "data.source" in level.values and "data.license" in below and "data.license" not in level.values:
        void.append("data.license")  # it was the other text's
    if "data.source" in level.values and "data.mix" in below and "data.mix" not in level.values:
        void.append("data.mix")
    return void


def _located(key: str, value: Any, level: Level) -> Any:
    """Path values seen from the folder of the file that said them."""
    if key in ("data.mix", "evaluate.sets") and isinstance(value, list):
        return [_entry(key, one, level) for one in value]
    if isinstance(value, list):
        return [_located(key, one, level) if isinstance(one, str) else one for one in value]
    extra = leaves.fields()[key].json_schema_extra
    word = extra.get("path") if isinstance(extra, dict) else None
    part = (
        isinstance(value, str)
        and parts.is_part(value)
        and isinstance(extra, dict)
        and bool({"path", "part"} & {*extra})
    )
    if not part and (word is None or not isinstance(value, str) or value == word):
        return value
    try:
        return parts.located(value, level.base) if part else paths.resolve(value, level.base)
    except Refused as error:
        raise Refused(f"{key}: {error.what}", where=level.origins[key], found=error.found, do=error.do) from None


def _entry(key: str, value: Any, level: Level) -> Any:
    """One table of data.mix or evaluate.sets, its source seen from the folder of the file that said it."""
    if not isinstance(value, dict) or not isinstance(value.get("source"), str):
        return value
    origins = {"data.source": level.origins.get(key, level.name)}
    source = _located("data.source", value["source"], Level(level.name, level.base, {}, origins))
    return {**value, "source": source}


def _validated(values: dict[str, Any], origins: dict[str, str]) -> Job:
    try:
        return Job.model_validate(leaves.nested(values))
    except ValidationError as error:
        raise check.invalid(error, values, origins) from None
