import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdl import nn
from jaxdl.testing import check_module

rng = np.random.default_rng(0)


def normal(*shape):
    return jnp.asarray(rng.normal(size=shape), jnp.float32)


@pytest.mark.parametrize("bias", [True, False])
def test_linear_is_the_dense_layer_of_flax(bias):
    x, params = (
        normal(2, 3, 4),
        {"kernel": normal(4, 5)} | ({"bias": normal(5)} if bias else {}),
    )
    theirs = flax.linen.Dense(5, use_bias=bias).apply({"params": params}, x)
    np.testing.assert_allclose(nn.Linear(4, 5, bias)(params, x), theirs, rtol=1e-6)


@pytest.mark.parametrize("bias", [True, False])
def test_linear_keeps_the_contract(bias):
    check_module(nn.Linear(4, 5, bias), normal(2, 3, 4))


def test_a_layer_computes_in_the_dtype_of_its_kernel():
    layer = nn.Linear(4, 5, bias=False)
    narrow = {"kernel": normal(4, 5).astype(jnp.bfloat16)}
    assert layer(narrow, normal(2, 4)).dtype == jnp.bfloat16


@pytest.mark.parametrize("shape", [(3,), (2, 5), (), (4, 3)])
def test_linear_refuses_another_last_dimension(shape):
    layer = nn.Linear(4, 5)
    with pytest.raises(ValueError, match=r"Linear: expected \[..., 4\], got float32"):
        layer(layer.init(jax.random.key(0)), jnp.ones(shape))


def test_linear_refuses_integers_instead_of_casting_them():
    layer = nn.Linear(4, 5)
    with pytest.raises(ValueError, match="expected a floating dtype, got int32"):
        layer(layer.init(jax.random.key(0)), jnp.ones((2, 4), jnp.int32))


def test_embedding_is_that_of_flax_and_so_are_its_logits():
    table, tokens, x = normal(7, 4), jnp.array([[0, 6], [3, 3]]), normal(2, 4)
    params = {"embedding": table}
    theirs = flax.linen.Embed(7, 4)
    ours = nn.Embedding(7, 4)
    np.testing.assert_array_equal(
        ours(params, tokens), theirs.apply({"params": params}, tokens)
    )
    attend = theirs.apply({"params": params}, x, method="attend")
    np.testing.assert_allclose(ours.logits(params, x), attend, rtol=1e-5)


def test_embedding_keeps_the_contract():
    check_module(nn.Embedding(5, 4), jnp.arange(5))


@pytest.mark.parametrize("token", [-1, 7, 100])
def test_a_token_out_of_range_gives_nan_never_the_row_of_another(token):
    layer = nn.Embedding(7, 4)
    rows = jax.jit(layer)(layer.init(jax.random.key(0)), jnp.array([token, 1]))
    assert jnp.isnan(rows[0]).all() and jnp.isfinite(rows[1]).all()


def test_embedding_refuses_floating_tokens():
    layer = nn.Embedding(7, 4)
    with pytest.raises(ValueError, match="expected integer tokens, got float32"):
        layer(layer.init(jax.random.key(0)), jnp.ones(3))
