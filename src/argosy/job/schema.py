"""The job: one typed tree, its sections and a docstring under each field. Knows no machine and no other room.

The same tree has two states. *Asked*: None or "auto" where the job is silent. *In force*: every value concrete, as
`plan/settle.py` made it (`layout.shape` names all ranks, `batch.micro` is a number, the pattern's blocks are whole).
Field metadata in `json_schema_extra`: `change` = "free" (may change between starts of a run without asking), absent = the
run rule compares it; `path` = the value is a path unless it is the word given there; `part` = it names code (parts.py).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema, model_validator

from argosy.job.decoder import BlockSection as BlockSection
from argosy.job.decoder import ModelSection as ModelSection
from argosy.job.decoder import RopeScaling as RopeScaling
from argosy.job.decoder import layers as layers
from argosy.job.kinds import (
    Bandwidth,
    Count,
    Counted,
    Every,
    Recompute,
    Seconds,
    Section,
    Share,
    Size,
    Tokens,
    Type,
    Whole,
    none,
)

VERSION = 1
OWN = "held-out"  # the run's own held-out documents, beside the names of evaluate.sets


class Trained(Section):
    """A tokenizer trained on the corpus itself."""

    train: Literal["bpe"]
    """Byte-level byte-pair encoding."""
    vocabulary: Whole = Field(ge=257, le=1_000_000)
    """Entries, the 256 bytes and the end-of-document mark among them."""


class MixSection(Section):
    """One source of several."""

    source: str = Field(min_length=1)
    """As `data.source`."""
    weight: float = Field(1.0, ge=0, le=1e9)
    """Its share of the sequences, in any unit: the weights are divided by their sum."""
    license: str = "unknown"
    """Licence of its text; left out: what the source itself says."""
    field: str | None = Field(None, min_length=1)
    """As `data.field`."""


class DataSection(Section):
    """What is read."""

    source: str = Field("python", min_length=1, json_schema_extra={"path": "python"})
    """A file, folder or pattern of text, JSONL, Parquet, MDS or Megatron's .bin/.idx; "hf://datasets/ORG/NAME", "s3://...";
    or "python": the standard library of the interpreter that runs."""
    mix: tuple[MixSection, ...] = Field((), strict=False)
    """Several sources instead, each with `source`, `weight`, `license`, `field`: [[data.mix]]."""
    field: str | None = Field(None, min_length=1)
    """Field of JSONL, Parquet or MDS records that is read. Left out: what looks like a chat, a pair, or text."""
    tokenizer: Annotated[str, Field(min_length=1)] | Trained = Field("bytes", json_schema_extra={"path": "bytes"})
    """ "bytes", a tokenizer.json (its path, its folder, or hf://ORG/NAME), or { train = "bpe", vocabulary = 2048 }."""
    held_out: Share = 0.02
    """Share of the documents never trained on, chosen by their hash; always at least one, and at least one left."""
    license: str = "unknown"
    """Licence of the text, shown in the report. Left out: what the source itself says."""
    licences: tuple[str, ...] = Field((), strict=False, json_schema_extra={"change": "free"})
    """Licences that may be read; every other one, and "unknown", is refused. Left out: all."""
    cache: str | None = Field(None, min_length=1, json_schema_extra={"change": "free", "path": ""})
    """Folder for prepared text. Left out: $ARGOSY_CACHE, else ~/.cache/argosy."""


class RampSection(Section):
    """A batch that grows: from `start` tokens a step by `by` up to `batch.tokens`, evenly over the first `tokens`."""

    start: Count
    """Tokens of the first steps; a multiple of `batch.sequence`."""
    by: Count
    """How much it grows each time; a multiple of `batch.sequence` that divides the whole growth."""
    tokens: Count
    """Tokens over which it grows."""


class BatchSection(Section):
    """How much one step reads."""

    sequence: Count = 256
    """Tokens per sequence; attention never crosses documents."""
    tokens: Count = 4096
    """Tokens per step over all workers; a multiple of `sequence`."""
    packing: Literal["greedy", "best-fit"] = "greedy"
    """Fill every sequence to its last token, cutting documents; or keep them whole where they fit, and pad the rest."""
    ramp: RampSection | None = None
    """{ start = 8192, by = 8192, tokens = "10M" }: fewer tokens a step at first. Left out: `tokens` from the first step on."""
    micro: Annotated[Whole, Field(ge=1)] | Literal["auto"] = Field("auto", json_schema_extra={"change": "free"})
    """Sequences that a worker computes at once; "auto" takes the largest that fits by prediction."""


class PrecisionSection(Section):
    """Types that classes of parameters compute in, beside the matrices of the blocks: those have `train.precision`."""

    norm: Literal["auto"] | Type = "auto"
    """Norms: "auto" is float32, float64 under float64. Wider than the matrices they stay whole on ranks that shard those."""
    embedding: Literal["auto"] | Type = "auto"
    """Tables of tokens and positions, and their sum: "auto" is `train.precision`."""
    head: Literal["auto"] | Type = "auto"
    """The product that makes the logits: "auto" is `train.precision`. Their softmax has float32 at least in any case."""


class TrainSection(Section):
    """How long and in which numbers."""

    tokens: Count | None = Field(None, json_schema_extra={"change": "free"})
    """Length in tokens. One of tokens, steps, time."""
    steps: Count | None = Field(None, json_schema_extra={"change": "free"})
    """Length in steps."""
    time: Seconds | None = Field(None, json_schema_extra={"change": "free"})
    """Length in time; turned into steps by measured speed, once, and stored."""
    precision: Literal["auto"] | Type = "auto"
    """Type of the matrix products: "auto" measures which is faster here."""
    precision_of: PrecisionSection = PrecisionSection()
    """Types of what is no matrix of a block."""
    master: Literal["auto"] | Type = "auto"
    """Type of the weights that the optimizer updates: "auto" is float32, float64 under float64."""
    reduce: Literal["auto"] | Type = "auto"
    """Type in which gradients are summed over ranks: "auto" is the master's."""
    compile: bool | Literal["auto"] = "auto"
    """torch.compile for each block; "auto" where a C++ compiler is found and the run is long enough to earn it."""
    seed: int = Field(1, ge=0, lt=2**63)
    """Keys weights, dropout and data order."""
    deterministic: bool = False
    """Bitwise repeatable kernels on a GPU too, at a cost in speed; a CPU run is repeatable anyway."""
    collect_every: Whole = Field(50, ge=1, json_schema_extra={"change": "free"})
    """Python's garbage is collected every so many steps, on all ranks together."""
    loss: str | None = Field(None, min_length=3, json_schema_extra={"part": True})
    """A loss of one's own, "mine.py:loss": of model and batch, summed over counted labels. Left out: the decoder's."""
    callbacks: tuple[str, ...] = Field((), strict=False, json_schema_extra={"part": True, "change": "free"})
    """Callbacks of one's own, "mine.py:Watch": classes with the hooks start, step, save and end."""


class OptimSection(Section):
    """The update."""

    name: Literal["muon", "adamw", "lamb"] = "muon"
    """Muon for matrices and AdamW for the rest; AdamW for all; or LAMB, whose steps are shares of each weight's own length."""
    lr: float | None = Field(None, gt=0, le=100)
    """Peak learning rate. Left out: derived from size and tokens."""
    schedule: Literal["wsd", "cosine", "constant"] = "wsd"
    """Warm up, stay, decay; or a half cosine after the warm-up; or warm up and stay."""
    warmup: Tokens | None = None
    """Tokens over which the rate rises from 0. Left out: derived."""
    decay: Share | None = None
    """Share of the run over which "wsd" falls to `final`. Left out: 0.4."""
    final: Share = 0.0
    """Learning rate at the end as a share of the peak."""
    rewarm: Tokens = 0
    """Tokens over which the rate rises from 0 again after `--fork`, to what the schedule says there. 0 = none."""
    weight_decay: float = Field(0.1, ge=0, le=100)
    """Decoupled weight decay of matrices, as a share of the learning rate."""
    clip: Annotated[
        Annotated[float, Field(gt=0, le=1e9)] | None,
        BeforeValidator(none),
        WithJsonSchema({"anyOf": [{"type": "number", "exclusiveMinimum": 0, "maximum": 1e9}, {"const": "none"}]}),
    ] = 1.0
    """Largest norm of the whole gradient; "none" does not clip."""
    beta1: float = Field(0.9, ge=0, lt=1)
    """AdamW's and LAMB's average of gradients."""
    beta2: float = Field(0.95, ge=0, lt=1)
    """AdamW's and LAMB's average of squared gradients."""
    epsilon: float = Field(1e-8, gt=0, le=1)
    """AdamW's and LAMB's guard against division by zero."""
    momentum: float | None = Field(None, ge=0, lt=1)
    """Muon's momentum. Left out: 0.95."""
    newton_schulz: Whole | None = Field(None, ge=1, le=20)
    """Muon's iterations. Left out: 5."""


class LayoutSection(Section):
    """Who does which part."""

    shape: str = Field("auto", min_length=1, json_schema_extra={"change": "free"})
    """Degrees, as "tp2 pp2 dp4" (dp is sharded) or "replicate2 dp2"; ranks not named go to dp. "auto" chooses."""
    order: str = Field("pp replicate dp cp tp", min_length=1, json_schema_extra={"change": "free"})
    """The axes, outermost first: ranks that differ in the last one are neighbours."""
    zero: Whole = Field(2, ge=1, le=3, json_schema_extra={"change": "free"})
    """ZeRO stage over dp: 1 optimizer state, 2 and gradients, 3 and parameters are sharded."""
    secondary: Whole = Field(0, ge=0, json_schema_extra={"change": "free"})
    """Under ZeRO-3, so many neighbouring ranks keep a second shard after the forward pass, which backward gathers; 0 = all."""
    sequence: bool = Field(True, json_schema_extra={"change": "free"})
    """Under tp, norms and residuals are split along the sequence too; false keeps them whole on every rank."""
    schedule: Literal["gpipe", "1f1b", "interleaved"] = Field("1f1b", json_schema_extra={"change": "free"})
    """Order of forward and backward passes under pp."""
    virtual: Whole = Field(1, ge=1, json_schema_extra={"change": "free"})
    """Stages that a rank holds under pp; more than one for "interleaved"."""
    stages: tuple[Annotated[Whole, Field(ge=0)], ...] = Field((), strict=False, json_schema_extra={"change": "free"})
    """Layers of each pipeline stage. Left out: as even as can be, embedding and head counted."""


class MemorySection(Section):
    """What the run may take."""

    limit: Size | Literal["auto"] = Field("auto", json_schema_extra={"change": "free"})
    """Memory of all workers on a node; "auto" is what is free. A prediction above it is refused before the start."""
    recompute: Recompute = Field((), strict=False, json_schema_extra={"change": "free"})
    """What backward computes again, not kept: "none", "block" or operators, as ["attention", "mlp"]; "norm" spares nothing."""
    loss_chunk: Count = Field(1024, json_schema_extra={"change": "free"})
    """Tokens whose logits are held at once by the cross-entropy."""


class CheckpointSection(Section):
    """What survives."""

    every: Every = Field("60 s", json_schema_extra={"change": "free"})
    """How often a checkpoint is written: steps, seconds, a share of the run, or "never" (only at the end)."""
    keep: Whole = Field(2, ge=1, json_schema_extra={"change": "free"})
    """How many of the newest are kept; an older one goes only after a newer one was verified."""
    bandwidth: Bandwidth | None = Field(None, json_schema_extra={"change": "free"})
    """Most bytes per second written to disk, as "100 MB/s". Left out: no limit."""


class FaultsSection(Section):
    """What is done when something breaks."""

    recover: bool = Field(True, json_schema_extra={"change": "free"})
    """Start all workers again from the last checkpoint when one dies; false leaves a failed run as it is."""
    restarts: Whole = Field(5, ge=0, json_schema_extra={"change": "free"})
    """How often in a row workers are started again without one step of progress."""


class ObserveSection(Section):
    """What is shown and kept."""

    sample_every: Counted = Field("25%", json_schema_extra={"change": "free"})
    """How often the model continues the prompts: steps, a share of the run, or "never"."""
    prompts: tuple[str, ...] = Field(("",), strict=False, json_schema_extra={"change": "free"})
    """What it continues."""
    sample_tokens: Count = Field(64, json_schema_extra={"change": "free"})
    """Tokens of one sample."""
    temperature: float = Field(0.8, ge=0, le=1000, json_schema_extra={"change": "free"})
    """Sharpness of the samples; 0 takes the likeliest token."""
    numerics_every: Counted = Field(50, json_schema_extra={"change": "free"})
    """How often figures of every layer are taken in passing (steps, a share of the run, or "never"): gradient norm, update over
    weights, size of activations, and the largest attention score of 64 query rows drawn from the step, exact for those."""
    log_every: Seconds = Field(10.0, json_schema_extra={"change": "free"})
    """Seconds between lines where the output is no terminal."""


class SetSection(Section):
    """A held-out set with a name: text that is measured and never trained on."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,39}$")
    """What it is called in metrics and on the screen."""
    source: str = Field(min_length=1)
    """As `data.source`."""
    field: str | None = Field(None, min_length=1)
    """As `data.field`."""


class EvaluateSection(Section):
    """What is measured on held-out documents."""

    every: Counted = Field("25%", json_schema_extra={"change": "free"})
    """How often: steps or a share of the run; always at the end, unless "never"."""
    tokens: Count = Field(65_536, json_schema_extra={"change": "free"})
    """Most tokens read of each held-out set by one evaluation."""
    sets: tuple[SetSection, ...] = Field((), strict=False, json_schema_extra={"change": "free"})
    """More held-out sets beside the run's own held-out documents, each with `name`, `source`, `field`: [[evaluate.sets]]."""
    by: str = Field(OWN, min_length=1, json_schema_extra={"change": "free"})
    """Which of them says what is best: "held-out", the run's own documents, or the name of a set."""
    keep_best: bool = Field(False, json_schema_extra={"change": "free"})
    """Save at every evaluation that is better than all before it, and keep that checkpoint beside the newest ones."""
    patience: Annotated[
        Annotated[Whole, Field(ge=1)] | None,
        BeforeValidator(none),
        WithJsonSchema({"anyOf": [{"type": "integer", "minimum": 1}, {"const": "none"}]}),
    ] = Field(None, json_schema_extra={"change": "free"})
    """Finish after so many evaluations in a row that are not better than the best; left out or "none": train to the end."""


class Job(Section):
    """What was asked: the whole job file."""

    version: Literal[1] = Field(1, json_schema_extra={"change": "free"})
    """Version of this format."""
    extends: str | None = Field(None, json_schema_extra={"change": "free"})
    """One parent: the name of a shipped job or a path; what this file says replaces what the parent says."""
    name: str = Field("run", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$", json_schema_extra={"change": "free"})
    """Names the run folder."""
    model: ModelSection = ModelSection()
    data: DataSection = DataSection()
    batch: BatchSection = BatchSection()
    train: TrainSection = TrainSection()
    optim: OptimSection = OptimSection()
    layout: LayoutSection = LayoutSection()
    memory: MemorySection = MemorySection()
    checkpoint: CheckpointSection = CheckpointSection()
    faults: FaultsSection = FaultsSection()
    observe: ObserveSection = ObserveSection()
    evaluate: EvaluateSection = EvaluateSection()

    @model_validator(mode="before")
    @classmethod
    def _table(cls, value: Any) -> Any:
        if not isinstance(value, dict | Job):
            raise ValueError("a job is a table of sections")
        return value
