"""One life of all workers together: who they are, where they meet. Written before they start, read by each of them."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from argosy.errors import Refused
from argosy.run.folder import Run, write_whole


@dataclass(frozen=True)
class Incarnation:
    """What the workers numbered `number` are started with; the rest of what they know is in the run folder."""

    number: int
    world: int
    layout: str  # "replicate2": Layout.parse(layout, world)
    threads: int  # of each worker
    node: int = 0
    nodes: int = 1
    device: str = "cpu"
    master: str | None = None  # "host:port" of a launcher's store; None: rank 0 opens one on loopback
    parent: int | None = (
        None  # pid whose death ends them; None under a launcher; the worker's own where it is --workers 0
    )

    @property
    def alone(self) -> bool:
        """Whether no parent of ours watches: the process reads its batches itself and starts its own snapshot process."""
        return self.parent is None or self.parent == os.getpid()

    @property
    def local_world(self) -> int:
        """Ranks on this node."""
        return self.world // self.nodes

    def write(self, run: Run) -> Path:
        """Keep it for the workers, before they start."""
        path = _path(run, self.number)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(asdict(self)) + "\n")
        return path

    @staticmethod
    def read(run: Run, number: int) -> Incarnation:
        """The incarnation `number` of `run`."""
        path = _path(run, number)
        try:
            return Incarnation(**json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise Refused("this start of the workers is not described.", where=str(path), found=str(error)) from None

    @staticmethod
    def next(run: Run) -> int:
        """The first number that no start of this run has had yet; counted from 1.

        Of all that tells it, checkpoints are asked too: one written under a number that was used before would count as older.
        """
        kept = int(run.info().get("incarnation", 0))
        paths = [*run.local.glob("incarnation-*.json"), *run.checkpoints.glob("step-*/node-*-inc-*.safetensors")]
        found = (path.stem.rpartition("-")[2] for path in paths)
        return 1 + max([kept, *(int(number) for number in found if number.isdecimal())])


def _path(run: Run, number: int) -> Path:
    return run.local / f"incarnation-{number}.json"
