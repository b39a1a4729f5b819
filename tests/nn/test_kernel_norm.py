import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdl as jd
from jaxdl import nn
from jaxdl.testing import check_module

rng = np.random.default_rng(0)
x = jnp.asarray(rng.normal(size=(3, 7, 4)), jnp.float32)
conv = nn.Conv(4, 6, (3,))


@pytest.mark.parametrize(
    "layer, given",
    [
        (nn.WeightNorm(conv), {}),
        (nn.WeightNorm(nn.Linear(4, 5, bias=False)), {}),
        (nn.WeightStandardized(conv), {}),
        (nn.SpectralNorm(conv), {"train": True}),
        (nn.SpectralNorm(conv), {"train": False}),
        (nn.Repeat(nn.WeightNorm(nn.Linear(4, 4)), 2), {}),
        (nn.Repeat(nn.SpectralNorm(nn.Linear(4, 4)), 2), {"train": True}),
    ],
)
def test_wrapped_layers_keep_the_contract(layer, given):
    check_module(layer, x, **given)


def test_weight_norm_is_that_of_flax():
    theirs = flax.linen.WeightNorm(flax.linen.Dense(5), epsilon=0.0)
    params = jax.tree.map(
        lambda leaf: leaf + jnp.asarray(rng.normal(size=leaf.shape), jnp.float32),
        nn.WeightNorm(nn.Linear(4, 5)).init(jax.random.key(0)),
    )
    inner = {name: params[name] for name in ("kernel", "bias")}
    named = {"layer_instance": inner, "layer_instance/kernel/scale": params["length"]}
    expected = theirs.apply({"params": named}, x)
    ours = nn.WeightNorm(nn.Linear(4, 5))(params, x)
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-5)


def test_spectral_norm_that_has_converged_is_that_of_flax():
    layer = nn.SpectralNorm(nn.Linear(4, 5))
    params, u = layer.init(jax.random.key(0)), jnp.asarray(rng.normal(size=5))
    theirs = flax.linen.SpectralNorm(flax.linen.Dense(5), n_steps=60)
    name = "layer_instance/kernel"
    stats = {f"{name}/u": u[None], f"{name}/sigma": jnp.ones(())}
    variables = {"params": {"layer_instance": params}, "batch_stats": stats}
    expected, new = theirs.apply(
        variables, x, update_stats=True, mutable=["batch_stats"]
    )
    ours, state = nn.SpectralNorm(nn.Linear(4, 5), 60)(params, x, {"u": u}, train=True)
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-5)
    found = new["batch_stats"][f"{name}/u"][0]
    np.testing.assert_allclose(state["u"], found, rtol=1e-5, atol=1e-5)


def test_the_length_of_each_kernel_is_the_learned_one():
    layer = nn.WeightNorm(nn.Linear(4, 5, bias=False))
    params = {**layer.init(jax.random.key(0)), "length": jnp.arange(1.0, 6.0)}
    kernel = layer(params, jnp.eye(4))
    np.testing.assert_allclose(jnp.linalg.norm(kernel, axis=0), params["length"], 1e-5)
    assert jd.paths(layer) == ("kernel", "length")


def test_power_iteration_finds_the_largest_singular_value():
    layer = nn.SpectralNorm(nn.Linear(4, 5, bias=False))
    params, state = layer.init(jax.random.key(0)), layer.init_state(jax.random.key(1))
    for _ in range(100):
        kernel, state = layer(params, jnp.eye(4), state, train=True)
    assert abs(np.linalg.norm(kernel, 2) - 1.0) < 1e-4
    kept, same = layer(params, jnp.eye(4), state, train=False)
    assert same is state
    np.testing.assert_allclose(kept, kernel, rtol=1e-5, atol=1e-6)


def test_a_wrapper_needs_a_kernel_and_no_state():
    with pytest.raises(TypeError, match="WeightNorm: expected a layer with a"):
        nn.WeightNorm(nn.LayerNorm(4))
    with pytest.raises(TypeError, match="got SpectralNorm with"):
        nn.WeightStandardized(nn.SpectralNorm(conv))


def test_an_error_below_a_wrapper_names_the_path():
    model = nn.Sequential([nn.WeightNorm(nn.Linear(5, 5))])
    with pytest.raises(ValueError, match=r"0: expected \[..., 5\]"):
        model(model.init(jax.random.key(0)), x)
