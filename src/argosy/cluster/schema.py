"""The cluster: pools of equal nodes, how they reach each other, storage, failures, prices. Knows no machine and no job.

The same habits as a job file: TOML into a frozen tree, strict about unknown keys, quantities with units.
"""

from __future__ import annotations

import datetime
import tomllib
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, WithJsonSchema, model_validator

from argosy import quantities
from argosy.cluster import catalogue
from argosy.errors import Refused

VERSION = 1


def _text(pattern: str) -> WithJsonSchema:
    return WithJsonSchema({"type": "string", "description": pattern})


Bytes: TypeAlias = Annotated[int, BeforeValidator(quantities.size), _text('With a unit: "7 TB".')]
Rate: TypeAlias = Annotated[
    float, BeforeValidator(quantities.bandwidth), Field(gt=0), _text('"200 Gb/s" (bits) or "25 GB/s" (bytes).')
]
Seconds: TypeAlias = Annotated[float, BeforeValidator(quantities.seconds), _text('With a unit: "2 us".')]


class Table(BaseModel):
    """A table of a cluster file: frozen, strict about unknown keys and types."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)


class Devices(Table):
    """What computes in a node."""

    kind: str
    """A device of the catalogue: `a100-80gb-sxm`."""
    per_node: int = Field(ge=1)
    """Devices in one node."""

    @model_validator(mode="after")
    def _known(self) -> Devices:
        catalogue.device(self.kind)
        return self


class InNode(Table):
    """How the devices of a node reach each other."""

    kind: Literal["nvswitch", "nvlink", "xgmi", "pcie"] = "pcie"
    """Kind of link."""
    bandwidth: Rate | None = None
    """Per device, one direction. Left out: the catalogue's for the device."""
    latency: Seconds = 2e-6
    """Of one message."""


class Nic(Table):
    """How a node reaches the fabric."""

    kind: Literal["infiniband", "roce", "ethernet", "efa", "slingshot"]
    """Kind of adapter."""
    per_node: int = Field(ge=1)
    """Adapters in one node."""
    bandwidth: Rate
    """Per adapter, one direction."""


class Fabric(Table):
    """What joins the nodes of a pool."""

    kind: Literal["rail-optimised", "clos", "torus", "single-switch"] = "single-switch"
    """Topology."""
    oversubscription: float = Field(1.0, ge=1)
    """Downlinks over uplinks of a leaf switch."""
    latency: Seconds = 5e-6
    """Of one message."""


class Racks(Table):
    """What fails together."""

    size: int = Field(ge=1)
    """Nodes behind one switch and one power feed."""


class Pool(Table):
    """Equal nodes."""

    name: str
    """Unique within the cluster."""
    nodes: int = Field(ge=1)
    """How many."""
    hosts: str | None = None
    """Their names, as "gpu[01-08]"; may be left out."""
    devices: Devices
    in_node: InNode = InNode()
    nic: Nic | None = None
    """Left out: the nodes do not reach each other."""
    fabric: Fabric = Fabric()
    racks: Racks | None = None

    @property
    def count(self) -> int:
        """Devices of all nodes."""
        return self.nodes * self.devices.per_node


class Between(Table):
    """How two pools reach each other."""

    pools: tuple[str, str] = Field(strict=False)
    """Their names."""
    kind: Literal["infiniband", "roce", "ethernet"] = "ethernet"
    """Kind of link."""
    bandwidth: Rate
    """Per node, one direction, shared by its devices."""
    latency: Seconds = 30e-6
    """Of one message."""


class Remote(Table):
    """Storage that all nodes share."""

    uri: str
    """Where: "s3://bucket" or a path."""
    bandwidth: Rate
    """Of the whole cluster."""
    latency: Seconds = 20e-3
    """Of one request."""


class Local(Table):
    """A disk in every node."""

    kind: Literal["nvme", "ssd", "disk"] = "nvme"
    """Kind of disk."""
    bandwidth: Rate
    """Of writing."""
    size: Bytes
    """Of the whole disk."""


class Storage(Table):
    """Where checkpoints go."""

    remote: Remote | None = None
    local: Local | None = None


class Failures(Table):
    """How often things break: a prior until the cluster has a record of its own."""

    per_device_day: float = Field(gt=0, lt=1)
    """Failures of one device in a day."""
    repair: Seconds
    """Until a broken node is back."""
    spares: dict[str, int] = {}
    """Nodes kept in reserve, by pool."""


class Price(Table):
    """Left out: no cost is shown."""

    device_hour: float = Field(gt=0)
    """Price of one device for an hour."""
    currency: str = Field(pattern="^[A-Z]{3}$")
    """Three letters."""
    as_of: datetime.date
    """When it was so."""


class Cluster(Table):
    """All there is."""

    version: Literal[1] = 1
    """Version of this format."""
    name: str
    """What people call it."""
    pool: tuple[Pool, ...] = Field(min_length=1, strict=False)
    """Groups of equal nodes."""
    between: tuple[Between, ...] = Field((), strict=False)
    storage: Storage = Storage()
    failures: Failures | None = None
    price: Price | None = None

    @model_validator(mode="after")
    def _names(self) -> Cluster:
        names = [pool.name for pool in self.pool]
        if len(set(names)) < len(names):
            raise ValueError(f"two pools have the same name: {', '.join(names)}")
        named = {name for link in self.between for name in link.pools} | set(
            self.failures.spares if self.failures else ()
        )
        if unknown := named - set(names):
            raise ValueError(f"{', '.join(sorted(unknown))} is no pool; there are {', '.join(names)}")
        return self

    @property
    def devices(self) -> int:
        """Devices of all pools."""
        return sum(pool.count for pool in self.pool)


def shipped() -> list[str]:
    """Names of the cluster files that come with the package."""
    return sorted(entry.name[:-5] for entry in files("argosy.clusters").iterdir() if entry.name.endswith(".toml"))


def load(name: str) -> Cluster:
    """The cluster in the file `name`, or the shipped one of that name. Refused, with the key, for what is none."""
    try:
        shelf = files("argosy.clusters").joinpath(f"{name}.toml")
        content = shelf.read_bytes() if name in shipped() else Path(name).read_bytes()
        values = tomllib.loads(content.decode("utf-8"))
    except OSError as error:
        do = f"Shipped clusters: {', '.join(shipped())}."
        raise Refused(f"{name} cannot be read: {error.strerror}.", do=do) from None
    except UnicodeDecodeError as error:
        raise Refused(
            f"{name} is not UTF-8 text (byte {error.start}).", do="A cluster is a TOML file in UTF-8."
        ) from None
    except tomllib.TOMLDecodeError as error:
        raise Refused(f"this is no TOML: {error}.", where=name, do="Quantities are quoted texts.") from None
    try:
        return Cluster.model_validate(values)
    except ValidationError as error:
        raise Refused(_sentence(error), where=name, do="`#:schema` in its first line lets an editor help.") from None


def _sentence(error: ValidationError) -> str:
    # A misspelt key also leaves the right one missing: say the misspelling.
    first: Any = min(error.errors(include_url=False), key=lambda one: one["type"] != "extra_forbidden")
    place = ".".join(str(part) for part in first["loc"]) or "the file"
    if first["type"] == "extra_forbidden":
        return f"{place} is not a key."
    context = first.get("ctx", {})
    return f"{place}: {context.get('error', first['msg'])}."
