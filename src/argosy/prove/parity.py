"""A layout against one process and against the reference: loss and every gradient of one step.

In: a case of `options.py`. Real ranks (pool.py) compute it; out come the largest differences. The judge is `reference.py`,
which shares nothing with the model; one process of our own is compared beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from argosy.prove.options import TOLERANCES, Case, ranks_of, shape_of
from argosy.prove.pool import Pool

if TYPE_CHECKING:
    from argosy.data.batch import Batch
    from argosy.job.schema import ModelSection

WIDTH, HEADS, LAYERS, VOCABULARY, SEQUENCE = 24, 4, 2, 29, 12


def compare(pool: Pool, case: Case, precision: str = "float64") -> dict[str, Any]:
    """What rank 0 found: loss, gradient and norm differences (relative), the worst parameter, of this layout and alone."""
    entry = f"{__name__}:measure"
    found: dict[str, Any] = pool.call(entry, {**case, "precision": precision}, ranks=ranks_of(case["layout"]))[0]
    return found


def wrong(found: Mapping[str, Any], precision: str = "float64") -> str | None:
    """What is too far off in a comparison, a sentence; None where all is within the tolerance."""
    limit, _ = TOLERANCES[precision]
    for what in ("loss", "gradient", "norm", "alone"):
        if not found[what] <= limit:  # also true where it is not a number
            return f"{what} differs by {found[what]:.1e}, allowed {limit:.0e} (worst: {found['worst']})"
    return None


def section(case: Mapping[str, Any]) -> ModelSection:
    """The model of a case, every value concrete."""
    from argosy.job.schema import BlockSection, ModelSection

    block = BlockSection(
        heads=HEADS,
        kv_heads=case["kv_heads"],
        head_size=WIDTH // HEADS,
        hidden=40,
        activation=case["activation"],
        parallel=case["parallel"],
        norm=case["norm"],
        norm_epsilon=1e-5,
        norm_bias=case["biases"] and case["norm"] == "layer",
        qk_norm=case["qk_norm"],
        qkv_bias=case["biases"],
        attention_bias=case["biases"],
        mlp_bias=case["biases"],
        window=case["window"],
        dropout=case["dropout"],
    )
    return ModelSection(
        layers=LAYERS,
        width=WIDTH,
        vocabulary=VOCABULARY,
        positions=case["positions"],
        context=SEQUENCE,
        rope_theta=1e4,
        tied=case["tied"],
        block=block,
    )


def batch_of(rows: int) -> Batch:
    """A global batch [rows, SEQUENCE] of several documents a row, some padding, and some labels that do not count."""
    import numpy as np

    from argosy.data.batch import Batch
    from argosy.random import bits, key

    def draw(name: str, below: int) -> Any:
        index = np.arange(rows * SEQUENCE, dtype=np.int64).reshape(rows, SEQUENCE)
        with np.errstate(over="ignore"):
            return (bits(key(3, "parity", name), index) & 0x7FFFFFFF) % below

    tokens = draw("tokens", VOCABULARY).astype(np.int32)
    begins = draw("begins", 5) == 0
    begins[:, 0] = True
    segments = np.cumsum(begins, axis=1, dtype=np.int32)
    places = np.arange(SEQUENCE, dtype=np.int32)
    positions = (places - np.maximum.accumulate(np.where(begins, places, 0), axis=1)).astype(np.int32)
    labels = np.roll(tokens, -1, axis=1)
    weights = (np.roll(begins, -1, axis=1) == 0).astype(np.float32)  # the last token of a document has no label
    weights[draw("masked", 7) == 0] = 0
    weights[:, -1] = 0
    segments[-1, -3:] = 0  # padding
    weights[-1, -4:] = 0
    return Batch(
        tokens, labels, segments, positions, np.zeros_like(tokens), weights, np.arange(rows, dtype=np.int64) + 40
    )


def measure(rank: int, ranks: int, board: str, case: Mapping[str, Any]) -> dict[str, Any]:
    """One step of `case` on this rank; rank 0 compares. Runs in the pool's ranks."""
    import torch

    from argosy.device.precision import dtype
    from argosy.device.shards import whole
    from argosy.layout.layout import Layout
    from argosy.parallel.mesh import Meeting, joined

    shape, zero = shape_of(case["layout"])
    layout = Layout.parse(shape, ranks)
    compute = dtype(case["precision"])
    master = torch.float64 if compute == torch.float64 else torch.float32
    with joined(layout, rank, Meeting("parity/1", Path(board))) as mesh:
        norm, loss, applied = _step(case, layout, rank, mesh, zero, compute, master)
        gradients = {name: whole(known.grad) for name, known in applied.named().items() if known.grad is not None}
        applied.check_gradients()
    if rank != 0:
        return {}
    expected_loss, expected = reference_gradients(case)
    _, alone_loss, alone = _step(case, Layout(), 0, None, zero, compute, master)
    scale = max(float(tensor.abs().max()) for tensor in expected.values())
    off = {name: float((gradients[name].double() - tensor).abs().max()) / scale for name, tensor in expected.items()}
    by_one = [
        float((known.grad.double() - expected[name]).abs().max()) / scale
        for name, known in alone.named().items()
        if known.grad is not None
    ]
    true_norm = float(torch.stack([tensor.norm() for tensor in expected.values()]).norm())
    return {
        "loss": abs(loss - expected_loss) / expected_loss,
        "gradient": max(off.values()) if set(gradients) == set(expected) else float("inf"),
        "norm": abs(norm - true_norm) / true_norm,
        "alone": max([*by_one, abs(alone_loss - expected_loss) / expected_loss]),
        "worst": max(off, key=lambda name: off[name]),
    }


