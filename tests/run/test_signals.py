"""Which signals ask a run to stop, by how its process was started."""

import signal

from argosy.run.signals import ASKING, heard


def test_what_the_starter_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        assert set(heard()) == set(ASKING)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
        assert set(heard()) == set(ASKING) - {signal.SIGHUP}
    finally:
        signal.signal(signal.SIGHUP, before)
