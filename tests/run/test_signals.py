"""Which signals ask a run to stop, by how its process was started, and which says to leave at once."""

import signal
import time

from argosy.run.signals import ASKING, AT_ONCE, heard, hurried


def test_what_the_starter_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        assert set(heard()) == set(ASKING)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
        assert set(heard()) == set(ASKING) - {signal.SIGHUP}
    finally:
        signal.signal(signal.SIGHUP, before)


def test_one_press_that_arrives_twice_is_one() -> None:
    long_ago = time.monotonic() - AT_ONCE
    seen = {"SIGINT": time.monotonic() + 600}  # just now, however slow this machine is
    assert not hurried(seen, "SIGINT")
    early = {"SIGINT": long_ago, "SIGTERM": long_ago}
    assert hurried(early, "SIGINT") and not hurried(early, "SIGTERM")
