"""TrainState: nothing is shared, nothing is weakly typed, one mesh for all."""

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
import numpy as np
import optax
import pytest

from jaxdl.train import TrainState

PARAMS = {"kernel": jnp.arange(6.0).reshape(2, 3), "bias": jnp.zeros(3)}


def pointers(tree):
    leaves = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.number)]
    return [leaf.unsafe_buffer_pointer() for leaf in leaves]


def test_no_two_leaves_share_a_buffer_and_none_is_the_callers(key):
    # The lookahead wrapper keeps a second copy of the params; the bias is tied to
    # itself.
    params = {**PARAMS, "tied": PARAMS["bias"]}
    optimizer = optax.contrib.schedule_free_sgd(0.1)
    state = TrainState.create(params, optimizer, key=key, ema=True, model_state=params)
    held = pointers(state)
    assert len(set(held)) == len(held)
    assert not set(held) & set(pointers(params))


def test_weak_types_become_strong_and_numpy_becomes_jax(key):
    params = {"scale": jnp.asarray(2.0), "shift": np.ones(3, np.float32)}
    assert jax.typeof(params["scale"]).weak_type
    state = TrainState.create(params, optax.sgd(0.1), key=key)
    assert not any(jax.typeof(leaf).weak_type for leaf in jax.tree.leaves(state))
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(state))
    assert state.params["shift"].dtype == jnp.float32


def test_the_average_of_bfloat16_params_is_float32(key):
    params = {"w": jnp.ones(2, jnp.bfloat16)}
    state = TrainState.create(params, optax.sgd(0.1), key=key, ema=True)
    assert state.params["w"].dtype == jnp.bfloat16
    assert state.ema["w"].dtype == jnp.float32


def test_leaves_of_one_device_follow_the_params_onto_their_mesh(key):
    mesh = jax.make_mesh((8,), ("data",))
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    params = {"w": jax.device_put(jnp.ones(16), sharding)}
    state = TrainState.create(params, optax.adam(0.1), key=key)
    assert state.opt_state[0].mu["w"].sharding == sharding
    for leaf in (state.step, state.key, state.skipped, state.opt_state[0].count):
        assert leaf.sharding == NamedSharding(mesh, PartitionSpec())


def test_an_old_style_key_is_refused():
    with pytest.raises(TypeError, match=r"jax.random.key\(seed\)"):
        TrainState.create(PARAMS, optax.sgd(0.1), key=jnp.zeros(2, jnp.uint32))
