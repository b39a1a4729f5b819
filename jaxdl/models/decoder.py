"""Decoder-only transformers: GPT-2 and, by other settings, its descendants."""

from collections.abc import Callable
import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxdl.core import init as initializers
from jaxdl.core.keys import MISSING, OptionalKey, split
from jaxdl.core.module import Module, fill, part, scoped
from jaxdl.core.naming import expect
from jaxdl.models.block import block, norm, residual, scores
from jaxdl.nn.cache import cached_length
from jaxdl.nn.combine import stack
from jaxdl.nn.dropout import Dropout
from jaxdl.nn.linear import Embedding, Linear
from jaxdl.nn.position import AddPosition
from jaxdl.nn.rope import RoPE
from jaxdl.nn.routing import keywords


@dataclasses.dataclass(frozen=True)
class Layer:
    """What sets one layer of a decoder apart from another.

    rope: how it turns queries and keys, or None.
    window: how far it sees; see `nn.Attention`.
    attn, mlp: its parts, where they are not those of the configuration: an
    `nn.LatentAttention`, an `nn.MoE`.
    block: the whole layer, where it is of another kind.
    """

    rope: RoPE | None = None
    window: int | None = None
    attn: Module | None = None
    mlp: Module | None = None
    block: Module | None = None


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """The sizes and choices that make a decoder; the defaults are GPT-2's (124M).

    seq_len: the longest sequence that learned positions cover; RoPE has no limit.
    hidden: features inside the feed-forward layer; 4 dim unless given.
    gated: a gated feed-forward layer, SwiGLU with `activation=jax.nn.silu`.
    norm_place: before each layer, after it ("post", OLMo 2) or "both" (Gemma 2).
    unit_offset: norms multiply by 1 + scale (Gemma).
    positions: learned, or rope with `rope_theta`, unless `layers` say it each.
    layers: one `Layer` for each of num_layers, where they differ (Gemma 3, SmolLM 3).
    bias: of the feed-forward layer and norms; also of attention unless these say else:
    qkv_bias, out_bias: of the projections into attention and out of it.
    qk_norm: a norm of each head's queries and keys, or over "all" heads (OLMo 2).
    softcap, scale, sinks: of the scores; see `nn.Attention`.
    final_softcap: bounds the logits, softcap tanh(logits / softcap).
    embed_scale: multiplies the embedding (Gemma: dim ** 0.5).
    dropout: of the embedding, the attention pattern and the result of either layer.
    remat: what the backward pass recomputes; see `nn.Repeat`.
    attention: the implementation; see `nn.Attention`.

    Raises ValueError for a choice of another name, or another number of layers.
    """

    vocab_size: int = 50257
    seq_len: int = 1024
    dim: int = 768
    num_layers: int = 12
    num_heads: int = 12
    num_kv_heads: int | None = None
    head_dim: int | None = None
    hidden: int | None = None
    gated: bool = False
    activation: Callable[[jax.Array], jax.Array] = jax.nn.gelu
    norm: Literal["layer", "rms"] = "layer"
    norm_place: Literal["pre", "post", "both"] = "pre"
    unit_offset: bool = False
    epsilon: float = 1e-5
    positions: Literal["learned", "rope"] = "learned"
    rope_theta: float = 10_000.0
    layers: tuple[Layer, ...] | None = None
    bias: bool = True
    qkv_bias: bool | None = None
    out_bias: bool | None = None
    qk_norm: Literal["head", "all"] | None = None
    softcap: float | None = None
    scale: float | None = None
    sinks: bool = False
    final_softcap: float | None = None
    embed_scale: float = 1.0
    tie_embeddings: bool = True
    dropout: float = 0.0
    remat: bool | Callable[..., Any] = False
    attention: str | Callable[..., jax.Array] | None = None

    def __post_init__(self):
        for name, known in (
            ("norm", ("layer", "rms")),
            ("norm_place", ("pre", "post", "both")),
            ("positions", ("learned", "rope")),
            ("qk_norm", (None, "head", "all")),
        ):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"DecoderConfig.{name}: expected {' or '.join(map(str, known))}, "
                    f"got {getattr(self, name)!r}"
                )
        if self.layers is not None and len(self.layers) != self.num_layers:
            raise ValueError(
                f"DecoderConfig.layers: expected {self.num_layers} of them, got "
                f"{len(self.layers)}"
            )

    @property
    def width(self) -> int:
        """Features of each head."""
        return self.head_dim or self.dim // self.num_heads

    def each_layer(self) -> tuple[Layer, ...]:
        """One `Layer` for each of num_layers."""
        if self.layers is not None:
            return self.layers
        rotary = self.positions == "rope"
        rope = RoPE(self.width, self.rope_theta) if rotary else None
        return (Layer(rope),) * self.num_layers


