"""What tests of several rooms share: one pool of forked ranks, so that torch is imported once for all of them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from argosy.prove.pool import Pool


@pytest.fixture(scope="session")
def pool() -> Iterator[Pool]:
    """Four ranks that stay; each call makes groups of its own."""
    with Pool(4) as made:
        yield made
