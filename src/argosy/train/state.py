"""All that a checkpoint must hold: weights, optimizer states and the few numbers beside them; and the update that changes them.

Knows parameters by their global names, an optimizer and a schedule; not what the model computes nor where its data come from.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

from torch import Tensor, nn

from argosy.errors import NO, Refused
from argosy.parallel.data import DataParallel
from argosy.parallel.norm import norm2
from argosy.run.recorder import Recorder
from argosy.train.vote import Tally, Vote

PATIENCE = 10  # steps in a row without a finite loss and gradient; then the run has diverged


class Update(Protocol):
    """What changes the weights: `optim/build.py` makes one, `train/fit.py` wraps any of torch's."""

    lr: float  # the peak learning rate

    def step(self, rate: float, scale: float | Tensor = 1.0, good: Tensor | None = None) -> None:
        """Apply the gradients times `scale` with `rate` times the peak learning rate; change nothing unless `good`.

        `scale` and `good` may be scalars on the device, which the host does not know.
        """

    def uncount(self) -> None:
        """One of the last updates was not `good` and thus none, as the host has learnt by now."""

    def named_state(self) -> dict[str, Tensor]:
        """The state tensors themselves: "optim.<parameter>.<slot>"."""
        ...

    def scalars(self) -> Mapping[str, Any]:
        """What else a checkpoint must hold, for JSON."""
        ...

    def load_scalars(self, scalars: Mapping[str, Any]) -> None:
        """Take over `scalars` from a checkpoint."""


class State:
    """Where training stands. `step` is the one being computed, counted from 1; after `update` it is done.

    `module`'s parameters and persistent buffers are the weights. `rate(step)` is the factor on the peak learning rate.
    `clip` is the largest norm of the whole gradient, None for any. `world` is the number of ranks.
    """

    def __init__(
        self,
        module: nn.Module,
        optimizer: Update,
        data: DataParallel,
        recorder: Recorder,
        *,
        rate: Callable[[int], float] = lambda step: 1.0,
        clip: float | None = None,
        world: int = 1,
    ):
        self.module, self.optimizer, self.data, self.recorder = module, optimizer, data, recorder
        self.rate, self.clip, self.world = rate, clip, world
        self.step = 0  # the step being computed, or the last one done
        self.tokens = 0  # trained on so far
        self.counted = 1  # labels of this step's global batch that count
        self.skipped = 0  # updates left out because a number was not finite
        self.skipped_in_a_row = 0
        self.multiplier = 0.0  # of the learning rate in this step
        self.watched: Callable[[], AbstractContextManager[None]] = nullcontext  # around each change
        self.computing = "forward_backward"  # the phase that the record shows; "compile" while the compiler works

    def begin(self, counted: int, tokens: int) -> None:
        """The next step starts: its global batch has `tokens`, of which `counted` labels count."""
        self.step += 1
        self.tokens += tokens
        self.counted = max(1, counted)

    def norm2(self) -> Tensor:
        """This rank's share [scalar, float64] of the squared norm of the whole gradient."""
        return norm2(self.data.gradients(), self.world)

    @property
    def lr(self) -> float:
        """The learning rate of this step."""
        return self.optimizer.lr * self.multiplier

    def update(self, vote: Vote) -> None:
        """Clip, and change the weights; leave them alone when the vote is not finite. See `count` for Refused."""
        self.multiplier = self.rate(self.step)
        self.count(vote, self.step, self.counted)
        if vote.finite:
            scale = self.clip / vote.norm if self.clip is not None and vote.norm > self.clip else 1.0
            with self.watched():
                self.optimizer.step(self.multiplier, scale)

    def update_there(self, tally: Tally) -> None:
        """The same without waiting for the device: it decides from the sums that it holds. `learn` follows later."""
        self.multiplier = self.rate(self.step)
        with self.watched():
            self.optimizer.step(self.multiplier, 1.0 if self.clip is None else tally.scale(self.clip), tally.good)

    def learn(self, vote: Vote, step: int, counted: int) -> None:
        """What became of `update_there` in `step`, whose global batch had `counted` labels that count."""
        if not vote.finite:
            self.optimizer.uncount()
        self.count(vote, step, counted)

    def count(self, vote: Vote, step: int, counted: int) -> None:
        """Count updates left out. Refused (exit code 3) after `PATIENCE` of them in a row."""
        self.skipped_in_a_row = 0 if vote.finite else self.skipped_in_a_row + 1
        self.skipped += not vote.finite
        if self.skipped_in_a_row >= PATIENCE:
            raise Refused(
                f"diverged: loss or gradient was not finite in {PATIENCE} steps in a row, the last one step {step}.",
                found=f"loss {vote.loss / counted}, gradient norm {vote.norm}",
                do="The last checkpoint is good. Try a lower rate (--optim.lr) or a longer warm-up (--optim.warmup).",
                code=NO,
            )

    def tensors(self) -> dict[str, Tensor]:
        """Everything a checkpoint holds, by global name; the tensors (and their shards) themselves, not copies."""
        found = {f"model.{name}": parameter.detach() for name, parameter in self.module.named_parameters()}
        kept = self.module.state_dict()
        found |= {f"model.{name}": buffer for name, buffer in self.module.named_buffers() if name in kept}
        return found | self.optimizer.named_state()

    def facts(self) -> dict[str, Any]:
        """The numbers beside the tensors, for JSON."""
        return {
            "step": self.step,
            "tokens": self.tokens,
            "skipped": self.skipped,
            "skipped_in_a_row": self.skipped_in_a_row,
            "optim": dict(self.optimizer.scalars()),
        }

    def restore(self, facts: Mapping[str, Any]) -> None:
        """Take the numbers of a checkpoint whose tensors were loaded into `tensors()`."""
        self.step, self.tokens = int(facts["step"]), int(facts["tokens"])
        self.skipped, self.skipped_in_a_row = int(facts["skipped"]), int(facts["skipped_in_a_row"])
        self.optimizer.load_scalars(facts["optim"])
