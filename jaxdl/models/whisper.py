"""Whisper: an encoder of sound and a decoder that writes what it heard."""

import dataclasses
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxdl.core.keys import MISSING, OptionalKey, split
from jaxdl.core.module import Module, fill, part, scoped
from jaxdl.core.naming import expect
from jaxdl.models.block import norm, residual, scores
from jaxdl.models.transformer import TransformerConfig, blocks, reading, remember
from jaxdl.nn.cache import cached_length
from jaxdl.nn.conv import Conv
from jaxdl.nn.dropout import Dropout
from jaxdl.nn.linear import Embedding
from jaxdl.nn.position import AddPosition, Sinusoidal

TINY = TransformerConfig(dim=384, num_layers=4, num_heads=6, epsilon=1e-5, k_bias=False)


@dataclasses.dataclass(frozen=True)
class WhisperConfig:
    """The sizes and choices that make a Whisper; the defaults are the tiny one's.

    encoder, decoder: their blocks. The decoder's are causal and read a memory.
    mel_bins: features of each frame of the spectrogram.
    source_len: states that the encoder makes of a sound, one of two frames.
    target_len: the longest text.
    """

    vocab_size: int = 51865
    encoder: TransformerConfig = TINY
    decoder: TransformerConfig = dataclasses.replace(TINY, causal=True, cross=True)
    mel_bins: int = 80
    source_len: int = 1500
    target_len: int = 448


class AudioEncoder(Module):
    """Reads a spectrogram: [batch, frames, mel_bins] -> [batch, frames / 2, dim].

    Two convolutions, the second of stride 2, then blocks and a norm. The positions are
    sinusoids in published files; they are a table here, as there.
    """

    config: TransformerConfig
    mel_bins: int
    source_len: int
    conv1: Module = part(default=None)
    conv2: Module = part(default=None)
    position: Module = part(default=None)
    drop: Module = part(default=None)
    blocks: Module = part(default=None)
    norm: Module = part(default=None)

    def __post_init__(self):
        config, dim, axes = self.config, self.config.dim, (None, "embed")
        table = Embedding(self.source_len, dim, axes, sinusoids)
        fill(
            self,
            conv1=Conv(self.mel_bins, dim, 3, padding=1, axes=axes),
            conv2=Conv(dim, dim, 3, 2, padding=1, axes=axes),
            position=AddPosition(table),
            drop=Dropout(config.dropout),
            blocks=blocks(config),
            norm=norm(config, dim),
        )

    def __call__(
        self,
        params,
        x: Float[Array, "batch frames mel_bins"],
        *,
        key: OptionalKey = MISSING,
    ) -> Float[Array, "batch seq dim"]:
        first_key, blocks_key = split(key, 2)
        act = self.config.activation
        x = act(self.conv1(params["conv1"], x))
        x = act(self.conv2(params["conv2"], x))
        x = self.position(params["position"], x)
        x = self.drop(params["drop"], residual(x, "embed"), key=first_key)
        x = self.blocks(params["blocks"], x, key=blocks_key)
        return self.norm(params["norm"], x)


class TextDecoder(Module):
    """Reads text and a memory: int [batch, seq] -> [batch, seq, dim], normalised.

    With a cache it returns (states, cache).
    """

    config: TransformerConfig
    vocab_size: int
    target_len: int
    embed: Module = part(default=None)
    position: Module = part(default=None)
    drop: Module = part(default=None)
    blocks: Module = part(default=None)
    norm: Module = part(default=None)

    def __post_init__(self):
        config, dim = self.config, self.config.dim
        table = Embedding(self.target_len, dim, (None, "embed"))
        fill(
            self,
            embed=Embedding(self.vocab_size, dim),
            position=AddPosition(table),
            drop=Dropout(config.dropout),
            blocks=blocks(config),
            norm=norm(config, dim),
        )

    def __call__(
        self,
        params,
        tokens: Int[Array, "batch seq"],
        *,
        memory: Any = None,
        positions: Int[Array, "..."] | None = None,
        cache: Any = None,
        key: OptionalKey = MISSING,
    ) -> Any:
        expect(tokens.ndim == 2, "int [batch, seq]", tokens)
        first_key, blocks_key = split(key, 2)
        if cache is not None and positions is None:
            positions = cached_length(cache) + jnp.arange(tokens.shape[1])
        x = self.embed(params["embed"], tokens)
        x = self.position(params["position"], x, positions=positions)
        x = self.drop(params["drop"], residual(x, "embed"), key=first_key)
        given = {**reading(memory, cache), "positions": positions, "key": blocks_key}
        x = self.blocks(params["blocks"], x, **given)
        if cache is None:
            return self.norm(params["norm"], x)
        return self.norm(params["norm"], x[0]), x[1]


