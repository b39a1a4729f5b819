"""T5: an encoder and a decoder whose positions are biases of the scores."""

import dataclasses
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxdl.core import init as initializers
from jaxdl.core.keys import MISSING, OptionalKey, split
from jaxdl.core.module import Module, fill, part, scoped
from jaxdl.core.naming import expect
from jaxdl.core.tap_primitive import tap
from jaxdl.models.block import norm
from jaxdl.models.transformer import TransformerConfig, blocks, start_cache
from jaxdl.nn.cache import cached_length
from jaxdl.nn.dropout import Dropout
from jaxdl.nn.linear import Embedding, Linear
from jaxdl.nn.score_bias import RelativeBias

SMALL = TransformerConfig(
    dim=512, num_layers=6, num_heads=8, head_dim=64, hidden=2048, norm="rms",
    bias=False, scale=1.0,
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class T5Config:
    """The sizes and choices that make a T5; the defaults are those of the small one.

    encoder, decoder: their blocks. The decoder's are causal and read a memory.
    num_buckets, max_distance: of the biases; see `nn.RelativeBias`.
    tie_embeddings: the embedding is the output layer too.
    scale_logits: what that reads is divided by sqrt(dim) (T5, but not T5 1.1).
    """

    vocab_size: int = 32128
    encoder: TransformerConfig = SMALL
    decoder: TransformerConfig = dataclasses.replace(SMALL, causal=True, cross=True)
    num_buckets: int = 32
    max_distance: int = 128
    tie_embeddings: bool = True
    scale_logits: bool = True


class BiasedStack(Module):
    """Blocks that share a relative bias, and a norm: [batch, seq, dim] -> the same."""

    config: TransformerConfig
    num_buckets: int
    max_distance: int
    bias: Module = part(default=None)
    drop: Module = part(default=None)
    blocks: Module = part(default=None)
    norm: Module = part(default=None)

    def __post_init__(self):
        config = self.config
        both = not config.causal
        fill(
            self,
            bias=RelativeBias(
                config.num_heads, self.num_buckets, self.max_distance, both
            ),
            drop=Dropout(config.dropout),
            blocks=blocks(config),
            norm=norm(config, config.dim),
        )

    def __call__(
        self,
        params,
        x: Float[Array, "batch seq dim"],
        *,
        key: OptionalKey = MISSING,
        cache: Any = None,
        **given: Any,
    ) -> Any:
        """The keywords are those of `Block`; with a cache it returns (x, cache)."""
        first_key, blocks_key, last_key = split(key, 3)
        queries = keys = jnp.arange(x.shape[1])
        if cache is not None:
            # Slots are filled in order, so that their number is their position.
            queries = queries + cached_length(cache["attn"])
            keys = jnp.arange(cache["attn"].k.shape[-3])
        score_bias = self.bias(params["bias"], queries, keys)[None]
        x = self.drop(params["drop"], x, key=first_key)
        x = self.blocks(
            params["blocks"], x, score_bias=score_bias, key=blocks_key, cache=cache,
            **given,
        )  # fmt: skip
        if cache is not None:
            x, cache = x[0], {**cache, "attn": x[1]}
        x = self.norm(params["norm"], x)
        x = self.drop(params["drop"], x, key=last_key)
        return x if cache is None else (x, cache)


class T5(Module):
    """Text to text: int [batch, seq] and [batch, out_seq] -> [batch, out_seq, vocab].

    Called `(params, inputs, tokens, mask=...)` it gives for each of the tokens the
    logits of the one after it (Raffel et al. 2019, arXiv:1910.10683). `mask` [batch,
    seq] is False where the input is padding. To write text, `encode` once, then

        cache = model.init_cache(params, memory, slots, mask=mask)
        logits, cache = model.decode(params, tokens, cache=cache)

    Taps: `encoder/blocks/...` and `decoder/blocks/...` with `resid_pre`, `resid_mid`,
    `resid_cross` in the decoder, `resid_post`, those of `nn.Attention` under `attn` and
    `cross`, `mlp/hidden`; `logits`.
    """

    config: T5Config
    embed: Module = part(default=None)
    encoder: Module = part(default=None)
    decoder: Module = part(default=None)
    head: Module | None = part(default=None)

    def __post_init__(self):
        config, dim = self.config, self.config.encoder.dim
        sizes = config.num_buckets, config.max_distance
        fill(
            self,
            embed=Embedding(config.vocab_size, dim),
            encoder=BiasedStack(config.encoder, *sizes),
            decoder=BiasedStack(config.decoder, *sizes),
        )
        if not config.tie_embeddings:
            axes, init = ("embed", "vocab"), initializers.normal(0.02)
            fill(self, head=Linear(dim, config.vocab_size, False, axes, init))

    def __call__(
        self,
        params,
        inputs: Int[Array, "batch seq"],
        tokens: Int[Array, "batch out_seq"],
        *,
        mask: Bool[Array, "batch seq"] | None = None,
        key: OptionalKey = MISSING,
    ) -> Float[Array, "batch out_seq vocab"]:
        encode_key, decode_key = split(key, 2)
        memory = self.encode(params, inputs, mask=mask, key=encode_key)
        return self.decode(
            params, tokens, memory=memory, memory_mask=mask, key=decode_key
        )

    @scoped
    def encode(
        self,
        params,
        inputs: Int[Array, "batch seq"],
        *,
        mask: Bool[Array, "batch seq"] | None = None,
        key: OptionalKey = MISSING,
    ) -> Float[Array, "batch seq dim"]:
        """What the decoder reads: int [batch, seq] -> [batch, seq, dim]."""
        expect(inputs.ndim == 2, "int [batch, seq]", inputs)
        mask = None if mask is None else mask[:, None, None]
        x = self.embed(params["embed"], inputs)
        return self.encoder(params["encoder"], x, mask=mask, key=key)

    @scoped
    def decode(
        self,
        params,
        tokens: Int[Array, "batch out_seq"],
        *,
        memory: Float[Array, "batch seq dim"] | None = None,
        memory_mask: Bool[Array, "batch seq"] | None = None,
        cache: Any = None,
        key: OptionalKey = MISSING,
    ) -> Any:
        """Logits [batch, out_seq, vocab_size]; of further tokens, given a cache.

        With a cache, which has the memory in it, it returns (logits, cache).
        """
        expect(tokens.ndim == 2, "int [batch, out_seq]", tokens)
        x = self.embed(params["embed"], tokens)
        x = self.decoder(
            params["decoder"], x, memory=memory, memory_mask=memory_mask, cache=cache,
            key=key,
        )  # fmt: skip
        if cache is None:
            return self.logits(params, x)
        return self.logits(params, x[0]), x[1]

    @scoped
    def logits(
        self, params, hidden: Float[Array, "batch out_seq dim"]
    ) -> Float[Array, "batch out_seq vocab"]:
        """Scores every token: [batch, out_seq, dim] -> [batch, out_seq, vocab_size]."""
        if self.config.scale_logits:
            hidden = hidden * hidden.shape[-1] ** -0.5
        if self.head is not None:
            return tap(self.head(params["head"], hidden), "logits")
        logits = self.embed.logits(params["embed"], hidden)  # type: ignore[attr-defined]
        return tap(logits, "logits")

    @scoped
    def init_cache(
        self,
        params,
        memory: Float[Array, "batch seq dim"],
        slots: int,
        dtype: Any = jnp.float32,
        *,
        mask: Bool[Array, "batch seq"] | None = None,
    ) -> Any:
        """A cache for this many tokens, which holds the memory's keys and values."""
        stack: Any = self.decoder
        return start_cache(
            stack.blocks, params["decoder"]["blocks"], memory, slots, dtype, mask
        )
