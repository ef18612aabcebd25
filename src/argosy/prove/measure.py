"""One rank of a draw: the real training step on real groups, then its own part of every tensor against the judge's.

Every rank compares what it holds, so a copy that is wrong on one rank alone is found, and nothing is gathered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from argosy.prove.judge import LR
from argosy.prove.options import TOLERANCES

_KEPT: dict[str, Any] = {}  # what this rank holds after a draw's steps, until it is compared


class Unrecorded:
    """A recorder that keeps nothing."""

    @contextmanager
    def during(self, name: str, step: int) -> Iterator[None]:
        """A phase that nobody looks at."""
        yield


def steps(rank: int, ranks: int, board: str, asked: Mapping[str, Any]) -> dict[str, Any]:
    """Run the steps of `asked` on this rank; what it holds stays here for `compare`. Gives loss and norm of each step."""
    import torch

    from argosy.job.schema import Job
    from argosy.parallel import apply
    from argosy.parallel.mesh import Meeting, joined
    from argosy.plan import layouts
    from argosy.prove.sample import batch_of
    from argosy.train.feed import cut, tensors
    from argosy.train.state import State
    from argosy.train.step import step as one_step
    from argosy.train.vote import Agree

    job = Job.model_validate(asked["job"])
    device = torch.device("cpu")
    layout = layouts.of(job.layout, ranks)
    found: list[dict[str, float]] = []
    _KEPT.clear()
    # What operators make of shards is remembered from draw to draw: working it out anew would be a third of the time.
    with joined(layout, rank, Meeting("parity/1", Path(board)), forgets=False) as mesh:
        laid = apply.decoder(job, mesh, device)
        data, recorder = laid.applied.data, Unrecorded()
        update = updater(laid, job, asked["update"])
        state = State(laid.module, update, data, recorder, clip=job.optim.clip, world=laid.world)  # type: ignore[arg-type]
        laid.applied.whole.train()
        agree = Agree(mesh.world, copies=laid.copies)
        update.before = lambda: _KEPT.update(gradients=held(laid.applied.named(), gradients=True))
        for step in range(1, asked["steps"] + 1):
            batch = batch_of(step, **asked["batch"])
            micro = cut(batch, layout.data, layout.data_index(rank), int(job.batch.micro))
            state.begin(batch.counted, batch.tokens.size)
            laid.number.fill_(step)
            vote = one_step(state, [tensors(part, device) for part in micro], laid.execute, agree).vote()
            if step == 1:
                laid.applied.check_gradients()
            found.append({"loss": vote.loss, "norm": vote.norm})
        _KEPT["weights"] = held(laid.applied.named())
    return {"steps": found, "order": list(laid.applied.order)}


class Plain:
    """Gradient descent: w - lr x gradient; or the job's own optimizer. `before` is called once, before the first change."""

    lr = LR

    def __init__(self, named: Mapping[str, Any], optimizer: Any = None):
        self.named, self.optimizer = named, optimizer
        self.before: Callable[[], None] = lambda: None

    def step(self, rate: float, scale: float = 1.0) -> None:
        """Apply the gradients times `scale`."""
        import torch

        from argosy.device.shards import local

        self.before()
        self.before = lambda: None
        if self.optimizer is not None:
            self.optimizer.step(rate, scale)
            return
        with torch.no_grad():
            for parameter in self.named.values():
                local(parameter).sub_(local(parameter.grad).to(parameter.dtype), alpha=LR * scale)

    def named_state(self) -> dict[str, Any]:
        """Nothing is saved."""
        return {}

    def scalars(self) -> dict[str, Any]:
        """Nothing is saved."""
        return {}

    def load_scalars(self, scalars: Mapping[str, Any]) -> None:
        """Nothing is loaded."""


def updater(laid: Any, job: Any, kind: str) -> Plain:
    """The update of a draw: "sgd", or what the job's optimizer is."""
    import torch

    from argosy.optim.build import build
    from argosy.plan.derive import growth

    named = laid.applied.named()
    if kind == "sgd":
        return Plain(named)
    return Plain(
        named,
        build(
            named.items(), job.optim, "cpu", group=laid.mesh.stage, kind=getattr(torch, job.train.precision),
            growth=growth(job.model),
        ),
    )  # fmt: skip


def held(named: Mapping[str, Any], *, gradients: bool = False) -> dict[str, tuple[list[list[int]], Any]]:
    """This rank's part of each parameter or gradient: its box in the whole, and a copy."""
    from argosy.device.shards import box, local

    found = {}
    for name, parameter in named.items():
        tensor = parameter.grad if gradients else parameter
        places = [list(ends) for ends in zip(*box(parameter), strict=True)]
        found[name] = (places, None if tensor is None else local(tensor).detach().double().numpy().copy())
    return found


def compare(rank: int, ranks: int, board: str, asked: Mapping[str, Any]) -> dict[str, Any]:
    """The largest differences of what this rank holds from the judge's file, per kind; and the boxes it looked at.

    As the table of tolerances says for `asked["precision"]`: gradients against the largest of their tensor, weights against
    its largest change.
    """
    with np.load(asked["file"], allow_pickle=False) as file:
        true = {name: file[name] for name in file.files}
    floor = TOLERANCES[asked["precision"]].floor
    # What rounding alone makes of a weight in so few steps is no difference; beside a small change it would look like one.
    last = 4 * float(np.finfo(np.float64 if asked["precision"] == "float64" else np.float32).eps)
    answer: dict[str, Any] = {"rank": rank, "boxes": {name: places for name, (places, _) in _KEPT["weights"].items()}}
    for kind, word in (("gradient", "gradients"), ("weight", "weights")):
        named = {name.partition(".")[2]: value for name, value in true.items() if name.startswith(f"{kind}.")}
        moved = {name: value - true[f"first.{name}"] if kind == "weight" else value for name, value in named.items()}
        sizes = {name: float(np.abs(value).max()) for name, value in moved.items()}
        least, worst = floor * max(sizes.values()), (0.0, "")
        for name, (places, own) in _KEPT[word].items():
            value = named.get(name)
            spare = last * float(np.abs(value).max()) if kind == "weight" and value is not None else 0.0
            off = difference(value, places, own, max(sizes.get(name, 0.0), least), spare)
            worst = max(worst, (off, name))
        answer[kind] = {"error": worst[0], "name": worst[1]}
    return answer


def difference(true: Any, places: list[list[int]], own: Any, size: float, spare: float = 0.0) -> float:
    """The largest difference of `own` from its box of `true`, less `spare`, beside `size`; infinite where either is missing."""
    if true is None or own is None:
        return float("inf")
    part = true[tuple(slice(*place) for place in places)]
    if part.shape != own.shape:
        return float("inf")
    if not own.size:
        return 0.0
    off = float(np.abs(part - own).max())
    return max(0.0, off - spare) / size if np.isfinite(off) else float("inf")
