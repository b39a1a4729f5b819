"""Dropout."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdl.core.keys import MISSING, Missing, OptionalKey
from jaxdl.core.module import Module
from jaxdl.core.naming import current_path


class Dropout(Module):
    """Zeroes elements with probability `rate` and scales up the rest: [...] -> [...].

    `key=None` means deterministic. With a rate above 0 a key that is not given at all
    is a TypeError, so that dropout is never missing by oversight (Srivastava et al.
    2014).
    """

    rate: float

    def __post_init__(self):
        if not 0.0 <= self.rate < 1.0:
            raise ValueError(f"Dropout: expected a rate in [0, 1), got {self.rate}")

    def __call__(self, params, x: Float[Array, "..."], *, key: OptionalKey = MISSING):
        if self.rate == 0.0 or key is None:
            return x
        if isinstance(key, Missing):
            where = current_path() or "Dropout"
            raise TypeError(
                f"{where}: dropout with rate {self.rate} needs key=...; "
                "key=None turns it off"
            )
        keep = jax.random.bernoulli(key, 1.0 - self.rate, x.shape)
        return jnp.where(keep, x / (1.0 - self.rate), 0.0).astype(x.dtype)
