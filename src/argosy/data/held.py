"""What a run measures itself on, set by set: the reader opens it, so that no worker has to. NumPy only.

In go the run folder and its prepared text, out come `HeldOut`s; workers name them by their place in the list.
"""

from __future__ import annotations

import numpy as np

from argosy.data.batch import HeldOut
from argosy.data.shards import Shards
from argosy.run.folder import Run


def sets(run: Run, shards: Shards) -> list[HeldOut]:
    """All that `run` measures itself on: the held-out documents of `shards`, the text it trains on, then `evaluate.sets`.

    Of those every document is read, the fairest first: in the order of their hash.
    """
    job = run.job()
    found = [HeldOut(shards, job.batch.sequence, job.evaluate.tokens)]
    for _, folder in run.held_sets():
        other = Shards(folder)
        documents = other.by_hash(np.arange(other.documents))
        found.append(HeldOut(other, job.batch.sequence, job.evaluate.tokens, documents))
    return found
