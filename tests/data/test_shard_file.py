from pathlib import Path

import numpy as np
import pytest

from argosy.data import shard_file
from argosy.data.shard_file import Contents, ShardFile
from argosy.errors import Refused

BLOCK = 4096


def contents(documents: int = 40, full: bool = False) -> Contents:
    lengths = [1 + number * 37 % 900 for number in range(documents)]
    total = sum(lengths)
    rows = np.zeros(documents, shard_file.DOCUMENT)
    rows["hash"] = np.arange(documents) * 3
    rows["end"] = lengths
    return Contents(
        np.cumsum([0, *lengths]).astype(np.uint64),
        rows,
        ['odd "name"\n', "größe.txt"],
        (np.arange(total) % 60_000).astype(np.uint16),
        mask=(np.arange(total) % 3 != 0).astype(np.uint8) if full else None,
        kinds=(np.arange(total) % 5).astype(np.uint8) if full else None,
        pairs=(np.arange(documents) // 2).astype(np.int64) if full else None,
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "part-00000.shard"


@pytest.mark.parametrize("full", [False, True])
def test_what_is_written_is_read(path: Path, full: bool) -> None:
    made = contents(full=full)
    shard_file.write(path, made, BLOCK)
    found = ShardFile(path)
    assert (found.boundaries == made.boundaries).all()
    assert (found.documents == made.documents).all()
    assert found.names == made.names
    assert (found.read("tokens", 100, 5000) == made.tokens[100:5000]).all()
    assert found.has("mask") == found.has("kinds") == full == (found.pairs is not None)
    if full:
        assert made.mask is not None and made.kinds is not None and made.pairs is not None
        assert (found.read("mask", 7, 70) == made.mask[7:70]).all()
        assert (found.read("kinds", 7, 70) == made.kinds[7:70]).all()
        assert (found.pairs == made.pairs).all()
    else:
        assert len(found.read("mask", 7, 70)) == 0


def test_large_vocabularies_take_four_bytes_a_token(path: Path) -> None:
    made = contents()
    wide = Contents(made.boundaries, made.documents, made.names, made.tokens.astype(np.uint32) + np.uint32(100_000))
    shard_file.write(path, wide, BLOCK)
    assert (ShardFile(path).read("tokens", 0, 50) == wide.tokens[:50]).all()


def test_every_flipped_bit_is_found_with_file_and_offset(path: Path) -> None:
    """A bit in every 97th byte of the file, header, index, tokens and checksums alike."""
    shard_file.write(path, contents(), BLOCK)
    good = path.read_bytes()
    for at in range(0, len(good), 97):
        path.write_bytes(good[:at] + bytes([good[at] ^ 4]) + good[at + 1 :])
        with pytest.raises(Refused, match=r"part-00000\.shard.*(damaged|format version)") as refused:
            ShardFile(path).check()
        block = shard_file.HEADER + (at - shard_file.HEADER) // BLOCK * BLOCK
        if "do not match" in refused.value.text:
            assert f"part-00000.shard, byte {block}: " in refused.value.text
            assert block <= at < block + BLOCK


def test_a_file_cut_off_anywhere_is_found(path: Path) -> None:
    shard_file.write(path, contents(), BLOCK)
    good = path.read_bytes()
    for length in [0, 10, shard_file.HEADER - 1, shard_file.HEADER, len(good) // 2, len(good) - 1]:
        path.write_bytes(good[:length])
        with pytest.raises(Refused, match=f"byte {length}: this shard is damaged"):
            ShardFile(path)


def test_a_block_is_checked_when_it_is_first_touched(path: Path) -> None:
    shard_file.write(path, contents(), BLOCK)
    good = bytearray(path.read_bytes())
    good[-2000] ^= 1
    path.write_bytes(good)
    found = ShardFile(path)
    assert (found.read("tokens", 0, 100) == np.arange(100)).all()
    with pytest.raises(Refused, match="do not match their checksum"):
        found.read("tokens", 0, found.tokens)


def test_an_impossible_header_is_refused_even_with_a_right_checksum(path: Path) -> None:
    import struct
    import zlib

    shard_file.write(path, contents(), BLOCK)
    good = bytearray(path.read_bytes())
    for at in (8, 12, 16, 24, 32, 40, 48, 56, 88, 96):
        bad = good.copy()
        bad[at : at + 3] = b"\xff\xff\x7f"
        bad[shard_file.HEADER - 4 : shard_file.HEADER] = struct.pack("<I", zlib.crc32(bad[: shard_file.HEADER - 4]))
        path.write_bytes(bad)
        with pytest.raises(Refused, match=r"damaged|format version"):
            ShardFile(path)


def test_writing_leaves_no_half_file_under_the_name(tmp_path: Path) -> None:
    path = tmp_path / "missing" / "x.shard"
    with pytest.raises(OSError):
        shard_file.write(path, contents())
    shard_file.write(tmp_path / "x.shard", contents())
    assert [file.name for file in tmp_path.iterdir()] == ["x.shard"]
