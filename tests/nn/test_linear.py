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


def test_einsum_is_that_of_flax():
    x, kernel, bias = normal(2, 3, 4), normal(4, 5, 6), normal(5, 6)
    params = {"kernel": kernel, "bias": bias}
    theirs = flax.linen.Einsum((4, 5, 6), "btd,dhk->bthk")
    ours = nn.Einsum("btd,dhk->bthk", (4, 5, 6), bias=True)
    expected = theirs.apply({"params": params}, x)
    np.testing.assert_allclose(ours(params, x), expected, rtol=1e-5, atol=1e-6)


def test_the_fan_in_of_einsum_is_over_what_it_sums():
    wide = nn.Einsum("bhk,hkd->bd", (8, 32, 64)).init(jax.random.key(0))["kernel"]
    assert abs(float(wide.std()) - (8 * 32) ** -0.5) < 0.002


def test_einsum_keeps_the_contract_and_refuses_what_does_not_fit():
    layer = nn.Einsum(
        "btd,dhk->bthk", (4, 2, 3), bias=True, axes=("embed", "heads", None)
    )
    check_module(layer, normal(2, 3, 4))
    with pytest.raises(
        ValueError, match=r"expected \[b, t, 4\], got float32\[2, 3, 5\]"
    ):
        layer(layer.init(jax.random.key(0)), normal(2, 3, 5))
    with pytest.raises(ValueError, match="the kernel's own letters last"):
        nn.Einsum("btd,dhk->hkbt", (4, 2, 3))
    with pytest.raises(ValueError, match="one kernel letter for each size"):
        nn.Einsum("btd,dh->bth", (4, 2, 3))


def test_bilinear_is_the_sum_of_its_definition():
    layer = nn.Bilinear(3, 4, 2)
    params = {"kernel": normal(3, 4, 2), "bias": normal(2)}
    x1, x2 = normal(5, 3), normal(5, 4)
    ours = layer(params, x1, x2)
    for row in range(5):
        for out in range(2):
            matrix = params["kernel"][:, :, out]
            expected = x1[row] @ matrix @ x2[row] + params["bias"][out]
            np.testing.assert_allclose(ours[row, out], expected, rtol=1e-4, atol=1e-5)
    check_module(layer, x1, x2)
    with pytest.raises(ValueError, match=r"expected x2 \[5, 4\], got float32\[5, 3\]"):
        layer(params, x1, x1)
