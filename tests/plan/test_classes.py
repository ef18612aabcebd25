from __future__ import annotations

from typing import Any

import pytest

from argosy.errors import Refused
from argosy.job.schema import PrecisionSection, TrainSection
from argosy.plan import classes


def train(precision: str, master: str = "float32", **kinds: str) -> TrainSection:
    return TrainSection.model_validate({"precision": precision, "master": master, "precision_of": kinds})


def test_auto_is_the_matrices_type_and_for_norms_float32_at_least() -> None:
    for precision, norm in (("bfloat16", "float32"), ("float32", "float32"), ("float64", "float64")):
        found = classes.of_classes(train(precision, "float64"))
        assert found == {"norm": norm, "embedding": precision, "head": precision}
    assert classes.of_classes(train("bfloat16", norm="bfloat16", head="float32")) == {
        "norm": "bfloat16",
        "embedding": "bfloat16",
        "head": "float32",
    }


@pytest.mark.parametrize(
    ("given", "ends", "norms", "last_norm"),
    [
        (("float32", "float32", {}), "float32", False, False),
        (("float64", "float64", {}), "float64", False, False),
        (("bfloat16", "float32", {}), "bfloat16", True, True),
        (("bfloat16", "bfloat16", {}), "bfloat16", False, False),  # the weights themselves have no more digits
        (("bfloat16", "float32", {"norm": "bfloat16"}), "bfloat16", False, False),
        (("bfloat16", "float32", {"head": "float32"}), "float32", True, False),
        (("bfloat16", "float32", {"embedding": "float32"}), "float32", True, False),
        (("float32", "float64", {"embedding": "bfloat16"}), "float32", False, False),
        (("float32", "float64", {"norm": "float64", "head": "bfloat16"}), "float32", True, True),
    ],
)
def test_what_is_gathered_together_has_the_finest_type_that_a_table_of_it_needs(
    given: tuple[str, str, dict[str, str]], ends: str, norms: bool, last_norm: bool
) -> None:
    precision, master, kinds = given
    assert classes.carried(train(precision, master, **kinds)) == classes.Carried(precision, ends, norms, last_norm)


def test_the_classes_are_the_keys_of_the_job(settled: Any) -> None:
    assert set(classes.of_classes(settled().job.train)) == set(PrecisionSection.model_fields)


def test_in_force_each_class_has_its_type_with_a_reason(settled: Any) -> None:
    found = settled("train.precision=bfloat16", "train.precision_of.head=float32")
    told = {one.key: one for one in found.settings}
    assert found.job.train.precision_of == PrecisionSection(norm="float32", embedding="bfloat16", head="float32")
    assert told["train.precision_of.norm"].why == "at least float32"
    assert told["train.precision_of.embedding"].why == "as train.precision"
    assert told["train.precision_of.head"].origin == "command line"


def test_more_digits_than_the_weights_have_are_refused(settled: Any) -> None:
    with pytest.raises(Refused) as refused:
        settled("train.precision=bfloat16", "train.precision_of.norm=float64")
    assert refused.value.text.count("\n") == 0
    assert "train.precision_of.norm = float64 has more digits than the weights, which are kept in float32" in str(
        refused.value
    )
    assert "train.master=float64" in refused.value.do
    settled("train.precision_of.norm=float64", "train.master=float64", "train.precision=float32")
