"""Persistent worker processes for experiments: torch is imported once, ranks are forked from it and answer call after call.

In: the name of a function and a JSON payload. Out: what each rank's function returned, as JSON. A rank that raises, dies or
does not answer in time fails the call, and the pool forks all ranks anew. Everything ends with the pool, or with its owner:
the server's input closes, and it kills its ranks. Without torch on the owner's side.
"""

from __future__ import annotations

import gc
import importlib
import importlib.util
import io
import json
import os
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

LIMIT = 240.0  # seconds that a call may take; machines that test are busy
_LENGTH = struct.Struct("<I")


class Failed(Exception):
    """A rank raised, died or did not answer; the text says which and how."""


@dataclass(frozen=True)
class Asked:
    """A call that was sent and not yet answered."""

    entry: str
    places: tuple[int, ...]
    start: int  # which set of processes it was sent to


class Pool:
    """`ranks` processes, forked on first use. Use as a context manager."""

    def __init__(self, ranks: int):
        self.ranks = ranks
        self._folder = Path(tempfile.mkdtemp(prefix="pool-"))
        self._server: subprocess.Popen[bytes] | None = None
        self._ranks: list[socket.socket] = []
        self._calls = self._starts = 0

    def call(self, entry: str, payload: Any = None, *, ranks: int | None = None, limit: float = LIMIT) -> list[Any]:
        """What `entry` ("module:function" or "file.py:function") returns on each of the first `ranks` ranks.

        It is called with (rank, ranks, meeting file, payload). Raises Failed.
        """
        return self.answers(self.ask(entry, payload, range(self.ranks if ranks is None else ranks)), limit=limit)

    def ask(self, entry: str, payload: Any, places: Sequence[int]) -> Asked:
        """Start `entry` on the ranks at `places`, as ranks 0, 1 and so on of a call of their own. `answers` waits for it."""
        if not self._ranks:
            self._start()
        self._calls += 1
        asked = Asked(entry, tuple(places), self._starts)
        board = str(self._folder / f"store-{self._calls}")
        for rank, place in enumerate(asked.places):
            message = {"entry": entry, "rank": rank, "ranks": len(asked.places), "board": board, "payload": payload}
            _send(self._ranks[place], message)
        return asked

    def answers(self, asked: Asked, *, limit: float = LIMIT) -> list[Any]:
        """What the ranks of a call returned. Raises Failed, and then all ranks are left, also those of other calls."""
        if asked.start != self._starts or not self._ranks:
            raise Failed(f"{asked.entry}: the ranks were ended before they answered")
        count = len(asked.places)
        found: dict[int, Any] = {}
        end = time.monotonic() + limit
        try:
            while len(found) < count:
                waiting = {self._ranks[place]: rank for rank, place in enumerate(asked.places) if rank not in found}
                ready, _, _ = select.select(list(waiting), [], [], max(0.0, end - time.monotonic()))
                if not ready:
                    late = sorted(waiting.values())
                    raise Failed(f"{asked.entry}: ranks {late} of {count} did not answer in {limit:.0f} s")
                for connection in ready:
                    found[waiting[connection]] = _answer(connection, asked.entry, waiting[connection])
        except Failed:
            self.close_ranks()
            raise
        return [found[rank] for rank in range(count)]

    def close_ranks(self) -> None:
        """Leave all ranks; the next call forks new ones, and the server kills these first."""
        for connection in self._ranks:
            connection.close()
        self._ranks = []

    def close(self) -> None:
        """End everything."""
        self.close_ranks()
        if self._server is not None:
            if self._server.stdin is not None:
                self._server.stdin.close()  # the server kills its ranks and ends
            try:
                self._server.wait(timeout=LIMIT)
            except subprocess.TimeoutExpired:
                self._server.kill()
                self._server.wait()
            self._server = None
        shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> Pool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _start(self) -> None:
        address = self._folder / f"socket-{self._calls}"
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(address))
            listener.listen(self.ranks)
            listener.settimeout(LIMIT)
            self._ask(f"{address}\n")
            found: dict[int, socket.socket] = {}
            while len(found) < self.ranks:
                try:
                    connection, _ = listener.accept()
                except TimeoutError:
                    raise Failed(f"the pool's ranks did not start within {LIMIT:.0f} s") from None
                connection.setblocking(True)
                found[int(_receive(connection)["rank"])] = connection
        self._ranks = [found[rank] for rank in range(self.ranks)]
        self._starts += 1

    def _ask(self, line: str) -> None:
        """Let the server, started where there is none, fork new ranks."""
        if self._server is None or self._server.poll() is not None:
            command = [sys.executable, "-m", "argosy.prove.pool", str(self.ranks)]
            # Ranks are forked after a backward pass, which torch allows where there is no GPU to touch.
            environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "HIP_VISIBLE_DEVICES": ""}
            environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
            self._server = subprocess.Popen(command, stdin=subprocess.PIPE, env=environment)
        assert self._server.stdin is not None
        self._server.stdin.write(line.encode())
        self._server.stdin.flush()


