"""What a job's owner puts in the place of the model or of its loss: found by its name, and checked for what it must be."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from argosy.errors import Refused
from argosy.job import parts
from argosy.job.schema import ModelSection
from argosy.model.decoder import Decoder


def decoder_of(model: ModelSection) -> type[Decoder]:
    """The class that makes `model`: what `model.class` names, else Decoder. Refused where that derives from no Decoder.

    It is made with Decoder's arguments, on the meta device; parameters that it adds get first weights by their names, as the
    decoder's do, and every rank has them whole or in shards like all others.
    """
    name = getattr(model, "class")
    if name is None:
        return Decoder
    found = parts.load("model.class", name)
    if not (isinstance(found, type) and issubclass(found, Decoder)):
        raise Refused(
            "this is no class of a model.",
            where=f"model.class = {name}",
            found=f"a {type(found).__name__}" if not isinstance(found, type) else f"the class {found.__name__}",
            do="Derive it from argosy.model.decoder.Decoder; argosy.fit trains any other module.",
        )
    return found


def own_loss(name: str) -> Callable[[Decoder, Any, Tensor], Tensor]:
    """The loss that `train.loss` names, as a function of (model, batch, number of the step). Refused where it is none.

    The owner's function gets (model, batch) and gives a scalar: the sum over the batch's counted labels, whose weights are
    not 0. It is divided by their number in the whole global batch, as the decoder's own is. One with a parameter `step` gets
    the step's number, too, which the model needs for dropout.
    """
    function = parts.load("train.loss", name)
    if not callable(function):
        raise Refused(
            "this is no function.", where=f"train.loss = {name}", found=f"a {type(function).__name__}",
            do="Write a function of (model, batch) that gives a sum over the counted labels.",
        )  # fmt: skip

    counted = "step" in inspect.signature(function).parameters

    def loss(model: Decoder, batch: Any, step: Tensor) -> Tensor:
        """The owner's loss of a micro-batch [scalar], checked."""
        found = function(model, batch, step=step) if counted else function(model, batch)
        if not isinstance(found, Tensor) or found.ndim != 0 or not found.is_floating_point():
            told = f"{found.dtype} {list(found.shape)}" if isinstance(found, Tensor) else f"a {type(found).__name__}"
            raise Refused(
                "a loss is one number: a scalar tensor of floating point.", where=f"train.loss = {name}", found=told,
                do="Sum over the counted labels: (nats * batch.weights).sum().",
            )  # fmt: skip
        return found.to(torch.promote_types(found.dtype, torch.float32))

    return loss
