"""Where a run comes from: commit, uncommitted changes, versions, environment. Secrets are masked before anything is kept."""

from __future__ import annotations

import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from importlib import metadata
from pathlib import Path
from typing import Any

from argosy.job import paths

MASK = "***"
ENVIRONMENT = ("ARGOSY_*", "CUDA_*", "MKL_*", "NCCL_*", "OMP_*", "SLURM_JOB*", "TORCH_*", "TORCHINDUCTOR_*")
PACKAGES = ("argosy", "torch", "numpy", "pyarrow", "safetensors", "tokenizers")
DIFF_BYTES = 1_000_000  # longer ones are cut, and say so

_CREDENTIALS = re.compile(r"(?<=://)[^\s/@\"']+@")
_SIGNED = re.compile(r"([?&][\w.-]*(?:key|token|secret|password|signature|sig|credential)[\w.-]*=)[^\s&\"']+", re.I)
# A name that holds a secret, then what a shell, a TOML file or Python would assign to it. Plurals such as
# `tokens = 4096` and words such as `tokenizer` are the field's own and no secrets.
_NAME = r"[\w.-]*(?:key|token|secret|password)(?!s\b|iz)[\w.-]*"
_ASSIGNED = re.compile(rf"(\b{_NAME}[\"']?\s*[:=]\s*)([\"'])(?:(?!\2).)+\2", re.I)
_BARE = re.compile(r"(\b[A-Z0-9_]*(?:KEY|TOKEN|SECRET|PASSWORD)(?!S\b|IZ)[A-Z0-9_]*=)[^\s\"']+")
_OPTION = re.compile(rf"(--{_NAME}[= ])(?!-)\S+", re.I)


def mask(text: str) -> str:
    """`text` with the values of secret names, credentials in URLs and signed queries replaced by ***."""
    text = _CREDENTIALS.sub(f"{MASK}@", text)
    text = _SIGNED.sub(rf"\g<1>{MASK}", text)
    text = _ASSIGNED.sub(rf"\g<1>\g<2>{MASK}\g<2>", text)
    text = _BARE.sub(rf"\g<1>{MASK}", text)
    return _OPTION.sub(rf"\g<1>{MASK}", text)


def environment(variables: Mapping[str, str]) -> dict[str, str]:
    """The variables that say how a run was made: those of ENVIRONMENT, secret ones masked."""
    kept = {}
    for name in sorted(variables):
        if any(fnmatchcase(name, pattern) for pattern in ENVIRONMENT):
            kept[name] = MASK if paths.secret_name(name) else mask(variables[name])
    return kept


def versions() -> dict[str, str]:
    """Versions of what computes, by package, without importing any."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def origin(arguments: Sequence[str] | None = None, source: Path | None = None) -> dict[str, Any]:
    """What run.json keeps of where a run comes from: versions, platform, command, commit, environment."""
    commit, changed = code(source or Path(__file__).parent)
    found = versions()
    return {
        "argosy": found.get("argosy", "?"),
        "torch": found.get("torch", "?"),
        "python": found["python"],
        "versions": found,
        "platform": platform.platform(),
        "host": platform.node(),
        "command": mask(shlex.join(arguments if arguments is not None else ["argosy", *sys.argv[1:]])),
        "commit": commit,
        "uncommitted": bool(changed),
        "environment": environment(os.environ),
    }


def code(folder: Path) -> tuple[str | None, str]:
    """(commit, uncommitted changes as a masked patch) of the checkout that `folder` is part of; (None, "") outside of one.

    A program installed into somebody's repository, but not kept by it, is none of that repository's code.
    """
    commit = _git(folder, "rev-parse", "HEAD")
    if not commit or not _git(folder, "ls-files", "."):
        return None, ""
    patch = _git(folder, "diff", "HEAD", "--no-color", "--no-ext-diff")
    if len(patch) > DIFF_BYTES:
        patch = patch[:DIFF_BYTES] + f"\n... cut: {len(patch):,} characters in all\n"
    return commit.strip(), mask(patch)


def keep_patch(run: Path, source: Path | None = None) -> None:
    """Write the uncommitted changes of the program's checkout to diff.patch of the run folder, where there are any."""
    _, patch = code(source or Path(__file__).parent)
    if patch:
        (run / "diff.patch").write_text(patch, encoding="utf-8")


def _git(folder: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            timeout=10,
            check=False,
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},  # a reader must not touch the index
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.decode("utf-8", errors="replace") if done.returncode == 0 else ""
