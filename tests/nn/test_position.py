import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdl import nn
from jaxdl.testing import check_module

rng = np.random.default_rng(0)
x = jnp.asarray(rng.normal(size=(2, 5, 6)), jnp.float32)


@pytest.mark.parametrize(
    "layer, inputs",
    [
        (nn.AddPosition(nn.Embedding(5, 6)), (x,)),
        (nn.AddPosition(nn.Sinusoidal(6)), (x,)),
        (nn.FourierFeatures(6, 4, learned=True), (x / 4,)),
        (nn.TimestepEmbedding(8, 4), (jnp.array([0.0, 1.5]),)),
        (nn.RelativeBias(2, 4, 8), (jnp.arange(9), jnp.arange(9))),
    ],
)
def test_positions_keep_the_contract(layer, inputs):
    check_module(layer, *inputs)


def test_positions_may_be_given_and_padding_stands_below_zero():
    layer = nn.AddPosition(nn.Embedding(5, 6))
    params = layer.init(jax.random.key(0))
    positions = jnp.array([[-2, -1, 0, 1, 2], [0, 1, 2, 3, 4]])
    y = layer(params, x, positions=positions)
    table = params["embedding"]
    np.testing.assert_array_equal(y[0, 2:], x[0, 2:] + table[:3])
    np.testing.assert_array_equal(y[1], x[1] + table)
    assert np.isfinite(y).all()
    beyond = layer(params, x, positions=positions + 1)
    assert np.isnan(beyond[1, -1]).all() and np.isfinite(beyond[1, :-1]).all()


@pytest.mark.parametrize("layout", ["interleaved", "sin_cos", "cos_sin"])
def test_a_sinusoid_moves_by_a_rotation(layout):
    # The wave of position + 3 is the same linear map of the wave at any position: what
    # the paper chose it for.
    waves = np.asarray(nn.Sinusoidal(8, 100.0, layout)({}, jnp.arange(40)))
    moved, *_ = np.linalg.lstsq(waves[:-3], waves[3:])
    np.testing.assert_allclose(waves[:-3] @ moved, waves[3:], atol=1e-5)
    np.testing.assert_allclose(moved @ moved.T, np.eye(8), atol=1e-4)


def test_positions_refuse_what_does_not_fit():
    with pytest.raises(ValueError, match="a sequence of at most 4"):
        layer = nn.AddPosition(nn.Embedding(4, 6))
        layer(layer.init(jax.random.key(0)), x)
    with pytest.raises(ValueError, match=r"expected \[..., 8\]"):
        nn.AddPosition(nn.Sinusoidal(8))({}, x)
    with pytest.raises(ValueError, match=r"integer positions \[2, 5\] or \[5\]"):
        nn.AddPosition(nn.Sinusoidal(6))({}, x, positions=jnp.arange(4))
    with pytest.raises(ValueError, match="an even number of features, got 5"):
        nn.Sinusoidal(5)
    with pytest.raises(ValueError, match="the layout interleaved, sin_cos or cos_sin"):
        nn.Sinusoidal(4, layout="cos")
    with pytest.raises(ValueError, match="max_distance above 8 for num_buckets=32"):
        nn.RelativeBias(2, 32, 8)
    with pytest.raises(ValueError, match="integer query positions"):
        nn.ALiBi(2)({}, jnp.ones(3), jnp.arange(3))
