"""What a rank sends, heard below the model: every collective and every letter, its group, and the bytes of the whole of it.

Knows the operators under torch.distributed; nothing of models or layouts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch.distributed as dist
from torch import Tensor

from argosy.device.torch_versions import group_given, hearing

# Every operator that sends: what it is, which argument holds the whole of what is moved (None: the result does), and which
# one the group. Those of c10d are called by their Python names, those of _c10d_functional by DTensors and compiled code.
SENDS: Mapping[str, tuple[str, int | None, int]] = {
    "c10d._allgather_base_": ("all-gather", 0, 2),
    "c10d.allgather_": ("all-gather", 0, 2),
    "c10d._reduce_scatter_base_": ("reduce-scatter", 1, 2),
    "c10d.allreduce_": ("all-reduce", 0, 1),
    "c10d.broadcast_": ("broadcast", 0, 1),
    "c10d.send": ("send", 0, 1),
    "_c10d_functional.all_gather_into_tensor": ("all-gather", None, 2),
    "_c10d_functional.reduce_scatter_tensor": ("reduce-scatter", 0, 3),
    "_c10d_functional.all_reduce": ("all-reduce", 0, 2),
    "_c10d_functional.all_reduce_": ("all-reduce", 0, 2),
    "_c10d_functional.broadcast": ("broadcast", 0, 2),
}
SILENT = {"c10d.recv_", "c10d.barrier", "c10d.monitored_barrier_"}
SILENT |= {"_c10d_functional.wait_tensor", "_c10d_functional._wrap_tensor_autograd"}
ROOMS = {"c10d", "_c10d_functional", "_dtensor"}  # whose other operators send too
Note = Callable[[str, tuple[int, ...], int], None]


@contextmanager
def hearing_sends(note: Note) -> Iterator[None]:
    """Meanwhile `note` hears of all that this thread sends: kind, ranks (of a letter: from, to), bytes of the whole tensors.

    RuntimeError for a collective that is not known here.
    """

    def heard(name: str, arguments: Sequence[Any], found: Any) -> None:
        """Note what a call sends, or that nobody knows."""
        if name in SENDS:
            kind, whole, place = SENDS[name]
            group = group_given(arguments[place])
            ranks = tuple(sorted(dist.get_process_group_ranks(group)))
            if kind == "send":
                ranks = (dist.get_rank(), dist.get_global_rank(group, arguments[2]))
            note(kind, ranks, size(found if whole is None else arguments[whole]))
        elif name.partition(".")[0] in ROOMS and name not in SILENT:
            raise RuntimeError(f"nobody knows how many bytes {name} sends")

    with hearing(heard):
        yield


def size(tensors: Any) -> int:
    """Bytes of a tensor, or of all in a list of them or of lists."""
    if isinstance(tensors, Tensor):
        return tensors.numel() * tensors.element_size()
    return sum(size(one) for one in tensors)
