"""Weights of a folder as tensors of ours: any part of any of them, one tensor of theirs in memory at most.

In: a folder's entries, a family's rules applied to a model. Out: rows of a tensor of ours, in the type they are stored in;
`fill` copies into each rank what that rank holds, whatever the layout. Names and shapes are checked before a byte is read.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from argosy.device.shards import box, local
from argosy.errors import Refused
from argosy.exchange.mapping import Origin, Rows, Shapes, Tensors
from argosy.exchange.source import Entry
from argosy.layout.placement import volume

PIECE = 16 << 20  # bytes of a tied copy that are compared at once
TYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


class Weights:
    """The tensors of a folder as `tensors` maps them. Refused, by name and nearest rule, where they are another model's.

    told: the shapes of theirs by what came with them, where `tensors` is for a model that may have more rows.
    """

    def __init__(self, entries: Mapping[str, Entry], tensors: Tensors, where: str, told: Shapes | None = None):
        self.tensors, self.where = tensors, where
        self.entries: dict[str, Entry] = {}
        for name, entry in entries.items():
            full = tensors.full(name)
            if full in self.entries:
                raise Refused(f"{full} is there twice, with and without {tensors.rules.prefix}.", where=where)
            self.entries[full] = entry
        self._kept: tuple[str, Tensor] | None = None  # the last whole tensor of theirs
        self._check(tensors.theirs(), {} if told is None else told)

    def _check(self, wanted: Shapes, told: Shapes) -> None:
        padded = {origin.theirs for origin in self.tensors.origins.values() if origin.rule.pad}
        missing = [name for name in wanted if name not in self.entries]
        if missing:
            raise Refused(
                f"the weights lack {_named(missing)}.", where=self.where,
                do=f"The rule is {self._rule(missing[0])} of the family {self.tensors.rules.family}.",
            )  # fmt: skip
        extra = [name for name in self.entries if name not in wanted and not self.tensors.ignored(name)]
        if extra:
            raise Refused(
                f"the weights also hold {_named(extra)}.",
                where=self.where,
                found=self.tensors.meant(extra[0]),
                do="Its config.json describes another model, or it needs rules of its own.",
            )
        for name, shape in wanted.items():
            entry = self.entries[name]
            if entry.dtype not in TYPES:
                raise Refused(
                    f"{name} is stored as {entry.dtype}; {', '.join(TYPES)} are read.",
                    where=self.where,
                )
            said = told.get(name, shape)
            if entry.shape != said:
                raise Refused(
                    f"{name} has the shape {list(entry.shape)}, where config.json asks for {list(said)}.",
                    where=self.where,
                )
            fewer = name in padded and said[1:] == shape[1:] and said[0] < shape[0]
            if said != shape and not fewer:
                raise Refused(
                    f"{name} has the shape {list(said)}, where the job asks for {list(shape)}.", where=self.where
                )
        for name, origin in self.tensors.copies(self.entries):
            self._demand_same(name, self.entries[name], self.entries[origin])

    def _demand_same(self, name: str, copy: Entry, origin: Entry) -> None:
        """Refused where a tied copy is not what it is a copy of: the model is then not tied, whatever config.json says."""
        same = (copy.dtype, copy.shape) == (origin.dtype, origin.shape)
        rows = copy.shape[0] if copy.shape else 1
        step = max(1, PIECE * rows // max(1, copy.end - copy.begin))
        parts = [(begin, min(begin + step, rows)) for begin in range(0, rows, step)]
        if not same or any(copy.rows(*part) != origin.rows(*part) for part in parts):
            raise Refused(
                f"{name} is not the tensor that it is tied to.", where=self.where,
                do="Nothing is tied then: tie_word_embeddings = false in config.json, model.tied = false in a job.",
            )  # fmt: skip

    def _rule(self, theirs: str) -> str:
        found = next(origin.rule for origin in self.tensors.origins.values() if origin.theirs == theirs)
        return f"{found.theirs} -> {', '.join(found.ours)}"

    @property
    def types(self) -> set[str]:
        """The types that the weights are stored in."""
        return {self.entries[origin.theirs].dtype for origin in self.tensors.origins.values()}

    @property
    def bytes(self) -> int:
        """Of all tensors that are read."""
        return sum(entry.end - entry.begin for name, entry in self.entries.items() if not self.tensors.ignored(name))

    def rows(self, name: str, begin: int, end: int) -> Tensor:
        """Rows [begin, end) of our tensor `name`, fewer where ours is padded beyond theirs, in the stored type."""
        origin = self.tensors.origins[name]
        entry = self.entries[origin.theirs]
        turned = origin.rule.transpose and len(entry.shape) == 2
        where = self.tensors.rows(name, entry.shape[1 if turned else 0])
        end = min(end, where.count)
        if turned:
            return self._turned(origin, entry, where, begin, end)
        parts = [self._read(entry, first, first + count) for first, _, count in where.runs(begin, end)]
        if not parts:
            return torch.empty((0, *entry.shape[1:]), dtype=TYPES[entry.dtype])
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _turned(self, origin: Origin, entry: Entry, where: Rows, begin: int, end: int) -> Tensor:
        """The same of a matrix that is stored the other way round: it has to be read whole, and is kept for the next rows."""
        if self._kept is None or self._kept[0] != origin.theirs:
            self._kept = None  # before the next one is read: one at a time
            self._kept = (origin.theirs, self._read(entry, 0, entry.shape[0]))
        whole = self._kept[1].t()
        parts = [whole[first : first + count] for first, _, count in where.runs(begin, end)]
        return torch.cat(parts) if parts else whole[:0]

    def _read(self, entry: Entry, begin: int, end: int) -> Tensor:
        kind = TYPES[entry.dtype]
        if begin == end or 0 in entry.shape:
            return torch.empty((end - begin, *entry.shape[1:]), dtype=kind)
        return torch.frombuffer(entry.rows(begin, end), dtype=kind).view(end - begin, *entry.shape[1:])

    def forget(self) -> None:
        """Let go of what was kept."""
        self._kept = None


@torch.no_grad()
def fill(parameters: Mapping[str, Tensor], weights: Weights) -> None:
    """Copy `weights` into `parameters`, whole ones or this rank's shards, rows beyond the stored ones left as they are."""
    for name, parameter in parameters.items():
        if name not in weights.tensors.origins:  # of a class of one's own: it keeps its first weights
            continue
        held = box(parameter)
        if not volume(held):
            continue
        (first, last), columns = (held[0][0], held[1][0]), zip(held[0][1:], held[1][1:], strict=True)
        part = weights.rows(name, first, last)
        local(parameter)[: part.shape[0]].copy_(part[(slice(None), *(slice(*ends) for ends in columns))])
    weights.forget()


def raw(tensor: Tensor) -> memoryview:
    """The bytes of `tensor`, row by row."""
    flat = tensor.detach().contiguous().view(-1).view(torch.uint8)
    return flat.numpy().data


def _named(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
