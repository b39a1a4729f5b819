import jax
import jax.numpy as jnp
import pytest

import jaxdl as jd
from jaxdl import models
from jaxdl.testing import check_module


def test_an_mlp_is_its_matrices_and_activations():
    model = models.mlp([3, 5, 2], jnp.tanh)
    params, x = model.init(jax.random.key(0)), jnp.ones((4, 3))
    hidden = jnp.tanh(x @ params["0"]["kernel"] + params["0"]["bias"])
    expected = hidden @ params["2"]["kernel"] + params["2"]["bias"]
    assert jnp.array_equal(model(params, x), expected)
    with pytest.raises(ValueError, match="at least two widths"):
        models.mlp([3])


def test_an_mlp_with_dropout_needs_a_key():
    model = models.mlp([3, 5, 2], dropout=0.5)
    with pytest.raises(TypeError, match="2: dropout"):
        model(model.init(jax.random.key(0)), jnp.ones((4, 3)))


@pytest.mark.parametrize(
    "model", [models.mlp([3, 5, 2]), models.mlp([3, 4, 4, 2], dropout=0.2)]
)
def test_an_mlp_keeps_the_contract(model):
    check_module(model, jax.random.normal(jax.random.key(0), (4, 3)))


def test_a_cnn_keeps_the_contract_and_its_size():
    model = models.cnn((8, 8, 1), num_classes=10, widths=(4, 6), dropout=0.2)
    check_module(
        model, jax.random.normal(jax.random.key(0), (2, 8, 8, 1)), tolerance=1e-4
    )
    assert jd.abstract(model)["12"]["kernel"].shape == (2 * 2 * 6, 10)


@pytest.mark.parametrize(("shape", "widths"), [((3, 8, 1), (4, 4)), ((8, 8, 1), ())])
def test_a_cnn_refuses_an_image_that_pooling_uses_up(shape, widths):
    with pytest.raises(ValueError, match="images that can be halved"):
        models.cnn(shape, 10, widths)
