"""The built-in text: the standard library of the interpreter that runs, by a fixed list of rules. Standard library only.

Nothing is shipped or fetched: the files are read where they lie. Their licence is the PSF's. Interpreters differ between
versions and packagers, so version and hash are recorded with every run.
"""

from __future__ import annotations

import os
import platform
import sys
import sysconfig
from fnmatch import fnmatchcase
from pathlib import Path

from argosy.data.document import File, Source
from argosy.errors import Refused

LICENSE = "PSF-2.0"
FEWEST = 300  # files below which the library was stripped; CPython 3.11 to 3.14 have 440 to 480 by these rules

# Folders, anywhere below the library, that are left out whole.
FOLDERS = (
    "__pycache__",
    "site-packages",  # what was installed beside it
    "dist-packages",
    "test",  # tests teach assertions, and packagers strip them
    "tests",
    "idlelib",
    "idle_test",
    "lib2to3",  # a program's grammar tables; gone in 3.13
    "encodings",  # generated character tables
    "pydoc_data",  # generated help text
    "config-*",  # how this interpreter was built
    "lib-dynload",
)
# Files, by their name, that are generated tables or hold paths of this machine.
FILES = ("_sysconfigdata*", "entities.py")


def python(root: Path | None = None) -> Source:
    """The corpus `python`, of the running interpreter or of the library at `root`.

    Refused when so much is missing that a model would learn little.
    """
    root = root or Path(sysconfig.get_paths()["stdlib"])
    files = collect(root)
    if len(files) < FEWEST:
        raise Refused(
            "the standard library of this interpreter has been stripped, so there is no built-in text.",
            where='data.source = "python"',
            found=f"{len(files)} .py files in {root} where {FEWEST} or more are expected",
            do=f"Install the full one (Debian, Ubuntu: apt install libpython{sys.version_info[0]}.{sys.version_info[1]}-stdlib;"
            " Fedora: dnf install python3-libs), or train on your own text: --data.source FOLDER.",
        )
    version = f"{platform.python_implementation()} {platform.python_version()}"
    return Source("python", 'data.source = "python"', files, version, LICENSE)


def collect(root: Path) -> list[File]:
    """The .py files below `root` that the rules keep, by name."""
    files = []
    for folder, inner, names in os.walk(root):
        inner[:] = [name for name in inner if not any(fnmatchcase(name, rule) for rule in FOLDERS)]
        for name in names:
            path = Path(folder, name)
            out = not name.endswith(".py") or any(fnmatchcase(name, rule) for rule in FILES)
            if not out and path.is_file() and (size := path.stat().st_size):
                files.append(File(path, path.relative_to(root).as_posix(), size))
    return sorted(files, key=lambda file: file.name)