def serve(ranks: int) -> None:
    """Load what ranks need; for each address read, kill the ranks there are and fork new ones. The pool's own program.

    Ends, and its ranks with it, when its input closes: that is how it learns that the owner is gone.
    """
    import torch
    import torch.distributed.pipelining  # each rank would load it by itself

    import argosy.train.worker  # noqa: F401

    torch.set_num_threads(1)
    with suppress(Exception):  # what is wrong here is wrong in a rank too, and a rank can tell
        _warm()
    gc.collect()
    gc.freeze()
    children: list[int] = []
    for line in sys.stdin:
        _kill(children)
        children = [_forked(line.strip(), rank) for rank in range(ranks)]
    _kill(children)
    os._exit(0)  # without the interpreter's farewell, which takes torch a while


def _warm() -> None:
    """One step of the plainest draw: what torch loads on first use is loaded once, and not by each rank again."""
    from argosy.prove import judge, measure
    from argosy.prove.options import plain
    from argosy.prove.parity import Trial

    payload = {**Trial.of(plain()).payload(), "steps": 1}
    measure.steps(0, 1, os.devnull, payload)
    judge.judge(0, 1, os.devnull, {**payload, "file": io.BytesIO()})


def _forked(address: str, rank: int) -> int:
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(
            nothing, 0
        )  # the server's input is the server's alone; a closed one would give its number to another file
        os.close(nothing)
        _rank(address, rank)
        code = 0
    finally:
        os._exit(code)


def _kill(children: list[int]) -> None:
    for child in children:
        os.kill(child, signal.SIGKILL)
    for child in children:
        os.waitpid(child, 0)


def _rank(address: str, rank: int) -> None:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(address)
        _send(connection, {"rank": rank})
        # What a call leaves behind goes before the next one: groups are known by their members, and one of an earlier call
        # that is collected late takes the name of the new one with it.
        gc.freeze()
        gc.disable()
        while True:
            try:
                asked = _receive(connection)
            except EOFError:
                return
            try:
                function = _load(asked["entry"])
                answer = {"value": function(asked["rank"], asked["ranks"], asked["board"], asked["payload"])}
            except BaseException:
                answer = {"error": traceback.format_exc()}
            gc.collect()
            _send(connection, answer)


def _load(entry: str) -> Callable[..., Any]:
    place, name = entry.rsplit(":", 1)
    if not place.endswith(".py"):
        function: Callable[..., Any] = getattr(importlib.import_module(place), name)
        return function
    known = f"pool_{Path(place).stem}"
    if known not in sys.modules:
        spec = importlib.util.spec_from_file_location(known, place)
        if spec is None or spec.loader is None:
            raise ImportError(place)
        module = importlib.util.module_from_spec(spec)
        sys.modules[known] = module
        spec.loader.exec_module(module)
    found: Callable[..., Any] = getattr(sys.modules[known], name)
    return found


def _answer(connection: socket.socket, entry: str, rank: int) -> Any:
    try:
        answer = _receive(connection)
    except (EOFError, ConnectionError):
        raise Failed(f"{entry}: rank {rank} died") from None
    if "error" in answer:
        raise Failed(f"{entry}: rank {rank}:\n{answer['error']}")
    return answer["value"]


def _send(connection: socket.socket, message: Any) -> None:
    text = json.dumps(message).encode()
    connection.sendall(_LENGTH.pack(len(text)) + text)


def _receive(connection: socket.socket) -> Any:
    (length,) = _LENGTH.unpack(_exactly(connection, _LENGTH.size))
    return json.loads(_exactly(connection, length))


def _exactly(connection: socket.socket, length: int) -> bytes:
    found = bytearray()
    while len(found) < length:
        block = connection.recv(length - len(found))
        if not block:
            raise EOFError
        found += block
    return bytes(found)


if __name__ == "__main__":
    serve(int(sys.argv[1]))
