"""The check that ends every conversion: the same tokens through `transformers` and our decoder, and their largest difference.

Both compute in float32 on a CPU, one after the other, so that two models are never in memory at once. transformers loads its
own classes from the folder, from this machine alone, and is never told to trust anybody's code.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from argosy.checkpoint.load import load
from argosy.checkpoint.store import search
from argosy.errors import NO, Refused
from argosy.exchange.source import CONFIG, table
from argosy.job.schema import ModelSection, layers
from argosy.model.decoder import Decoder
from argosy.random import bits, key
from argosy.run.folder import Run

LIMIT = 1e-4  # of the largest logit, at least of 1: float32 keeps 7 digits, a deep model's sums some 5 of them
ROWS, LENGTH, LONGEST = 2, 64, 1024


@dataclass(frozen=True)
class Compared:
    """The result: the largest difference of two logits, the largest logit, over how many tokens."""

    difference: float
    largest: float
    tokens: int

    @property
    def same(self) -> bool:
        """Whether the two are the same model; not where a number is not finite."""
        return self.difference <= LIMIT * max(1.0, self.largest)

    @property
    def sentence(self) -> str:
        """What is printed."""
        word = "the same" if self.same else "NOT the same"
        return (
            f"logits check against transformers: {word}; largest difference {self.difference:.1e} of logits up to "
            f"{self.largest:.3g}, over {self.tokens} tokens (limit {LIMIT:.0e})"
        )

    def demand(self, where: str) -> None:
        """Refused, with exit code 3, where they differ."""
        if not self.same:
            raise Refused(f"{self.sentence}.", where=where, do="A rule of the family is wrong, or a file is.", code=NO)


def missing() -> str:
    """Why there can be no check on this machine; "" where there can."""
    return "" if find_spec("transformers") else "transformers is not installed (pip install 'argosy[hf]')"


def tokens_for(model: ModelSection, context: int) -> Tensor:
    """Ids [2, S] below the vocabulary, the same every time; long enough to leave the smallest window where that is not long."""
    windows = [block.window + 32 for block in layers(model) if block.window and block.window + 32 <= LONGEST]
    length = max(1, min(max(LENGTH, min(windows, default=0)), context))
    index = torch.arange(ROWS * length, dtype=torch.int64)
    return bits(key(0, "logits check"), index).remainder(model.vocabulary or 2).view(ROWS, length)


def theirs(folder: Path, ids: Tensor) -> Tensor:
    """The logits [B, S, V] of the model in `folder` as transformers computes them. Refused where it cannot load it."""
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as OWN

    kind = table(folder / CONFIG).get("model_type")
    if kind not in OWN:  # it would ask on the terminal whether to run the code that came along
        raise Refused(
            f"transformers has no class for model_type = {str(kind)[:60]!r}.", where=str(folder),
            do="--no-check goes without.", code=NO,
        )  # fmt: skip
    said: Any = transformers.logging  # its functions have no types
    before = said.get_verbosity()
    said.set_verbosity_error()
    try:
        with _quiet(), torch.no_grad():
            model: Any = transformers.AutoModelForCausalLM.from_pretrained(
                str(folder), local_files_only=True, use_safetensors=True, attn_implementation="eager"
            )
            model = model.to(torch.float32).eval()
            found: Tensor = model(input_ids=ids, use_cache=False).logits.float()
            return found.clone()
    except Exception as error:  # whatever of theirs it is, the folder cannot be checked
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise Refused(
            "transformers cannot load this folder.",
            where=str(folder),
            found=reason,
            do="--no-check goes without.",
            code=NO,
        ) from None
    finally:
        said.set_verbosity(before)


def ours(run: Run, ids: Tensor, *, rounded: torch.dtype = torch.float32) -> Tensor:
    """The logits [B, S, V] of the newest checkpoint of `run` in float32; its weights rounded to the type they were sent in."""
    job = run.job()
    master = torch.float64 if job.train.master == "float64" else torch.float32
    decoder = Decoder(job.model, compute=torch.float32, master=master).to_empty(device="cpu").eval()
    decoder.prepare("cpu", ids.shape[1], compiled=False)
    found, _ = search(run.checkpoints)
    if found is None:
        raise Refused("it has no checkpoint.", where=str(run.path))
    try:
        load(run, found, {f"model.{name}": p.detach() for name, p in decoder.named_parameters()}, partial=True)
    finally:
        found.close()
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.copy_(parameter.to(rounded))
        return logits_of(decoder, ids)


def logits_of(decoder: Decoder, ids: Tensor) -> Tensor:
    """The logits of texts [B, S], each a document of its own."""
    places = torch.arange(ids.shape[1], dtype=torch.int32).expand(ids.shape)
    with torch.no_grad():
        return decoder.logits(decoder(ids.int(), places, torch.ones_like(ids, dtype=torch.int32)))


def compare(one: Tensor, other: Tensor) -> Compared:
    """The largest difference; not a number where one of them holds none."""
    if one.shape != other.shape:
        raise ValueError(f"logits of {list(one.shape)} and {list(other.shape)}")
    one, other = one.double(), other.double()
    finite = bool(torch.isfinite(one).all() and torch.isfinite(other).all())
    difference = float((one - other).abs().max()) if finite else float("nan")
    return Compared(difference, float(one.abs().max()), one.shape[0] * one.shape[1])


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars of theirs, and no word to the network."""
    before = os.environ.get("HF_HUB_OFFLINE")
    os.environ["HF_HUB_OFFLINE"] = "1"
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        if before is None:
            del os.environ["HF_HUB_OFFLINE"]
        else:
            os.environ["HF_HUB_OFFLINE"] = before
