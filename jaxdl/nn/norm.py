"""Normalisation: statistics in float32, the result in the dtype of the input."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdl.core import init as initializers
from jaxdl.core.fields import Size
from jaxdl.core.module import Module
from jaxdl.core.naming import expect
from jaxdl.core.param import Param, State
from jaxdl.nn.checks import floating


class LayerNorm(Module):
    """Zero mean and unit variance over the last dimension: [..., features].

    (Ba et al. 2016, arXiv:1607.06450; PyTorch's `LayerNorm`.)
    """

    features: Size
    epsilon: float = 1e-5
    scale: bool = True
    bias: bool = True
    axis: str | None = "embed"
    scale_init: Callable[..., jax.Array] = initializers.ones

    def spec(self):
        return _affine(self)

    def __call__(self, params, x: Float[Array, "... features"]):
        expect(x.shape[-1:] == (self.features,), f"[..., {self.features}]", x)
        y = _standardized(floating(x, jnp.float32), -1, self.epsilon)
        return _apply(self, params, y, x.dtype)


class RMSNorm(Module):
    """Unit mean square over the last dimension: [..., features].

    (Zhang and Sennrich 2019, arXiv:1910.07467; Llama's norm.) With `unit_offset` the
    features are multiplied by 1 + scale, which starts at 0 (Gemma's).
    """

    features: Size
    epsilon: float = 1e-6
    axis: str | None = "embed"
    unit_offset: bool = False

    def spec(self):
        init = initializers.zeros if self.unit_offset else initializers.ones
        return {"scale": Param((self.features,), init, (self.axis,), role="scale")}

    def __call__(self, params, x: Float[Array, "... features"]):
        expect(x.shape[-1:] == (self.features,), f"[..., {self.features}]", x)
        wide = floating(x, jnp.float32)
        square = jnp.square(wide).mean(-1, keepdims=True)
        scale = 1 + params["scale"] if self.unit_offset else params["scale"]
        y = wide * jax.lax.rsqrt(square + self.epsilon) * scale
        return y.astype(x.dtype)


class BatchNorm(Module):
    """Zero mean and unit variance of each feature over the batch: [..., features].

    Called `(params, x, state, train=...)`, returns `(y, state)`. Training uses the
    batch's statistics and moves the running ones by `momentum` (the share of the old
    value, as in Flax; PyTorch's momentum is 1 minus it); otherwise the running ones are
    used and the state comes back as it was. The running variance is the unbiased one,
    as in PyTorch and the paper (Ioffe and Szegedy 2015, arXiv:1502.03167).

    Under jit with a sharded batch the statistics are those of the whole batch on all
    devices. Where the batch is split by hand, in `jax.vmap` or `jax.shard_map`,
    `axis_name` says over which of their axes it is one batch.
    """

    features: Size
    momentum: float = 0.9
    epsilon: float = 1e-5
    scale: bool = True
    bias: bool = True
    axis: str | None = None
    scale_init: Callable[..., jax.Array] = initializers.ones
    axis_name: str | tuple[str, ...] | None = None

    def spec(self):
        shape, axes = (self.features,), (self.axis,)
        statistics = {
            "mean": State(shape, initializers.zeros, axes),
            "var": State(shape, initializers.ones, axes),
        }
        return {**_affine(self), **statistics}

    def __call__(
        self, params, x: Float[Array, "... features"], state: Any, *, train: bool
    ):
        expect(x.shape[-1:] == (self.features,), f"[..., {self.features}]", x)
        wide = floating(x, jnp.float32)
        if train:
            count = x.size // self.features
            if self.axis_name is not None:
                count *= jax.lax.axis_size(self.axis_name)
            expect(count > 1, "more than one value for each feature in training", x)
            mean = self._mean(wide)
            var = self._mean(jnp.square(wide - mean))
            new = {"mean": mean, "var": var * (count / (count - 1))}
            state = {
                name: self.momentum * state[name] + (1 - self.momentum) * new[name]
                for name in new
            }
        else:
            mean, var = state["mean"], state["var"]
        y = (wide - mean) * jax.lax.rsqrt(var + self.epsilon)
        return _apply(self, params, y, x.dtype), state

    def _mean(self, x: jax.Array) -> jax.Array:
        mean = x.mean(tuple(range(x.ndim - 1)))
        return mean if self.axis_name is None else jax.lax.pmean(mean, self.axis_name)


class GroupNorm(Module):
    """Zero mean and unit variance of each group of features, for each example.

    [batch, *spatial, features]; the features are split into `num_groups` of neighbours
    (Wu and He 2018, arXiv:1803.08494; PyTorch's `GroupNorm`).
    """

    num_groups: Size
    features: Size
    epsilon: float = 1e-5
    scale: bool = True
    bias: bool = True
    axis: str | None = None
    scale_init: Callable[..., jax.Array] = initializers.ones

    def __post_init__(self):
        if self.num_groups < 1 or self.features % self.num_groups:
            raise ValueError(
                f"GroupNorm: expected num_groups to divide features={self.features}, "
                f"got {self.num_groups}"
            )

    def spec(self):
        return _affine(self)

    def __call__(self, params, x: Float[Array, "batch ... features"]):
        fits = x.ndim >= 2 and x.shape[-1] == self.features
        expect(fits, f"[batch, ..., {self.features}]", x)
        groups = (self.num_groups, self.features // self.num_groups)
        wide = floating(x, jnp.float32).reshape(*x.shape[:-1], *groups)
        over = (*range(1, x.ndim - 1), x.ndim)
        y = _standardized(wide, over, self.epsilon)
        return _apply(self, params, y.reshape(x.shape), x.dtype)


class InstanceNorm(Module):
    """Zero mean and unit variance of each feature over the space of each example.

    [batch, *spatial, features] (Ulyanov et al. 2016, arXiv:1607.08022; PyTorch's
    `InstanceNorm2d(affine=True)`): `GroupNorm` with a group for each feature.
    """

    features: Size
    epsilon: float = 1e-5
    scale: bool = True
    bias: bool = True
    axis: str | None = None
    scale_init: Callable[..., jax.Array] = initializers.ones

    def spec(self):
        return _affine(self)

    def __call__(self, params, x: Float[Array, "batch ... features"]):
        fits = x.ndim >= 3 and x.shape[-1] == self.features
        expect(fits, f"[batch, *spatial, {self.features}]", x)
        over = tuple(range(1, x.ndim - 1))
        y = _standardized(floating(x, jnp.float32), over, self.epsilon)
        return _apply(self, params, y, x.dtype)


Affine = LayerNorm | BatchNorm | GroupNorm | InstanceNorm


def _standardized(x: jax.Array, over: int | tuple[int, ...], epsilon: float):
    """Zero mean and unit variance over some axes."""
    centred = x - x.mean(over, keepdims=True)
    variance = jnp.square(centred).mean(over, keepdims=True)
    return centred * jax.lax.rsqrt(variance + epsilon)


def _affine(layer: Affine) -> dict[str, Param | State]:
    spec: dict[str, Param | State] = {}
    shape, axes = (layer.features,), (layer.axis,)
    if layer.scale:
        spec["scale"] = Param(shape, layer.scale_init, axes, role="scale")
    if layer.bias:
        spec["bias"] = Param(shape, initializers.zeros, axes, role="bias")
    return spec


def _apply(layer: Affine, params, y: jax.Array, dtype: Any) -> jax.Array:
    if layer.scale:
        y = y * params["scale"]
    if layer.bias:
        y = y + params["bias"]
    return y.astype(dtype)
