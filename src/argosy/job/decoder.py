"""The decoder in the job: its shape, its blocks, where its first weights come from. `schema.py` has all other sections."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field, create_model, model_validator

from argosy.job.kinds import Section, Whole


class RopeScaling(Section):
    """Rotary angles changed for sequences longer than those of an earlier training."""

    kind: Literal["linear", "llama3", "yarn"]
    """Position interpolation (Chen et al., 2023), Llama 3.1's bands of wavelengths, or YaRN (Peng et al., 2023)."""
    factor: float = Field(ge=1, le=1e6)
    """How many times longer."""
    original: Whole | None = Field(None, ge=1)
    """Longest sequence of the earlier training ("llama3" and "yarn")."""
    low: float | None = Field(None, gt=0, le=1e6)
    """Waves longer than original / low are stretched whole ("llama3"). Left out: 1."""
    high: float | None = Field(None, gt=0, le=1e6)
    """Waves shorter than original / high stay ("llama3"). Left out: 4."""
    fast: float | None = Field(None, gt=0, le=1e6)
    """Angles that turn more often than so within `original` stay ("yarn"). Left out: 32."""
    slow: float | None = Field(None, gt=0, le=1e6)
    """Angles that turn less often than so are stretched whole ("yarn"). Left out: 1."""
    attention: float | None = Field(None, gt=0, le=1e6)
    """Factor on cosines and sines ("yarn"). Left out: 0.1 ln(factor) + 1."""

    @model_validator(mode="after")
    def _of_its_kind(self) -> RopeScaling:
        own = {"linear": (), "llama3": ("original", "low", "high"), "yarn": ("original", "fast", "slow", "attention")}
        for name, value in self:
            if name not in ("kind", "factor", *own[self.kind]) and value is not None:
                raise ValueError(f"{name} does nothing with kind = {self.kind}")
        if own[self.kind] and self.original is None:
            raise ValueError(f"kind = {self.kind} needs original, the longest sequence of the earlier training")
        if (self.low or 1.0) >= (self.high or 4.0):
            raise ValueError("low must be less than high")
        return self


class BlockSection(Section):
    """One transformer block. In `model.pattern` a key left out takes the value of `model.block`."""

    heads: Whole | None = Field(None, ge=1)
    """Query heads."""
    kv_heads: Whole | None = Field(None, ge=1)
    """Key and value heads (grouped-query attention); must divide `heads`. Left out: as many as `heads`."""
    head_size: Whole | None = Field(None, ge=2)
    """Size of one head. Left out: width / heads."""
    hidden: Whole | None = Field(None, ge=1)
    """Width of the feed-forward part. Left out: 4 x width, or 8/3 x width rounded up to a multiple of 32 for SwiGLU."""
    activation: Literal["swiglu", "gelu", "gelu_tanh"] | None = None
    """SwiGLU (three matrices), or exact or tanh-approximated GELU (two)."""
    parallel: bool | None = None
    """MegaScale's parallel block, y = x + attention(norm x) + mlp(norm x), instead of one after the other."""
    norm: Literal["rms", "layer"] | None = None
    """RMSNorm or LayerNorm."""
    norm_placement: Literal["pre", "post", "peri"] | None = None
    """Where each part is normed: what it reads, what it adds to the stream, or both. The parallel block knows "pre" alone."""
    norm_epsilon: float | None = Field(None, gt=0, le=1)
    """Added to the variance before the root."""
    norm_bias: bool | None = None
    """LayerNorm's bias (RMSNorm has none)."""
    qk_norm: Literal["none", "head", "full"] | None = None
    """Norm of queries and keys before the product: per head, or over all heads together."""
    qkv_bias: bool | None = None
    """Biases of the query, key and value projections."""
    attention_bias: bool | None = None
    """Bias of the attention's output projection."""
    mlp_bias: bool | None = None
    """Biases of the feed-forward matrices."""
    window: Whole | None = Field(None, ge=0)
    """Sliding window: a token sees itself and so many - 1 before it. 0 = all before it."""
    softcap: float | None = Field(None, ge=0, le=1e6)
    """Attention scores become softcap x tanh(score / softcap); 0 leaves them. Such layers hold their scores whole."""
    dropout: float | None = Field(None, ge=0, lt=1)
    """Share of activations dropped after the attention and the feed-forward part while training."""


if TYPE_CHECKING:

    class _Classed(Section):
        """What the program sees is below."""

else:  # "class" can be a key of a table, and no name in a class body: getattr(model, "class")
    _about = (
        """A class of one's own, a Decoder with changes: "mine.py:Model" or "module:Model". Left out: the decoder."""
    )
    _field = Field(None, min_length=3, description=_about, json_schema_extra={"part": True})
    _Classed = create_model("_Classed", __base__=Section, **{"class": (str | None, _field)})


class ModelSection(_Classed):
    """The decoder. A preset fills all of it; every field can be said beside the preset."""

    preset: str | None = Field(None, min_length=1)
    """A shape by name: `argosy job schema --presets` lists them."""
    init: str = Field("random", min_length=1, json_schema_extra={"path": "random"})
    """First weights: "random", a run folder, a Hugging Face folder or hf://org/name@revision, which also give the shape."""
    layers: Whole | None = Field(None, ge=1, le=10_000)
    """Number of blocks."""
    width: Whole | None = Field(None, ge=1)
    """Size of the residual stream (D)."""
    vocabulary: Whole | None = Field(None, ge=2)
    """Rows of the embedding. Left out: the tokenizer's. Larger is allowed, smaller is refused."""
    positions: Literal["rotary", "learned"] | None = None
    """Rotary angles in every block, or a learned table added to the embedding."""
    context: Whole | None = Field(None, ge=1)
    """Rows of the learned table. Left out: `batch.sequence`."""
    rope_theta: float | None = Field(None, gt=0, le=1e12)
    """Base of the rotary angles."""
    rope_scaling: Literal["none"] | RopeScaling | None = None
    """Rotary angles for longer sequences: { kind = "llama3", factor = 8.0, original = 8192 }, "linear" or "yarn"."""
    tied: bool | None = None
    """Whether the head uses the embedding's weights."""
    softcap: float | None = Field(None, ge=0, le=1e6)
    """The head's logits become softcap x tanh(logit / softcap); 0 leaves them."""
    z_loss: float | None = Field(None, ge=0, le=1)
    """Weight of the squared log of the softmax's sum, added to what is minimised, not to the loss that is shown."""
    scaling: Literal["none", "mup"] | None = None
    """ "mup" (Yang et al., 2022): first weights and learning rates by width, so that the best rate at `base_width` is the best
    at any. Width grows by more heads of one size; the head has weights of its own (`tied` = false)."""
    base_width: Whole | None = Field(None, ge=1)
    """Width that the learning rate is for, where "mup" changes nothing. Left out: 192, the laptop job's."""
    block: BlockSection = BlockSection()
    """What every block has unless its place in the pattern says otherwise."""
    pattern: tuple[BlockSection, ...] = Field((), strict=False)
    """Differences from `model.block`, repeated over the layers; as long as a divisor of `model.layers`."""


def layers(model: ModelSection) -> list[BlockSection]:
    """The block of every layer: `model.block` with the pattern's differences, the pattern repeated to `model.layers`."""
    count = model.layers or 0
    pattern = model.pattern or (BlockSection(),)
    base = model.block.model_dump()
    found = []
    for index in range(count):
        said = pattern[index % len(pattern)].model_dump(exclude_none=True)
        found.append(BlockSection(**{**base, **said}))
    return found
