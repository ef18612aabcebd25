"""Which link the members of a group need, on a cluster of two pools."""

from __future__ import annotations

import pytest

from argosy.cluster.links import Place, link, place
from argosy.cluster.schema import load
from argosy.errors import Refused


def test_ranks_fill_nodes_racks_and_pools_in_order() -> None:
    two = load("two-nics")
    assert place(two, 0) == Place(0, 0, 0)
    assert place(two, 8 * 4 - 1) == Place(0, 0, 3)
    assert place(two, 8 * 4) == Place(0, 1, 4)
    assert place(two, 64) == Place(1, 2, 8)
    with pytest.raises(Refused, match="rank 128 has no device: two-nics has 128"):
        place(two, 128)


def test_the_farthest_tier_counts() -> None:
    two = load("two-nics")
    near = link(two, [0, 1, 7])
    assert (near.tier, near.kind, near.bandwidth) == ("in node", "nvswitch", 300e9)
    switch = link(two, [0, 8])
    assert (switch.tier, switch.kind, switch.bandwidth) == ("same switch", "infiniband", 25e9)
    assert link(two, [0, 32]).tier == "across the fabric"
    # RoCE: 4 adapters of 100 Gb/s for 8 devices, two downlinks on one uplink.
    assert link(two, [64, 96]).bandwidth == pytest.approx(100e9 / 8 * 4 / 8 / 2)
    assert link(two, [64, 72]).bandwidth == pytest.approx(100e9 / 8 * 4 / 8)
    far = link(two, [0, 127])
    assert (far.tier, far.kind, far.latency) == ("between pools", "ethernet", pytest.approx(30e-6))
    assert far.bandwidth == pytest.approx(25e9 / 8 / 8)
    assert link(two, [5]).tier == "alone"


def test_nodes_without_an_adapter_do_not_reach_each_other() -> None:
    one = load("eight-h100")
    assert link(one, range(8)).tier == "in node"
    apart = one.model_copy(update={"pool": (one.pool[0].model_copy(update={"nodes": 2}),)})
    with pytest.raises(Refused, match="do not reach each other"):
        link(apart, [0, 8])


def test_a_pool_that_nothing_joins_is_named() -> None:
    two = load("two-nics")
    third = two.model_copy(update={"pool": (*two.pool, two.pool[0].model_copy(update={"name": "attic"}))})
    assert link(third, [0, 64]).tier == "between pools"
    with pytest.raises(Refused, match="pools ib, roce and attic do not reach each other"):
        link(third, [0, 64, 128])
    joined = two.between[0].model_copy(update={"pools": ("roce", "attic"), "bandwidth": 1e9})
    through = third.model_copy(update={"between": (*two.between, joined)})
    assert link(through, [0, 64, 128]).bandwidth == 1e9 / 8
