"""Dropout of elements, of whole features, and of whole examples."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdl.core.keys import MISSING, Missing, OptionalKey
from jaxdl.core.module import Module
from jaxdl.core.naming import current_path, expect
from jaxdl.nn.checks import floating


class Dropout(Module):
    """Zeroes elements with probability `rate` and scales up the rest: [...] -> [...].

    `key=None` means deterministic. With a rate above 0 a key that is not given at all
    is a TypeError, so that dropout is never missing by oversight (Srivastava et al.
    2014). One decision holds along all of `broadcast_axes`: (1, 2) drops whole features
    of an image [batch, height, width, features] (Tompson et al. 2015).
    """

    rate: float
    broadcast_axes: tuple[int, ...] = ()

    def __post_init__(self):
        if not 0.0 <= self.rate < 1.0:
            raise ValueError(f"Dropout: expected a rate in [0, 1), got {self.rate}")

    def __call__(self, params, x: Float[Array, "..."], *, key: OptionalKey = MISSING):
        x = floating(x)
        if self.rate == 0.0 or key is None:
            return x
        if isinstance(key, Missing):
            where = current_path() or "Dropout"
            raise TypeError(
                f"{where}: dropout with rate {self.rate} needs key=...; "
                "key=None turns it off"
            )
        whole = {axis % x.ndim for axis in self.broadcast_axes}
        shape = [1 if axis in whole else size for axis, size in enumerate(x.shape)]
        keep = jax.random.bernoulli(key, 1.0 - self.rate, shape)
        return jnp.where(keep, x / (1.0 - self.rate), 0.0).astype(x.dtype)


class DropPath(Module):
    """Drops a whole example with probability `rate`: [batch, ...] -> [batch, ...].

    At the end of a residual branch it drops the branch (stochastic depth, Huang et al.
    2016, arXiv:1603.09382). Keys as in `Dropout`.
    """

    rate: float

    def __post_init__(self):
        Dropout(self.rate)  # holds the rate to its range

    def __call__(
        self, params, x: Float[Array, "batch ..."], *, key: OptionalKey = MISSING
    ):
        expect(x.ndim > 0, "[batch, ...]", x)
        axes = tuple(range(1, x.ndim))
        return Dropout(self.rate, axes)({}, x, key=key)
