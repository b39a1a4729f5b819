"""T5: an encoder and a decoder whose positions are biases of the scores."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxdl.core import init as initializers
from jaxdl.core.keys import MISSING, OptionalKey, split
from jaxdl.core.module import Module, fill, inline, part, scoped
from jaxdl.core.naming import expect
from jaxdl.models.block import attention, norm, scores
from jaxdl.models.decoder import Layer
from jaxdl.models.transformer import TransformerConfig, blocks, reading, remember
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
    shared_bias: one bias for all layers; False gives each its own (UMT5).
    tie_embeddings: the embedding is the output layer too.
    scale_logits: what that reads is divided by sqrt(dim) (T5, but not T5 1.1, mT5).
    """

    vocab_size: int = 32128
    encoder: TransformerConfig = SMALL
    decoder: TransformerConfig = dataclasses.replace(SMALL, causal=True, cross=True)
    num_buckets: int = 32
    max_distance: int = 128
    shared_bias: bool = True
    tie_embeddings: bool = True
    scale_logits: bool = True


class BiasedAttention(Module):
    """Attention with a relative bias of its own: [batch, seq, dim] -> the same."""

    attn: Module = inline()
    bias: Module

    def __call__(
        self,
        params,
        x: Float[Array, "batch seq dim"],
        *,
        positions: Int[Array, "..."] | None = None,
        cache: Any = None,
        mask: Bool[Array, "..."] | None = None,
        key: OptionalKey = MISSING,
    ) -> Any:
        score_bias = self.bias(params["bias"], *places(x.shape[1], positions, cache))
        return self.attn(
            params, x, score_bias=score_bias, positions=positions, cache=cache,
            mask=mask, key=key,
        )  # fmt: skip

    def init_cache(self, *sizes: Any, **options: Any) -> Any:
        """An empty cache; see `Attention.init_cache`."""
        return self.attn.init_cache(*sizes, **options)  # type: ignore[attr-defined]


class BiasedStack(Module):
    """Blocks with relative biases, and a norm: [batch, seq, dim] -> the same."""

    config: TransformerConfig
    num_buckets: int
    max_distance: int
    shared: bool = True
    bias: Module | None = part(default=None)
    drop: Module = part(default=None)
    blocks: Module = part(default=None)
    norm: Module = part(default=None)

    def __post_init__(self):
        config = self.config
        sizes = config.num_heads, self.num_buckets, self.max_distance
        bias = RelativeBias(*sizes, bidirectional=not config.causal)
        each = config
        if self.shared:
            fill(self, bias=bias)
        else:
            plain = attention(config, Layer())
            plain = dataclasses.replace(plain, causal=config.causal)
            layer = Layer(attn=BiasedAttention(plain, bias))
            each = dataclasses.replace(config, layers=(layer,) * config.num_layers)
        fill(
            self,
            drop=Dropout(config.dropout),
            blocks=blocks(each),
            norm=norm(config, config.dim),
        )

    def __call__(
        self,
        params,
        x: Float[Array, "batch seq dim"],
        *,
        key: OptionalKey = MISSING,
        positions: Int[Array, "..."] | None = None,
        memory: Any = None,
        cache: Any = None,
        **given: Any,
    ) -> Any:
        """The keywords are those of `Block`; with a cache it returns (x, cache)."""
        first_key, blocks_key, last_key = split(key, 3)
        if self.bias is not None:
            at = places(x.shape[1], positions, cache)
            given["score_bias"] = self.bias(params["bias"], *at)
        if positions is not None:
            given["positions"] = positions
        given |= reading(memory, cache)
        x = self.drop(params["drop"], x, key=first_key)
        x = self.blocks(params["blocks"], x, key=blocks_key, **given)
        if cache is not None:
            x, cache = x
        x = self.norm(params["norm"], x)
        x = self.drop(params["drop"], x, key=last_key)
        return x if cache is None else (x, cache)


