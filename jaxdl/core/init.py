"""Initialisers that compare equal: `jax.nn.initializers` by name and arguments.

JAX's own initialisers are closures, and two closures are never equal: models built
twice would differ, and every jitted function that takes one would compile again. An
`Initializer` is the same function as a value.
"""

from collections.abc import Sequence
import dataclasses
from typing import Any

import jax


@dataclasses.dataclass(frozen=True)
class Initializer:
    """A `jax.nn.initializers` function by name: called with (key, shape, dtype)."""

    name: str
    arguments: tuple[tuple[str, Any], ...] = ()

    @property
    def random(self) -> bool:
        """Whether the values depend on the key."""
        return self.name not in ("zeros", "ones", "constant")

    def __call__(self, key: jax.Array, shape: Sequence[int], dtype: Any) -> jax.Array:
        function = getattr(jax.nn.initializers, self.name)
        if self.name not in _DIRECT:
            function = function(**dict(self.arguments))
        return function(key, tuple(shape), dtype)


@dataclasses.dataclass(frozen=True)
class Uniform:
    """Uniform numbers in [low, high), which `jax.nn.initializers` has from 0 only."""

    low: float
    high: float

    def __call__(self, key: jax.Array, shape: Sequence[int], dtype: Any) -> jax.Array:
        return jax.random.uniform(key, tuple(shape), dtype, self.low, self.high)


_DIRECT = ("zeros", "ones")  # these take (key, shape, dtype) themselves

zeros = Initializer("zeros")
ones = Initializer("ones")


def constant(value: float) -> Initializer:
    """Fills with one number."""
    return _named("constant", value=value)


def normal(stddev: float) -> Initializer:
    """Draws from a normal distribution with mean 0."""
    return _named("normal", stddev=stddev)


def truncated_normal(
    stddev: float, lower: float = -2.0, upper: float = 2.0
) -> Initializer:
    """Draws from a normal cut at `lower` and `upper` standard deviations."""
    return _named("truncated_normal", stddev=stddev, lower=lower, upper=upper)


def uniform(low: float, high: float) -> "Uniform":
    """Draws uniformly from [low, high)."""
    return Uniform(low, high)


def variance_scaling(
    scale: float,
    mode: str = "fan_in",
    distribution: str = "truncated_normal",
    **axes: Any,
) -> Initializer:
    """Scales the variance to scale / fan; `in_axis`, `out_axis` and so on as in JAX."""
    return _named(
        "variance_scaling", scale=scale, mode=mode, distribution=distribution, **axes
    )


def lecun_normal(**axes: Any) -> Initializer:
    """Variance 1 / fan_in, truncated normal: the default of kernels (LeCun 1998)."""
    return _named("lecun_normal", **axes)


def lecun_uniform(**axes: Any) -> Initializer:
    """Variance 1 / fan_in, uniform."""
    return _named("lecun_uniform", **axes)


def glorot_normal(**axes: Any) -> Initializer:
    """Variance 2 / (fan_in + fan_out), truncated normal (Glorot and Bengio 2010)."""
    return _named("glorot_normal", **axes)


def glorot_uniform(**axes: Any) -> Initializer:
    """Variance 2 / (fan_in + fan_out), uniform (Glorot and Bengio 2010)."""
    return _named("glorot_uniform", **axes)


def he_normal(**axes: Any) -> Initializer:
    """Variance 2 / fan_in, truncated normal: for relu (He et al. 2015)."""
    return _named("he_normal", **axes)


def he_uniform(**axes: Any) -> Initializer:
    """Variance 2 / fan_in, uniform: for relu (He et al. 2015)."""
    return _named("he_uniform", **axes)


def orthogonal(scale: float = 1.0, column_axis: int = -1) -> Initializer:
    """A random orthogonal matrix times `scale` (Saxe et al. 2014)."""
    return _named("orthogonal", scale=scale, column_axis=column_axis)


def _named(name: str, **arguments: Any) -> Initializer:
    frozen = {k: tuple(v) if isinstance(v, list) else v for k, v in arguments.items()}
    return Initializer(name, tuple(sorted(frozen.items())))
