"""Numbers as small integers and scales: symmetric, in groups, two to a byte."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def encode(
    values: Float[Array, "..."], bits: int, groups: int, axis: int
) -> tuple[Int[Array, "..."], Float[Array, "..."]]:
    """Integers and the scale of each group: values are about codes * scale.

    The axis falls into `groups` runs of one size, each with a scale in the values'
    dtype such that its largest number is 127, or 7 for 4 bits. An error is at most half
    a scale. 4-bit codes come packed; the axis of the scales is as long as there are
    groups. NaN and infinity make their whole group NaN.
    """
    axis = axis % values.ndim
    limit = 2 ** (bits - 1) - 1
    split = _grouped(values, groups, axis)
    largest = jnp.abs(split).max(axis + 1).astype(jnp.float32)
    tiny = jnp.finfo(jnp.float32).tiny  # for a group of zeros
    scale = jnp.maximum(largest / limit, tiny).astype(values.dtype)
    wide = jnp.expand_dims(scale.astype(jnp.float32), axis + 1)
    codes = jnp.clip(jnp.round(split.astype(jnp.float32) / wide), -limit, limit)
    codes = codes.astype(jnp.int8).reshape(values.shape)
    return (pack(codes, axis) if bits == 4 else codes), scale


def decode(
    codes: Int[Array, "..."], scale: Float[Array, "..."], size: int, axis: int
) -> Float[Array, "..."]:
    """The values that codes stand for, in the dtype of the scales.

    `size` is the length of the axis before packing; packed codes are uint8.
    """
    axis = axis % codes.ndim
    values = plain(codes, size, axis).astype(scale.dtype)
    split = _grouped(values, scale.shape[axis], axis)
    return (split * jnp.expand_dims(scale, axis + 1)).reshape(values.shape)


def plain(codes: Int[Array, "..."], size: int, axis: int) -> Int[Array, "..."]:
    """The codes as int8, one to a byte."""
    return unpack(codes, size, axis) if codes.dtype == jnp.uint8 else codes


def pack(codes: Int[Array, "..."], axis: int) -> Int[Array, "..."]:
    """Integers in [-8, 8) two to a byte along an axis: int8 -> uint8 [half].

    Of each pair the first is in the low bits. An odd axis is filled up with a 0.

    >>> pack(jnp.array([1, -1, 7], jnp.int8), 0).tolist()
    [241, 7]
    """
    axis = axis % codes.ndim
    if codes.shape[axis] % 2:
        widths = [(0, int(i == axis)) for i in range(codes.ndim)]
        codes = jnp.pad(codes, widths)
    nibbles = codes.astype(jnp.uint8) & 15
    low = jax.lax.slice_in_dim(nibbles, 0, None, 2, axis)
    high = jax.lax.slice_in_dim(nibbles, 1, None, 2, axis)
    return low | (high << 4)


def unpack(packed: Int[Array, "..."], size: int, axis: int) -> Int[Array, "..."]:
    """The inverse of `pack`: uint8 -> int8, `size` of them along the axis.

    >>> unpack(jnp.array([241, 7], jnp.uint8), 3, 0).tolist()
    [1, -1, 7]
    """
    axis = axis % packed.ndim
    pairs = jnp.stack([packed & 15, packed >> 4], axis + 1)
    shape = list(packed.shape)
    shape[axis] *= 2
    # 8 to 15 are -8 to -1.
    codes = (pairs.reshape(shape) ^ 8).astype(jnp.int8) - 8
    return jax.lax.slice_in_dim(codes, 0, size, axis=axis)


def _grouped(values: jax.Array, groups: int, axis: int) -> jax.Array:
    """[..., groups * size, ...] -> [..., groups, size, ...]."""
    shape = values.shape
    size = shape[axis] // groups
    return values.reshape(*shape[:axis], groups, size, *shape[axis + 1 :])
