"""Absolute positions and times as features: tables, waves, random frequencies."""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int
import numpy as np

from jaxdl.core import init as initializers
from jaxdl.core.fields import Size
from jaxdl.core.module import Module, fill, inline, part
from jaxdl.core.naming import expect
from jaxdl.core.param import Param
from jaxdl.nn.checks import check_positions, floating
from jaxdl.nn.linear import Embedding, Linear


class Sinusoidal(Module):
    """Sines and cosines of a position or a time: [...] -> [..., features], float32.

    Wave i has the period 2 pi max_period ** (i / (features / 2 - shift)). `layout` says
    how they stand: "interleaved" sine, cosine, sine, ... (Vaswani et al. 2017, section
    3.5), "sin_cos" all sines first (with shift=1 that of Whisper), "cos_sin" all
    cosines first (the timesteps of diffusion models).
    """

    features: Size
    max_period: float = 10_000.0
    layout: Literal["interleaved", "sin_cos", "cos_sin"] = "interleaved"
    shift: float = 0.0

    def __post_init__(self):
        if self.features < 2 or self.features % 2:
            raise ValueError(
                f"Sinusoidal: expected an even number of features, got {self.features}"
            )
        if self.layout not in ("interleaved", "sin_cos", "cos_sin"):
            raise ValueError(
                "Sinusoidal: expected the layout interleaved, sin_cos or cos_sin, got "
                f"{self.layout!r}"
            )

    def __call__(self, params, positions) -> Float[Array, "... features"]:
        half = self.features // 2
        frequencies = self.max_period ** -(np.arange(half) / (half - self.shift))
        angles = jnp.asarray(positions)[..., None] * frequencies.astype(np.float32)
        sin, cos = jnp.sin(angles), jnp.cos(angles)
        if self.layout == "interleaved":
            waves = jnp.stack([sin, cos], axis=-1)
            return waves.reshape(*angles.shape[:-1], self.features)
        parts = [sin, cos] if self.layout == "sin_cos" else [cos, sin]
        return jnp.concatenate(parts, axis=-1)


class AddPosition(Module):
    """Adds what a table says of each position: [batch, seq, features] -> the same.

    `AddPosition(Embedding(seq_len, features))` learns its positions (GPT-2, BERT, ViT),
    `AddPosition(Sinusoidal(features))` has none to learn. Positions [batch, seq] or
    [seq] count from 0 if not given; padding stands at negative ones. Parameters are
    those of the table, at the same path.
    """

    table: Module = inline()

    def __call__(
        self,
        params,
        x: Float[Array, "batch seq features"],
        *,
        positions: Int[Array, "..."] | None = None,
    ):
        expect(x.ndim == 3, "[batch, seq, features]", x)
        x = floating(x)
        seq = x.shape[1]
        if positions is None:
            positions = jnp.arange(seq)
            if isinstance(self.table, Embedding):
                longest = self.table.num_embeddings
                expect(seq <= longest, f"a sequence of at most {longest}", x)
        check_positions(positions, x)
        # What stands at a negative position is padding: any row will do, but no NaN.
        added = self.table(params, jnp.maximum(positions, 0))
        expect(added.shape[-1] == x.shape[-1], f"[..., {added.shape[-1]}]", x)
        return x + added.astype(x.dtype)


class FourierFeatures(Module):
    """cos and sin of 2 pi x B for random frequencies B: [..., in] -> [..., 2 num].

    B [in_features, num_features] is drawn with standard deviation `scale` and stays as
    it is (Tancik et al. 2020, arXiv:2006.10739): it is among the parameters, so that a
    checkpoint has it, and its gradient is zero. `learned` trains it (Li et al. 2021,
    arXiv:2106.02795).
    """

    in_features: Size
    num_features: Size
    scale: float = 1.0
    learned: bool = False

    def spec(self):
        shape = (self.in_features, self.num_features)
        return {
            "frequencies": Param(shape, initializers.normal(self.scale), role="scale")
        }

    def __call__(self, params, x: Float[Array, "... in"]) -> Float[Array, "... out"]:
        expect(x.shape[-1:] == (self.in_features,), f"[..., {self.in_features}]", x)
        frequencies = params["frequencies"]
        if not self.learned:
            frequencies = jax.lax.stop_gradient(frequencies)
        angles = 2 * jnp.pi * (floating(x, frequencies.dtype) @ frequencies)
        return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


class TimestepEmbedding(Module):
    """What a diffusion model knows of the time: [batch] -> [batch, features].

    up(silu(in(waves(time)))), the waves cosines first (Peebles and Xie 2022,
    arXiv:2212.09748; Ho et al. 2020). Times may be integers or fractions.
    """

    features: Size
    frequencies: Size = 256
    max_period: float = 10_000.0
    activation: Callable[[jax.Array], jax.Array] = jax.nn.silu
    waves: Module = part(default=None)
    up: Module = part(default=None)
    out: Module = part(default=None)

    def __post_init__(self):
        fill(
            self,
            waves=Sinusoidal(self.frequencies, self.max_period, "cos_sin"),
            up=Linear(self.frequencies, self.features),
            out=Linear(self.features, self.features),
        )

    def __call__(self, params, time: Any) -> Float[Array, "batch features"]:
        waves = self.waves(params["waves"], time)
        # A layer computes in the dtype of its kernel; the waves themselves stay exact.
        hidden = self.activation(self.up(params["up"], waves))
        return self.out(params["out"], hidden)
