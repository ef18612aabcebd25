"""Where text comes from: one file for each kind of source. No torch."""

from __future__ import annotations

from pathlib import Path

from argosy.data import corpus
from argosy.data.document import Source
from argosy.data.sources import text


def find(source: str, base: Path) -> Source:
    """The files behind the job's `data.source`; relative paths are seen from `base`. Refused when nothing is readable."""
    found = corpus.python() if source == "python" else text.find(source, base)
    if not found.files:
        raise text.nothing(found)
    return found
