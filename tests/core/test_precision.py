import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdl as jd
from jaxdl import nn

model = nn.Sequential([nn.Linear(4, 8), nn.LayerNorm(8), jax.nn.relu, nn.Linear(8, 2)])
params = model.init(jax.random.key(0))
x = jax.random.normal(jax.random.key(1), (3, 4))


def dtypes(tree):
    return {path: str(leaf.dtype) for path, leaf in jd.core.tree.flatten(tree).items()}


def test_floats_are_cast_and_kept_paths_and_integers_are_not():
    policy = jd.Policy(keep=("**/scale", "1/bias"))
    cast = policy.cast({**params, "step": jnp.arange(2), "key": jax.random.key(0)})
    assert dtypes(cast) == {
        "0/bias": "bfloat16",
        "0/kernel": "bfloat16",
        "1/bias": "float32",
        "1/scale": "float32",
        "3/bias": "bfloat16",
        "3/kernel": "bfloat16",
        "key": "key<fry>",
        "step": "int32",
    }


def test_roles_are_kept_by_their_paths():
    policy = jd.Policy(keep=jd.paths(model, role=("scale", "bias")))
    kept = {
        path
        for path, dtype in dtypes(policy.cast(params)).items()
        if dtype == "float32"
    }
    assert kept == {"0/bias", "1/bias", "1/scale", "3/bias"}


def test_a_pattern_that_keeps_nothing_is_an_error():
    with pytest.raises(ValueError, match="fits no path; did you mean '1/scale'"):
        jd.Policy(keep="1/scales").cast(params)


def test_every_matrix_product_runs_in_the_compute_dtype():
    policy = jd.Policy()
    jaxpr = jax.make_jaxpr(policy.apply(model))(params, x)
    products = [e for e in jaxpr.jaxpr.eqns if e.primitive.name == "dot_general"]
    assert [str(e.outvars[0].aval.dtype) for e in products] == ["bfloat16"] * 2


def test_gradients_have_the_dtype_of_the_parameters_and_nearly_their_values():
    def loss(params, function):
        return jnp.mean(function(params, x) ** 2)

    exact = jax.grad(loss)(params, model)
    mixed = jax.grad(loss)(params, jd.Policy().apply(model))
    assert set(dtypes(mixed).values()) == {"float32"}
    for ours, theirs in zip(
        jax.tree.leaves(mixed), jax.tree.leaves(exact), strict=True
    ):
        np.testing.assert_allclose(
            ours, theirs, atol=0.02 * float(abs(theirs).max()) + 1e-3
        )


def test_the_output_comes_back_in_the_output_dtype():
    assert jd.Policy().apply(model)(params, x).dtype == jnp.float32
    assert jd.Policy(output=jnp.bfloat16).apply(model)(params, x).dtype == jnp.bfloat16


def test_policies_compare_by_value():
    assert jd.Policy(keep="a") == jd.Policy(jnp.bfloat16, keep=("a",))
    assert hash(jd.Policy()) == hash(jd.Policy("bfloat16"))
