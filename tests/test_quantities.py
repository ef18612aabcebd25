from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from argosy import quantities as q


@pytest.mark.parametrize(
    ("text", "number"),
    [
        (320, 320),
        ("1.3M", 1_300_000),
        ("15B", 15 * 10**9),
        ("3e9", 3 * 10**9),
        (3e9, 3 * 10**9),
        ("4_096", 4096),
        ("2K", 2000),
    ],
)
def test_counts(text: object, number: int) -> None:
    assert q.count(text) == number


@pytest.mark.parametrize("text", ["many", "1.5", 1.5, True, "3 GiB", "", None, "1e999", [3]])
def test_what_is_no_count_is_refused_with_an_example(text: object) -> None:
    with pytest.raises(ValueError, match=r"write|whole"):
        q.count(text)


@pytest.mark.parametrize(
    ("text", "number"),
    [("80 GiB", 80 << 30), ("26 MB", 26_000_000), ("512KiB", 512 << 10), ("7 TB", 7 * 10**12), ("9 B", 9)],
)
def test_sizes(text: str, number: int) -> None:
    assert q.size(text) == number


@pytest.mark.parametrize("text", ["80", 80, "80 G", "80 Gb/s", "-"])
def test_a_size_wants_its_unit(text: object) -> None:
    with pytest.raises(ValueError, match="write"):
        q.size(text)


def test_bandwidths_tell_bits_from_bytes() -> None:
    assert q.bandwidth("200 Gb/s") == 25e9
    assert q.bandwidth("25 GB/s") == 25e9
    assert q.bandwidth("100 MB/s") == 100e6
    assert q.bandwidth("1 GiB/s") == 1 << 30
    for text in ("200", 200, "200 Gb", "200 GB"):
        with pytest.raises(ValueError, match=r"bits.*bytes"):
            q.bandwidth(text)


def test_durations_and_shares() -> None:
    assert [q.seconds(text) for text in ("90 s", "10 min", "2 h", "30 us", "1 day")] == pytest.approx(
        [90, 600, 7200, 30e-6, 86400]
    )
    assert [q.fraction(text) for text in ("2%", 0.02, 1, "0.5")] == [0.02, 0.02, 1, 0.5]
    for reader, text in (
        (q.seconds, 90),
        (q.seconds, "-1 s"),
        (q.fraction, "120%"),
        (q.fraction, True),
        (q.fraction, -0.1),
    ):
        with pytest.raises(ValueError):
            reader(text)


def test_intervals() -> None:
    assert q.interval(200) == q.Interval(steps=200)
    assert q.interval("60 s") == q.Interval(seconds=60)
    assert q.interval("25%").due(320) == 80
    assert q.interval("1%").due(3) == 1  # never less than a step
    assert q.interval("never") == q.Interval()
    assert q.interval("never").due(10) is None
    for text in (0, True, "0%", "0 s", "often", 2.5):
        with pytest.raises(ValueError):
            q.interval(text)


@given(st.integers(0, 10**6), st.sampled_from(["", "K", "M", "B", "T"]))
def test_counts_round_trip(number: int, unit: str) -> None:
    assert q.count(f"{number}{unit}") == number * {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}[unit]


@given(st.integers(0, 2**53))
def test_texts_of_sizes_read_back_within_their_digits(number: int) -> None:
    assert q.size(q.bytes_text(number)) == pytest.approx(number, rel=0.06, abs=0.5)


@given(st.integers(0, 10**15))
def test_texts_of_counts_read_back_within_their_digits(number: int) -> None:
    assert q.count(q.count_text(number).replace(",", "")) == pytest.approx(number, rel=0.006, abs=0.5)


def test_texts() -> None:
    assert q.bytes_text(80 << 30) == "80 GiB"
    assert q.bytes_text(367_616) == "359 KiB"
    assert [q.count_text(number) for number in (478, 4096, 1_310_720, 15e9)] == ["478", "4,096", "1.31M", "15B"]
    assert [q.seconds_text(number) for number in (0.72, 2.5, 178, 3840, 86400 * 3 + 7200)] == [
        "0.72 s", "2.5 s", "2 min 58 s", "1 h 4 min", "3 days 2 h",
    ]  # fmt: skip
