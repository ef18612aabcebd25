"""What the fault tests share: one place with text, job and cache, and the run that nobody disturbs."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from tests.system.harness import JOB, REFERENCE, Command, write_text

from argosy.run.folder import Run

# What a launcher, a scheduler or a shell around the tests may have set, and the runs of the tests must not see.
FOREIGN = (
    "ARGOSY_",
    "SLURM_",
    "OMP_",
    "OMPI_",
    "PMI",
    "MPI_",
    "KUBERNETES_",
    "TORCHELASTIC_",
    "MASTER_",
    "CUDA_VISIBLE_",
)
FOREIGN += ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_", "ROLE_")


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Command:
    """One folder with text, job and cache for all runs of the session."""
    folder = tmp_path_factory.mktemp("faults")
    write_text(folder / "text")
    (folder / "faults.toml").write_text(JOB, encoding="utf-8")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
    kept |= {"ARGOSY_RUNS": str(folder / "runs"), "NO_COLOR": "1"}
    if "ARGOSY_CACHE" in os.environ:  # holds what was measured of this machine; the text has a place of its own
        kept["ARGOSY_CACHE"] = os.environ["ARGOSY_CACHE"]
    return Command(folder, kept)


@pytest.fixture
def command(place: Command) -> Iterator[Command]:
    """`argosy train`; what a test leaves running is ended after it."""
    yield place
    place.clean()


@pytest.fixture(scope="session")
def undisturbed(place: Command) -> Run:
    """A run that nobody disturbs, stopped after REFERENCE steps: what every other one has to repeat."""
    made = place.train("undisturbed")
    made.reach(REFERENCE)
    assert made.stop() == 0, made.text
    place.clean()
    return made.run
