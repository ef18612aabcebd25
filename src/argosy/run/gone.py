"""Whether a run's folder was moved or removed while the run went, and where it lies then. Knows nothing of what trains.

Whoever leads a run asks now and then: what writes by the old name would fail, or begin a second folder there.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path

from argosy.errors import MACHINE, Refused
from argosy.run.folder import Run


def gone(run: Run, identity: object) -> bool:
    """Whether the run with this id lies at `run` no more. A disk that does not answer proves nothing."""
    try:
        table = json.loads((run.path / "run.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return True
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(table, dict) and table.get("id", identity) != identity  # another run lies there now


def found_at(lock: int) -> Path | None:
    """Where the folder whose lock is open as the descriptor `lock` lies now; None where the system does not tell."""
    with suppress(OSError):
        path = Path(os.readlink(f"/proc/self/fd/{lock}"))
        if os.path.samestat(path.stat(), os.fstat(lock)):  # one that was removed has a name that is none
            return path.parent
    return None


def refused(path: Path, there: Path | None = None) -> Refused:
    """What is said of a run that lay at `path`, and lies at `there` now where that is known. Code 4."""
    where = f" It lies at {there} now." if there is not None else ""
    return Refused(
        f"the folder of the run was moved or removed while it was going.{where}",
        where=str(path),
        do="What was saved lies in it as it was: name the folder, and the run goes on from there: "
        + f"--run {there if there is not None else 'DIR'}",
        code=MACHINE,
    )
