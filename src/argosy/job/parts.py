"""Code of one's own that a job names, as "mine.py:Model" or "package.module:Model": found, checked, imported.

The rule of trust: a job file is code that its owner trusts, so what it names is imported. A run folder, a checkpoint, a folder
of weights or a cache is data of whoever made it: nothing in one is ever imported, and what its job names only where the user
says so (`refuse_untrusted`). `check` reads a file without running it; only `load` runs anything.
"""

from __future__ import annotations

import ast
import importlib.machinery
import importlib.util
import os
import re
import sys
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from hashlib import blake2b
from pathlib import Path
from types import CodeType
from typing import Any

from argosy.errors import Refused
from argosy.job import paths
from argosy.job.schema import Job

_PART = re.compile(r"(?P<place>[^:]+):(?P<name>[A-Za-z_][A-Za-z0-9_]*)")
_MODULE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*")
WRITE = 'Write "file.py:NAME", or "module:NAME" for one that Python can import.'
LARGEST = 4 << 20  # bytes of a file of code
# Who keeps what was downloaded where it says.
CACHES = ("HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_ASSETS_CACHE", "HF_MODULES_CACHE", "ARGOSY_CACHE")


def is_part(text: str) -> bool:
    """Whether `text` has the form of a part's name: a .py file or a module, a colon, a name."""
    match = _PART.fullmatch(text)
    return match is not None and (match["place"].endswith(".py") or _MODULE.fullmatch(match["place"]) is not None)


def located(text: str, base: Path) -> str:
    """`text` with its file seen from `base`, as path values of a job are; a module's name stays as it is."""
    place, _, name = text.rpartition(":")
    return f"{paths.resolve(place, base)}:{name}" if is_part(text) and place.endswith(".py") else text


def named(job: Job) -> Iterator[tuple[str, str]]:
    """(key, name) of every part that `job` names."""
    model, loss = getattr(job.model, "class"), job.train.loss
    if model is not None:
        yield "model.class", model
    if loss is not None:
        yield "train.loss", loss
    for name in job.train.callbacks:
        yield "train.callbacks", name
    for key, sources in (
        ("data.source", () if job.data.mix else (job.data.source,)),
        ("data.mix", tuple(one.source for one in job.data.mix)),
        ("evaluate.sets", tuple(one.source for one in job.evaluate.sets)),
    ):
        yield from ((key, source) for source in sources if is_part(source))


def check_all(job: Job, written: Mapping[str, str]) -> None:
    """`check` for every part that `job` names; `written` tells where each key stands."""
    for key, name in named(job):
        check(key, name, written.get(key, ""))


def check(key: str, text: str, where: str = "") -> None:
    """Refused where `text` (its file absolute) names nothing that may be imported. Runs none of it."""
    said = f"{key} = {text}" + (f" ({where})" if where else "")
    if not is_part(text):
        raise Refused("this names no code.", where=said, do=WRITE)
    place, _, name = text.rpartition(":")
    file = Path(place) if place.endswith(".py") else _file_of(place, said)
    if file is None:
        return
    _refuse_downloaded(file, said)
    source = paths.content(file, where=said, most=LARGEST, do=WRITE)
    try:
        tree = ast.parse(source, filename=str(file))
    except (SyntaxError, ValueError, RecursionError) as error:
        line = getattr(error, "lineno", None)
        raise Refused(
            f"{file.name} is no Python: {getattr(error, 'msg', None) or error}.",
            where=f"{said}: line {line}" if line else said,
        ) from None
    there = list(_names(tree))
    if name not in there and "*" not in there:
        close = get_close_matches(name, there, 1)
        shown = ", ".join(one for one in there if not one.startswith("_"))[:200]
        do = f"Did you mean {close[0]}?" if close else WRITE
        raise Refused(f"{file.name} has no {name}.", where=said, found=shown or "nothing with a name", do=do)


def load(key: str, text: str) -> Any:
    """What `text` names, imported: runs the file's own code. Refused where it cannot be imported or does not hold the name."""
    check(key, text)
    place, _, name = text.rpartition(":")
    try:
        module = _imported(Path(place)) if place.endswith(".py") else importlib.import_module(place)
    except Refused:
        raise
    except Exception as error:  # somebody's code, which may fail in any way
        line = _line_of(error, place)
        told = str(error).strip().splitlines()
        raise Refused(
            f"it cannot be imported: {type(error).__name__}: {told[0][:200] if told else ''}",
            where=f"{key} = {text}" + (f", line {line}" if line else ""),
        ) from error
    if not hasattr(module, name):
        raise Refused(f"{place} has no {name}.", where=f"{key} = {text}")
    return getattr(module, name)


