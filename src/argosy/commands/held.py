"""The named held-out sets of a start: prepared with the tokenizer that the run has. No command of its own, no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from argosy.cluster.here import cores
from argosy.data.prepare import Prepared, cache_folder, found, prepare
from argosy.errors import Refused
from argosy.job.load import Loaded
from argosy.job.schema import DataSection, SetSection


def sets(
    loaded: Loaded, prepared: Prepared, progress: Callable[[str, int, int], None], cache: Path | None = None
) -> list[tuple[str, Path]]:
    """Name and folder of each of `evaluate.sets`, in order. Refused, with the set's name, where its text cannot be used.

    `prepared` is the text that is trained on, which has the tokenizer.
    """
    made, base = [], loaded.base
    cache = cache or cache_folder(loaded.job.data, base)
    for one in loaded.job.evaluate.sets:
        section = _section(loaded, one).model_copy(update={"tokenizer": str(prepared.tokenizer)})
        with _named(one):
            text = prepare(section, base=base, cache=cache, progress=progress, workers=cores(), strict=loaded.strict)
        made.append((one.name, text.folder))
    return made


def refuse_missing(loaded: Loaded) -> None:
    """Refused, with the set's name, where one of `evaluate.sets` has no text. Prepares nothing."""
    for one in loaded.job.evaluate.sets:
        with _named(one):
            found(_section(loaded, one), loaded.base)


def _section(loaded: Loaded, one: SetSection) -> DataSection:
    """What is read for the set `one`: as the text that is trained on, whatever its licence."""
    said = {"source": one.source, "field": one.field, "mix": (), "license": "unknown", "licences": ()}
    return loaded.job.data.model_copy(update=said)


@contextmanager
def _named(one: SetSection) -> Iterator[None]:
    """What is refused inside names the set."""
    try:
        yield
    except Refused as refused:
        where = f"evaluate.sets, {one.name}: {refused.where}"
        raise Refused(refused.what, where=where, found=refused.found, do=refused.do, code=refused.code) from None
