"""Path values of a job: where a relative one starts, "~" and "${NAME}"; and what counts as a secret. Reads the environment."""

from __future__ import annotations

import os
import re
from pathlib import Path

from argosy.errors import Refused

_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
_SECRET_NAME = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL", re.IGNORECASE)


def secret_name(name: str) -> bool:
    """Whether an environment variable or key called `name` is taken to hold a secret."""
    return bool(_SECRET_NAME.search(name))


def masked(text: str) -> str:
    """`text` with the values of environment variables that hold secrets replaced by their names."""
    for name, value in os.environ.items():
        if len(value) >= 6 and secret_name(name) and value in text:
            text = text.replace(value, "${" + name + "}")
    return text


def expand(text: str, *, secrets: bool = True) -> str:
    """`text` with "~" and "${NAME}" replaced. With secrets=False names that look like a secret's stay as they are.

    Refused where a variable is not set.
    """

    def value(match: re.Match[str]) -> str:
        if secret_name(match[1]) and not secrets:
            return match[0]
        if match[1] not in os.environ:
            raise Refused(f"${{{match[1]}}} is not set.", found=text, do=f"Set it: export {match[1]}=...")
        return os.environ[match[1]]

    expanded = _VARIABLE.sub(value, text)
    return os.path.expanduser(expanded) if expanded.startswith("~") else expanded


def resolve(text: str, base: Path) -> str:
    """A path value as it is kept in a job: absolute, seen from `base`; an address with "://" and secrets' names stay."""
    expanded = expand(text, secrets=False)
    if "://" in expanded or not expanded or _VARIABLE.search(expanded):
        return expanded
    return os.path.normpath(base / expanded)