class Decoder(Module):
    """A language model: int [batch, seq] -> logits [batch, seq, vocab_size].

    Blocks on a residual stream, equal ones in one scan (Radford et al. 2019, "Language
    Models are Unsupervised Multitask Learners"; see `nn.stack` for unequal ones).
    Weights start as GPT-2's: normal with standard deviation 0.02, and 0.02 / sqrt(2
    num_layers) where a layer writes to the residual stream.

    `segment_ids` [batch, seq] keep packed sequences apart. `positions` [batch, seq] or
    [seq] count from 0 along the row unless given; padding stands at negative ones. With
    a `cache` (of `init_cache`) the tokens follow those it holds, and the call returns
    (logits, cache). `hidden` and `head_kernel` are the model in two halves, for
    `losses.chunked_cross_entropy`. To change a size build another:
    `Decoder(dataclasses.replace(config, num_layers=24))`.

    Taps: `embed`, `blocks/resid_pre`, `blocks/resid_mid`, `blocks/resid_post`,
    `blocks/mlp/hidden`, those of `nn.Attention` under `blocks/attn`, `logits`.
    """

    config: DecoderConfig
    embed: Module = part(default=None)
    position: Module | None = part(default=None)
    drop: Module = part(default=None)
    blocks: Module = part(default=None)
    norm: Module = part(default=None)
    head: Module | None = part(default=None)

    def __post_init__(self):
        config = self.config
        layers = config.each_layer()
        blocks = [layer.block or block(config, layer) for layer in layers]
        fill(
            self,
            embed=Embedding(config.vocab_size, config.dim),
            drop=Dropout(config.dropout),
            blocks=stack(blocks, config.remat),
            norm=norm(config, config.dim),
        )
        if config.positions == "learned":
            table = Embedding(config.seq_len, config.dim, (None, "embed"))
            fill(self, position=AddPosition(table))
        if not config.tie_embeddings:
            axes, init = ("embed", "vocab"), initializers.normal(0.02)
            fill(self, head=Linear(config.dim, config.vocab_size, False, axes, init))

    def __call__(
        self,
        params,
        tokens: Int[Array, "batch seq"],
        *,
        key: OptionalKey = MISSING,
        mask: Bool[Array, "..."] | None = None,
        segment_ids: Int[Array, "batch seq"] | None = None,
        positions: Int[Array, "..."] | None = None,
        cache: Any = None,
    ) -> Any:
        x = self.hidden(
            params, tokens, key=key, mask=mask, segment_ids=segment_ids,
            positions=positions, cache=cache,
        )  # fmt: skip
        if cache is None:
            return self.logits(params, x)
        return self.logits(params, x[0]), x[1]

    @scoped
    def hidden(
        self,
        params,
        tokens: Int[Array, "batch seq"],
        *,
        key: OptionalKey = MISSING,
        mask: Bool[Array, "..."] | None = None,
        segment_ids: Int[Array, "batch seq"] | None = None,
        positions: Int[Array, "..."] | None = None,
        cache: Any = None,
    ) -> Any:
        """What the head reads: int [batch, seq] -> [batch, seq, dim], normalised.

        With a cache, that and the cache.
        """
        expect(tokens.ndim == 2, "int [batch, seq]", tokens)
        if cache is not None and positions is None:
            positions = cached_length(cache) + jnp.arange(tokens.shape[1])
        embed_key, blocks_key = split(key, 2)
        x = self.embed(params["embed"], tokens)
        if self.config.embed_scale != 1.0:
            # In the dtype of x, as the models that scale were trained.
            x = x * jnp.asarray(self.config.embed_scale, x.dtype)
        if self.position is not None:
            x = self.position(params["position"], x, positions=positions)
        x = self.drop(params["drop"], residual(x, "embed"), key=embed_key)
        given = {"mask": mask, "segment_ids": segment_ids, "positions": positions}
        given = {n: v for n, v in given.items() if v is not None}
        if "key" in keywords(self.blocks):
            given["key"] = blocks_key
        x = self.blocks(params["blocks"], x, cache=cache, **given)
        if cache is None:
            return self.norm(params["norm"], x)
        return self.norm(params["norm"], x[0]), x[1]

    @scoped
    def logits(
        self, params, hidden: Float[Array, "batch seq dim"]
    ) -> Float[Array, "batch seq vocab"]:
        """Scores every token: [batch, seq, dim] -> [batch, seq, vocab_size]."""
        if self.head is not None:
            logits = self.head(params["head"], hidden)
        else:
            logits = self.embed.logits(params["embed"], hidden)  # type: ignore[attr-defined]
        if self.config.final_softcap is not None:
            cap = self.config.final_softcap
            logits = cap * jnp.tanh(logits / cap)
        return scores(logits)

    def head_kernel(self, params) -> Float[Array, "dim vocab"]:
        """The matrix [dim, vocab_size] that makes logits of `hidden`, tied or not."""
        if self.head is not None:
            return self.head.matrix(params["head"])  # type: ignore[attr-defined]
        return self.embed.matrix(params["embed"]).T  # type: ignore[attr-defined]

    def init_cache(
        self,
        batch: int,
        slots: int,
        dtype: Any = jnp.float32,
        *,
        chunk: int | None = None,
    ) -> Any:
        """An empty cache of every layer; see `Attention.init_cache`."""
        return self.blocks.init_cache(batch, slots, dtype, chunk=chunk)  # type: ignore[attr-defined]
