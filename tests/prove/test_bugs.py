"""The fuzzer is put to the test: bugs that train without complaint are planted; each is found and made small.

Printed: how many draws each needed, and the smallest case that still shows it.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from argosy.job.load import load
from argosy.prove.fuzz import Fuzzer, job_file
from argosy.prove.options import ranks_of
from argosy.prove.parity import Bench, Trial
from argosy.prove.pool import Pool
from argosy.prove.shrink import differs

BUGS = Path(__file__).with_name("bugs.py")
# What the smallest case needs, of options: whatever else is in it would be the fuzzer's failure to shrink.
NEEDS = {
    "gradient_all_reduce_is_missing": ("replicate", "shard"),
    "divisor_of_one_sharded_module_is_wrong": ("shard", "zero"),
    "stage_is_loaded_in_the_wrong_place": ("pp", "schedule", "layers"),
    "tied_gradient_stays_on_its_stage": ("pp", "schedule", "layers", "tied"),
    "tied_weight_counts_on_both_stages": ("pp", "schedule", "layers", "tied"),
    "norm_weight_counts_twice_in_clipping": (),
    "tied_weight_counts_once_for_each_rank": ("replicate", "tp", "shard", "zero"),
    "only_the_last_micro_batch_counts": ("micros",),
    "ranks_average_their_own_means": ("replicate", "shard", "zero", "packed"),
    "dropout_knows_only_local_numbers": ("dropout",),
    "filler_rows_are_counted": ("uneven", "micro", "micros", "replicate", "shard", "zero"),
    "shares_of_tensor_ranks_are_not_summed": ("tp", "sequence", "heads", "qk_norm", "biases"),
    "tensor_ranks_each_add_the_bias": ("tp", "biases", "heads"),
    "key_heads_are_taken_from_the_wrong_group": ("tp", "heads"),
    "one_replica_starts_elsewhere": ("replicate", "shard", "zero", "tp", "pp", "schedule", "layers", "heads"),
    "clipping_knows_only_the_local_norm": ("clip", "replicate", "shard", "zero", "tp", "pp", "schedule", "layers", "heads"),
    "muon_makes_shards_orthogonal": ("update", "shard", "zero", "tp", "heads"),
    "window_is_one_token_short_on_one_rank": (
        "window", "replicate", "shard", "zero", "tp", "pp", "schedule", "layers", "heads",
    ),
    "last_chunk_of_the_loss_is_dropped": ("loss_chunk",),
    "one_rank_does_not_update": ("replicate", "shard", "zero", "tp", "pp", "schedule", "layers", "heads"),
}  # fmt: skip
DRAWS = 40


@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", NEEDS)
def test_a_planted_bug_is_found_and_made_small(pool: Pool, name: str, tmp_path: Path) -> None:
    bench = Bench(pool, run=f"{BUGS}:steps", told={"bug": name})
    try:
        fuzzer = Fuzzer(bench, seed=11)
        found = next((draw for draw in fuzzer.draws(DRAWS, None) if not draw.found.ok), None)
        assert found is not None, f"not found in {DRAWS} draws"
        small, how = fuzzer.smallest(found)
        assert not how.ok
        left = differs(small)
        print(f"\n{name}: found in draw {found.number}; smallest: {ranks_of(small)} ranks, {left}: {how.wrong}")
        assert set(left) <= set(NEEDS[name])
        # The job file says it all: read back, it writes the same one.
        file, trial = tmp_path / "smallest.toml", Trial.of(small)
        file.write_text(job_file(trial, how.wrong), encoding="utf-8")
        assert job_file(replace(trial, job=load(str(file)).job), how.wrong) == file.read_text(encoding="utf-8")
    finally:
        bench.close()


def test_every_bug_on_the_list_is_planted() -> None:
    import importlib.util

    spec = importlib.util.spec_from_file_location("bugs", BUGS)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert set(module.BUGS) == set(NEEDS) and len(NEEDS) >= 14
