"""Pooling over the spatial dimensions, channels last."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
import numpy as np

from jaxdl.core.fields import Size
from jaxdl.core.module import Module
from jaxdl.core.naming import expect
from jaxdl.nn.checks import floating
from jaxdl.nn.conv import Padding, for_each, pad_pairs


class MaxPool(Module):
    """The largest value in each window: [..., *spatial, features], window by window.

    `window` has a number for each spatial dimension; the strides are the window unless
    given. `padding` is VALID, SAME or numbers as in `Conv`; padded places never win.
    """

    window: Size | tuple[Size, ...]
    strides: Size | tuple[Size, ...] | None = None
    padding: Padding = "VALID"

    def __call__(self, params, x: Float[Array, "..."]) -> Float[Array, "..."]:
        return _pool(self, x, -jnp.inf, jax.lax.max)


class AvgPool(Module):
    """The mean of each window: [..., *spatial, features], window by window.

    With padding, `count_padding` says whether padded places count as zeros (PyTorch's
    default) or not at all (Flax's `count_include_pad=False`).
    """

    window: Size | tuple[Size, ...]
    strides: Size | tuple[Size, ...] | None = None
    padding: Padding = "VALID"
    count_padding: bool = True

    def __call__(self, params, x: Float[Array, "..."]) -> Float[Array, "..."]:
        sums = _pool(self, x, 0.0, jax.lax.add)
        if self.count_padding:
            return sums / math.prod(for_each(self.window, 1))
        return sums / _pool(self, jnp.ones_like(x), 0.0, jax.lax.add)


class GlobalAvgPool(Module):
    """Means over space: [batch, *spatial, features] -> [batch, features]."""

    def __call__(self, params, x: Float[Array, "batch ... features"]):
        expect(x.ndim >= 3, "[batch, *spatial, features]", x)
        return floating(x).mean(axis=tuple(range(1, x.ndim - 1)))


class GlobalMaxPool(Module):
    """Maxima over space: [batch, *spatial, features] -> [batch, features]."""

    def __call__(self, params, x: Float[Array, "batch ... features"]):
        expect(x.ndim >= 3, "[batch, *spatial, features]", x)
        return floating(x).max(axis=tuple(range(1, x.ndim - 1)))


class Flatten(Module):
    """Joins all dimensions but the first: [batch, ...] -> [batch, features]."""

    def __call__(
        self, params, x: Float[Array, "batch ..."]
    ) -> Float[Array, "batch features"]:
        expect(x.ndim > 0, "[batch, ...]", x)
        return x.reshape(x.shape[0], -1)


def _pool(layer, x, start, combine):
    window = for_each(layer.window, 1)
    dims = len(window)
    expect(
        x.ndim > dims, f"at least {dims + 1} dimensions, [..., *spatial, features]", x
    )
    strides = window if layer.strides is None else for_each(layer.strides, dims)
    lead = (1,) * (x.ndim - dims - 1)
    padding = layer.padding
    if not isinstance(padding, str):
        padding = [*((0, 0),) * len(lead), *pad_pairs(padding, dims), (0, 0)]
    # A constant of numpy: under jit a jnp one is traced, and lax then has no gradient.
    start = np.asarray(start, floating(x).dtype)
    shape, steps = (*lead, *window, 1), (*lead, *strides, 1)
    y = jax.lax.reduce_window(x, start, combine, shape, steps, padding)
    expect(y.size > 0 or x.size == 0, f"space for at least one window {window}", x)
    return y
