"""Path values of a job: where a relative one starts, "~" and "${NAME}"; what counts as a secret; small files that are read.

Reads the environment.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from argosy.errors import Refused
from argosy.quantities import bytes_text

LARGEST_FILE = 64 << 20  # bytes of a file that is read whole
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
        """The value of the variable that was found."""
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


def content(path: Path, *, where: str = "", most: int | None = LARGEST_FILE, do: str = "") -> str:
    """The UTF-8 text of the file at `path`, its byte-order mark left out; `most` bytes, None = any length.

    Refused for what is no regular file (a pipe would wait for ever, a device has no end), is too large, or is no text.
    """
    where = where or str(path)
    try:
        if path.exists() and not path.is_file():
            kind = "a folder" if path.is_dir() else "neither a file nor a folder"
            raise Refused("this is no regular file.", where=where, found=kind, do=do)
        size = path.stat().st_size
        if most is not None and size > most:
            raise Refused(
                f"this file is too large: at most {bytes_text(most)}.", where=where, found=bytes_text(size), do=do
            )
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise Refused("this cannot be read.", where=where, found=error.strerror or str(error), do=do) from None
    except UnicodeDecodeError as error:
        found = f"byte {error.start} is {error.reason}"
        raise Refused("this is no UTF-8 text.", where=where, found=found, do=do) from None
