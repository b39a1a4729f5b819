"""Encoder-decoders and towers train: gradients, dropout by key, eager as under jit."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdl.core import tree
from jaxdl.models import (
    T5,
    Contrastive,
    ContrastiveConfig,
    EncoderConfig,
    T5Config,
    TransformerConfig,
    ViTConfig,
)
from tests.drawn import drawn

BLOCKS = TransformerConfig(dim=8, num_layers=2, num_heads=2, hidden=12, dropout=0.2)


@pytest.fixture(scope="module")
def t5():
    inner = dataclasses.replace(BLOCKS, norm="rms", bias=False, scale=1.0, remat=True)
    decoder = dataclasses.replace(inner, causal=True, cross=True)
    return T5(T5Config(11, inner, decoder, num_buckets=8, max_distance=10))


def test_every_parameter_of_a_t5_learns_and_dropout_follows_the_key(t5, key):
    params = drawn(t5)
    inputs = jnp.asarray(np.random.default_rng(0).integers(0, 11, (2, 12)))

    def loss(params, key):
        return jnp.square(t5(params, inputs, inputs[:, :10], key=key)).mean()

    run = jax.jit(jax.value_and_grad(loss))
    value, grads = run(params, jax.random.key(1))
    flat = tree.flatten(jax.device_get(grads))
    still = [path for path, grad in flat.items() if not grad.any()]
    assert not still
    assert value == run(params, jax.random.key(1))[0]
    assert value != run(params, jax.random.key(2))[0]
    with pytest.raises(TypeError, match="key"):
        jax.eval_shape(lambda p: t5(p, inputs, inputs), params)


def test_a_memory_is_asked_for_and_not_given_to_those_without_a_use_for_it(t5, key):
    params = jax.eval_shape(t5.init, key)
    tokens = jnp.zeros((2, 3), int)
    with pytest.raises(ValueError, match="a memory"):
        jax.eval_shape(lambda p: t5.decode(p, tokens, key=None), params)
    states = jnp.zeros((2, 3, 8))
    with pytest.raises(ValueError, match="no memory without"):
        jax.eval_shape(
            lambda p: t5.encoder(p["encoder"], states, memory=states, key=None), params
        )


def test_two_towers_give_eagerly_what_they_give_under_jit(key):
    plain = dataclasses.replace(BLOCKS, dropout=0.0)
    text = EncoderConfig(11, plain, 8, token_types=0, embed_norm=False, final_norm=True)
    image = ViTConfig((8, 8), (4, 4), 3, plain, class_token=False, pool="attention")
    config = ContrastiveConfig(text, image, 8, "last", project_image=False, bias=True)
    model = Contrastive(config)
    params = drawn(model)
    given = (jnp.ones((3, 5), int), jax.random.normal(key, (2, 9, 8, 3)))
    jitted = jax.jit(model)(params, *given)
    assert jitted.shape == (2, 3)
    np.testing.assert_allclose(model(params, *given), jitted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "change, words",
    [({"norm_place": "both"}, "pre or sum"), ({"layers": ()}, "expected 2 of them")],
)
def test_choices_that_do_not_fit_are_refused(change, words):
    with pytest.raises(ValueError, match=words):
        dataclasses.replace(BLOCKS, **change)
