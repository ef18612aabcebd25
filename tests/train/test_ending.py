"""What kind of end an error is, and the sentence for it."""

from __future__ import annotations

import errno

import pytest

from argosy.errors import BUG, NO, Refused


def test_every_kind_of_full_disk_is_one() -> None:
    from argosy.train.ending import explained

    for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        kind, refused = explained(OSError(number, "no", "file"), 0)
        assert kind == "out_of_disk" and refused is not None and refused.code == 4


@pytest.mark.parametrize(
    "error, kind, told",
    [
        (Refused("the loss is not finite.", code=NO), "diverged", "not finite"),
        (Refused("a broken file.", code=BUG), "refused", "broken file"),
        (MemoryError(), "out_of_memory", "rank 3 is out of memory"),
        (ConnectionResetError("gone"), "peer", "rank 3 lost the connection"),
        (RuntimeError("Gloo: connection closed by peer"), "peer", "rank 3 lost the connection"),
        (ValueError("a bug of ours"), "bug", None),
    ],
)
def test_an_end_has_a_kind_and_where_it_is_no_bug_a_sentence(error: Exception, kind: str, told: str | None) -> None:
    from argosy.train.ending import explained

    found, refused = explained(error, 3)
    assert found == kind
    assert (told is None and refused is None) or (refused is not None and str(told) in refused.text)
