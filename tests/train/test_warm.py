"""The warm server's module, as the server imports it: in a process of its own, fit to be forked afterwards."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

SHOW = """
import gc, sys
if sys.argv[1] == "server":
    import argosy.run.bound
import argosy.train.warm as warm
print(warm.ready(), gc.isenabled(), gc.get_freeze_count() > 100_000, "torch._inductor.compile_fx" in sys.modules)
"""


@pytest.mark.parametrize(
    "who, said",
    [
        pytest.param("somebody", "True True False False", marks=pytest.mark.long),
        ("server", "True False True True"),
    ],
)
def test_the_server_sets_all_aside_that_it_loaded(who: str, said: str) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "ARGOSY_WARM"}
    environment |= {"ARGOSY_WARM": "compile"} if who == "server" else {}
    command = [sys.executable, "-c", SHOW, who]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.stdout.split("\n")[0] == said, done.stderr
