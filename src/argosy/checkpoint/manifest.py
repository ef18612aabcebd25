"""What a checkpoint is: `manifest.json`, the sidecar beside each data file, and their versions. No torch, no bulk data.

    checkpoints/step-000320/
      node-0000-inc-0001.safetensors   every tensor, or its boxes, that the node's ranks wrote
      node-0000-inc-0001.json          sidecar: a checksum for each piece of that file
      manifest.json                    written last; without it the folder is no checkpoint

The manifest holds the inputs of `plan.node_file` (so nobody lists ranks x tensors), the facts of the run at that step, and
one digest per data file: over its header and its piece checksums, so it vouches for the sidecar too. Whatever is read here
may come from anybody: it is parsed as JSON, checked, and never run.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from argosy.checkpoint.plan import SIZES, TensorSpec
from argosy.errors import Refused
from argosy.layout.layout import AXES, Layout
from argosy.layout.placement import Split

VERSION = 2  # the newest that is read; a manifest has the lowest one that can say what it says, see `Grid.version`
SIDECAR = 1  # of a sidecar, written and read
MANIFEST = "manifest.json"
ASIDE = f"{MANIFEST}.damaged"  # its name once the checkpoint was found damaged and set aside
WHY = "damaged.txt"  # beside it: what was found
UNREADABLE = "cannot be read"  # in a sentence about a file that may be good: the next try may succeed
LIMIT = 256 << 20  # bytes of a manifest or sidecar that are read at most

DataName = r"node-[0-9]{4,6}-inc-[0-9]{4,9}\.safetensors"


class Damaged(Exception):
    """A checkpoint that cannot be used, with the place and the reason in one sentence."""


class Missing(Damaged):
    """A file that is not there."""


class Unfinished(Damaged):
    """A folder without a manifest: nobody has committed what lies there, or not yet."""


class SetAside(Unfinished):
    """A folder whose checkpoint was found damaged before, with what was found then."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DataFile(_Strict):
    """The data file of one node."""

    name: str = Field(pattern="^" + DataName + "$")
    bytes: int = Field(ge=8)
    digest: str = Field(pattern="^[0-9a-f]{32}$")

    @property
    def sidecar(self) -> str:
        """Name of the file with the piece checksums."""
        return self.name.removesuffix(".safetensors") + ".json"


class Grid(_Strict):
    """The layout that wrote it: degrees by axis, how many ranks each node had, and the axes in their order over ranks."""

    degrees: dict[str, int]
    nodes: tuple[int, ...] = Field(min_length=1)
    order: tuple[str, ...] = AXES

    @property
    def version(self) -> int:
        """The lowest version of the format that knows such a layout: 1 knew one order of the axes, and does not name it."""
        return 1 if self.order == AXES else 2

    @property
    def layout(self) -> Layout:
        """As the type that the plan takes."""
        return Layout(**self.degrees, order=self.order)

    @staticmethod
    def of(layout: Layout, nodes: tuple[int, ...]) -> Grid:
        """What of `layout` decides which rank holds what."""
        degrees = {axis: int(getattr(layout, axis)) for axis in (*AXES, "ep")}
        return Grid(degrees=degrees, nodes=nodes, order=layout.order)


class Manifest(_Strict):
    """A checkpoint. `facts` belong to the trainer: step, tokens, ledger length and digest, and what it needs beside tensors."""

    version: int
    step: int = Field(ge=0)
    incarnation: int = Field(ge=0)
    argosy: str
    torch: str
    created: float
    grid: Grid
    tensors: tuple[tuple[str, str, tuple[int, ...], tuple[tuple[str, int], ...], int | None], ...]
    facts: dict[str, Any]
    files: tuple[DataFile, ...]

    @property
    def specs(self) -> list[TensorSpec]:
        """The tensors as the plan takes them."""
        return [spec_from(row) for row in self.tensors]

    @property
    def bytes(self) -> int:
        """Bytes of all data files."""
        return sum(file.bytes for file in self.files)

    @property
    def order(self) -> tuple[int, int]:
        """Newer is larger. A later incarnation goes first: what an earlier one wrote beyond its start was given up."""
        return self.incarnation, self.step


def row(spec: TensorSpec) -> list[Any]:
    """A tensor as the manifest writes it: name, type, shape, splits, stage."""
    return [spec.name, spec.dtype, list(spec.shape), [[split.axis, split.dim] for split in spec.splits], spec.stage]


def spec_from(values: Sequence[Any]) -> TensorSpec:
    """The tensor of a row."""
    name, dtype, shape, splits, stage = values
    return TensorSpec(name, dtype, tuple(shape), tuple(Split(axis, dim) for axis, dim in splits), stage)


def text(manifest: Manifest) -> bytes:
    """The bytes of `manifest.json`: one line a tensor, so that people can read it and tools can compare it."""
    values = manifest.model_dump()
    if manifest.grid.version == 1:
        del values["grid"]["order"]
    rows = values.pop("tensors")
    lines = ",\n".join("  " + json.dumps(row) for row in rows)
    head = json.dumps(values, indent=1)[:-2]
    return f'{head},\n "tensors": [\n{lines}\n ]\n}}\n'.encode()


