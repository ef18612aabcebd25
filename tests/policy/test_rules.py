"""The policy as a table: what happened, what is done, which exit code."""

from __future__ import annotations

from dataclasses import replace
from signal import SIGKILL, SIGSEGV, SIGSTOP

import pytest
from hypothesis import given
from hypothesis import strategies as st

from argosy.policy.events import Broken, End, GiveUp, Mend, Progress, Restart
from argosy.policy.rules import MENDS, RULES, culprit, decide, give_up, restart
from argosy.policy.state import Fleet

FLEET = Fleet(world=2, limit=3, step=7, reached=0)
KILLED = End("worker", 11, "killed", rank=1, signal=SIGKILL)
PEER = End("worker", 10, "left", rank=0, code=4, kind="peer", sentence="lost the connection")


def left(code: int, kind: str = "", trade: str = "worker", rank: int | None = 0) -> End:
    return End(trade, 10, "left", rank=rank, code=code, kind=kind, sentence="it said so")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "ends, actions, words",
    [
        ((KILLED,), (Restart(2),), "worker 1 was killed (signal 9, SIGKILL) at step 7; both workers start again"),
        ((replace(KILLED, signal=SIGSEGV),), (Restart(2),), "SIGSEGV"),
        ((End("worker", 1, "stopped", rank=0, signal=SIGSTOP, after=1.04),), (Restart(2),), "seen after 1.0 s"),
        ((PEER,), (Restart(2),), "lost the connection"),
        ((left(9),), (Restart(2),), "left with code 9"),
        ((End("reader", 5, "killed", signal=SIGKILL),), (Mend("reader"),), "the reader process is started again"),
        ((End("snapshot", 5, "stopped", signal=SIGSTOP),), (Mend("snapshot"),), "the snapshot process was stopped"),
        ((End("server", 5, "killed", signal=SIGKILL),), (Mend("server"),), "the warm server is started again"),
        ((End("reader", 5, "killed", signal=SIGKILL), KILLED), (Restart(2),), "worker 1 was killed"),
        ((left(1, "bug"),), (GiveUp(1, "bug"),), "left with code 1 at step 7: it said so"),
        ((left(2, "refused"),), (GiveUp(2, "refused"),), "it said so"),
        ((left(3, "diverged"),), (GiveUp(3, "diverged"),), "it said so"),
        ((left(4, "out_of_memory"),), (GiveUp(4, "out_of_memory"),), "it said so"),
        ((left(4, "out_of_disk", "snapshot", None),), (GiveUp(4, "out_of_disk"),), "the snapshot process left"),
        ((left(2, "refused", "reader", None),), (GiveUp(2, "refused"),), "the reader process left"),
        (
            (replace(KILLED, starved="the memory of its group"),),
            (GiveUp(4, "out_of_memory"),),
            "(signal 9, SIGKILL) at step 7: the memory of its group ran out and the kernel chose it",
        ),
        (
            (KILLED, End("server", 5, "stopped", signal=SIGSTOP)),
            (Restart(2),),
            "newest checkpoint; the warm server was stopped (signal 19) at step 7: it is started again too",
        ),
        ((PEER, KILLED), (Restart(2),), "worker 1 was killed"),
        ((PEER, left(1, "bug", rank=1)), (GiveUp(1, "bug"),), "worker 1 left with code 1"),
        ((left(1, "bug"), KILLED), (Restart(2),), "worker 1 was killed"),
    ],
)
def test_what_is_done_about_what_broke(ends, actions, words):
    decision = decide(FLEET, Broken(ends))
    assert decision.actions == actions
    assert words in decision.because


def test_without_recover_a_killed_worker_ends_the_run():
    decision = decide(replace(FLEET, recover=False), Broken((KILLED,)))
    assert decision.actions == (GiveUp(4, "lost"),)
    assert "faults.recover = false" in decision.because


def test_starts_without_progress_are_counted_and_spent():
    fleet = FLEET
    for number in (2, 3, 4):
        decision = decide(fleet, Broken((KILLED,)))
        assert decision.actions == (Restart(number),)
        fleet = decision.fleet
    decision = decide(fleet, Broken((KILLED,)))
    assert decision.actions == (GiveUp(4, "spent"),)
    assert "3 starts in a row brought no new step" in decision.because
    assert len(decision.fleet.evidence) == 4


def test_only_starts_of_the_workers_are_counted_by_faults_restarts():
    reader = Broken((End("reader", 5, "killed", signal=SIGKILL),))
    decision = decide(replace(FLEET, limit=0), reader)
    assert decision.actions == (Mend("reader"),)
    fleet = decide(replace(FLEET, restarts=3), reader).fleet
    assert (fleet.restarts, fleet.mends, fleet.faults) == (3, 1, 1)
    for _ in range(MENDS - 1):
        decision = decide(fleet, reader)
        assert decision.actions == (Mend("reader"),)
        fleet = decision.fleet
    assert decide(fleet, reader).actions == (GiveUp(4, "spent"),)
    assert decide(decide(fleet, Progress(8)).fleet, reader).actions == (Mend("reader"),)


def test_a_new_step_makes_the_count_begin_again_and_an_old_one_does_not():
    fleet = decide(decide(FLEET, Broken((KILLED,))).fleet, Broken((KILLED,))).fleet
    assert fleet.restarts == 2
    again = decide(fleet, Progress(7)).fleet  # step 7 had been done before
    assert again.restarts == 2
    onward = decide(fleet, Progress(8)).fleet
    assert onward.restarts == 0
    assert onward.evidence == ()


def test_each_rule_is_needed():
    bug, kill = Broken((left(1, "bug"),)), Broken((KILLED,))
    assert decide(FLEET, bug, rules=(restart,)).actions != decide(FLEET, bug).actions
    assert decide(FLEET, kill, rules=(give_up,)).actions == ()
    assert tuple(RULES) == (give_up, restart)


ENDS = st.builds(
    End,
    st.sampled_from(["worker", "reader", "snapshot", "server"]),
    st.integers(1, 9),
    st.sampled_from(["killed", "stopped", "left"]),
    rank=st.integers(0, 3),
    code=st.integers(0, 5),
    signal=st.sampled_from([9, 11, 19]),
    kind=st.sampled_from(["", "bug", "peer", "refused"]),
)
BROKEN = st.builds(Broken, st.lists(ENDS, min_size=1, max_size=4).map(tuple))
EVENTS = st.one_of(BROKEN, st.builds(Progress, st.integers(0, 20)))


@given(st.lists(EVENTS, max_size=20))
def test_whatever_happens_is_answered_and_restarts_without_progress_end(events):
    fleet, tries = Fleet(world=4, limit=3), 0
    for event in events:
        before, decision = fleet, decide(fleet, event)
        fleet = decision.fleet
        assert decide(before, event) == decision  # pure
        if isinstance(event, Broken):
            assert decision.actions
            assert decision.because
            restarted = any(isinstance(action, Restart) for action in decision.actions)
            tries = tries + 1 if restarted else tries
            assert fleet.incarnation == before.incarnation + restarted
            if isinstance(decision.actions[0], GiveUp):
                return
        elif fleet.step > before.step:
            tries = 0
        assert tries <= 3


@given(st.lists(ENDS, min_size=1, max_size=5))
def test_the_culprit_is_one_of_them_and_no_mere_victim(ends):
    found = culprit(tuple(ends))
    assert found in ends
    if any(end.manner == "killed" and end.kind != "peer" for end in ends):
        assert found.manner == "killed"
