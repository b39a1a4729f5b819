import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdl import nn
from jaxdl.testing import check_module

rng = np.random.default_rng(0)
x = jnp.asarray(rng.normal(size=(2, 3, 5, 4)), jnp.float32)
condition = jnp.asarray(rng.normal(size=(2, 7)), jnp.float32)


def test_prelu_is_that_of_flax_and_may_have_a_slope_for_each_feature():
    theirs = flax.linen.PReLU()
    expected = theirs.apply({"params": {"negative_slope": jnp.float32(0.3)}}, x)
    np.testing.assert_allclose(nn.PReLU()({"slope": jnp.array([0.3])}, x), expected)
    slopes = jnp.arange(4.0)
    each = nn.PReLU(4)({"slope": slopes}, x)
    np.testing.assert_allclose(each, jnp.where(x > 0, x, x * slopes), rtol=1e-6)


def test_layer_scale_starts_small():
    layer = nn.LayerScale(4, 1e-3)
    np.testing.assert_allclose(
        layer(layer.init(jax.random.key(0)), x), 1e-3 * x, rtol=1e-6
    )


def test_squeeze_excite_weighs_features_by_the_whole_image():
    layer = nn.SqueezeExcite(4, reduction=2)
    params = layer.init(jax.random.key(0))
    mean = x.mean((1, 2))
    hidden = jax.nn.relu(mean @ params["down"]["kernel"] + params["down"]["bias"])
    gate = jax.nn.sigmoid(hidden @ params["up"]["kernel"] + params["up"]["bias"])
    np.testing.assert_allclose(layer(params, x), x * gate[:, None, None], rtol=1e-5)


def test_film_starts_as_the_identity_and_scales_and_shifts_by_the_condition():
    layer = nn.FiLM(4, 7)
    np.testing.assert_array_equal(layer(layer.init(jax.random.key(0)), x, condition), x)
    kernel = jnp.asarray(rng.normal(size=(7, 8)), jnp.float32)
    params = {"modulation": {"kernel": kernel, "bias": jnp.arange(8.0)}}
    both = condition @ kernel + jnp.arange(8.0)
    scale, shift = both[:, None, None, :4], both[:, None, None, 4:]
    np.testing.assert_allclose(
        layer(params, x, condition), x * (1 + scale) + shift, rtol=1e-4
    )


@pytest.mark.parametrize(
    ("layer", "inputs"),
    [
        (nn.PReLU(4), (x,)),
        (nn.LayerScale(4), (x,)),
        (nn.SqueezeExcite(4, 2), (x,)),
        (nn.FiLM(4, 7), (x, condition)),
    ],
)
def test_they_keep_the_contract(layer, inputs):
    check_module(layer, *inputs)


@pytest.mark.parametrize(
    ("layer", "inputs"),
    [
        (nn.PReLU(3), (x,)),
        (nn.LayerScale(3), (x,)),
        (nn.SqueezeExcite(3), (x,)),
        (nn.FiLM(3, 7), (x, condition)),
        (nn.FiLM(4, 7), (x, condition[:1])),
        (nn.FiLM(4, 7), (x, condition[:, :3])),
    ],
)
def test_they_refuse_what_does_not_fit(layer, inputs):
    with pytest.raises(ValueError, match="expected"):
        layer(layer.init(jax.random.key(0)), *inputs)
