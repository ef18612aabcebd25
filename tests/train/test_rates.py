"""Rates of a run from its ledger: where a branch leaves its parent, and from where it decays."""

from __future__ import annotations

import pytest

from argosy.job.schema import OptimSection
from argosy.optim.schedule import Branch
from argosy.run.ledger import Ledger
from argosy.train.rates import branch, decays_from, leaving, scheduled

WSD = OptimSection(schedule="wsd", warmup=1000, decay=0.4)
PLAIN = Ledger.start(batch__sequence=50, batch__tokens=100)


def left(section: OptimSection, ledger: Ledger, steps: int, step: int) -> Ledger:
    return Ledger((*ledger.entries, leaving(section, ledger, steps, step, "runs/trunk")))


def test_a_branch_is_an_entry_that_names_its_parent() -> None:
    entry = leaving(WSD, PLAIN, 100, 50, "runs/trunk")
    assert (entry.from_step, entry.key, entry.reason) == (51, "optim.branch", "--fork")
    assert entry.new == {"run": "runs/trunk", "step": 50, "rate": 1.0}
    assert branch(PLAIN) is None
    assert branch(left(WSD, PLAIN, 100, 50)) == Branch(5000.0, 1.0)
    assert branch(left(WSD, PLAIN, 100, 80)) == Branch(8000.0, 0.5)  # half of the way down
    assert branch(left(WSD, PLAIN, 100, 5)) == Branch(500.0, 1.0)  # the warm-up goes on


def test_tokens_of_the_trunk_count_also_where_its_batch_changed() -> None:
    changed = PLAIN.changed(31, "batch.tokens", 200, "--change")
    assert branch(left(WSD, changed, 100, 50)) == Branch(30 * 100 + 20 * 200, 1.0)


def test_a_branch_decays_from_where_it_leaves() -> None:
    trunk = OptimSection(schedule="constant", warmup=1000)
    ledger = left(trunk, PLAIN, 1000, 80)
    rates = [scheduled(WSD, ledger, 100)(step) for step in range(81, 101)]
    assert rates == pytest.approx([1 - (number + 0.5) / 20 for number in range(20)])
    assert decays_from(WSD, ledger, 100) == 81
    assert decays_from(WSD, PLAIN, 100) == 61
    again = left(WSD, ledger, 100, 90)  # a branch of the branch, in its decay: the same line
    assert [scheduled(WSD, again, 100)(step) for step in range(91, 101)] == pytest.approx(rates[10:])


def test_nothing_changes_before_the_branch_and_without_one() -> None:
    ledger = left(WSD, PLAIN, 100, 50)
    for step in range(1, 51):
        assert scheduled(WSD, ledger, 100)(step) == scheduled(WSD, PLAIN, 100)(step)
    for step in range(51, 101):  # from the stable part, with the same length: bit for bit
        assert scheduled(WSD, ledger, 100)(step) == scheduled(WSD, PLAIN, 100)(step)