class T5(Module):
    """Text to text: int [batch, seq] and [batch, out_seq] -> [batch, out_seq, vocab].

    Called `(params, inputs, tokens, mask=...)` it gives for each of the tokens the
    logits of the one after it (Raffel et al. 2019, arXiv:1910.10683). `mask` [batch,
    seq] is False where the input is padding. To write text, `encode` once, then

        memory = model.remember(params, model.encode(params, inputs, mask=mask))
        cache = model.init_cache(batch, slots)
        logits, cache = model.decode(params, tokens, memory=memory, cache=cache)

    which `generate.conditioned` does.

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
        sizes = config.num_buckets, config.max_distance, config.shared_bias
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
    def remember(
        self,
        params,
        memory: Float[Array, "batch seq dim"],
        *,
        mask: Bool[Array, "batch seq"] | None = None,
    ) -> Any:
        """The keys and values of what `encode` gave, as decoding with a cache reads."""
        stack: Any = self.decoder
        return remember(stack.blocks, params["decoder"]["blocks"], memory, mask)

    @scoped
    def decode(
        self,
        params,
        tokens: Int[Array, "batch out_seq"],
        *,
        memory: Any = None,
        memory_mask: Bool[Array, "batch seq"] | None = None,
        positions: Int[Array, "..."] | None = None,
        cache: Any = None,
        key: OptionalKey = MISSING,
    ) -> Any:
        """Logits [batch, out_seq, vocab_size]; with a cache, those and the cache.

        The keywords are those of `hidden`.
        """
        x = self.hidden(
            params, tokens, memory=memory, memory_mask=memory_mask,
            positions=positions, cache=cache, key=key,
        )  # fmt: skip
        if cache is None:
            return self.logits(params, x)
        return self.logits(params, x[0]), x[1]

    @scoped
    def hidden(
        self,
        params,
        tokens: Int[Array, "batch out_seq"],
        *,
        memory: Any = None,
        memory_mask: Bool[Array, "batch seq"] | None = None,
        positions: Int[Array, "..."] | None = None,
        cache: Any = None,
        key: OptionalKey = MISSING,
    ) -> Any:
        """What `logits` reads, [batch, out_seq, dim]; with a cache, that and the cache.

        memory: what `encode` gave, [batch, seq, dim]; with a cache what `remember` made
        of it. positions: [batch, out_seq], padding at negative ones; else from 0 on.
        """
        expect(tokens.ndim == 2, "int [batch, out_seq]", tokens)
        x = self.embed(params["embed"], tokens)
        return self.decoder(
            params["decoder"], x, memory=memory, memory_mask=memory_mask,
            positions=positions, cache=cache, key=key,
        )  # fmt: skip

    @scoped
    def logits(
        self, params, hidden: Float[Array, "batch out_seq dim"]
    ) -> Float[Array, "batch out_seq vocab"]:
        """Scores every token: [batch, out_seq, dim] -> [batch, out_seq, vocab_size]."""
        if self.config.scale_logits:
            hidden = hidden * hidden.shape[-1] ** -0.5
        if self.head is not None:
            return scores(self.head(params["head"], hidden))
        return scores(self.embed.logits(params["embed"], hidden))  # type: ignore[attr-defined]

    def init_cache(
        self,
        batch: int,
        slots: int,
        dtype: Any = jnp.float32,
        *,
        chunk: int | None = None,
    ) -> Any:
        """An empty cache of the decoder; see `Attention.init_cache`."""
        stack: Any = self.decoder
        return stack.blocks.init_cache(batch, slots, dtype, chunk=chunk)


def places(
    new: int, positions: Int[Array, "..."] | None, cache: Any
) -> tuple[Int[Array, "..."], Int[Array, "..."]]:
    """Where queries and keys stand, [batch or 1, query] and [batch or 1, key].

    With a cache the keys are its slots, those that the new tokens will take included.
    """
    at = jnp.arange(new) if positions is None else positions
    if cache is None:
        return jnp.atleast_2d(at), jnp.atleast_2d(at)
    length = cached_length(cache)
    at = at + length if positions is None else at
    known = cache.positions.reshape(-1, *cache.positions.shape[-2:])[0]
    at = jnp.broadcast_to(at, (known.shape[0], new))
    return at, jax.lax.dynamic_update_slice_in_dim(known, at, length, axis=1)