def _step(
    case: Mapping[str, Any], layout: Any, rank: int, mesh: Any, zero: int, compute: Any, master: Any
) -> tuple[float, float, Any]:
    """Forward and backward of one step: (gradient norm, loss sum, the model with its gradients)."""
    import torch

    from argosy.model.decoder import Decoder
    from argosy.model.weights import initialise
    from argosy.parallel import apply
    from argosy.parallel.execute import Plain
    from argosy.parallel.mesh import Mesh
    from argosy.parallel.norm import norm2
    from argosy.train.feed import cut, tensors
    from argosy.train.vote import Agree

    here = mesh or Mesh(layout, 0)
    decoder = Decoder(section(case), seed=5, compute=compute, master=master)
    decoder.prepare("cpu", SEQUENCE, compiled=False)
    applied = apply.shard(decoder, list(decoder.blocks), here, zero=zero, compute=compute)
    apply.materialise(applied, torch.device("cpu"))
    initialise(decoder, 5)
    batch = batch_of(case["rows"])
    number = torch.tensor(9)
    execute = Plain(applied.whole, lambda model, part: model.loss(part, 16, number), applied.data)
    mine = cut(batch, layout.data, layout.data_index(rank), case["micro"])
    loss = execute([tensors(part, torch.device("cpu")) for part in mine], scale=1 / batch.counted)
    vote = Agree(here.world)(loss, norm2(applied.data.gradients(), layout.world))
    return vote.norm, vote.loss, applied


def reference_gradients(case: Mapping[str, Any]) -> tuple[float, dict[str, Any]]:
    """Loss sum and gradients of the mean loss by the reference, in float64."""
    import torch

    from argosy.model.decoder import Decoder
    from argosy.model.weights import initialise
    from argosy.prove import reference
    from argosy.random import bits, key

    model = section(case)
    decoder = Decoder(model, seed=5, compute=torch.float64, master=torch.float64).to_empty(device="cpu")
    initialise(decoder, 5)
    weights = {name: tensor.detach().requires_grad_() for name, tensor in decoder.named_parameters()}
    batch = batch_of(case["rows"])
    arrays = {name: torch.tensor(value) for name, value in vars(batch).items()}

    def dropped(name: str, row: int, places: Any, vectors: Any) -> Any:
        """Dropout as CONTRACTS.md keys it: layer, step, global sequence index, position; by its own hand, not the model's."""
        share = float(case["dropout"])
        stream = bits(torch.tensor([key(5, "dropout", name)]), torch.tensor([9]))
        token = arrays["segments"][row, places].long() * 2**32 + arrays["positions"][row, places].long()
        keys = bits(bits(stream, arrays["sequence"][row]), token)
        return _drop(vectors, keys, share)

    shape = model.model_dump()
    loss = reference.loss(weights, shape, arrays, dropped if case["dropout"] else None)
    (loss / batch.counted).backward()
    return float(loss), {name: tensor.grad for name, tensor in weights.items()}


def _drop(vectors: Any, keys: Any, share: float) -> Any:
    from argosy.model.layers import drop

    return drop(vectors, keys, share)
