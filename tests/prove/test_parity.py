"""E2: random layouts on real gloo ranks against the formulas: loss, every gradient, the norm, weights after three steps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from argosy.prove.fuzz import EVERY, NARROW, Fuzzer
from argosy.prove.options import RANKS, TOLERANCES, legal, plain, ranks_of
from argosy.prove.parity import Bench, Found, Trial, missing, too_far
from argosy.prove.pool import Pool

DRAWS = 100


@pytest.mark.timeout(1200)
def test_every_layout_trains_the_same_model(pool: Pool, request: pytest.FixtureRequest) -> None:
    """The covering array, so that every legal pair of options occurs; draws at random; the narrow types."""
    bench = Bench(pool)
    try:
        fuzzer = Fuzzer(bench, seed=1)
        draws = list(fuzzer.draws(DRAWS, None))
        wrong = [(draw.number, draw.precision, draw.found.wrong, draw.case) for draw in draws if not draw.found.ok]
        assert not wrong
        assert len(draws) == DRAWS and not fuzzer.cover.open
        assert sum(draw.precision != "float64" for draw in draws) == DRAWS // EVERY
        # About half of the draws clip, and where they do the norm is larger than it may be.
        clipped = [draw for draw in draws if draw.case["clip"]]
        assert 0.35 * DRAWS <= len(clipped) <= 0.65 * DRAWS
        assert all(draw.found.norm > draw.case["clip"] for draw in clipped)
        seconds = sorted(draw.found.seconds for draw in draws)
        large = sorted(draw.found.seconds for draw in draws if ranks_of(draw.case) == RANKS)
        told = f"{DRAWS} draws in {sum(seconds):.0f} s: median {seconds[DRAWS // 2]:.2f} s, longest {seconds[-1]:.2f} s"
        told += f"; {len(large)} of {RANKS} ranks, median {large[len(large) // 2]:.2f} s"
        reporter = request.config.pluginmanager.get_plugin("terminalreporter")
        if reporter is not None:
            reporter.write_line(f"\nparity: {told}")
    finally:
        bench.close()


def test_the_judge_answers_once_for_every_layout_of_a_model(pool: Pool) -> None:
    bench = Bench(pool)
    try:
        for more in ({}, {"replicate": 2, "micros": 2}, {"shard": 2, "zero": 2, "micros": 2}):
            assert bench.try_(Trial.of({**plain(), **more})).wrong == ""
        assert len(bench._known) == 2  # the last two read the same global batches
    finally:
        bench.close()


def test_a_rank_that_fails_is_a_failed_draw_and_the_next_one_goes_on(pool: Pool) -> None:
    bench = Bench(pool)
    try:
        trial = Trial.of(plain())
        broken = replace(trial, update="no such update", job=trial.job.model_copy(update={"layout": None}))
        found = bench.try_(replace(broken, job=trial.job, ranks=2))  # two ranks for a layout of one
        assert not found.ok and ": rank " in found.wrong and "there are 2 workers" in found.wrong
        assert bench.try_(trial).ok
    finally:
        bench.close()


def test_the_fixed_sample_of_narrow_types_has_each_dimension() -> None:
    for precision in ("float32", "bfloat16"):
        cases = [case for kind, case in NARROW if kind == precision]
        for axis in ("pp", "tp", "shard", "replicate"):
            assert any(case[axis] > 1 for case in cases), (precision, axis)


def test_what_is_too_far_off_is_named_the_cause_first() -> None:
    good = Found(1e-16, ("norm.weight", 2e-14), 0.0, ("norm.weight", 3e-15), 1e-16)
    assert too_far(good, "float64") == ""
    assert too_far(replace(good, worst_gradient=("norm.weight", 1e-6), worst_loss=1.0), "float64") == (
        "gradient of norm.weight differs by 1.0e-06, allowed 1e-10"
    )
    assert "loss of the first step" in too_far(replace(good, first_loss=float("nan")), "float64")
    assert "norm.weight after the last step" in too_far(replace(good, worst_weight=("norm.weight", 1.0)), "float64")
    assert too_far(replace(good, worst_loss=1e-6), "float64").startswith("loss of a later step")
    assert too_far(replace(good, worst_loss=1e-6), "float32") == ""


def test_what_no_rank_holds_is_named() -> None:
    shapes = {"a": (4, 2), "b": (3,)}
    whole = {"a": [[0, 4], [0, 2]], "b": [[0, 3]]}
    assert missing([whole], shapes) == ""
    halves = [{"a": [[0, 2], [0, 2]], "b": [[0, 3]]}, {"a": [[2, 4], [0, 2]]}]
    assert missing(halves, shapes) == ""
    assert missing(halves[:1], shapes) == "no rank holds 4 of the 8 elements of a"
    assert missing([{"a": [[0, 4], [0, 2]]}], shapes) == "no rank holds 3 of the 3 elements of b"


def test_letters_without_a_token_are_letters(pool: Pool) -> None:
    """Nine tokens over four tensor ranks are 3, 3, 3 and none: the last rank's stages hand on activations of no element."""
    bench = Bench(pool)
    case = {**plain(), "pp": 2, "tp": 4, "schedule": "1f1b", "layers": 2, "micros": 2, "sequence": True, "tied": True}
    assert legal(case)
    try:
        trial = Trial.of(case)
        batch = trial.job.batch.model_copy(update={"sequence": 9, "tokens": 2 * 9})
        assert bench.try_(replace(trial, job=trial.job.model_copy(update={"batch": batch}))).wrong == ""
    finally:
        bench.close()


