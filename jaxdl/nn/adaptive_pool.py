"""Pooling to a size that is given, and pooling that learns where to look."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float
import numpy as np

from jaxdl.core import init as initializers
from jaxdl.core.fields import Size
from jaxdl.core.module import Module, fill, part
from jaxdl.core.naming import expect
from jaxdl.core.param import Param
from jaxdl.nn.attention import Attention
from jaxdl.nn.checks import floating


class AdaptiveAvgPool(Module):
    """Means of windows that cover space evenly: [..., *sizes, features] of any input.

    `sizes` has a number for each spatial dimension; output i of n covers an input of m
    from floor(i m / n) to ceil((i + 1) m / n) (PyTorch's `AdaptiveAvgPool2d`).
    """

    sizes: tuple[Size, ...]

    def __call__(self, params, x: Float[Array, "..."]) -> Float[Array, "..."]:
        x = floating(x)
        for axis, size in _spatial(self.sizes, x):
            windows, inside = _windows(x, axis, size)
            counts = inside.sum(-1)
            x = jnp.where(_along(inside, axis, windows), windows, 0).sum(axis + 1)
            x = x / _along(counts, axis, x).astype(x.dtype)
        return x


class AdaptiveMaxPool(Module):
    """Maxima of windows that cover space evenly: [..., *sizes, features] of any input.

    Windows as in `AdaptiveAvgPool` (PyTorch's `AdaptiveMaxPool2d`).
    """

    sizes: tuple[Size, ...]

    def __call__(self, params, x: Float[Array, "..."]) -> Float[Array, "..."]:
        x = floating(x)
        for axis, size in _spatial(self.sizes, x):
            windows, inside = _windows(x, axis, size)
            inside = _along(inside, axis, windows)
            x = jnp.where(inside, windows, -jnp.inf).max(axis + 1)
        return x


class AttentionPool(Module):
    """Learned queries read a sequence: [batch, seq, dim] -> [batch, queries, dim].

    With one query the result is [batch, dim] (the multi-head attention pooling of Lee
    et al. 2018, arXiv:1810.00825, and of SigLIP's vision tower before its MLP). `mask`
    [batch, seq] is False where x is padding.
    """

    dim: Size
    num_heads: Size
    num_queries: Size = 1
    bias: bool = True
    attn: Module = part(default=None)

    def __post_init__(self):
        fill(self, attn=Attention(self.dim, self.num_heads, bias=self.bias))

    def spec(self):
        init = initializers.normal(self.dim**-0.5)
        shape, axes = (self.num_queries, self.dim), (None, "embed")
        probe = Param(shape, init, axes, role="embedding")
        return {"probe": probe, **super().spec()}

    def __call__(
        self,
        params,
        x: Float[Array, "batch seq dim"],
        *,
        mask: Bool[Array, "batch seq"] | None = None,
    ):
        expect(x.ndim == 3 and x.shape[-1] == self.dim, f"[batch, seq, {self.dim}]", x)
        if mask is not None:
            wanted = f"a mask [{x.shape[0]}, {x.shape[1]}]"
            expect(mask.shape == x.shape[:2], wanted, mask)
            mask = mask[:, None, None]
        probe = params["probe"].astype(x.dtype)
        queries = jnp.broadcast_to(probe, (x.shape[0], *probe.shape))
        y = self.attn(params["attn"], queries, memory=x, mask=mask)
        return y[:, 0] if self.num_queries == 1 else y


def _spatial(sizes: tuple[int, ...], x: jax.Array) -> list[tuple[int, int]]:
    """(axis of x, wanted size) for each spatial dimension."""
    dims = len(sizes)
    expect(x.ndim > dims, f"[..., {dims} spatial dimensions, features]", x)
    return [(x.ndim - 1 - dims + i, size) for i, size in enumerate(sizes)]


def _windows(x: jax.Array, axis: int, size: int) -> tuple[jax.Array, np.ndarray]:
    """Splits an axis into [size, longest window], and which of that is inside."""
    length, outputs = x.shape[axis], np.arange(size)
    first = outputs * length // size
    last = -(-(outputs + 1) * length // size)
    places = first[:, None] + np.arange((last - first).max())
    inside = places < last[:, None]
    taken = jnp.take(x, np.where(inside, places, 0).ravel(), axis=axis)
    split = (*x.shape[:axis], *places.shape, *x.shape[axis + 1 :])
    return taken.reshape(split), inside


def _along(values: np.ndarray, axis: int, like: jax.Array) -> jax.Array:
    """Values of an axis, or of two from it on, shaped to broadcast."""
    after = like.ndim - axis - values.ndim
    return jnp.asarray(values.reshape(*values.shape, *(1,) * after))
