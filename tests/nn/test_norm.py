import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdl import nn
from jaxdl.testing import check_module

rng = np.random.default_rng(0)
x = jnp.asarray(3.0 + 2.0 * rng.normal(size=(6, 5, 4)), jnp.float32)
scale, bias = (jnp.asarray(rng.normal(size=4), jnp.float32) for _ in range(2))


@pytest.mark.parametrize(
    "affine", [{"scale": scale}, {"bias": bias}, {"scale": scale, "bias": bias}, {}]
)
def test_layer_norm_is_that_of_flax(affine):
    settings = {"scale": "scale" in affine, "bias": "bias" in affine}
    ours = nn.LayerNorm(4, epsilon=1e-3, **settings)(affine, x)
    flags = {f"use_{name}": value for name, value in settings.items()}
    theirs = flax.linen.LayerNorm(1e-3, use_fast_variance=False, **flags)
    np.testing.assert_allclose(
        ours, theirs.apply({"params": affine}, x), rtol=1e-5, atol=1e-5
    )


def test_rms_norm_is_that_of_flax():
    params = {"scale": scale}
    theirs = flax.linen.RMSNorm(1e-3).apply({"params": params}, x)
    np.testing.assert_allclose(
        nn.RMSNorm(4, 1e-3)(params, x), theirs, rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("train", [True, False])
def test_batch_norm_is_that_of_flax_but_for_the_unbiased_running_variance(train):
    params = {"scale": scale, "bias": bias}
    state = {"mean": jnp.arange(4.0), "var": jnp.arange(1.0, 5.0)}
    y, new = nn.BatchNorm(4, momentum=0.8, epsilon=1e-3)(params, x, state, train=train)
    theirs = flax.linen.BatchNorm(
        not train, momentum=0.8, epsilon=1e-3, use_fast_variance=False
    )
    variables = {"params": params, "batch_stats": state}
    expected, updated = theirs.apply(variables, x, mutable=["batch_stats"])
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(new["mean"], updated["batch_stats"]["mean"], rtol=1e-5)
    count = 30 / 29 if train else 1.0
    unbiased = updated["batch_stats"]["var"] + (count - 1) * 0.2 * x.var((0, 1)) * train
    np.testing.assert_allclose(new["var"], unbiased, rtol=1e-5)


def test_batch_norm_outside_training_returns_its_state_as_it_was():
    layer = nn.BatchNorm(4)
    state = layer.init_state()
    assert layer(layer.init(jax.random.key(0)), x, state, train=False)[1] is state


def test_running_statistics_converge_to_those_of_the_data():
    layer = nn.BatchNorm(4, momentum=0.5)
    params, state = layer.init(jax.random.key(0)), layer.init_state()
    for _ in range(30):
        _, state = layer(params, x, state, train=True)
    np.testing.assert_allclose(state["mean"], x.mean((0, 1)), rtol=1e-4)
    np.testing.assert_allclose(state["var"], x.var((0, 1), ddof=1), rtol=1e-4)


def test_batch_norm_needs_train_and_more_than_one_value():
    layer = nn.BatchNorm(4)
    params, state = layer.init(jax.random.key(0)), layer.init_state()
    with pytest.raises(TypeError, match="train"):
        layer(params, x, state)
    with pytest.raises(ValueError, match="more than one value for each feature"):
        layer(params, jnp.ones((1, 4)), state, train=True)


def test_batch_norm_takes_the_statistics_of_the_whole_batch_across_devices():
    layer = nn.BatchNorm(4)
    params, state = layer.init(jax.random.key(0)), layer.init_state()
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharded = jax.device_put(x, jax.NamedSharding(mesh, jax.P("data")))
    run = jax.jit(lambda x: layer(params, x, state, train=True))
    for ours, theirs in zip(
        jax.tree.leaves(run(sharded)), jax.tree.leaves(run(x)), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("split", ["vmap", "shard_map"])
def test_a_batch_split_by_hand_is_one_batch_over_a_named_axis(split):
    whole, layer = nn.BatchNorm(4), nn.BatchNorm(4, axis_name="data")
    params = {"scale": scale, "bias": bias}
    state = {"mean": jnp.arange(4.0), "var": jnp.arange(1.0, 5.0)}

    def total(layer, x):
        y, new = layer(params, x, state, train=True)
        return jnp.sum(jnp.sin(y)), new

    def over_parts(x):
        if split == "vmap":
            run = jax.vmap(lambda x: total(layer, x), axis_name="data")
            sums, new = run(x.reshape(2, 3, 5, 4))
            return sums.sum(), jax.tree.map(lambda leaf: leaf[1], new)
        mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))

        def part(x):
            y, new = total(layer, x)
            return jax.lax.psum(y, "data"), new

        specs = {"in_specs": jax.P("data"), "out_specs": jax.P()}
        return jax.shard_map(part, mesh=mesh, **specs)(x)

    (expected, new), grads = jax.value_and_grad(
        lambda x: total(whole, x), has_aux=True
    )(x)
    (y, parted), own = jax.jit(jax.value_and_grad(over_parts, has_aux=True))(x)
    for ours, theirs in ((y, expected), (own, grads)):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)
    for name in new:
        np.testing.assert_allclose(parted[name], new[name], rtol=1e-5, atol=1e-6)


