"""Argosy trains language models, from one laptop's CPU to fleets of GPUs, and keeps them training.

For notebooks and scripts: `argosy.train`, `argosy.fit`, `argosy.sample`, `argosy.evaluate`, `argosy.Job`, `argosy.Run`. Each is
loaded on first use, so that `import argosy` costs nothing.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from argosy.commands.notebook import Run
    from argosy.job.schema import Job

# name -> where it lives
_PUBLIC = {
    "Job": "argosy.job.schema:Job",
    "Run": "argosy.commands.notebook:Run",
    "Refused": "argosy.errors:Refused",
    "train": "argosy.commands.train:train",
    "fit": "argosy.train.fit:fit",
    "sample": "argosy.commands.sample:sample",
    "evaluate": "argosy.commands.evaluate:evaluate",
}

__all__ = ["Job", "Run", "evaluate", "fit", "sample", "train"]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'argosy' has no attribute {name!r}")
    found = _found(name)
    if name not in _ROOMS:
        globals()[name] = found
        return found
    return import_module(f"argosy.{name}")  # lands in _Package.__setattr__, which makes it callable


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _found(name: str) -> Any:
    module, attribute = _PUBLIC[name].split(":")
    return getattr(import_module(module), attribute)


_ROOMS = ("train", "evaluate")  # rooms of the package whose names are also what a notebook calls


class _Room(ModuleType):
    """A room that can be called: `argosy.train(...)` trains, `argosy.train.worker` is still the module."""

    def __call__(self, *arguments: Any, **keys: Any) -> Any:
        return _found(self.__name__.rpartition(".")[2])(*arguments, **keys)


class _Package(ModuleType):
    """This package: makes the rooms of `_ROOMS` callable when the import system binds them here."""

    def __setattr__(self, name: str, value: object) -> None:
        if name in _ROOMS and isinstance(value, ModuleType):
            value.__class__ = _Room
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
