"""The generator: stored vectors, NumPy and torch alike, no end of the interval."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from argosy.random import bits, key, unit

VECTORS = json.loads((Path(__file__).parent / "fixtures" / "random.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("stored", VECTORS, ids=lambda stored: str(stored["name"]))
def test_stored_vectors(stored: dict[str, object]) -> None:
    stream = key(stored["seed"], *stored["name"])  # type: ignore[arg-type, misc]
    assert stream == stored["key"]
    index = np.array(stored["index"], np.int64)
    drawn = bits(stream, index)
    assert drawn.tolist() == stored["bits"] == bits(stream, torch.from_numpy(index)).tolist()
    assert unit(drawn).tolist() == stored["unit"] == unit(torch.from_numpy(drawn)).tolist()


def test_is_splitmix64() -> None:
    """The published generator from seed 1234567: its first outputs, as other implementations print them."""
    drawn = bits(1234567, np.arange(1, 4, dtype=np.int64)).astype(np.uint64)
    assert drawn.tolist() == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_unit_is_open_and_float64_in_both() -> None:
    ends = np.array([0, -1, 1 << 63 - 1, -(1 << 63)], np.int64)
    for drawn in (unit(ends), unit(torch.from_numpy(ends))):
        assert (drawn > 0).all() and (drawn < 1).all()
        assert str(drawn.dtype).endswith("float64")


def test_streams_make_a_tree() -> None:
    streams = bits(key(1, "a"), torch.arange(3))
    both = bits(streams[:, None], torch.arange(4))
    assert torch.equal(both[2], bits(int(streams[2]), torch.arange(4)))
