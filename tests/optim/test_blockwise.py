from functools import partial

from hypothesis import given
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdl.optim.blockwise import decode, dynamic_map, encode

rng = np.random.default_rng(0)
SIGNED = pytest.mark.parametrize("signed", [True, False])


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
    x = rng.normal(size=(3, 2, 50)) * 10 ** rng.uniform(-3, 1, (3, 2, 50))
    x = (x if signed else np.abs(x)).astype(np.float32)
    codes, scale = encode(jnp.asarray(x), signed=signed, block_size=16)
    assert codes.dtype == jnp.uint8
    assert codes.shape == x.shape and scale.shape == (3, 2, 4)
    found = decode(codes, scale, signed=signed, block_size=16)
    np.testing.assert_allclose(found, reference(x, signed, 16), rtol=1e-6)


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
    x = np.zeros(12, np.float32)
    x[: len(numbers)] = numbers
    found = np.asarray(roundtrip(x))
    exact = x * (x > np.finfo(np.float32).tiny)  # XLA flushes what is smaller to 0
    lost = 1e-7 * x.max() < np.finfo(np.float32).tiny
    assert lost or ((found > 0) == (exact > 0)).all()


@partial(jax.jit)
def roundtrip(x):
    return decode(*encode(x, signed=False), signed=False)


@SIGNED
def test_the_largest_of_a_block_and_zeros_keep_every_bit(signed):
    x = jnp.zeros((2, 600)).at[0, 300].set(0.3).at[1, 599].set(1e-30)
    found = decode(*encode(x, signed=signed), signed=signed)
    np.testing.assert_array_equal(found, x)


@SIGNED
def test_a_block_that_is_not_finite_is_not_hidden(signed):
    x = jnp.ones(512).at[3].set(jnp.nan)
    found = decode(*encode(x, signed=signed), signed=signed)
    assert jnp.isnan(found[:256]).all() and (found[256:] == 1).all()
