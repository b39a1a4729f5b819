import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdl import nn
from jaxdl.testing import check_module

rng = np.random.default_rng(0)
image = jnp.asarray(rng.normal(size=(2, 6, 4, 8)), jnp.float32)
tokens = jnp.asarray(rng.normal(size=(2, 5, 8)), jnp.float32)


@pytest.mark.parametrize(
    "layer",
    [
        nn.PatchEmbedding((3, 2), 8, 5),
        nn.Upsample((2, 3), "cubic"),
        nn.PixelShuffle(2),
        nn.PixelUnshuffle(2),
        nn.AdaptiveAvgPool((4, 3)),
        nn.AdaptiveMaxPool((4, 3)),
    ],
)
def test_image_layers_keep_the_contract(layer):
    check_module(layer, image)


def test_attention_pooling_keeps_the_contract_and_sees_no_padding():
    layer = nn.AttentionPool(8, 2)
    check_module(layer, tokens)
    params = layer.init(jax.random.key(0))
    mask = jnp.array([[True] * 3 + [False] * 2] * 2)
    short = layer(params, tokens[:, :3])
    np.testing.assert_allclose(layer(params, tokens, mask=mask), short, rtol=1e-5)


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_unshuffle_undoes_shuffle(dims):
    x = jnp.asarray(rng.normal(size=(2, *(2, 3, 4)[:dims], 5 * 2**dims)), jnp.float32)
    larger = nn.PixelShuffle(2)({}, x)
    assert larger.shape == (2, *(4, 6, 8)[:dims], 5)
    np.testing.assert_array_equal(nn.PixelUnshuffle(2)({}, larger), x)


def test_image_layers_refuse_what_does_not_fit():
    patches = nn.PatchEmbedding((4, 4), 8, 5)
    params = patches.init(jax.random.key(0))
    with pytest.raises(ValueError, match=r"\[batch, multiple of 4, multiple of 4, 8\]"):
        patches(params, image)
    with pytest.raises(ValueError, match=r"\[batch, \*spatial, multiple of 9\]"):
        nn.PixelShuffle(3)({}, image)
    with pytest.raises(ValueError, match="in multiples of 4"):
        nn.PixelUnshuffle(4)({}, image)
    with pytest.raises(ValueError, match="3 spatial dimensions, features"):
        nn.AdaptiveAvgPool((2, 2, 2))({}, tokens)
