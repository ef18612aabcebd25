from __future__ import annotations

import pytest
from pydantic import ValidationError

from argosy.job.load import load
from argosy.job.schema import Job


def test_a_job_survives_json_and_python() -> None:
    job = load(
        "laptop", ["memory.limit=8 GiB", "checkpoint.bandwidth=1 MB/s", "train.time=90 s", "optim.warmup=1K"]
    ).job
    assert Job.model_validate_json(job.model_dump_json()) == job
    assert Job.model_validate(job.model_dump()) == job


def test_jobs_are_frozen_and_strict() -> None:
    with pytest.raises(ValidationError):
        Job().train.seed = 2  # type: ignore[misc]
    with pytest.raises(ValidationError):
        Job.model_validate({"train": {"seed": True}})
    with pytest.raises(ValidationError):
        Job.model_validate([])
