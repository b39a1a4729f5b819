import flax.linen
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdl import nn
from jaxdl.testing import check_module

x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 7, 6, 3)), jnp.float32)

settings = pytest.mark.parametrize(
    ("window", "strides", "padding"),
    [
        ((2, 2), None, "VALID"),
        ((3, 2), (2, 1), "VALID"),
        ((3, 3), (2, 2), "SAME"),
        ((3, 3), (2, 2), [(1, 1), (1, 1)]),
    ],
)


@settings
def test_max_pool_is_that_of_flax(window, strides, padding):
    ours = nn.MaxPool(window, strides, padding)({}, x)
    theirs = flax.linen.max_pool(x, window, strides or window, padding)
    np.testing.assert_array_equal(ours, theirs)


@settings
@pytest.mark.parametrize("count", [True, False])
def test_avg_pool_is_that_of_flax(window, strides, padding, count):
    ours = nn.AvgPool(window, strides, padding, count)({}, x)
    theirs = flax.linen.avg_pool(x, window, strides or window, padding, count)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_padding_by_a_number_is_that_on_every_side():
    by_number = nn.MaxPool((3, 3), 2, 1)({}, x)
    np.testing.assert_array_equal(
        by_number, nn.MaxPool((3, 3), 2, [(1, 1), (1, 1)])({}, x)
    )


def test_global_pools_reduce_every_spatial_dimension():
    np.testing.assert_allclose(nn.GlobalAvgPool()({}, x), x.mean((1, 2)), rtol=1e-6)
    np.testing.assert_array_equal(nn.GlobalMaxPool()({}, x), x.max((1, 2)))
    with pytest.raises(ValueError, match=r"GlobalAvgPool: expected \[batch, \*spatial"):
        nn.GlobalAvgPool()({}, x[0, 0])


def test_flatten_keeps_the_batch():
    assert nn.Flatten()({}, x).shape == (2, 7 * 6 * 3)


@pytest.mark.parametrize(
    "layer", [nn.MaxPool((2, 2)), nn.AvgPool((2, 2)), nn.GlobalAvgPool(), nn.Flatten()]
)
def test_pools_keep_the_contract(layer):
    check_module(layer, x)


def test_pools_refuse_too_few_dimensions():
    with pytest.raises(ValueError, match="at least 3 dimensions"):
        nn.MaxPool((2, 2))({}, jnp.ones((4, 4)))
