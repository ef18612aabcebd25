"""What tests of several rooms share: one pool of forked ranks, so that torch is imported once for all of them."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest
from hypothesis import settings

from argosy.prove.pool import Pool

# No deadline: a loaded machine is slow, not wrong. The same examples everywhere: a failure in CI is a failure here.
settings.register_profile("argosy", deadline=None, derandomize=True, max_examples=40, database=None)
settings.load_profile("argosy")

# Who starts the tests in the background of a script hands on an ignored Ctrl-C, and tests that send one would wait for ever.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def pool() -> Iterator[Pool]:
    """Eight ranks that stay, and one more that judges; each call makes groups of its own."""
    with Pool(9) as made:
        yield made