class Whisper(Module):
    """Sound to text: [batch, frames, mel_bins], int [batch, seq] -> logits.

    Called `(params, frames, tokens)` it gives for each token the logits [batch, seq,
    vocab_size] of the one after it (Radford et al. 2022, arXiv:2212.04356). Frames are
    those of a log-mel spectrogram, twice as many as `source_len`, or fewer. To write
    what was heard, `encode` once, then

        memory = model.remember(params, model.encode(params, frames))
        cache = model.init_cache(batch, slots)
        logits, cache = model.decode(params, tokens, memory=memory, cache=cache)

    which `generate.conditioned` does.

    Taps: `encoder/blocks/...` and `decoder/blocks/...` with `resid_pre`, `resid_mid`,
    `resid_cross` in the decoder, `resid_post`, those of `nn.Attention` under `attn` and
    `cross`, `mlp/hidden`; `embed` of either; `logits`.
    """

    config: WhisperConfig
    encoder: Module = part(default=None)
    decoder: Module = part(default=None)

    def __post_init__(self):
        config = self.config
        fill(
            self,
            encoder=AudioEncoder(config.encoder, config.mel_bins, config.source_len),
            decoder=TextDecoder(config.decoder, config.vocab_size, config.target_len),
        )

    def __call__(
        self,
        params,
        frames: Float[Array, "batch frames mel_bins"],
        tokens: Int[Array, "batch seq"],
        *,
        key: OptionalKey = MISSING,
    ) -> Float[Array, "batch seq vocab"]:
        encode_key, decode_key = split(key, 2)
        memory = self.encode(params, frames, key=encode_key)
        return self.decode(params, tokens, memory=memory, key=decode_key)

    @scoped
    def encode(
        self,
        params,
        frames: Float[Array, "batch frames mel_bins"],
        *,
        key: OptionalKey = MISSING,
    ) -> Float[Array, "batch memory_seq dim"]:
        """What the decoder reads: [batch, frames, mel_bins] -> [batch, seq, dim]."""
        return self.encoder(params["encoder"], frames, key=key)

    @scoped
    def remember(self, params, memory: Float[Array, "batch memory_seq dim"]) -> Any:
        """The keys and values of what `encode` gave, as decoding with a cache reads."""
        decoder: Any = self.decoder
        return remember(decoder.blocks, params["decoder"]["blocks"], memory)

    @scoped
    def decode(
        self,
        params,
        tokens: Int[Array, "batch seq"],
        *,
        memory: Any = None,
        positions: Int[Array, "..."] | None = None,
        cache: Any = None,
        key: OptionalKey = MISSING,
    ) -> Any:
        """Logits [batch, seq, vocab_size]; with a cache, those and the cache.

        The keywords are those of `hidden`.
        """
        x = self.hidden(
            params, tokens, memory=memory, positions=positions, cache=cache, key=key
        )
        if cache is None:
            return self.logits(params, x)
        return self.logits(params, x[0]), x[1]

    @scoped
    def hidden(
        self,
        params,
        tokens: Int[Array, "batch seq"],
        *,
        memory: Any = None,
        positions: Int[Array, "..."] | None = None,
        cache: Any = None,
        key: OptionalKey = MISSING,
    ) -> Any:
        """What `logits` reads, [batch, seq, dim]; with a cache, that and the cache.

        memory: what `encode` gave, [batch, seq, dim]; with a cache what `remember` made
        of it. positions: [batch, seq], padding at negative ones; else from 0 on.
        """
        return self.decoder(
            params["decoder"], tokens, memory=memory, positions=positions, cache=cache,
            key=key,
        )  # fmt: skip

    @scoped
    def logits(
        self, params, hidden: Float[Array, "batch seq dim"]
    ) -> Float[Array, "batch seq vocab"]:
        """Scores every token: [batch, seq, dim] -> [batch, seq, vocab_size]."""
        embed: Any = self.decoder.embed  # type: ignore[attr-defined]
        return scores(embed.logits(params["decoder"]["embed"], hidden))

    def init_cache(
        self,
        batch: int,
        slots: int,
        dtype: Any = jnp.float32,
        *,
        chunk: int | None = None,
    ) -> Any:
        """An empty cache of the decoder; see `Attention.init_cache`."""
        decoder: Any = self.decoder
        return decoder.blocks.init_cache(batch, slots, dtype, chunk=chunk)


def sinusoids(key: Any, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
    """Waves of the positions, all sines first: [source_len, dim]."""
    waves = Sinusoidal(shape[1], layout="sin_cos", shift=1.0)
    return waves({}, jnp.arange(shape[0])).astype(dtype)
