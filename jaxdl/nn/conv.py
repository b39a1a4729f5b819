"""Convolutions, channels last, in any number of spatial dimensions."""

from collections.abc import Callable, Sequence
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdl.core import init as initializers
from jaxdl.core.module import Module
from jaxdl.core.naming import expect
from jaxdl.core.param import Param
from jaxdl.nn.linear import floating

Padding = str | int | Sequence[int | tuple[int, int]]


class Conv(Module):
    """Convolves: [..., *spatial, in_features] -> [..., *spatial', out_features].

    `kernel_size` has a number for each spatial dimension: `(3, 3)` for images.
    `padding` is SAME, VALID, CAUSAL (all in front), CIRCULAR, REFLECT, or numbers as in
    PyTorch: one for every side, or for each dimension one or a pair.
    `groups=in_features` is depthwise. The kernel is [*kernel_size, in_features /
    groups, out_features]; computes in its dtype.
    """

    in_features: int
    out_features: int
    kernel_size: int | tuple[int, ...]
    strides: int | tuple[int, ...] = 1
    padding: Padding = "SAME"
    dilation: int | tuple[int, ...] = 1
    groups: int = 1
    bias: bool = True
    axes: tuple[str | None, str | None] = (None, None)
    kernel_init: Callable[..., jax.Array] = initializers.lecun_normal()
    bias_init: Callable[..., jax.Array] = initializers.zeros

    def __post_init__(self):
        if self.in_features % self.groups or self.out_features % self.groups:
            raise ValueError(
                f"Conv: expected groups={self.groups} to divide in_features="
                f"{self.in_features} and out_features={self.out_features}"
            )

    def spec(self):
        size = for_each(self.kernel_size, 1)
        shape = (*size, self.in_features // self.groups, self.out_features)
        axes = (*(None,) * len(size), *self.axes)
        spec = {"kernel": Param(shape, self.kernel_init, axes)}
        if self.bias:
            bias_axes = (self.axes[1],)
            spec["bias"] = Param(
                (self.out_features,), self.bias_init, bias_axes, role="bias"
            )
        return spec

    def __call__(self, params, x: Float[Array, "..."]) -> Float[Array, "..."]:
        size = for_each(self.kernel_size, 1)
        dims = len(size)
        spatial = ", ".join(["spatial"] * dims)
        fits = x.ndim > dims and x.shape[-1] == self.in_features
        expect(fits, f"[..., {spatial}, {self.in_features}]", x)
        dilation = for_each(self.dilation, dims)
        span = [(k - 1) * d + 1 for k, d in zip(size, dilation, strict=True)]
        batch = x.shape[: x.ndim - dims - 1]
        x = floating(x, params["kernel"].dtype).reshape(
            math.prod(batch), *x.shape[-dims - 1 :]
        )
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
        y = y.reshape(*batch, *y.shape[1:])
        return y + params["bias"] if self.bias else y


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