def test_batch_norm_of_an_ensemble_and_over_steps_is_that_of_each():
    layer = nn.BatchNorm(4)
    params = {"scale": jnp.stack([scale, bias]), "bias": jnp.stack([bias, scale])}
    state = layer.init_state()

    def train(params, batches):
        def step(state, batch):
            y, state = layer(params, batch, state, train=True)
            return state, y

        return jax.lax.scan(step, state, batches)

    batches = x.reshape(3, 2, 5, 4)
    final, y = jax.vmap(train, in_axes=(0, None))(params, batches)
    for member in range(2):
        own, now = jax.tree.map(lambda leaf, m=member: leaf[m], params), state
        for step in range(3):
            expected, now = layer(own, batches[step], now, train=True)
            np.testing.assert_allclose(y[member, step], expected, rtol=1e-5, atol=1e-6)
        for name in now:
            np.testing.assert_allclose(final[name][member], now[name], rtol=1e-5)


@pytest.mark.parametrize(
    "layer", [nn.LayerNorm(4), nn.RMSNorm(4), nn.LayerNorm(4, bias=False)]
)
def test_norms_keep_the_contract(layer):
    check_module(layer, x)


@pytest.mark.parametrize("train", [True, False])
def test_batch_norm_keeps_the_contract(train):
    check_module(nn.BatchNorm(4), x, train=train)


@pytest.mark.parametrize("layer", [nn.LayerNorm(4), nn.RMSNorm(4)])
def test_a_norm_in_bfloat16_takes_its_statistics_in_float32(layer):
    wide = 1000.0 + jnp.asarray(rng.normal(size=(8, 4)), jnp.bfloat16).astype(
        jnp.float32
    )
    params = layer.init(jax.random.key(0))
    exact = layer(params, wide.astype(jnp.bfloat16).astype(jnp.float32))
    ours = layer(params, wide.astype(jnp.bfloat16))
    np.testing.assert_allclose(ours.astype(jnp.float32), exact, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("layer", [nn.LayerNorm(4), nn.RMSNorm(4)])
def test_norms_refuse_another_last_dimension(layer):
    with pytest.raises(ValueError, match=r"expected \[..., 4\], got float32\[2, 3\]"):
        layer(layer.init(jax.random.key(0)), jnp.ones((2, 3)))


images = jnp.asarray(1.0 + 3.0 * rng.normal(size=(2, 5, 3, 6)), jnp.float32)
affine = {
    name: jnp.asarray(rng.normal(size=6), jnp.float32) for name in ("scale", "bias")
}


@pytest.mark.parametrize("groups", [1, 2, 3, 6])
def test_group_norm_is_that_of_flax(groups):
    theirs = flax.linen.GroupNorm(groups, epsilon=1e-3, use_fast_variance=False)
    expected = theirs.apply({"params": affine}, images)
    ours = nn.GroupNorm(groups, 6, epsilon=1e-3)(affine, images)
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-5)


def test_instance_norm_is_group_norm_with_a_group_for_each_feature():
    each = nn.GroupNorm(6, 6)(affine, images)
    ours = nn.InstanceNorm(6)(affine, images)
    np.testing.assert_allclose(ours, each, rtol=1e-5, atol=1e-6)
    theirs = flax.linen.InstanceNorm(epsilon=1e-5, use_fast_variance=False)
    expected = theirs.apply({"params": affine}, images)
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layer", [nn.GroupNorm(2, 6), nn.InstanceNorm(6, bias=False)])
def test_group_and_instance_norm_keep_the_contract(layer):
    check_module(layer, images)


def test_group_and_instance_norm_refuse_what_does_not_fit():
    with pytest.raises(ValueError, match="num_groups to divide features=6, got 4"):
        nn.GroupNorm(4, 6)
    layer = nn.InstanceNorm(6)
    with pytest.raises(ValueError, match=r"expected \[batch, \*spatial, 6\]"):
        layer(affine, images[0, 0])
