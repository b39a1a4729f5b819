"""Layers whose kernel is normalised before each use: wrappers of any one layer.

Each wraps a layer with a `kernel` whose last dimension is the outputs (Linear, Conv,
ConvTranspose, Einsum, ...). Parameters stand at the layer's own path.
"""

from typing import Any

import jax
import jax.numpy as jnp

from jaxdl.core import init as initializers
from jaxdl.core.fields import Size
from jaxdl.core.module import Module, declared, inline
from jaxdl.core.param import Param, State
from jaxdl.nn import routing


class WeightNorm(Module):
    """Learns the length of each output's kernel apart from its direction.

    kernel = length direction / |direction| (Salimans and Kingma 2016, arXiv:1602.07868;
    PyTorch's `weight_norm` over dimension 0 of its weight). `length` [out] starts at 1,
    `kernel` is the direction and starts as the layer's own.
    """

    inner: Module = inline()

    def __post_init__(self):
        _check_kernel(self)

    def members(self) -> tuple[Module]:
        return (self.inner,)

    def spec(self):
        spec = declared(self.inner)
        kernel = spec["kernel"]
        axes = kernel.axes[-1:]
        length = Param(kernel.shape[-1:], initializers.ones, axes, role="scale")
        return {**spec, "length": length}

    def __call__(self, params, x, **given):
        direction = params["kernel"]
        scale = params["length"] / _length(direction)
        return _run(self, params, direction * scale, x, given)


class WeightStandardized(Module):
    """Standardises each output's kernel: zero mean, and unit variance times `gain`.

    For convolutions before a `GroupNorm` (Qiao et al. 2019, arXiv:1903.10520). Without
    a gain the variance is 1, so that the norm after it sets the scale; a gain of
    fan_in ** -0.5 keeps that of the input.
    """

    inner: Module = inline()
    epsilon: float = 1e-5
    gain: float = 1.0

    def __post_init__(self):
        _check_kernel(self)

    def members(self) -> tuple[Module]:
        return (self.inner,)

    def __call__(self, params, x, **given):
        kernel = params["kernel"].astype(jnp.float32)
        over = tuple(range(kernel.ndim - 1))
        centred = kernel - kernel.mean(over)
        variance = jnp.square(centred).mean(over)
        kernel = centred * jax.lax.rsqrt(variance + self.epsilon) * self.gain
        return _run(self, params, kernel.astype(params["kernel"].dtype), x, given)


class SpectralNorm(Module):
    """Divides the kernel by its largest singular value: [in, out] with 1 as its own.

    Called `(params, x, state, train=...)`, returns `(y, state)`. The state `u` [out] is
    the direction that power iteration has found; each training call improves it by
    `iterations`, other calls use it as it is (Miyato et al. 2018, arXiv:1802.05957;
    PyTorch's `spectral_norm`). It starts at random: the value is an estimate from
    below until some training calls have been made.
    """

    inner: Module = inline()
    iterations: Size = 1
    epsilon: float = 1e-12

    def __post_init__(self):
        _check_kernel(self)

    def members(self) -> tuple[Module]:
        return (self.inner,)

    def spec(self):
        spec = declared(self.inner)
        kernel = spec["kernel"]
        u = State(kernel.shape[-1:], initializers.normal(1.0), kernel.axes[-1:])
        return {**spec, "u": u}

    def __call__(self, params, x, state: Any, *, train: bool, **given):
        kernel = params["kernel"].reshape(-1, params["kernel"].shape[-1])
        fixed = jax.lax.stop_gradient(kernel).astype(jnp.float32)
        u = self._unit(state["u"])
        if train:
            for _ in range(self.iterations):
                u = self._unit(self._unit(fixed @ u) @ fixed)
        v = self._unit(fixed @ u)
        # u and v are constants of the gradient, as at the exact value.
        value = v.astype(kernel.dtype) @ kernel @ u.astype(kernel.dtype)
        y = _run(self, params, params["kernel"] / value, x, given)
        return y, {"u": u} if train else state

    def _unit(self, vector: jax.Array) -> jax.Array:
        return vector / jnp.maximum(jnp.linalg.norm(vector), self.epsilon)


def _check_kernel(wrapper: Any) -> None:
    spec = declared(wrapper.inner)
    if not isinstance(spec.get("kernel"), Param) or declared(wrapper.inner, State):
        raise TypeError(
            f"{type(wrapper).__name__}: expected a layer with a parameter 'kernel' and "
            f"no state, got {type(wrapper.inner).__name__} with {sorted(spec)}"
        )


def _length(kernel: jax.Array) -> jax.Array:
    """The Euclidean length of each output's kernel: [out]."""
    wide = kernel.astype(jnp.float32)
    length = jnp.sqrt(jnp.square(wide).sum(tuple(range(kernel.ndim - 1))))
    return length.astype(kernel.dtype)


def _run(wrapper: Any, params: Any, kernel: jax.Array, x: Any, given: Any) -> Any:
    """Calls the wrapped layer with another kernel."""
    own = {name: params[name] for name in declared(wrapper.inner)}
    y, _ = routing.run(wrapper.inner, {**own, "kernel": kernel}, x, None, given)
    return y
