from __future__ import annotations

from dataclasses import replace

import pytest
from plan_machines import a_machine

from argosy.errors import Refused
from argosy.job.load import load
from argosy.layout.layout import Layout
from argosy.plan import layouts


def test_how_many_workers() -> None:
    laptop = load("laptop").job
    assert layouts.workers(laptop, a_machine()) == 2
    assert layouts.workers(laptop, a_machine(devices=8)) == 8
    assert layouts.workers(laptop, a_machine(devices=1)) == 1
    assert layouts.workers(laptop, a_machine(), asked=5) == 5
    assert layouts.workers(laptop, a_machine(), asked=0) == 0
    assert layouts.workers(laptop, a_machine(), world=3) == 3
    assert layouts.workers(load("laptop", ["layout.shape=replicate2 dp2"]).job, a_machine()) == 4
    for arguments in ({"asked": -1}, {"asked": 2, "world": 3}):
        with pytest.raises(Refused):
            layouts.workers(laptop, a_machine(), **arguments)


def test_no_such_device() -> None:
    laptop = load("laptop").job
    with pytest.raises(Refused, match="no such device: 7") as caught:
        layouts.workers(laptop, replace(a_machine(), missing=("7",)))
    assert caught.value.where == "CUDA_VISIBLE_DEVICES"
    with pytest.raises(Refused, match="--workers 9 needs 9 devices"):
        layouts.workers(laptop, a_machine(devices=8), asked=9)
    with pytest.raises(Refused, match="needs 4 devices"):
        layouts.workers(load("laptop", ["layout.shape=dp4"]).job, a_machine(devices=2))


def test_automatic_layouts() -> None:
    laptop = load("laptop").job
    assert layouts.chosen(laptop, 2, accelerated=False)[0] == Layout(dp_replicate=2)
    assert layouts.chosen(laptop, 8, accelerated=True)[0] == Layout(dp_shard=8)
    named = load("laptop", ["layout.shape=replicate2"]).job
    assert layouts.chosen(named, 4, accelerated=False)[0] == Layout(dp_replicate=2, dp_shard=2)


def test_what_does_not_run_yet_or_does_not_divide_is_refused() -> None:
    with pytest.raises(Refused, match="not tp"):
        layouts.chosen(load("laptop", ["layout.shape=tp2"]).job, 2, accelerated=False)
    with pytest.raises(Refused, match="makes 3 ranks, there are 2 workers"):
        layouts.chosen(load("laptop", ["layout.shape=dp3"]).job, 2, accelerated=False)
