"""The decoder against the reference from the formulas: every switch with every other, loss and every gradient."""

from __future__ import annotations

import json
from hashlib import blake2b
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch

from argosy.errors import Refused
from argosy.prove import reference

SWITCHES: dict[str, list[dict[str, Any]]] = {
    "norm": [{"norm": "rms"}, {"norm": "layer"}, {"norm": "layer", "norm_bias": True}],
    "parallel": [{"parallel": False}, {"parallel": True}],
    "groups": [{"kv_heads": 4}, {"kv_heads": 2}, {"kv_heads": 1}],
    "head size": [{"head_size": 4}, {"head_size": 10}],
    "qkv bias": [{"qkv_bias": False}, {"qkv_bias": True}],
    "output bias": [{"attention_bias": False}, {"attention_bias": True}],
    "mlp bias": [{"mlp_bias": False}, {"mlp_bias": True}],
    "qk-norm": [{"qk_norm": "none"}, {"qk_norm": "head"}, {"qk_norm": "full"}],
    "positions": [{"positions": "rotary"}, {"positions": "learned"}],
    "window": [{"window": 0}, {"window": 3}],
    "activation": [{"activation": "swiglu"}, {"activation": "gelu"}, {"activation": "gelu_tanh"}],
    "tied": [{"tied": True}, {"tied": False}],
    "placement": [{"norm_placement": "pre"}, {"norm_placement": "post"}, {"norm_placement": "peri"}],
    "caps": [{}, {"softcap": 2.0}],
    "z-loss": [{"z_loss": 0.0}, {"z_loss": 0.05}],
    "scaling": [
        {"rope_scaling": "none"},
        {"rope_scaling": {"kind": "linear", "factor": 3.0}},
        {"rope_scaling": {"kind": "llama3", "factor": 4.0, "original": 16}},
        {"rope_scaling": {"kind": "yarn", "factor": 4.0, "original": 12, "fast": 2.0, "slow": 0.3}},
        {"rope_scaling": {"kind": "yarn", "factor": 2.0, "original": 64, "attention": 1.3}},
    ],
    "dropout": [{"dropout": 0.0}, {"dropout": 0.3}],
    "pattern": [{}, {"pattern": [{"window": 2, "heads": 2, "kv_heads": 2}, {"hidden": 8, "activation": "gelu"}]}],
    "kernel": [{"kernel": "dense"}, {"kernel": "loop"}],
}


def covering() -> list[dict[str, int]]:
    """Cases in which every two values of two switches meet at least once: greedy, the same every time."""
    names = list(SWITCHES)
    missing = {
        (a, i, b, j)
        for a, b in combinations(names, 2)
        for i in range(len(SWITCHES[a]))
        for j in range(len(SWITCHES[b]))
    }
    cases = []
    while missing:
        first = min(missing)
        case = {first[0]: first[1], first[2]: first[3]}
        for name in names:
            if name in case:
                continue

            def gain(value: int, name: str = name, case: dict[str, int] = case, missing: set[Any] = missing) -> int:
                pairs = ((name, value, other, at) for other, at in case.items())
                return sum((p in missing) or ((*p[2:], *p[:2]) in missing) for p in pairs)

            case[name] = max(range(len(SWITCHES[name])), key=gain)
        missing = {p for p in missing if not (case[p[0]] == p[1] and case[p[2]] == p[3])}
        cases.append(case)
    return cases


def mixed(stream: int, index: int) -> int:
    """SplitMix64's output in Python's own integers."""
    full = (1 << 64) - 1
    value = (index * 0x9E3779B97F4A7C15 + stream) & full
    value = ((value ^ value >> 30) * 0xBF58476D1CE4E5B9) & full
    value = ((value ^ value >> 27) * 0x94D049BB133111EB) & full
    return value ^ value >> 31


def plain_dropout(seed: int, step: int, batch: Any, share: float) -> reference.Dropout:
    """Dropout spelt out number by number, for the reference."""

    def dropout(name: str, row: int, places: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
        words = "\0".join([str(seed), "dropout", name]).encode()
        stream = mixed(int.from_bytes(blake2b(words, digest_size=8).digest(), "little"), step)
        stream = mixed(stream, int(batch.sequence[row]))
        kept = []
        for place in places.tolist():
            token = mixed(stream, (int(batch.segments[row, place]) << 32) + int(batch.positions[row, place]))
            kept.append([mixed(token, i) >> 40 >= round(share * 2**24) for i in range(vectors.shape[1])])
        return vectors * torch.tensor(kept).double() / (1 - share)

    return dropout


@pytest.mark.parametrize("case", covering(), ids=lambda case: "".join(map(str, case.values())))
def test_equals_the_reference(case: dict[str, int], section, decoder, batch) -> None:
    said: dict[str, Any] = {}
    for name, value in case.items():
        said |= SWITCHES[name][value]
    kernel = said.pop("kernel")
    if said["parallel"]:
        said["norm_placement"] = "pre"  # the other placements are refused with it
    model = section(**said)
    ours, given = decoder(model), batch(2, 20)
    for block in ours.blocks:
        block.attention.kernel = "dense" if block.attention.softcap else kernel  # what `prepare` would choose
    loss = ours.loss(given, 7, torch.tensor(9))
    loss.backward()

    weights = {name: p.detach().clone().requires_grad_() for name, p in ours.named_parameters()}
    dropout = plain_dropout(1, 9, given, said["dropout"]) if said["dropout"] else None
    arrays = {name: getattr(given, name) for name in ("tokens", "labels", "segments", "positions", "weights")}
    wanted = reference.loss(weights, model.model_dump(), arrays, dropout)
    wanted.backward()
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-12)
    for name, parameter in ours.named_parameters():
        theirs = weights[name].grad
        assert theirs is not None and parameter.grad is not None, name
        assert (parameter.grad - theirs).norm() <= 1e-10 * (theirs.norm() + 1e-3), name


