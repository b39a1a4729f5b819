from functools import partial

from hypothesis import given
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdl.optim.blockwise import decode, dynamic_map, encode

# One shape and one block size for all: each pair of them compiles again.
SIZE = 600
rng = np.random.default_rng(0)
SIGNED = pytest.mark.parametrize("signed", [True, False])


@partial(jax.jit, static_argnums=1)
def roundtrip(x, signed):
    return decode(*encode(x, signed=signed), signed=signed)


def reference(x, signed, block_size):
    """Every number compared with all 256, block after block."""
    values, rows = dynamic_map(signed), x.reshape(-1, x.shape[-1])
    found = np.zeros_like(rows)
    for row, out in zip(rows, found, strict=True):
        for start in range(0, len(row), block_size):
            block = row[start : start + block_size]
            largest = np.abs(block).max()
            nearest = np.abs(block[:, None] / (largest or 1) - values).argmin(1)
            out[start : start + block_size] = values[nearest] * largest
    return found.reshape(x.shape)


@SIGNED
def test_numbers_become_the_nearest_of_the_map(signed):
    x = rng.normal(size=(2, SIZE)) * 10 ** rng.uniform(-3, 1, (2, SIZE))
    x = (x if signed else np.abs(x)).astype(np.float32)
    found = roundtrip(x, signed)
    np.testing.assert_allclose(found, reference(x, signed, 256), rtol=1e-6)


def test_bytes_are_shaped_as_the_numbers():
    x = jax.ShapeDtypeStruct((3, 2, 50), jnp.float32)
    codes, scale = jax.eval_shape(partial(encode, signed=True, block_size=16), x)
    assert codes == jax.ShapeDtypeStruct((3, 2, 50), jnp.uint8)
    assert scale == jax.ShapeDtypeStruct((3, 2, 4), jnp.float32)


@SIGNED
def test_the_map_has_256_numbers_with_the_spacing_of_the_paper(signed):
    values = dynamic_map(signed).astype(np.float64)
    assert len(np.unique(values)) == 256 and values[-1] == 1 and 0 in values
    positive = values[values > 0][:-1]
    # Each decade has twice the numbers of that below, evenly spread.
    for exponent in range(7):
        low, high = 10.0 ** (exponent - 7), 10.0 ** (exponent - 6)
        inside = positive[(positive > low) & (positive < high)]
        number = 2 ** (exponent + (not signed))
        assert len(inside) == number
        middles = low + (high - low) * (np.arange(number) + 0.5) / number
        np.testing.assert_allclose(inside, middles, rtol=1e-6)
    if signed:
        np.testing.assert_array_equal(values[:127], -positive[::-1])


@given(st.lists(st.floats(0, 1e6, width=32), min_size=1, max_size=12))
def test_what_is_above_zero_is_never_zero(numbers):
    x = np.zeros((2, SIZE), np.float32)
    x[0, : len(numbers)] = numbers
    found = np.asarray(roundtrip(x, False))
    tiny = np.finfo(np.float32).tiny  # what is smaller XLA may flush to 0
    if 1e-7 * x.max() >= tiny:
        assert (found[x >= tiny] > 0).all()
    assert (found[x == 0] == 0).all()


@SIGNED
def test_the_largest_of_a_block_and_zeros_keep_every_bit(signed):
    x = np.zeros((2, SIZE), np.float32)
    x[0, 300], x[1, -1] = 0.3, 1e-30
    np.testing.assert_array_equal(roundtrip(x, signed), x)


@SIGNED
def test_a_block_that_is_not_finite_is_not_hidden(signed):
    x = np.ones((2, SIZE), np.float32)
    x[0, 3] = np.nan
    found = np.asarray(roundtrip(x, signed))
    assert np.isnan(found[0, :256]).all()
    assert (found[0, 256:] == 1).all() and (found[1] == 1).all()