def read(folder: Path) -> Manifest:
    """The manifest of a checkpoint's folder. Damaged where it is missing, cannot be read, or does not make sense."""
    path = folder / MANIFEST
    try:
        values = read_json(path)
    except Missing as missing:
        if (folder / ASIDE).exists():
            raise SetAside(f"{_why(folder)} (set aside)") from None
        raise Unfinished(f"{missing}: the checkpoint was not finished") from None
    if not isinstance(values, dict) or not isinstance(values.get("version"), int):
        raise Damaged(f"{path}: this is no manifest of a checkpoint")
    if values["version"] > VERSION:
        raise Refused(
            f"this checkpoint has format version {values['version']}, this program reads up to {VERSION}.",
            where=str(path),
            do="Use the newer argosy that wrote it.",
        )
    try:
        found = Manifest.model_validate(values)
        _check(found)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise Damaged(f"{path}: {place}: {first['msg'].lower()}") from None
    except (ValueError, Refused) as error:
        raise Damaged(f"{path}: {error}") from None
    return found


def keep_why(folder: Path, reason: str) -> None:
    """Note beside a checkpoint that is set aside what was found; without the folder's place, which may change."""
    (folder / WHY).write_text(reason.replace(str(folder), "", 1) + "\n", encoding="utf-8")


def _why(folder: Path) -> str:
    """What was found when the checkpoint in `folder` was set aside."""
    try:
        with (folder / WHY).open(encoding="utf-8", errors="replace") as file:
            told = file.readline(1000).strip()
    except OSError:
        told = ""
    if not told:
        return f"{folder / ASIDE}: the checkpoint was found damaged"
    return f"{folder}{told}" if told.startswith(("/", ":")) else f"{folder}: {told}"


def read_json(path: Path) -> Any:
    """The JSON in `path`. Damaged where it is missing, too large, or none."""
    try:
        with path.open("rb") as file:
            data = file.read(LIMIT + 1)
    except FileNotFoundError:
        raise Missing(f"{path} is missing") from None
    except OSError as error:
        raise Damaged(f"{path} {UNREADABLE}: {error.strerror}") from None
    if len(data) > LIMIT:
        raise Damaged(f"{path} is larger than any manifest")
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        raise Damaged(f"{path} is no JSON, or only the beginning of it") from None


def _check(found: Manifest) -> None:
    """ValueError for a manifest whose parts do not fit each other."""
    layout = found.grid.layout if set(found.grid.degrees) <= {*AXES, "ep"} else None
    if layout is None or sum(found.grid.nodes) != layout.world or min(found.grid.nodes) < 1:
        raise ValueError(f"its layout {found.grid.degrees} does not fit {sum(found.grid.nodes)} ranks")
    if sum(spec.bytes for spec in found.specs if spec.dtype in SIZES) > found.bytes:
        raise ValueError("its tensors are larger than its files")
    if len(found.files) != len(found.grid.nodes):
        raise ValueError(f"it names {len(found.files)} data files for {len(found.grid.nodes)} nodes")
    names = set()
    for spec in found.specs:
        if spec.name in names:
            raise ValueError(f"tensor {spec.name} is named twice")
        names.add(spec.name)
        if spec.dtype not in SIZES or any(length < 0 for length in spec.shape):
            raise ValueError(f"tensor {spec.name} has type {spec.dtype} and shape {spec.shape}")
        if any(split.axis not in AXES or not 0 <= split.dim < len(spec.shape) for split in spec.splits):
            raise ValueError(f"tensor {spec.name} of shape {spec.shape} cannot be cut as {spec.splits}")


@dataclass(frozen=True)
class Sidecar:
    """The checksums of one data file, in the order of its pieces, and the save they belong to."""

    step: int
    incarnation: int
    size: int  # bytes of the data file
    header: str
    pieces: tuple[str, ...]

    @property
    def digest(self) -> str:
        """What the manifest holds for the file: a hash over the header's and all pieces' checksums."""
        return blake2b("".join((self.header, *self.pieces)).encode(), digest_size=16).hexdigest()

    def text(self) -> bytes:
        """The bytes of the sidecar's file."""
        values = {"version": SIDECAR, "step": self.step, "incarnation": self.incarnation, "bytes": self.size}
        return (json.dumps({**values, "header": self.header, "pieces": self.pieces}) + "\n").encode()

    @staticmethod
    def read(path: Path) -> Sidecar:
        """The sidecar in `path`; Damaged where it is none."""
        values = read_json(path)
        if isinstance(values, dict) and isinstance(values.get("version"), int) and values["version"] > SIDECAR:
            raise Damaged(f"{path} has version {values['version']} of a sidecar, this program reads up to {SIDECAR}")
        keys = {"version", "step", "incarnation", "bytes", "header", "pieces"}
        if not isinstance(values, dict) or set(values) != keys or not isinstance(values["pieces"], list):
            raise Damaged(f"{path} is no sidecar of a data file")
        if any(not isinstance(value, str) for value in (values["header"], *values["pieces"])):
            raise Damaged(f"{path}: a checksum is no text")
        numbers = (values["step"], values["incarnation"], values["bytes"])
        if any(not isinstance(number, int) for number in numbers):
            raise Damaged(f"{path}: step, incarnation or bytes is no number")
        return Sidecar(*numbers, values["header"], tuple(values["pieces"]))


def checksum(data: bytes | bytearray | memoryview) -> str:
    """The checksum of a piece or header: the first 16 bytes of BLAKE2b."""
    return blake2b(data, digest_size=16).hexdigest()
