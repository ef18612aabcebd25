"""Who writes which bytes of a checkpoint: pure functions of (shapes, placements, layout, nodes). No torch, no files.

Saving, loading and verifying all ask here, so none of them needs a message from another rank. A node's data file is a
safetensors file: a header, then the entries. An entry is a box of one tensor; it is made of *pieces*, each the contiguous
bytes that one rank writes and one checksum covers. A box that several ranks hold is cut into pieces and spread over them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from zlib import crc32

from argosy.layout.layout import Layout, share
from argosy.layout.placement import Box, Split, box, copies, extent, volume

# Names of types as the safetensors format writes them, with their bytes per element.
SIZES = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2}
SIZES |= {"I8": 1, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1}

LARGEST = 16 << 20  # bytes of a piece: what a reader that needs one element of it has to read and check
SMALLEST = 1 << 20  # bytes below which a box is not cut only to spread it over its holders


@dataclass(frozen=True)
class TensorSpec:
    """One tensor of the state as the plan sees it. `stage`: the only pp coordinate that holds it, None = all of them."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    splits: tuple[Split, ...] = ()
    stage: int | None = None

    @property
    def bytes(self) -> int:
        """Bytes of the whole tensor."""
        return volume(((0,) * len(self.shape), self.shape)) * SIZES[self.dtype]


@dataclass(frozen=True)
class Piece:
    """A box of one tensor and the bytes that hold it: `bytes` of them at `offset` of the data file of `node`."""

    tensor: str
    begin: tuple[int, ...]
    end: tuple[int, ...]
    node: int
    offset: int
    bytes: int
    rank: int

    @property
    def box(self) -> Box:
        """Begin and end."""
        return self.begin, self.end


@dataclass(frozen=True)
class NodeFile:
    """A node's data file: its header's bytes, its pieces by offset, its length."""

    header: bytes
    pieces: tuple[Piece, ...]
    bytes: int


def node_of(nodes: Sequence[int], rank: int) -> int:
    """The node of `rank`, where `nodes` holds the number of ranks of each node, in the order of ranks."""
    for node, ranks in enumerate(nodes):
        if rank < ranks:
            return node
        rank -= ranks
    raise IndexError(f"rank beyond the {sum(nodes)} ranks of {len(nodes)} nodes")


def ranks_of(nodes: Sequence[int], node: int) -> range:
    """The ranks of `node`."""
    first = sum(nodes[:node])
    return range(first, first + nodes[node])


def held(spec: TensorSpec, layout: Layout, rank: int) -> Box | None:
    """The box of `spec` that `rank` holds, None where it holds nothing of it."""
    if spec.stage is not None and layout.at(rank)["pp"] != spec.stage:
        return None
    found = box(spec.shape, spec.splits, layout, rank)
    return found if volume(found) else None


def written(spec: TensorSpec, layout: Layout, rank: int) -> list[Box]:
    """The boxes of `spec` that `rank` writes: over all ranks they tile the tensor, each element once."""
    found = held(spec, layout, rank)
    if found is None:
        return []
    count, index = copies(spec.splits, layout, rank, () if spec.stage is None else ("pp",))
    size = volume(found) * SIZES[spec.dtype]
    # Cut along the first dimension that is longer than one: so every part is contiguous in the box.
    dim = next((d for d, length in enumerate(extent(found)) if length > 1), None)
    if dim is None:
        return [found] if index == crc32(spec.name.encode()) % count else []
    rows = extent(found)[dim]
    parts = min(rows, max(-(-size // LARGEST), min(count, size // SMALLEST), 1))
    first = crc32(spec.name.encode())  # spreads small tensors over the copies, whatever their order
    mine = []
    for part in range((index - first) % count, parts, count):
        cut = share(rows, parts, part)
        begin, end = list(found[0]), list(found[1])
        begin[dim], end[dim] = found[0][dim] + cut.start, found[0][dim] + cut.stop
        mine.append((tuple(begin), tuple(end)))
    return mine


def node_file(tensors: Sequence[TensorSpec], layout: Layout, nodes: Sequence[int], node: int) -> NodeFile:
    """The data file of `node`. Pure; its cost grows with tensors x the node's own ranks."""
    ranks = ranks_of(nodes, node)
    entries: list[tuple[str, TensorSpec, Box, list[tuple[Box, int]]]] = []
    # Wide types first: then every entry is aligned to its type, as the format asks, without a gap.
    for spec in sorted(tensors, key=lambda spec: -SIZES[spec.dtype]):
        boxes = sorted((found, rank) for rank in ranks for found in written(spec, layout, rank))
        for whole, parts in _joined(boxes):
            entries.append((_entry_name(spec, whole), spec, whole, parts))
    table: dict[str, object] = {"__metadata__": {"format": "pt"}}
    begin = 0
    for name, spec, whole, _ in entries:
        end = begin + volume(whole) * SIZES[spec.dtype]
        table[name] = {"dtype": spec.dtype, "shape": list(extent(whole)), "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    header = len(text).to_bytes(8, "little") + text
    offset, found_pieces = len(header), []
    for _, spec, _, parts in entries:
        for (first, last), rank in parts:
            size = volume((first, last)) * SIZES[spec.dtype]
            found_pieces.append(Piece(spec.name, first, last, node, offset, size, rank))
            offset += size
    return NodeFile(header, tuple(found_pieces), offset)


def pieces(tensors: Sequence[TensorSpec], layout: Layout, nodes: Sequence[int], rank: int) -> Iterator[Piece]:
    """What `rank` writes, and where. Pure, so saving, loading and verifying need no message."""
    whole = node_file(tensors, layout, nodes, node_of(nodes, rank))
    return (piece for piece in whole.pieces if piece.rank == rank)


def _joined(boxes: Sequence[tuple[Box, int]]) -> Iterator[tuple[Box, list[tuple[Box, int]]]]:
    """Neighbours whose bytes follow each other in a row-major tensor, as one box each, with their parts."""
    current: Box | None = None
    parts: list[tuple[Box, int]] = []
    for found, rank in boxes:
        whole = None if current is None else _follows(current, found)
        if whole is None and current is not None:
            yield current, parts
            parts = []
        current = found if whole is None else whole
        parts.append((found, rank))
    if current is not None:
        yield current, parts


def _follows(first: Box, second: Box) -> Box | None:
    """The union of two boxes where it is a box whose row-major bytes are those of `first`, then those of `second`."""
    differ = [d for d, pair in enumerate(zip(*first, *second, strict=True)) if pair[:2] != pair[2:]]
    if len(differ) != 1:
        return None
    dim = differ[0]
    if first[1][dim] != second[0][dim] or any(length != 1 for length in extent(first)[:dim]):
        return None
    return first[0], second[1]


def _entry_name(spec: TensorSpec, whole: Box) -> str:
    """A whole tensor has its own name; a part says which box it is: "head.weight[0:128,0:64]"."""
    if extent(whole) == spec.shape:
        return spec.name
    return spec.name + "[" + ",".join(f"{begin}:{end}" for begin, end in zip(*whole, strict=True)) + "]"
