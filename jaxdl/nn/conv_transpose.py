"""Transposed convolutions, channels last, in any number of spatial dimensions."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdl.core import init as initializers
from jaxdl.core.fields import Size
from jaxdl.core.module import Module
from jaxdl.core.naming import expect
from jaxdl.nn.conv import (
    Padding,
    check_groups,
    conv_numbers,
    conv_spec,
    flat_batch,
    for_each,
    pad_pairs,
)


class ConvTranspose(Module):
    """The transpose of a convolution: [..., *spatial, in] -> [..., *spatial', out].

    The gradient of `Conv` by its input, as PyTorch's `ConvTranspose2d`: with numbers as
    padding, spatial' = (spatial - 1) strides - 2 padding + dilation (kernel_size - 1) +
    output_padding + 1. SAME gives spatial' = strides spatial, VALID is padding 0.

    The kernel is [*kernel_size, in_features / groups, out_features]: PyTorch's weight
    [in, out / groups, *kernel_size], group by group transposed.
    """

    in_features: Size
    out_features: Size
    kernel_size: Size | tuple[Size, ...]
    strides: Size | tuple[Size, ...] = 1
    padding: Padding = "SAME"
    output_padding: int | tuple[int, ...] = 0
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
        dims = len(for_each(self.kernel_size, 1))
        x, batch = flat_batch(self, params, x)
        # Zeros between the inputs, then a convolution with the mirrored kernel.
        y = jax.lax.conv_general_dilated(
            x,
            jnp.flip(params["kernel"], tuple(range(dims))),
            window_strides=(1,) * dims,
            padding=self._padding(dims),
            lhs_dilation=for_each(self.strides, dims),
            rhs_dilation=for_each(self.dilation, dims),
            dimension_numbers=conv_numbers(dims),
            feature_group_count=self.groups,
        )
        y = y.reshape(*batch, *y.shape[1:])
        return y + params["bias"] if self.bias else y

    def matrix(self, params) -> Float[Array, "... fan_in fan_out"]:
        """The kernel, a matrix for each place in it. An adapted layer makes its own."""
        return params["kernel"]

    def _padding(self, dims: int) -> list[tuple[int, int]]:
        sizes = zip(
            for_each(self.kernel_size, dims), for_each(self.dilation, dims), strict=True
        )
        reach = [dilation * (size - 1) for size, dilation in sizes]
        extra = for_each(self.output_padding, dims)
        if self.padding == "SAME":
            strides = for_each(self.strides, dims)
            pairs = [_same(r, s) for r, s in zip(reach, strides, strict=True)]
        else:
            numbers = 0 if self.padding == "VALID" else self.padding
            expect(
                not isinstance(numbers, str), "padding SAME, VALID or numbers", numbers
            )
            crops = zip(reach, pad_pairs(numbers, dims), strict=True)
            pairs = [(r - low, r - high) for r, (low, high) in crops]
        return [(low, high + e) for (low, high), e in zip(pairs, extra, strict=True)]


def _same(reach: int, stride: int) -> tuple[int, int]:
    """The padding around the spread input for an output of stride times its size."""
    total = reach + stride - 1
    low = reach if stride > reach else -(-total // 2)
    return low, total - low
