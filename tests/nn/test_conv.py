import flax.linen
from hypothesis import given
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdl import nn
from jaxdl.testing import check_module

rng = np.random.default_rng(0)


def normal(*shape):
    return jnp.asarray(rng.normal(size=shape), jnp.float32)


def pair(dims, features=(4, 6), size=3, **settings):
    """Our layer and Flax's on the same parameters and input, in `dims` dimensions."""
    groups = settings.get("groups", 1)
    kernel = (size,) * dims
    params = {"kernel": normal(*kernel, features[0] // groups, features[1])}
    params["bias"] = normal(features[1])
    x = normal(2, *(7, 6, 5)[:dims], features[0])
    theirs = flax.linen.Conv(
        features[1],
        kernel,
        strides=settings.get("strides", 1),
        padding=settings.get("padding", "SAME"),
        kernel_dilation=settings.get("dilation", 1),
        feature_group_count=groups,
    )
    ours = nn.Conv(*features, kernel, **settings)
    return ours(params, x), theirs.apply({"params": params}, x)


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("padding", ["SAME", "VALID", "CIRCULAR", "REFLECT", 1, 0])
def test_conv_is_that_of_flax_in_every_dimension_and_padding(dims, padding):
    ours, theirs = pair(dims, padding=padding)
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "settings",
    [
        {"strides": 2},
        {"dilation": 2},
        {"strides": 2, "padding": "VALID"},
        {"groups": 2},
        {"groups": 4, "features": (4, 8)},
        {"size": 4},
        {"size": 4, "padding": "CIRCULAR"},
        {"size": 4, "padding": "REFLECT"},
        {"dilation": 2, "padding": "CIRCULAR"},
        {"padding": [(1, 2), (0, 3)]},
        {"padding": (2, 1)},
    ],
    ids=str,
)
def test_conv_is_that_of_flax_with_every_setting(settings):
    ours, theirs = pair(2, **settings)
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_causal_conv_is_that_of_flax_and_sees_no_later_input():
    ours, theirs = pair(1, padding="CAUSAL", dilation=2)
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
    layer = nn.Conv(4, 4, (3,), padding="CAUSAL")
    params, x = layer.init(jax.random.key(0)), normal(1, 8, 4)
    changed = layer(params, x.at[:, 5].add(1.0)) != layer(params, x)
    assert not changed[:, :5].any() and changed[:, 5].any()


def test_any_number_of_batch_dimensions_may_lead():
    layer = nn.Conv(4, 6, (3, 3))
    params, x = layer.init(jax.random.key(0)), normal(2, 3, 5, 5, 4)
    flat = layer(params, x.reshape(6, 5, 5, 4))
    np.testing.assert_allclose(layer(params, x).reshape(flat.shape), flat, rtol=1e-5)
    np.testing.assert_allclose(layer(params, x[0, 0]), flat[0], rtol=1e-5, atol=1e-6)


@given(
    kernel=st.integers(1, 4), stride=st.integers(1, 3), size=st.integers(4, 9),
    padding=st.sampled_from(["SAME", "VALID"]),
)  # fmt: skip
def test_the_output_has_the_size_that_the_formula_says(kernel, stride, size, padding):
    layer = nn.Conv(1, 1, (kernel,), strides=stride, padding=padding)
    shape = jax.eval_shape(
        layer, layer.init(jax.random.key(0)), jnp.ones((1, size, 1))
    ).shape
    expected = (
        -(-size // stride) if padding == "SAME" else (size - kernel) // stride + 1
    )
    assert shape == (1, expected, 1)


@pytest.mark.parametrize(
    "layer", [nn.Conv(4, 6, (3, 3)), nn.Conv(4, 4, 3, groups=4, bias=False)]
)
def test_conv_keeps_the_contract(layer):
    check_module(layer, normal(2, 5, 5, 4))


def test_conv_refuses_what_does_not_fit():
    layer = nn.Conv(4, 6, (3, 3))
    params = layer.init(jax.random.key(0))
    with pytest.raises(
        ValueError, match=r"Conv: expected \[..., spatial, spatial, 4\]"
    ):
        layer(params, jnp.ones((2, 5, 5, 3)))
    with pytest.raises(ValueError, match=r"expected \[..., spatial, spatial, 4\]"):
        layer(params, jnp.ones((5, 4)))
    with pytest.raises(ValueError, match="groups=3 to divide in_features=4"):
        nn.Conv(4, 6, (3, 3), groups=3)
    with pytest.raises(ValueError, match="padding SAME, VALID.*got 'HALF'"):
        nn.Conv(4, 6, (3, 3), padding="HALF")(params, jnp.ones((5, 5, 4)))
    with pytest.raises(ValueError, match="2 numbers, one a spatial dimension"):
        nn.Conv(4, 6, (3, 3), strides=(1, 1, 1))(params, jnp.ones((5, 5, 4)))
