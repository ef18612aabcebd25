"""How a rank ended where it could not go on: what kind of end an error is, and the sentence a person reads.

In: an exception. Out: a word for whoever watches (`policy/rules.py` decides by it) and a Refused with its code. Does nothing.
"""

from __future__ import annotations

import torch.distributed as dist

from argosy.device.memory import ran_out
from argosy.errors import FULL, MACHINE, NO, Refused


def explained(error: BaseException, rank: int) -> tuple[str, Refused | None]:
    """What kind of end `error` is, for whoever watches, and the sentence for it; None where it is a bug."""
    if isinstance(error, Refused):
        return "diverged" if error.code == NO else "refused", error
    text = str(error)
    if ran_out(error):
        do = "Use less: --batch.micro, --batch.sequence, or more workers."
        return "out_of_memory", Refused(f"rank {rank} is out of memory.", found=text[:200], do=do, code=MACHINE)
    if isinstance(error, OSError) and error.errno in FULL:
        return "out_of_disk", Refused(f"{FULL[error.errno]}.", where=str(error.filename or ""), code=MACHINE)
    gone = isinstance(error, dist.DistError) or ("gloo" in text.lower() and isinstance(error, RuntimeError))
    if gone or isinstance(error, ConnectionError):
        return "peer", Refused(
            f"rank {rank} lost the connection to a peer.", found=text.splitlines()[0][:200], code=MACHINE
        )
    return "bug", None
