import jax.numpy as jnp
import numpy as np
from optax.contrib import MuonDimensionNumbers
import pytest

from jaxdl import models, nn
from jaxdl.core.derive import abstract
from jaxdl.optim.matrices import as_matrices, dimension_numbers, from_matrices

rng = np.random.default_rng(0)


@pytest.mark.parametrize(
    ("shape", "numbers", "matrices"),
    [
        ((3, 4), (0, 1), (3, 4)),
        ((5, 3, 4), (1, 2), (5, 3, 4)),
        ((2, 5, 3, 4), (-2, -1), (2, 5, 3, 4)),
        ((3, 3, 2, 4), ((0, 1, 2), (3,)), (18, 4)),
        ((4, 7, 3), ((2,), (0, 1)), (3, 28)),
        ((4, 7, 3), ((2,), (0,)), (7, 3, 4)),
    ],
)
def test_arrays_become_matrices_and_arrays_again(shape, numbers, matrices):
    x, numbers = jnp.asarray(rng.normal(size=shape)), MuonDimensionNumbers(*numbers)
    there = as_matrices(x, numbers)
    assert there.shape == matrices
    np.testing.assert_array_equal(from_matrices(there, shape, numbers), x)


def test_a_matrix_is_what_its_layer_multiplies_by():
    conv = nn.Conv(2, 5, (3, 3), padding="VALID")
    params = conv.init(np.asarray([0, 1], np.uint32))
    (numbers,) = dimension_numbers(conv, params).values()
    patch = jnp.asarray(rng.normal(size=(1, 3, 3, 2)), jnp.float32)
    product = patch.reshape(1, -1) @ as_matrices(params["kernel"], numbers)
    np.testing.assert_allclose(conv(params, patch)[0, 0], product, rtol=1e-5)


def test_a_model_says_what_its_matrices_are():
    layer = nn.Repeat(nn.MoE(4, 8, num_experts=3), 2)
    numbers = dimension_numbers(layer, abstract(layer))
    assert numbers["experts/up/kernel"] == ((2,), (3,))
    assert numbers["router/kernel"] == ((1,), (2,))
    heads = nn.Einsum("btd,dhk->bthk", (4, 2, 3), bias=True)
    assert dimension_numbers(heads, abstract(heads)) == {"kernel": ((0,), (1, 2))}
    config = models.DecoderConfig(vocab_size=16, seq_len=8, dim=4, num_heads=1)
    decoder = models.Decoder(config)
    found = dimension_numbers(decoder, abstract(decoder))
    assert {path for path in found if not path.endswith("kernel")} == {
        "embed/embedding",
        "position/embedding",
    }
    assert found["embed/embedding"] == ((0,), (1,))


def test_arrays_of_no_model_are_matrices_by_pattern_or_by_two_dimensions():
    params = {"a": jnp.ones((2, 3)), "b": jnp.ones((4, 2, 3)), "c": jnp.ones(2)}
    assert dimension_numbers(None, params) == {"a": (0, 1)}
    assert dimension_numbers({"b": MuonDimensionNumbers(1, 2)}, params) == {"b": (1, 2)}
    with pytest.raises(ValueError, match="'d' fits no path"):
        dimension_numbers({"d": MuonDimensionNumbers()}, params)


def test_params_of_another_model_are_an_error():
    with pytest.raises(ValueError, match=r"kernel: the model declares \[2, 3\], got"):
        dimension_numbers(nn.Linear(2, 3), {"kernel": jnp.ones((2, 4))})
    with pytest.raises(ValueError, match="w: the model declares nothing of this path"):
        dimension_numbers(nn.Linear(2, 3), {"w": jnp.ones((2, 3))})
