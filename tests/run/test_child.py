"""What a child tells about its end, whatever its trade; entries are named, never imported here."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap

import pytest

from argosy.run import child, requests
from argosy.run.folder import Run

TRADES = """
    import os, signal, time
    from argosy.errors import Refused

    def good(run, incarnation):
        print("hello from", incarnation)
        return 0

    def refused(run, incarnation):
        raise Refused("not like this.", code=3)

    def wrong(run, incarnation):
        raise KeyError("oops")

    def lonely(run, incarnation):
        raise RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:3")

    def signalled(run, incarnation):
        os.kill(os.getpid(), signal.SIGTERM)
        return 0
"""


@pytest.fixture
def lived(tmp_path, monkeypatch):
    (tmp_path / "trades.py").write_text(textwrap.dedent(TRADES))
    (tmp_path / "run/local").mkdir(parents=True)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def live(trade: str) -> tuple[int, dict, str, Run]:
        run = Run(tmp_path / "run")
        words = [f"trades:{trade}", "reader", str(run.path), "4", str(os.getpid())]
        code = subprocess.run([sys.executable, "-m", "argosy.run.child", *words], check=False).returncode
        return code, child.ended(run, "reader", 4), (run.log / "reader.txt").read_text(), run

    return live


@pytest.mark.parametrize(
    "trade, code, kind, logged",
    [
        ("good", 0, "", "hello from 4"),
        ("refused", 3, "refused", "error: not like this."),
        ("wrong", 1, "bug", "Traceback"),
        ("lonely", 4, "peer", "closed by peer"),
        ("missing", 1, "bug", "AttributeError"),
    ],
)
def test_how_a_child_ended(lived, trade, code, kind, logged):
    status, told, log, _ = lived(trade)
    assert status == code
    assert (told["code"], told["kind"]) == (code, kind)
    assert logged in log
    assert (told["sentence"] == "") == (code == 0)


def test_a_signal_is_passed_on_and_does_not_end_it(lived):
    status, told, _, run = lived("signalled")
    assert (status, told["code"]) == (0, 0)
    assert requests.forwarded(run) == signal.Signals.SIGTERM.name


def test_a_worker_names_the_kind_itself(lived):
    _, _, _, run = lived("refused")
    (run.local / "failed-reader-4.json").write_text(
        json.dumps({"kind": "diverged", "sentence": "the loss is not finite"})
    )
    told = child.ended(run, "reader", 4)
    assert (told["code"], told["kind"], told["sentence"]) == (3, "diverged", "the loss is not finite")
    assert child.ended(run, "reader", 5) is None


def test_names_of_workers():
    assert child.rank_role(7) == "rank-0007"
