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
from jaxdl.core.tap_primitive import tap
from jaxdl.nn.attention import Attention
from jaxdl.nn.combine import Repeat
from jaxdl.nn.dropout import Dropout
from jaxdl.nn.feed_forward import FeedForward
from jaxdl.nn.linear import Embedding, Linear
from jaxdl.nn.norm import LayerNorm, RMSNorm
from jaxdl.nn.rope import RoPE


@dataclasses.dataclass(frozen=True)
class GPTConfig:
    """The sizes and choices that make a GPT; the defaults are GPT-2's (124M).

    seq_len: the longest sequence that learned positions cover; RoPE has no limit.
    hidden: features inside the feed-forward layer; 4 dim unless given.
    gated: a gated feed-forward layer, SwiGLU with `activation=jax.nn.silu`.
    dropout: of the embedding, the attention pattern and the result of either layer.
    remat: what the backward pass recomputes; see `nn.Repeat`.
    attention: the implementation; see `nn.Attention`.

    Raises ValueError for a norm or positions of another name.
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
    epsilon: float = 1e-5
    positions: Literal["learned", "rope"] = "learned"
    rope_theta: float = 10_000.0
    bias: bool = True
    tie_embeddings: bool = True
    dropout: float = 0.0
    remat: bool | Callable[..., Any] = False
    attention: str | None = None

    def __post_init__(self):
        for name, known in (
            ("norm", ("layer", "rms")),
            ("positions", ("learned", "rope")),
        ):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"GPTConfig.{name}: expected {' or '.join(known)}, got "
                    f"{getattr(self, name)!r}"
                )


class GPT(Module):
    """A language model: int [batch, seq] -> logits [batch, seq, vocab_size].

    Pre-norm blocks on a residual stream, the same block `num_layers` times in one scan
    (Radford et al. 2019, "Language Models are Unsupervised Multitask Learners").
    Weights start as GPT-2's: normal with standard deviation 0.02, and 0.02 / sqrt(2
    num_layers) where a layer writes to the residual stream.

    `segment_ids` [batch, seq] keep packed sequences apart. `positions` [batch, seq] or
    [seq] count from 0 along the row unless given. `hidden` and `head_kernel` are the
    model in two halves, for `losses.chunked_cross_entropy`. To change a size build
    another: `GPT(dataclasses.replace(config, num_layers=24))`.

    Taps: `embed`, `blocks/resid_pre`, `blocks/resid_mid`, `blocks/resid_post`,
    `blocks/mlp/hidden`, those of `nn.Attention` under `blocks/attn`, `logits`.
    """

    config: GPTConfig
    embed: Module = part(default=None)
    position: Module | None = part(default=None)
    drop: Module = part(default=None)
    blocks: Module = part(default=None)
    norm: Module = part(default=None)
    head: Module | None = part(default=None)

    def __post_init__(self):
        config = self.config
        fill(
            self,
            embed=Embedding(config.vocab_size, config.dim),
            drop=Dropout(config.dropout),
            blocks=Repeat(block(config), config.num_layers, config.remat),
            norm=_norm(config),
        )
        if config.positions == "learned":
            axes = (None, "embed")
            fill(self, position=Embedding(config.seq_len, config.dim, axes))
        if not config.tie_embeddings:
            axes, init = ("embed", "vocab"), initializers.normal(0.02)
            fill(self, head=Linear(config.dim, config.vocab_size, False, axes, init))

    def __call__(
        self,
        params,
        tokens: Int[Array, "batch seq"],
        *,
        key: OptionalKey = MISSING,
        segment_ids: Int[Array, "batch seq"] | None = None,
        positions: Int[Array, "..."] | None = None,
    ) -> Float[Array, "batch seq vocab"]:
        x = self.hidden(
            params, tokens, key=key, segment_ids=segment_ids, positions=positions
        )
        return self.logits(params, x)

    @scoped
    def hidden(
        self,
        params,
        tokens: Int[Array, "batch seq"],
        *,
        key: OptionalKey = MISSING,
        segment_ids: Int[Array, "batch seq"] | None = None,
        positions: Int[Array, "..."] | None = None,
    ) -> Float[Array, "batch seq dim"]:
        """What the head reads: int [batch, seq] -> [batch, seq, dim], normalised."""
        expect(tokens.ndim == 2, "int [batch, seq]", tokens)
        embed_key, blocks_key = split(key, 2)
        x = self.embed(params["embed"], tokens)
        if self.position is not None:
            x = x + self._position(params, tokens, positions)
        x = self.drop(params["drop"], tap(x, "embed"), key=embed_key)
        x = self.blocks(
            params["blocks"],
            x,
            key=blocks_key,
            segment_ids=segment_ids,
            positions=positions,
        )
        return self.norm(params["norm"], x)

    @scoped
    def logits(
        self, params, hidden: Float[Array, "batch seq dim"]
    ) -> Float[Array, "batch seq vocab"]:
        """Scores every token: [batch, seq, dim] -> [batch, seq, vocab_size]."""
        if self.head is not None:
            return tap(self.head(params["head"], hidden), "logits")
        return tap(hidden @ self.head_kernel(params), "logits")

    def head_kernel(self, params) -> Float[Array, "dim vocab"]:
        """The matrix [dim, vocab_size] that makes logits of `hidden`, tied or not."""
        if self.head is not None:
            return params["head"]["kernel"]
        return params["embed"]["embedding"].T

    def _position(self, params, tokens, positions):
        seq = tokens.shape[1]
        if positions is None:
            longest = self.config.seq_len
            expect(seq <= longest, f"a sequence of at most seq_len={longest}", tokens)
            positions = jnp.arange(seq)
        expect(positions.shape[-1] == seq, f"positions [..., {seq}]", positions)
        return self.position(params["position"], positions)  # type: ignore[misc]


class Block(Module):
    """x + attn(norm(x)), then x + mlp(norm(x)): [batch, seq, dim] -> the same."""

    attn_norm: Module
    attn: Module
    mlp_norm: Module
    mlp: Module
    drop: Module

    def __call__(
        self,
        params,
        x: Float[Array, "batch seq dim"],
        *,
        key: OptionalKey = MISSING,
        mask: Bool[Array, "..."] | None = None,
        segment_ids: Int[Array, "batch seq"] | None = None,
        positions: Int[Array, "..."] | None = None,
    ) -> Float[Array, "batch seq dim"]:
        attn_key, drop_key, mlp_key = split(key, 3)
        x = tap(x, "resid_pre")
        y = self.attn(
            params["attn"],
            self.attn_norm(params["attn_norm"], x),
            mask=mask,
            segment_ids=segment_ids,
            positions=positions,
            key=attn_key,
        )
        x = tap(x + self.drop(params["drop"], y, key=drop_key), "resid_mid")
        y = self.mlp(params["mlp"], self.mlp_norm(params["mlp_norm"], x), key=mlp_key)
        return tap(x + y, "resid_post")


def block(config: GPTConfig) -> Block:
    """One block of a GPT of this configuration."""
    init = initializers.normal(0.02)
    out_init = initializers.normal(0.02 / (2 * config.num_layers) ** 0.5)
    head_dim = config.head_dim or config.dim // config.num_heads
    rotary = config.positions == "rope"
    return Block(
        attn_norm=_norm(config),
        attn=Attention(
            config.dim,
            config.num_heads,
            config.num_kv_heads,
            head_dim,
            causal=True,
            rope=RoPE(head_dim, config.rope_theta) if rotary else None,
            bias=config.bias,
            dropout=config.dropout,
            kernel_init=init,
            out_init=out_init,
            implementation=config.attention,
        ),
        mlp_norm=_norm(config),
        mlp=FeedForward(
            config.dim,
            config.hidden,
            config.activation,
            config.bias,
            config.dropout,
            config.gated,
            kernel_init=init,
            out_init=out_init,
        ),
        drop=Dropout(config.dropout),
    )


def _norm(config: GPTConfig) -> Module:
    if config.norm == "rms":
        return RMSNorm(config.dim, config.epsilon)
    return LayerNorm(config.dim, config.epsilon, bias=config.bias)
