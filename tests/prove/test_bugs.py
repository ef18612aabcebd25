"""The fuzzer is put to the test: bugs that train without complaint are planted; each is found and made small.

Printed: how many draws each needed, and the smallest case that still shows it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest

from argosy.job.load import load
from argosy.prove.fuzz import NARROW, Fuzzer, job_file
from argosy.prove.options import TOLERANCES, ranks_of
from argosy.prove.parity import Bench, Trial
from argosy.prove.pool import Pool
from argosy.prove.scale import trials
from argosy.prove.shrink import differs

BUGS = Path(__file__).with_name("bugs.py")
RANKS = ("replicate", "shard", "zero", "tp", "pp", "schedule", "layers", "heads")  # whatever makes more ranks than one
# What the smallest case is about: one of the first of each must be in it, and nothing but those and the second may be.
NEEDS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "gradient_all_reduce_is_missing": (("replicate",), ()),
    "divisor_of_one_sharded_module_is_wrong": (("shard",), ("zero",)),
    "stage_is_loaded_in_the_wrong_place": (("pp",), ("schedule", "layers")),
    "tied_gradient_stays_on_its_stage": (("tied",), ("pp", "schedule", "layers")),
    "tied_weight_counts_on_both_stages": (("tied",), ("pp", "schedule", "layers")),
    "norm_weight_counts_twice_in_clipping": ((), ()),
    "copies_are_not_counted": (("replicate", "tp"), ("shard", "zero", "heads")),
    "only_the_last_micro_batch_counts": (("micros",), ()),
    "ranks_average_their_own_means": (("replicate", "shard"), ("zero", "packed")),
    "dropout_knows_only_local_numbers": (("dropout",), ()),
    "filler_rows_are_counted": (("uneven",), ("micro", "micros", "replicate", "shard", "zero")),
    "shares_of_tensor_ranks_are_not_summed": (("tp",), ("sequence", "heads", "qk_norm", "biases")),
    "tensor_ranks_each_add_the_bias": (("biases",), ("tp", "heads")),
    "key_heads_are_taken_from_the_wrong_group": (("heads",), ("tp",)),
    "one_replica_starts_elsewhere": (("replicate", "shard", "tp", "pp"), RANKS),
    "clipping_knows_only_the_local_norm": (("clip",), RANKS),
    "muon_makes_shards_orthogonal": (("update",), ("shard", "zero", "tp", "heads")),
    "lamb_measures_its_own_shards": (("update",), ("shard", "zero", "tp", "heads")),
    "window_is_one_token_short_on_one_rank": (("window",), RANKS),
    "last_chunk_of_the_loss_is_dropped": (("loss_chunk",), ("micro", "length")),  # 12 tokens are whole chunks
    "one_rank_does_not_update": (("replicate", "shard", "tp", "pp"), (*RANKS, "update")),
    "copies_of_an_early_stage_are_not_added_up": (
        ("schedule",),
        ("pp", "virtual", "layers", "micros", "replicate", "shard", "zero"),
    ),
}
DRAWS = 40


@pytest.fixture(scope="module")
def bench(pool: Pool) -> Iterator[Bench]:
    """One bench for all bugs: the first draws are the same for each, and so is what the judge says of them."""
    made = Bench(pool, run=f"{BUGS}:steps")
    yield made
    made.close()


@pytest.fixture(scope="module")
def needed(request: pytest.FixtureRequest) -> Iterator[dict[str, int]]:
    """In which draw each bug was found; told in one line at the end."""
    made: dict[str, int] = {}
    yield made
    reporter = request.config.pluginmanager.get_plugin("terminalreporter")
    if made and reporter is not None:
        numbers = sorted(made.values())
        middle, most = numbers[len(numbers) // 2], numbers[-1]
        reporter.write_line(
            f"\nplanted bugs: {len(made)} of {len(NEEDS)} found; draws needed: median {middle}, most {most}"
        )


@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", NEEDS)
def test_a_planted_bug_is_found_and_made_small(bench: Bench, needed: dict[str, int], name: str, tmp_path: Path) -> None:
    bench.told = {"bug": name}
    fuzzer = Fuzzer(bench, seed=11)
    found = next((draw for draw in fuzzer.draws(DRAWS, None) if not draw.found.ok), None)
    assert found is not None, f"not found in {DRAWS} draws"
    needed[name] = found.number
    small, how = fuzzer.smallest(found)
    assert not how.ok
    left, (about, beside) = differs(small), NEEDS[name]
    print(f"\n{name}: found in draw {found.number}; smallest: {ranks_of(small)} ranks, {left}: {how.wrong}")
    assert set(left) <= {*about, *beside}
    assert not about or set(left) & set(about)
    # The job file says it all: read back, it writes the same one, and fails again.
    file, trial = tmp_path / "smallest.toml", Trial.of(small, found.precision)
    file.write_text(job_file(trial, how.wrong), encoding="utf-8")
    again = load(str(file)).job
    assert job_file(replace(trial, job=again), how.wrong) == file.read_text(encoding="utf-8")
    as_it_stands = islice(trials(again), 4)
    assert any(not bench.try_(trial).ok for _, trial in as_it_stands)


@pytest.mark.long
@pytest.mark.parametrize("name", ["gradient_all_reduce_is_missing", "only_the_last_micro_batch_counts"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_narrow_types_show_bugs_too(bench: Bench, name: str, precision: str) -> None:
    """Their tolerances are far from what a bug does."""
    bench.told = {"bug": name}
    case = next(case for kind, case in NARROW if kind == precision and case["replicate"] > 1)
    found = bench.try_(Trial.of(case, precision))
    assert not found.ok and found.worst_gradient[1] > 3 * TOLERANCES[precision].gradient


def test_every_bug_on_the_list_is_planted() -> None:
    import importlib.util

    spec = importlib.util.spec_from_file_location("bugs", BUGS)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert set(module.BUGS) == set(NEEDS) and len(NEEDS) >= 14