def test_every_switch_changes_the_loss(section, decoder, batch) -> None:
    given = batch(2, 20)

    def loss(**said: Any) -> float:
        return decoder(section(**said)).loss(given, 64, torch.tensor(9)).item()

    plain = loss()
    for name, values in SWITCHES.items():
        for value in values[1:]:
            if name not in ("kernel", "head size", "z-loss"):
                assert loss(**value) != pytest.approx(plain, rel=1e-9), (name, value)


def test_the_z_loss_is_in_the_gradient_and_not_in_the_loss(section, decoder, batch) -> None:
    given, found = batch(2, 20), []
    for z in (0.0, 0.05):
        ours = decoder(section(z_loss=z, softcap=3.0))
        loss = ours.loss(given, 7)
        loss.backward()
        found.append((loss.item(), ours.embedding.weight.grad))
    assert found[0][0] == found[1][0]
    assert not torch.allclose(found[0][1], found[1][1], rtol=1e-3)


def test_layers_that_cap_their_scores_take_a_kernel_that_can(section, decoder) -> None:
    ours = decoder(section(pattern=[{"softcap": 3.0}, {}]))
    assert ours.prepare("cpu", 4096, compiled=False) == "loop"
    assert [block.attention.kernel for block in ours.blocks] == ["dense", "loop"]


def test_logits_to_sample_from_are_capped(section, decoder) -> None:
    hidden = torch.randn(1, 3, 16, dtype=torch.float64) * 10
    capped, plain = (decoder(section(softcap=cap)).logits(hidden) for cap in (5.0, 0.0))
    assert capped.abs().max() <= 5 < plain.abs().max()
    torch.testing.assert_close(capped, 5 * torch.tanh(plain / 5))


def test_parameter_names_are_the_stored_ones(section, decoder) -> None:
    stored = json.loads((Path(__file__).parent / "fixtures" / "names.json").read_text(encoding="utf-8"))
    everything = {"norm": "layer", "norm_bias": True, "qkv_bias": True, "attention_bias": True, "mlp_bias": True}
    full = section(**everything, qk_norm="head", positions="learned", tied=False)
    assert {name: list(p.shape) for name, p in decoder(full).named_parameters()} == stored["full"]
    peri = section(**everything, norm_placement="peri")
    extra = {
        f"blocks.{n}.{part}_post_norm.{word}"
        for n in (0, 1)
        for part in ("attention", "mlp")
        for word in ("weight", "bias")
    }
    assert extra <= {name for name, _ in decoder(peri).named_parameters()}
    plain = section(layers=12, parallel=True)
    assert [name for name, _ in decoder(plain).named_parameters()] == stored["parallel"]


def test_dropout_does_not_depend_on_the_split_of_the_batch(section, decoder, batch) -> None:
    ours, given, step = decoder(section(dropout=0.4)), batch(6, 20), torch.tensor(4)
    whole = ours.loss(given, 64, step)
    parts = [ours.loss(given.rows(rows), 64, step) for rows in (slice(0, 1), slice(1, 4), slice(4, 6))]
    assert sum(part.item() for part in parts) == pytest.approx(whole.item(), rel=1e-12)
    assert ours.loss(given, 64, torch.tensor(5)).item() != pytest.approx(whole.item(), rel=1e-6)
    still = ours.loss(given, 64).item()
    assert ours.eval().loss(given, 64, step).item() == still != pytest.approx(whole.item(), rel=1e-6)


def test_documents_do_not_see_each_other(section, decoder, batch) -> None:
    ours, given = decoder(section()), batch(1, 32, padded=0)
    hidden = ours(given.tokens, given.positions, given.segments)
    last = int(given.segments.max())
    assert last > 1
    changed = torch.where(given.segments == last, (given.tokens + 1) % 37, given.tokens)
    again = ours(changed, given.positions, given.segments)
    same = (given.segments != last)[0]
    assert torch.equal(hidden[0, same], again[0, same])
    assert not torch.equal(hidden[0, ~same], again[0, ~same])


def test_mixed_precision_keeps_the_master_type(section, batch) -> None:
    from argosy.model.decoder import Decoder
    from argosy.model.weights import initialise

    losses = {}
    for compute in (torch.float32, torch.bfloat16):
        ours = Decoder(section(qk_norm="head"), compute=compute, master=torch.float32)
        ours.to_empty(device="cpu")
        initialise(ours, 1)
        given = batch(2, 20)
        loss = ours.loss(given, 16)
        loss.backward()
        assert all(p.dtype == p.grad.dtype == torch.float32 for p in ours.parameters())
        assert ours(given.tokens, given.positions, given.segments).dtype == compute
        losses[compute] = loss.item()
    assert losses[torch.bfloat16] == pytest.approx(losses[torch.float32], rel=1e-2)


def test_a_missing_value_is_named(section) -> None:
    from argosy.job.schema import BlockSection, ModelSection
    from argosy.model.decoder import Decoder

    with pytest.raises(Refused, match=r"model\.width has no value"):
        Decoder(ModelSection(layers=1, positions="rotary", rope_theta=1e4, vocabulary=5, block=BlockSection()))


def test_counts_agree_with_the_plan(section, decoder) -> None:
    from argosy.plan.flops import parameters

    for case in covering():
        said: dict[str, Any] = {}
        for name, value in case.items():
            said |= SWITCHES[name][value]
        said.pop("kernel")
        said["norm_placement"] = "pre" if said["parallel"] else said["norm_placement"]
        model = section(**said)
        assert sum(p.numel() for p in decoder(model).parameters()) == parameters(model), said
