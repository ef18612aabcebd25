from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from argosy import random

# SplitMix64's published outputs for the seed 0: counting from 0, output n is the mix of (n + 1) x gamma.
PUBLISHED = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
# Bits of the stream (seed 1, "weights", "blocks.0") at 0, 1 and 2**40: other numbers would make every stored run another.
STORED = (-6455038330461068019, -8487113960620193068, -711759716525589339)


def test_it_is_splitmix64() -> None:
    assert [int(word) & (2**64 - 1) for word in random.bits(0, np.arange(1, 4, dtype=np.int64))] == PUBLISHED


def test_keys_and_streams_stay_what_they_are() -> None:
    stream = random.key(1, "weights", "blocks.0")
    assert tuple(int(word) for word in random.bits(stream, np.array([0, 1, 2**40], dtype=np.int64))) == STORED


def test_torch_computes_the_same_bits_and_numbers() -> None:
    torch = pytest.importorskip("torch")
    index = np.arange(-5000, 5000, dtype=np.int64) * 1_234_567_891
    ours = random.bits(random.key(7, "x"), index)
    theirs = random.bits(random.key(7, "x"), torch.from_numpy(index))
    assert np.array_equal(ours, theirs.numpy())
    assert np.array_equal(random.unit(ours), random.unit(theirs).numpy())


@given(st.integers(0, 2**63 - 1), st.integers(0, 900), st.integers(1, 100))
def test_a_slice_alone_equals_the_whole(seed: int, begin: int, length: int) -> None:
    whole = random.bits(random.key(seed, "w"), np.arange(1000, dtype=np.int64))
    part = random.bits(random.key(seed, "w"), np.arange(begin, begin + length, dtype=np.int64))
    assert np.array_equal(whole[begin : begin + length], part[: 1000 - begin])


@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=50))
def test_units_lie_strictly_between_the_ends(words: list[int]) -> None:
    units = random.unit(np.array([*words, -1, 0, 2**63 - 1, -(2**63)], dtype=np.int64))
    assert units.dtype == np.float64
    assert ((units > 0) & (units < 1)).all()


def test_names_and_seeds_make_other_streams() -> None:
    keys = {random.key(*words) for words in ((1, "a"), (2, "a"), (1, "b"), (1, "a", 0), (1, "a", "0", ""), (11, "a"))}
    assert len(keys) == 6
    units = random.unit(random.bits(random.key(1, "mean"), np.arange(100_000, dtype=np.int64)))
    assert abs(units.mean() - 0.5) < 0.005
    assert abs(units.var() - 1 / 12) < 0.001
