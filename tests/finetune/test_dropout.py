"""Dropout of adapters: the key reaches them wherever they stand."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdl import finetune, models, nn
from jaxdl.core import tree
from tests.finetune.test_adapters import CONFIG, moved

x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 8)), jnp.float32)
CROSS = nn.Attention(8, 2, memory_dim=8)
LAYERS = {
    "attention": (nn.Attention(8, 2, causal=True), ("q", "k", "v", "out"), {}),
    "memory": (CROSS, ("k", "v"), {"memory": x}),
    "feed forward": (nn.FeedForward(8, 12, gated=True), ("up", "gate", "down"), {}),
    "latent": (
        nn.LatentAttention(8, 2, 6, 4, 4, 4, nn.RoPE(4), q_rank=4),
        ("q_down", "q_up", "kv_down", "kv_up", "out"), {},
    ),
    "mamba": (nn.Mamba(8, 3), ("project", "select", "step", "out"), {}),
    "mixture": (
        nn.MoE(8, 6, 3, shared=nn.FeedForward(8, 6)),
        ("experts/up", "experts/down", "shared/up"), {},
    ),
}  # fmt: skip
kinds = pytest.mark.parametrize("kind", LAYERS)


@kinds
def test_every_adapter_of_a_layer_drops_by_the_layer_s_key(kind, key):
    layer, paths, given = LAYERS[kind]
    base = layer.init(key)
    model, params = finetune.lora(layer, base, paths, 2, key=key, dropout=0.5)
    run = jax.jit(lambda p, key: model(p, x, key=key, **given))
    still = run(params, key)  # every b is 0
    for path in paths:
        a_b = f"{path}/lora/*"
        alone = tree.map_with_path(
            lambda name, leaf, own=a_b: leaf + 0.3 if tree.matches(own, name) else leaf,
            params,
        )
        first, second = run(alone, key), run(alone, jax.random.key(7))
        assert not np.allclose(first, still, rtol=1e-4, atol=1e-4), path
        assert not np.allclose(first, second, rtol=1e-4, atol=1e-4), path
    with pytest.raises(TypeError, match=f"{paths[0]}: dropout with rate 0.5 needs key"):
        jax.eval_shape(lambda p: model(p, x, **given), params)
    params = moved(params)
    plain, merged = finetune.merge(model, params)
    both = jax.jit(
        lambda p, m: (model(p, x, key=None, **given), plain(m, x, key=None, **given))
    )(params, merged)
    np.testing.assert_allclose(*both, rtol=1e-4, atol=1e-4)


@kinds
def test_without_adapter_dropout_the_program_is_that_of_the_base(kind, key):
    layer, paths, given = LAYERS[kind]
    base = layer.init(key)
    model, params = finetune.lora(layer, base, paths, 2, key=key)

    def randomness(model, params):
        program = jax.make_jaxpr(lambda p, key: model(p, x, key=key, **given))
        return str(program(params, key)).count("random")

    assert randomness(model, params) == randomness(layer, base)
    if kind != "mixture":  # which hands keys to its shared layer
        assert randomness(layer, base) == 0


def test_parts_that_drop_do_so_apart(key):
    """Two adapters of one input and equal numbers: each drops other features."""
    layer = nn.FeedForward(8, 8, gated=True, activation=lambda y: y)
    params = layer.init(key)
    params["gate"] = params["up"]
    model, params = finetune.lora(
        layer, params, ("up", "gate"), 8, key=key, dropout=0.5
    )
    lora = {"a": jnp.eye(8), "b": jnp.eye(8)}
    for name in ("up", "gate"):
        params[name] = {"kernel": jnp.zeros((8, 8)), "lora": lora}
    params["down"] = {"kernel": jnp.eye(8)}
    y = model(params, x, key=key)
    kept = np.asarray(y != 0).mean()
    assert kept == pytest.approx(0.25, abs=0.15)  # both kept it; 0.5 if they were one


def test_one_key_of_one_taker_is_not_split(key):
    layer = nn.FeedForward(8, 12, dropout=0.5)
    params = layer.init(key)
    hidden = layer.up(params["up"], x)
    y = layer.down(params["down"], layer.activation(hidden))
    expected = nn.Dropout(0.5)({}, y, key=key)
    np.testing.assert_array_equal(layer(params, x, key=key), expected)


def test_a_decoder_s_adapters_drop_by_the_step_s_key(key):
    base = models.Decoder(dataclasses.replace(CONFIG, remat=True))
    patterns = ("**/attn/*", "**/mlp/*")
    params = base.init(key)
    model, params = finetune.lora(base, params, patterns, 2, key=key, dropout=0.5)
    params = moved(params)
    tokens = jnp.array([[1, 2, 3, 4]])
    run = jax.jit(lambda p, key: model(p, tokens, key=key))
    first, second = run(params, key), run(params, jax.random.key(7))
    assert not np.allclose(first, second) and jnp.isfinite(first).all()
    np.testing.assert_array_equal(run(params, key), first)
    with pytest.raises(TypeError, match="blocks/attn/q: dropout with rate 0.5 needs"):
        jax.eval_shape(lambda p: model(p, tokens), params)


def test_tokens_have_no_dropout(key):
    layer = nn.Embedding(7, 4)
    model, params = finetune.lora(layer, layer.init(key), "**", 2, key=key, dropout=0.5)
    assert "key" not in nn.keywords(model)
    assert model(moved(params), jnp.array([1, 2])).shape == (2, 4)