def refuse_untrusted(job: Job, where: str, *, trust: bool = False) -> None:
    """Refused where the model of a run is code that its own folder names, unless the user trusts it."""
    model = getattr(job.model, "class")
    if model is not None and not trust:
        raise Refused(
            "the model of this run is code of its own, and a run folder by itself runs no code.",
            where=where,
            found=f"model.class = {model}",
            do="If you know that file and trust it: --trust (from Python: trust=True).",
        )


def facts(job: Job) -> list[dict[str, str]]:
    """What a run keeps about the code that its job names: key, name, and a hash of the file as it is now."""
    return [{"key": key, "name": name, "digest": digest(name)} for key, name in named(job)]


def digest(text: str) -> str:
    """A hash of the file that `text` (its file absolute) names; "" for a module."""
    place = text.rpartition(":")[0]
    try:
        return blake2b(Path(place).read_bytes(), digest_size=16).hexdigest() if place.endswith(".py") else ""
    except OSError:
        return ""


def downloaded(file: Path) -> str:
    """Whose data the folder of `file` is, in words: a run, a folder of weights, a cache; "" for one's own."""
    for place in (Path(os.path.abspath(file)), file.resolve()):
        for folder in place.parents:
            if (folder / "run.json").is_file():
                return f"{folder} is a run folder"
            if (folder / "config.json").is_file() and any(
                next(folder.glob(kind), None) is not None for kind in ("*.safetensors", "*.bin", "*.gguf")
            ):
                return f"{folder} is a folder of weights"
        kept = [os.environ[name] for name in CACHES if os.environ.get(name)]
        for cache in (*kept, "~/.cache/huggingface", "~/.cache/argosy"):
            if place.is_relative_to(Path(os.path.abspath(os.path.expanduser(cache)))):
                return f"{cache} is a cache of what was downloaded or prepared"
    return ""


def _refuse_downloaded(file: Path, where: str) -> None:
    whose = downloaded(file)
    if whose:
        raise Refused(
            "code is not run from there.",
            where=where,
            found=whose,
            do="If you have read it and trust it, copy the file beside your job and name that.",
        )


def _file_of(module: str, where: str) -> Path | None:
    """The file of a module, found without importing it or its packages; None where it is none of Python's own making."""
    folders: list[str] | None = None
    origin: str | None = None
    for part in module.split("."):
        try:
            spec = importlib.machinery.PathFinder.find_spec(part, folders)
        except (ImportError, ValueError):
            spec = None
        if spec is None:
            if folders is None and part in sys.builtin_module_names:
                return None
            raise Refused(
                f"there is no module {module}.",
                where=where,
                found=f"no {part} on Python's path",
                do='Install it, set PYTHONPATH, or name its file: "path/mine.py:NAME".',
            )
        folders, origin = list(spec.submodule_search_locations or ()), spec.origin
    return Path(origin) if origin and origin.endswith(".py") else None


def _names(tree: ast.Module) -> Iterator[str]:
    """What a module defines at its top, "*" where it takes over all of another."""
    pending: list[ast.stmt] = list(tree.body)
    while pending:
        node = pending.pop(0)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Import | ast.ImportFrom):
            yield from (alias.asname or alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from (one.id for target in targets for one in ast.walk(target) if isinstance(one, ast.Name))
        elif isinstance(node, ast.If | ast.Try | ast.With):
            pending = [*(one for one in ast.iter_child_nodes(node) if isinstance(one, ast.stmt)), *pending]


class _AsItStands(importlib.machinery.SourceFileLoader):
    """Reads a file anew each time: Python's cache of bytecode takes a change within the same second for none."""

    def get_code(self, fullname: str) -> CodeType:
        """The code of the file as it is now; nothing is written beside it."""
        code: CodeType = self.source_to_code(self.get_data(self.path), self.path)
        return code


def _imported(file: Path) -> Any:
    """The module of a file, run once in this process. Modules beside it can be imported by it."""
    name = f"argosy_part_{blake2b(os.fsencode(file), digest_size=6).hexdigest()}_{file.stem}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, file, loader=_AsItStands(name, str(file)))
    if spec is None or spec.loader is None:
        raise Refused("this is no Python file.", where=str(file), do=WRITE)
    if str(file.parent) not in sys.path:
        sys.path.append(str(file.parent))
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and the like look there for the module of what they make
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _line_of(error: BaseException, place: str) -> int | None:
    """The line of the file `place` at which `error` came up."""
    found, trace = None, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == place:
            found = trace.tb_lineno
        trace = trace.tb_next
    return found