def test_a_difference_is_measured_against_the_size_that_is_given() -> None:
    from argosy.prove.measure import difference

    true, box = np.array([1.0, 2.0, 4.0]), [[1, 3]]
    assert difference(true, box, np.array([2.0, 4.0]), 4.0) == 0.0
    assert difference(true, box, np.array([2.0, 4.4]), 4.0) == pytest.approx(0.1)
    assert difference(true, box, np.array([2.0, 4.4]), 4.0, spare=0.2) == pytest.approx(0.05)
    assert difference(true, box, np.array([2.0, 4.1]), 4.0, spare=0.2) == 0.0
    for own in (None, np.array([2.0]), np.array([2.0, np.nan])):
        assert difference(true, box, own, 4.0) == float("inf")
    assert difference(None, box, np.array([2.0, 4.0]), 4.0) == float("inf")


def test_gradients_are_held_against_their_tensor_and_weights_against_their_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither below a share of the model's largest: what is zero by mathematics is left with noise."""
    from argosy.prove import measure

    whole, file = [[0, 2]], tmp_path / "judge.npz"
    true = {"gradient.a": [1.0, 2.0], "gradient.b": [1e-18, 0.0], "first.a": [5.0, 5.0], "first.b": [9.0, 9.0]}
    true |= {"weight.a": [5.1, 5.2], "weight.b": [9.0, 9.0]}
    np.savez(file, **{name: np.array(value) for name, value in true.items()})

    def found(gradients: dict[str, list[float]], weights: dict[str, list[float]], precision: str) -> dict[str, Any]:
        kept = {"gradients": gradients, "weights": weights}
        held = {kind: {name: (whole, np.array(own)) for name, own in named.items()} for kind, named in kept.items()}
        monkeypatch.setattr(measure, "_KEPT", held)
        return measure.compare(0, 1, "", {"file": str(file), "precision": precision})

    same = {"a": [5.1, 5.2], "b": [9.0, 9.0]}
    far = found({"a": [1.0, 2.2], "b": [0.0, 0.0]}, {"a": [5.1, 5.22], "b": [9.0, 9.0]}, "float64")
    assert far["gradient"] == {"error": pytest.approx(0.1), "name": "a"}
    assert far["weight"] == {"error": pytest.approx(0.1), "name": "a"}
    for precision, least in (("float64", 1e-3), ("bfloat16", TOLERANCES["bfloat16"].floor)):
        small = found({"a": [1.0, 2.0], "b": [0.0, 1e-4]}, {**same, "b": [9.0, 9.0001]}, precision)
        assert small["gradient"] == {"error": pytest.approx(1e-4 / (least * 2)), "name": "b"}
        assert small["weight"] == {"error": pytest.approx(1e-4 / (least * 0.2), rel=0.05), "name": "b"}
    rounded = found({"a": [1.0, 2.0], "b": [0.0, 0.0]}, {**same, "b": [9.0, 9.0 + 2e-6]}, "float32")
    assert rounded["weight"]["error"] == 0.0  # float32 has no number nearer
    assert found({"a": [1.0]}, same, "float64")["gradient"]["error"] == float("inf")
