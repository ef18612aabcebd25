"""The program that times pieces of a job's model: what it prints, and who works beside it."""

from __future__ import annotations

import io
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from argosy.cluster.here import Machine
from argosy.job.load import load
from argosy.plan import seconds, trial
from argosy.plan.prepared import PreparedFacts
from argosy.plan.settle import settle

SMALL = ["model.width=32", "model.block.heads=2", "model.vocabulary=64", "batch.sequence=32", "batch.tokens=128"]
PIECES = {"block", "ends", "block_update", "ends_update", "block_products", "ends_products"}
ORTHOGONAL, ATTENTION = "block_orthogonal", "block_attention"  # Muon's alone; where attention is a kernel


def request(*words: str, workers: int = 2) -> tuple[Any, dict[str, Any]]:
    machine = Machine(cores=2, memory_bytes=16 << 30, memory_available=16 << 30, compiler="g++")
    facts = PreparedFacts(64, 1_000_000, 100, 10, 3.0)
    job = settle(load("laptop", [*SMALL, *words]), machine, {}, facts, workers, folder=Path.cwd()).job
    return job, trial.request(job, workers, 1, "cpu")


def told(asked: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-m", "argosy.train.trial"]
    return subprocess.run(
        command, input=json.dumps(asked) + "\n", capture_output=True, text=True, timeout=500, check=True
    )


@pytest.mark.parametrize(
    ("words", "more"),
    [
        ((), {"float32": {ORTHOGONAL}, "bfloat16": {ORTHOGONAL}}),
        (("batch.sequence=128", "batch.tokens=256", "model.block.kv_heads=1"),
         {"float32": {ORTHOGONAL, ATTENTION}, "bfloat16": {ORTHOGONAL}}),
        (("optim.name=adamw", "model.positions=learned", "model.tied=false", "model.block.parallel=true",
          "model.block.norm=layer", "model.block.dropout=0.1", "train.precision=float64",
          "model.pattern=[{ window = 8 }, {}, {}]"), {}),
    ],
)  # fmt: skip
def test_every_kind_of_model_is_timed(words: tuple[str, ...], more: dict[str, set[str]]) -> None:
    job, asked = request(*words)
    said = [json.loads(line) for line in told(asked).stdout.splitlines()]
    assert said[0]["steady"] is False and set(said[0]["pieces"]) == set(asked["kinds"])  # the best at that moment
    found = said[-1]
    assert found["request"] == asked
    assert set(found["pieces"]) == set(asked["kinds"]) == set(found["gemm"])
    for kind, one in found["pieces"].items():
        assert set(one) == PIECES | more.get(kind, set())
        assert all(taken > 0 for taken in one.values())
    assert found["spread"] >= 1 and found["bandwidth"] > 0 and isinstance(found["compile"], bool)
    assert seconds.basis(job, found) == "predicted from layers timed here"
    assert seconds.step_seconds(job, found, 2, 0) > 0


def test_when_the_time_is_up_nothing_more_is_begun() -> None:
    from argosy.device.threads import restored
    from argosy.train.trial import answer

    _, asked = request(workers=1)
    said: list[Any] = []
    with restored():
        answer(asked, time.monotonic(), said.append)
    assert said == []

    until = time.monotonic() + 3600

    def first(known: Any) -> None:
        said.append(known)
        clock.append(until)  # from now on it is too late

    clock: list[float] = []
    patched = SimpleNamespace(
        monotonic=lambda: clock[-1] if clock else until - 1,
        perf_counter=time.perf_counter,
        process_time=time.process_time,
    )
    with restored(), pytest.MonkeyPatch.context() as patch:
        patch.setattr("argosy.train.trial.time", patched)
        answer(asked, until, first)
    assert len(said) == 1 and said[0]["steady"] is False
    assert all(set(one) == PIECES | {ORTHOGONAL} for one in said[0]["pieces"].values())


def test_what_was_disturbed_is_not_kept_for_good_unless_it_is_small() -> None:
    from argosy.device.timing import Timed
    from argosy.train.trial import summary

    quiet = summary({"float32 block": Timed([1.0, 1.1, 1.2]), "float32 ends": Timed([0.5, 0.5, 2.0])})
    assert quiet["pieces"] == {"float32": {"block": 1.1, "ends": 0.5}}  # the median: what it usually takes
    assert (quiet["spread"], quiet["steady"]) == (1.067, True)
    assert summary({"float32 block": Timed([1.0, 2.0, 2.0])})["steady"] is False
    assert summary({"float32 block": Timed([0.001, 0.002, 0.002])})["steady"] is True


def test_nothing_asked_is_nothing_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from argosy.train.trial import main

    monkeypatch.setattr(sys, "stdin", io.StringIO(""))  # the starter has gone without a question
    main()
    assert capsys.readouterr().out == ""


def test_company_works_until_it_is_let_go(tmp_path: Path) -> None:
    script = f"""
import os, time
from pathlib import Path
from argosy.train.trial import company
place = Path({str(tmp_path)!r})
def work():
    (place / str(os.getpid())).touch()
with company(2, work):
    until = time.monotonic() + 300
    while len(list(place.iterdir())) < 2:
        assert time.monotonic() < until
        time.sleep(0.01)
"""
    subprocess.run([sys.executable, "-c", script], timeout=500, check=True)
    children = [int(path.name) for path in tmp_path.iterdir()]
    assert len(children) == 2
    for child in children:
        with pytest.raises(ProcessLookupError):
            os.kill(child, 0)


@pytest.fixture
def line(tmp_path: Path) -> Iterator[tuple[Path, Callable[[int], str]]]:
    """A pipe with a name, and `told(event)`: waits for POLLIN or POLLHUP, gives what was written. Nobody is waited for longer
    than a failure takes.
    """
    os.mkfifo(tmp_path / "line")
    descriptor = os.open(tmp_path / "line", os.O_RDONLY | os.O_NONBLOCK)
    poll = select.poll()

    def told(event: int) -> str:
        poll.register(descriptor, event)
        assert [found & event for _, found in poll.poll(60_000)] == [event]
        return os.read(descriptor, 1000).decode()

    yield tmp_path / "line", told
    os.close(descriptor)


def test_it_ends_with_its_starter_even_while_torch_is_loaded(tmp_path: Path, line: Any) -> None:
    """It would go on for a minute on all cores; and Ctrl-C is not for it."""
    place, told = line
    (tmp_path / "modules/torch").mkdir(parents=True)
    (tmp_path / "modules/torch/__init__.py").write_text(
        f"""
import os, time
line = os.open({str(place)!r}, os.O_WRONLY)
os.write(line, f"{{os.getpid()}} {{os.getpgrp()}}".encode())
time.sleep(600)
""",
        encoding="utf-8",
    )
    script = f"""
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from argosy.cluster.here import Trial
Trial(Path({str(tmp_path / "cache")!r})).begin()
time.sleep(600)
"""
    paths = [str(tmp_path / "modules"), *filter(None, [os.environ.get("PYTHONPATH")])]
    starter = subprocess.Popen([sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)})
    try:
        child, group = map(int, told(select.POLLIN).split())
    finally:
        starter.kill()
        starter.wait()
    try:
        assert group == child
        told(select.POLLHUP)
    except AssertionError:
        os.kill(child, signal.SIGKILL)
        raise


def test_company_ends_with_whoever_it_is_for(line: Any) -> None:
    place, told = line
    script = f"""
import os, time
from argosy.train.trial import company
line = os.open({str(place)!r}, os.O_WRONLY)
def work():
    os.write(line, b"at work")
    time.sleep(600)
with company(1, work):
    time.sleep(600)
"""
    keeper = subprocess.Popen([sys.executable, "-c", script])
    try:
        assert told(select.POLLIN) == "at work"
    finally:
        keeper.kill()
        keeper.wait()
    told(select.POLLHUP)
