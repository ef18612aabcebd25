"""How ranks of a cluster reach each other: which tier of links the members of a group need, and what it gives. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from argosy.cluster import catalogue
from argosy.cluster.schema import Cluster, Pool
from argosy.errors import Refused

TIERS = ("alone", "in node", "same switch", "across the fabric", "between pools")  # from near to far


@dataclass(frozen=True)
class Link:
    """The slowest link between members of a group. bandwidth: bytes per second and device, one direction; latency: seconds."""

    tier: str
    kind: str = ""
    bandwidth: float | None = None
    latency: float | None = None


@dataclass(frozen=True)
class Place:
    """Where a rank runs: the number of its pool, and of its rack and node within the whole cluster."""

    pool: int
    rack: int
    node: int


def place(cluster: Cluster, rank: int) -> Place:
    """The place of `rank`: ranks fill devices, nodes and pools in the order in which they are written."""
    left, nodes, racks = rank, 0, 0
    for number, pool in enumerate(cluster.pool):
        size = pool.racks.size if pool.racks is not None else pool.nodes
        if left < pool.count:
            node = left // pool.devices.per_node
            return Place(number, racks + node // size, nodes + node)
        left, nodes, racks = left - pool.count, nodes + pool.nodes, racks + -(-pool.nodes // size)
    raise Refused(
        f"rank {rank} has no device: {cluster.name} has {cluster.devices}.", do="Use a smaller layout or more nodes."
    )


def link(cluster: Cluster, ranks: Sequence[int]) -> Link:
    """What joins `ranks`: the farthest tier that two of them need."""
    places = [place(cluster, rank) for rank in ranks]
    if len(ranks) == 1:
        return Link(TIERS[0])
    pool = cluster.pool[places[0].pool]
    if len({one.node for one in places}) == 1:
        width = pool.in_node.bandwidth or catalogue.device(pool.devices.kind).link
        return Link(TIERS[1], pool.in_node.kind, width, pool.in_node.latency)
    if len({one.pool for one in places}) == 1:
        return _fabric(pool, same_switch=pool.racks is not None and len({one.rack for one in places}) == 1)
    return _between(cluster, {cluster.pool[one.pool].name for one in places})


def _fabric(pool: Pool, same_switch: bool) -> Link:
    tier = TIERS[2] if same_switch else TIERS[3]
    if pool.nic is None:
        raise Refused(f"the nodes of pool {pool.name} do not reach each other: it has no nic.")
    width = pool.nic.bandwidth * pool.nic.per_node / pool.devices.per_node
    width /= 1.0 if same_switch else pool.fabric.oversubscription
    return Link(tier, pool.nic.kind, width, pool.fabric.latency)


def _between(cluster: Cluster, names: set[str]) -> Link:
    """The slowest of the links that join the pools `names`: each has to reach the others, directly or through one of them."""
    found, joined = [], {min(names)}
    for _ in names:  # each round reaches at least one pool more, where there is one to reach
        joined |= {name for one in cluster.between if joined & set(one.pools) for name in one.pools if name in names}
    for one in cluster.between:
        if set(one.pools) <= names:
            most = max(pool.devices.per_node for pool in cluster.pool if pool.name in one.pools)
            found.append(Link(TIERS[4], one.kind, one.bandwidth / most, one.latency))
    if joined != names:
        lost = ", ".join(sorted(names - joined))
        raise Refused(f"pools {lost} and {min(names)} do not reach each other: no [[between]] joins them.")
    return min(found, key=lambda one: one.bandwidth or 0.0)
