"""The named held-out sets of a start: prepared with the tokenizer that the run has. No command of its own, no torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from argosy.cluster.here import cores
from argosy.data.prepare import Prepared, cache_folder, prepare
from argosy.errors import Refused
from argosy.job.load import Loaded


def sets(
    loaded: Loaded, prepared: Prepared, progress: Callable[[str, int, int], None], cache: Path | None = None
) -> list[tuple[str, Path]]:
    """Name and folder of each of `evaluate.sets`, in order. Refused, with the set's name, where its text cannot be used.

    `prepared` is the text that is trained on, which has the tokenizer.
    """
    data, found = loaded.job.data, []
    cache = cache or cache_folder(data, loaded.base)
    for one in loaded.job.evaluate.sets:
        said = {"source": one.source, "field": one.field, "tokenizer": str(prepared.tokenizer)}
        section = data.model_copy(update={**said, "mix": (), "license": "unknown", "licences": ()})
        try:
            made = prepare(
                section, base=loaded.base, cache=cache, progress=progress, workers=cores(), strict=loaded.strict
            )
        except Refused as refused:
            where = f"evaluate.sets, {one.name}: {refused.where}"
            raise Refused(refused.what, where=where, found=refused.found, do=refused.do, code=refused.code) from None
        found.append((one.name, made.folder))
    return found
