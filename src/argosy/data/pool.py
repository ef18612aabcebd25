"""Encodes the parts of a corpus with several processes, started afresh so that no thread or lock is inherited. No torch."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from argosy.data.encode import Encoder, Plan, answer
from argosy.data.scan import Progress
from argosy.errors import MACHINE, Refused

FEW = 2  # parts up to which starting processes costs more than it saves
TRIES = 2  # a process that was killed is started once again for the same part


class _Pool:
    """Threads that each keep one process busy; the first failure ends all."""

    def __init__(self, folder: Path, plan: Plan, missing: list[int], progress: Progress):
        self.folder, self.plan, self.progress = folder, plan, progress
        self.waiting = list(reversed(missing))
        self.sizes = {part: plan.size(part) for part in range(len(plan.parts))}
        self.total = sum(self.sizes.values())
        self.done = self.total - sum(self.sizes[part] for part in missing)
        self.lock = threading.Lock()
        self.failure: BaseException | None = None
        self.children: list[subprocess.Popen[str]] = []
        self.news: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()  # answers; None: a thread is done

    def take(self) -> int | None:
        """The next part, or None when there is none left or something failed."""
        with self.lock:
            return self.waiting.pop() if self.waiting and self.failure is None else None

    def finished(self, told: dict[str, Any]) -> None:
        """Note the answer to one part. Raises what it tells."""
        if "refused" in told:
            raise Refused(told["refused"].pop("what"), **told["refused"])
        if "disk" in told:
            raise OSError(*told["disk"], str(self.folder))
        self.done += self.sizes[told["part"]]
        self.progress("tokens", self.done, self.total)

    def keep_one_busy(self) -> None:
        """Drive one process until no part is left."""
        child: subprocess.Popen[str] | None = None
        try:
            while (part := self.take()) is not None:
                for attempt in range(TRIES):
                    child = child or self.start()
                    told = _ask(child, part)
                    if told is not None:
                        self.news.put(told)
                        break
                    code = child.wait()
                    child = None
                    if self.failure is not None:
                        return
                    if attempt + 1 == TRIES:
                        raise _ended(code, self.folder)
        except BaseException as error:
            self.failure = self.failure or error
        finally:
            self.news.put(None)

    def start(self) -> subprocess.Popen[str]:
        """A new process. -P: a file named like a module in the working folder must not be imported instead of it."""
        root = str(Path(__file__).parents[2])
        path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
        environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        child = subprocess.Popen(
            [sys.executable, "-P", "-m", "argosy.data.encode", str(self.folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            text=True,
            process_group=0,  # Ctrl-C is for this process alone; the child ends with it
        )
        with self.lock:
            self.children.append(child)
        return child

    def kill(self) -> None:
        """End all processes at once."""
        with self.lock:
            children = list(self.children)
        for child in children:
            child.kill()
            child.wait()

    def close(self) -> None:
        """Let go of the pipes; no thread may be running any more."""
        for child in self.children:
            for pipe in (child.stdin, child.stdout):
                if pipe is not None:
                    with contextlib.suppress(BrokenPipeError):  # what a killed process was told and never read
                        pipe.close()


def encode_all(
    folder: Path, plan: Plan, missing: list[int], encoder: Encoder, workers: int, progress: Progress
) -> None:
    """Make the shards of the parts `missing` in `folder`. Raises Refused and OSError; finished shards stay."""
    pool = _Pool(folder, plan, missing, progress)
    progress("tokens", pool.done, pool.total)
    if workers < 2 or len(missing) <= FEW:
        for part in missing:
            pool.finished(answer(folder, plan, part, encoder))
        return
    threads = [threading.Thread(target=pool.keep_one_busy) for _ in range(min(workers, len(missing)))]
    try:
        for thread in threads:
            thread.start()
        running = len(threads)
        while running:
            told = pool.news.get()
            if told is None:
                running -= 1
            else:
                pool.finished(told)
    except BaseException as error:  # a part that failed, or Ctrl-C
        pool.failure = pool.failure or error
    finally:
        pool.kill()
        for thread in threads:
            thread.join()
        pool.kill()  # one that was started meanwhile
        pool.close()
    if pool.failure is not None:
        raise pool.failure


def _ask(child: subprocess.Popen[str], part: int) -> dict[str, Any] | None:
    """The child's answer; None when it is gone."""
    assert child.stdin is not None and child.stdout is not None
    try:
        child.stdin.write(f"{part}\n")
        child.stdin.flush()
        line = child.stdout.readline()
    except OSError:
        return None
    told: dict[str, Any] | None = json.loads(line) if line.endswith("\n") else None
    return told


def _ended(code: int, folder: Path) -> Exception:
    if code >= 0:
        return RuntimeError(f"a process that prepares the text in {folder} failed with code {code}")
    return Refused(
        f"a process that prepares the text was killed (signal {-code}), {TRIES} times at the same part.",
        where=str(folder),
        do="If the machine ran out of memory, end other programs; then start again, it goes on from here.",
        code=MACHINE,
    )
