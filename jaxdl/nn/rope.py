"""Rotary positions, and the scalings that stretch them to longer texts."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int
import numpy as np

from jaxdl.core.fields import Size
from jaxdl.core.module import Module
from jaxdl.core.naming import expect
from jaxdl.nn.checks import check_positions


class RoPE(Module):
    """Rotates pairs of features by an angle that grows with the position.

    [batch, seq, heads, head_dim] with positions [batch, seq] or [seq]; the score of two
    rotated vectors depends on their distance alone. Feature i is paired with
    i + rotary_dim / 2, as in Llama and Hugging Face, or with its neighbour where
    `interleaved`, as in the paper and GPT-J (Su et al. 2021, arXiv:2104.09864).

    `rotary_dim` rotates only the first features and leaves the rest. `scaling` is one
    of `LinearScaling`, `NTKScaling`, `YarnScaling`, `Llama3Scaling`, `LongScaling`.
    """

    head_dim: Size
    theta: float = 10_000.0
    rotary_dim: Size | None = None
    scaling: Any = None
    interleaved: bool = False

    def __post_init__(self):
        if self.width % 2 or not 0 < self.width <= self.head_dim:
            raise ValueError(
                "RoPE: expected an even number of rotated features, at most head_dim="
                f"{self.head_dim}, got {self.width}"
            )

    @property
    def width(self) -> int:
        """How many features turn."""
        return self.head_dim if self.rotary_dim is None else self.rotary_dim

    def frequencies(self) -> np.ndarray:
        """Radians that each pair turns in one position, unscaled: [width / 2]."""
        return self.theta ** -(np.arange(0, self.width, 2) / self.width)

    def __call__(
        self,
        params,
        x: Float[Array, "batch seq heads dim"],
        *,
        positions: Int[Array, "..."],
    ):
        fits = x.ndim == 4 and x.shape[-1] == self.head_dim
        expect(fits, f"[batch, seq, heads, {self.head_dim}]", x)
        check_positions(positions, x)
        frequencies, magnitude = self.frequencies(), 1.0
        if self.scaling is not None:
            frequencies = self.scaling(frequencies, self, positions)
            magnitude = self.scaling.magnitude
        # In float64 up to here where nothing depends on positions: an angle is a large
        # number times a frequency.
        frequencies = jnp.asarray(frequencies, jnp.float32)
        angles = positions[..., None, None] * frequencies  # [..., seq, 1, width / 2]
        cos, sin = jnp.cos(angles) * magnitude, jnp.sin(angles) * magnitude
        turning, rest = x[..., : self.width], x[..., self.width :]
        turned = self._turn(turning.astype(jnp.float32), cos, sin).astype(x.dtype)
        return jnp.concatenate([turned, rest], axis=-1) if rest.shape[-1] else turned

    def _turn(self, x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
        if self.interleaved:
            first, second = x[..., ::2], x[..., 1::2]
            turned = (first * cos - second * sin, second * cos + first * sin)
            return jnp.stack(turned, axis=-1).reshape(x.shape)
        first, second = jnp.split(x, 2, axis=-1)
        turned = (first * cos - second * sin, second * cos + first * sin)
        return jnp.concatenate(turned, axis=-1)


@dataclasses.dataclass(frozen=True)
class LinearScaling:
    """Divides positions by `factor` (Chen et al. 2023, arXiv:2306.15595)."""

    factor: float
    magnitude = 1.0

    def __call__(self, frequencies: np.ndarray, rope: RoPE, positions: Any):
        return frequencies / self.factor


@dataclasses.dataclass(frozen=True)
class NTKScaling:
    """Raises theta, so that slow pairs are stretched by `factor` and fast ones kept.

    theta' = theta factor ** (width / (width - 2)) ("NTK-aware", bloc97 2023). With
    `original_length` it is the dynamic form: the factor grows with the longest of the
    positions given, factor * longest / original_length - (factor - 1), and is 1 up to
    the original length. Keys that a cache keeps were then turned by another theta.
    """

    factor: float
    original_length: int | None = None
    magnitude = 1.0

    def __call__(self, frequencies: np.ndarray, rope: RoPE, positions: Any):
        factor: Any = self.factor
        if self.original_length is not None:
            longest = jnp.maximum(positions.max() + 1, self.original_length)
            factor = self.factor * longest / self.original_length - (self.factor - 1)
        # theta'^(-i / width) = theta^(-i / width) factor^(-i / (width - 2))
        exponent = np.arange(0, rope.width, 2) / (rope.width - 2)
        return frequencies * factor**-exponent


@dataclasses.dataclass(frozen=True)
class YarnScaling:
    """Stretches slow pairs, keeps fast ones, blends between, and scales the scores.

    Pairs that turn more than `beta_fast` times within `original_length` are kept, those
    that turn less than `beta_slow` times are divided by `factor` (Peng et al. 2023,
    arXiv:2309.00071). `magnitude` multiplies cos and sin: 0.1 ln(factor) + 1 unless
    given. `truncate` rounds the bounds outwards to whole pairs, as the authors' code.
    """

    factor: float
    original_length: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    magnitude: float | None = None
    truncate: bool = True

    def __post_init__(self):
        if self.magnitude is None:
            magnitude = 0.1 * math.log(self.factor) + 1.0 if self.factor > 1 else 1.0
            object.__setattr__(self, "magnitude", magnitude)

    def __call__(self, frequencies: np.ndarray, rope: RoPE, positions: Any):
        low = self._pair(self.beta_fast, rope)
        high = self._pair(self.beta_slow, rope)
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, rope.width - 1)
        span = high - low or 0.001
        slow = np.clip((np.arange(rope.width // 2) - low) / span, 0.0, 1.0)
        return frequencies * (1 - slow) + frequencies / self.factor * slow

    def _pair(self, turns: float, rope: RoPE) -> float:
        """The pair that turns this often within the original length, as a fraction."""
        wavelength = self.original_length / (turns * 2 * math.pi)
        return rope.width * math.log(wavelength) / (2 * math.log(rope.theta))


@dataclasses.dataclass(frozen=True)
class Llama3Scaling:
    """Llama 3.1's: slow pairs divided by `factor`, fast ones kept, blended between.

    Slow is a wavelength above original_length / low_frequency_factor, fast one below
    original_length / high_frequency_factor (Llama 3, arXiv:2407.21783; the formula is
    that of the published code).
    """

    factor: float = 8.0
    low_frequency_factor: float = 1.0
    high_frequency_factor: float = 4.0
    original_length: int = 8192
    magnitude = 1.0

    def __call__(self, frequencies: np.ndarray, rope: RoPE, positions: Any):
        turns = self.original_length * frequencies / (2 * math.pi)
        span = self.high_frequency_factor - self.low_frequency_factor
        fast = np.clip((turns - self.low_frequency_factor) / span, 0.0, 1.0)
        return frequencies * fast + frequencies / self.factor * (1 - fast)


@dataclasses.dataclass(frozen=True)
class LongScaling:
    """LongRoPE's: each pair is slowed by a factor of its own, of one of two sets.

    short, long: what divides the frequencies, [width / 2] each (Ding et al. 2024,
    arXiv:2402.13753; Phi-3 128k). `long` is for sequences beyond `original_length`.
    Which it is follows from the longest of the positions given, as in `transformers`;
    keys that a cache keeps from a shorter sequence were then turned by the other set.
    `context` declares the longest sequence beforehand, which settles it for every call.
    `magnitude` multiplies cos and sin, whichever set it is.
    """

    short: tuple[float, ...]
    long: tuple[float, ...]
    original_length: int
    magnitude: float = 1.0
    context: int | None = None

    def __call__(self, frequencies: np.ndarray, rope: RoPE, positions: Any):
        for name, factors in (("short", self.short), ("long", self.long)):
            if len(factors) != rope.width // 2:
                raise ValueError(
                    f"LongScaling.{name}: expected {rope.width // 2} factors, one for "
                    f"each pair of rotated features, got {len(factors)}"
                )
        short, long = (frequencies / np.asarray(f) for f in (self.short, self.long))
        if self.context is not None:
            return long if self.context > self.original_length else short
        return jnp.where(positions.max() >= self.original_length, long, short)
