"""Convolutions, channels last, in any number of spatial dimensions."""

from collections.abc import Callable, Sequence
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdl.core import init as initializers
from jaxdl.core.fields import Size
from jaxdl.core.module import Module
from jaxdl.core.naming import expect
from jaxdl.core.param import Param
from jaxdl.nn.checks import floating

Padding = str | int | Sequence[int | tuple[int, int]]


class Conv(Module):
    """Convolves: [..., *spatial, in_features] -> [..., *spatial', out_features].

    `kernel_size` has a number for each spatial dimension: `(3, 3)` for images.
    `padding` is SAME, VALID, CAUSAL (all in front), CIRCULAR, REFLECT, or numbers as in
    PyTorch: one for every side, or for each dimension one or a pair.
    `groups=in_features` is depthwise. The kernel is [*kernel_size, in_features /
    groups, out_features]; computes in its dtype.
    """

    in_features: Size
    out_features: Size
    kernel_size: Size | tuple[Size, ...]
    strides: Size | tuple[Size, ...] = 1
    padding: Padding = "SAME"
    dilation: Size | tuple[Size, ...] = 1
    groups: Size = 1
    bias: bool = True
    axes: tuple[str | None, str | None] = (None, None)
    kernel_init: Callable[..., jax.Array] = initializers.lecun_normal()
    bias_init: Callable[..., jax.Array] = initializers.zeros

    def __post_init__(self):
        check_groups(self)

    def spec(self):
        return conv_spec(self)

    def __call__(self, params, x: Float[Array, "..."]) -> Float[Array, "..."]:
        size = for_each(self.kernel_size, 1)
        dims = len(size)
        x, batch = flat_batch(self, params, x)
        dilation = for_each(self.dilation, dims)
        span = [(k - 1) * d + 1 for k, d in zip(size, dilation, strict=True)]
        x, padding = _pad(x, self.padding, span)
        y = jax.lax.conv_general_dilated(
            x,
            params["kernel"],
            for_each(self.strides, dims),
            padding,
            rhs_dilation=dilation,
            dimension_numbers=conv_numbers(dims),
            feature_group_count=self.groups,
        )
        expect(y.size > 0 or x.size == 0, f"space for a window of {span}", x)
        y = y.reshape(*batch, *y.shape[1:])
        return y + params["bias"] if self.bias else y

    def matrix(self, params) -> Float[Array, "... fan_in fan_out"]:
        """The kernel, a matrix for each place in it. An adapted layer makes its own."""
        return params["kernel"]


def check_groups(layer: Any) -> None:
    """Raises ValueError unless a convolution's groups divide its features."""
    if layer.in_features % layer.groups or layer.out_features % layer.groups:
        raise ValueError(
            f"{type(layer).__name__}: expected groups={layer.groups} to divide "
            f"in_features={layer.in_features} and out_features={layer.out_features}"
        )


def conv_spec(layer: Any) -> dict[str, Param]:
    """The kernel [*kernel_size, in / groups, out] and bias of a convolution."""
    size = for_each(layer.kernel_size, 1)
    shape = (*size, layer.in_features // layer.groups, layer.out_features)
    axes = (*(None,) * len(size), *layer.axes)
    spec = {"kernel": Param(shape, layer.kernel_init, axes)}
    if layer.bias:
        spec["bias"] = Param(shape[-1:], layer.bias_init, axes[-1:], role="bias")
    return spec


def flat_batch(layer: Any, params: Any, x: jax.Array) -> tuple[jax.Array, tuple]:
    """x as [batch, *spatial, in] in the kernel's dtype, and its batch dimensions."""
    dims = len(for_each(layer.kernel_size, 1))
    spatial = ", ".join(["spatial"] * dims)
    fits = x.ndim > dims and x.shape[-1] == layer.in_features
    expect(fits, f"[..., {spatial}, {layer.in_features}]", x)
    batch, rest = x.shape[: x.ndim - dims - 1], x.shape[x.ndim - dims - 1 :]
    x = floating(x, params["kernel"].dtype)
    return x.reshape(math.prod(batch), *rest), batch


def for_each(value: int | tuple[int, ...], dims: int) -> tuple[int, ...]:
    """One number for each spatial dimension, from one for all or one for each."""
    values = (value,) * dims if isinstance(value, int) else tuple(value)
    expect(
        dims == 1 or len(values) == dims,
        f"{dims} numbers, one a spatial dimension",
        values,
    )
    return values


def pad_pairs(padding: Padding, dims: int) -> list[tuple[int, int]]:
    """(before, after) for each spatial dimension, from any numeric form of padding."""
    sides = [padding] * dims if isinstance(padding, int) else list(padding)  # type: ignore[arg-type]
    expect(len(sides) == dims, f"padding for {dims} dimensions", padding)
    return [(side, side) if isinstance(side, int) else tuple(side) for side in sides]  # type: ignore[misc]


def conv_numbers(dims: int) -> jax.lax.ConvDimensionNumbers:
    """Channels last, kernels [*spatial, in, out], for this many spatial dimensions."""
    data = (0, dims + 1, *range(1, dims + 1))  # batch, features, spatial
    kernel = (dims + 1, dims, *range(dims))  # out, in, spatial
    return jax.lax.ConvDimensionNumbers(data, kernel, data)


def _pad(x: jax.Array, padding: Padding, span: list[int]) -> tuple[jax.Array, Any]:
    """Pads where lax has no mode for it; returns the padding that is left to lax."""
    if padding in ("SAME", "VALID"):
        return x, padding
    if padding == "CAUSAL":
        return x, [(width - 1, 0) for width in span]
    if padding in ("CIRCULAR", "REFLECT"):
        sides = [((width - 1) // 2, width // 2) for width in span]
        mode = "wrap" if padding == "CIRCULAR" else "reflect"
        return jnp.pad(x, [(0, 0), *sides, (0, 0)], mode=mode), "VALID"
    known = "padding SAME, VALID, CAUSAL, CIRCULAR, REFLECT or numbers"
    expect(not isinstance(padding, str), known, padding)
    return x, pad_pairs(padding, len(span))
