"""Numbers as bytes: blockwise dynamic quantisation (Dettmers et al. 2022)."""

import functools

import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8
import numpy as np


def encode(
    x: Float[Array, "... n"], *, signed: bool, block_size: int = 256
) -> tuple[UInt8[Array, "... n"], Float[Array, "... blocks"]]:
    """A byte for each number, and the largest size in each block of the last axis.

    The axis falls into blocks of `block_size`, of which the last may be shorter. A
    number is the nearest of `dynamic_map` times its block's largest; but without a sign
    a number above 0 never becomes 0, because what divides by it would explode. NaN and
    infinity make the whole block NaN.
    """
    blocks = _blocks(x.astype(jnp.float32), block_size)
    scale = jnp.abs(blocks).max(-1)
    relative = blocks / jnp.where(scale == 0, 1, scale)[..., None]
    values = dynamic_map(signed)
    between = jnp.asarray((values[1:] + values[:-1]) / 2)
    codes = jnp.searchsorted(between, relative, method="scan_unrolled")
    if not signed:
        codes = jnp.where(blocks > 0, jnp.maximum(codes, 1), codes)
    codes = codes.astype(jnp.uint8).reshape(*x.shape[:-1], -1)
    return codes[..., : x.shape[-1]], scale


def decode(
    codes: UInt8[Array, "... n"],
    scale: Float[Array, "... blocks"],
    *,
    signed: bool,
    block_size: int = 256,
) -> Float[Array, "... n"]:
    """The float32 numbers that bytes stand for."""
    values = jnp.asarray(dynamic_map(signed))
    blocks = values[_blocks(codes, block_size)] * scale[..., None]
    return blocks.reshape(*codes.shape[:-1], -1)[..., : codes.shape[-1]]


@functools.cache
def dynamic_map(signed: bool) -> np.ndarray:
    """The 256 numbers that a byte can be, up to 1, in order; float32.

    Each power of ten from 1e-6 to 1 has a number of even steps that doubles from one to
    the next ("dynamic tree", appendix F of arXiv:2110.02861): numbers far below the
    largest keep their size, the largest their digits.
    """
    values = [0.0, 1.0]
    for exponent in range(7):
        edges = np.linspace(0.1, 1, 2 ** (exponent + (not signed)) + 1)
        middles = (edges[:-1] + edges[1:]) / 2 * 10.0 ** (exponent - 6)
        values += [*middles, *(-middles if signed else ())]
    return np.sort(np.asarray(values)).astype(np.float32)


def _blocks(x: Array, block_size: int) -> Array:
    """[..., n] -> [..., blocks, size], filled up with zeros."""
    size = min(block_size, x.shape[-1])
    widths = [(0, 0)] * (x.ndim - 1) + [(0, -x.shape[-1] % size)]
    return jnp.pad(x, widths).reshape(*x.shape[:-1], -1, size)
