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
    values = unpack(codes, size, axis) if codes.dtype == jnp.uint8 else codes
    values = values.astype(scale.dtype)
    split = _grouped(values, scale.shape[axis], axis)
    return (split * jnp.expand_dims(scale, axis + 1)).reshape(values.shape)


@jax.checkpoint
def product(
    x: Float[Array, "... fan_in"], codes: Int[Array, "..."], scale: Float[Array, "..."]
) -> Float[Array, "... fan_out"]:
    """x times the matrix [in, out] that codes and scales stand for.

    The two numbers in a byte multiply the even and the odd features of x, as two
    matrices: to put them in a row would take longer than to multiply. A gradient keeps
    the codes and decodes them again; the matrices of all layers would be kept else.
    """
    packed, groups, size = codes.dtype == jnp.uint8, scale.shape[-2], x.shape[-1]
    if packed and groups > 1 and size // groups % 2:  # a byte of two groups
        return x @ decode(codes, scale, size, -2)
    parts = _nibbles(codes) if packed else (codes,)
    if packed and size % 2:
        x = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, 1)])

    def times(index: int) -> jax.Array:
        part, own = parts[index], x[..., index :: len(parts)]
        if groups > 1:
            return own @ decode(part, scale, part.shape[-2], -2)
        return own @ part.astype(scale.dtype)

    y = times(0) + times(1) if packed else times(0)
    # One scale for each output: it multiplies what the integers gave.
    return y if groups > 1 else y * scale[0]


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
    before, after = packed.shape[: axis + 1], packed.shape[axis + 1 :]
    lead = (slice(None),) * len(before)
    # Written into their places: XLA's CPU code for a stack takes several times longer.
    pairs = jnp.zeros((*before, 2, *after), jnp.int8)
    for index, part in enumerate(_nibbles(packed)):
        pairs = pairs.at[(*lead, index)].set(part)
    codes = pairs.reshape(*before[:-1], 2 * before[-1], *after)
    return jax.lax.slice_in_dim(codes, 0, size, axis=axis)


def _nibbles(packed: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The low and the high four bits of each byte, in two's complement: int8."""
    return (packed << 4).astype(jnp.int8) >> 4, packed.astype(jnp.int8) >> 4


def _grouped(values: jax.Array, groups: int, axis: int) -> jax.Array:
    """[..., groups * size, ...] -> [..., groups, size, ...]."""
    shape = values.shape
    size = shape[axis] // groups
    return values.reshape(*shape[:axis], groups, size, *shape[axis + 1 :])
