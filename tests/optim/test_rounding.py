import functools

import chex
from hypothesis import given
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxdl as jd
from jaxdl import optim, train
from jaxdl.optim.rounding import path_key

NUMBER = 2**14


@functools.partial(jax.jit, static_argnums=2)
def rounded(key, x, number=NUMBER):
    return optim.round_stochastically(key, jnp.full(number, x, jnp.float32))


@given(st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_rounds_to_a_neighbour_by_its_distance(x):
    x = np.float32(x)
    down = (x.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)  # towards 0
    up = (down.view(np.uint32) + np.uint32(0x10000)).view(np.float32)
    found = np.asarray(rounded(jax.random.key(0), x)).astype(np.float32)
    ups = (found != down).sum()
    assert np.isin(found, [down, up]).all()
    share = float(int(x.view(np.uint32)) & 0xFFFF) / 2**16
    # The number of ups is binomial. By Hoeffding it is further away with a
    # probability below 2 exp(-2 * 16) = 3e-14.
    assert abs(ups - NUMBER * share) <= 4 * NUMBER**0.5
    if share == 0:
        assert ups == 0


def test_what_is_not_finite_stays():
    for x in (np.inf, -np.inf, np.nan):
        found = np.asarray(rounded(jax.random.key(0), x), np.float32)
        np.testing.assert_array_equal(found, x)


def descend(optimizer, params, steps):
    """Moves every parameter by -1/1024 a step."""

    @jax.jit
    def run(params, state):
        def step(carry, _):
            params, state = carry
            grads = jax.tree.map(jnp.ones_like, params)
            updates, state = optimizer.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, state), None, steps)[0]

    return run(params, optimizer.init(params))


def test_moves_on_average_where_rounding_to_nearest_stands_still():
    params = {"w": jnp.full(400, 2.0, jnp.bfloat16), "bias": jnp.ones(2)}
    plain, _ = descend(optax.sgd(2**-10), params, 512)
    assert (plain["w"] == 2).all()
    moved, _ = descend(optim.stochastic_rounding(optax.sgd(2**-10)), params, 512)
    assert moved["w"].dtype == jnp.bfloat16
    # Each moves by steps of 1/128, one in 8: a variance of 512 (7 / 64) / 128² for
    # each of 400. Six standard deviations of the mean:
    bound = 6 * (512 * 7 / 64 / 128**2 / 400) ** 0.5
    assert abs(float(moved["w"].astype(jnp.float32).mean()) - 1.5) < bound
    np.testing.assert_allclose(moved["bias"], 0.5)


def test_what_is_applied_is_exactly_what_was_rounded():
    rng = np.random.default_rng(0)
    params = jnp.asarray(rng.normal(size=4096), jnp.bfloat16)
    grads = jnp.asarray(
        rng.normal(size=4096) * 10.0 ** rng.uniform(-6, 1, 4096), jnp.float32
    )
    optimizer = optim.stochastic_rounding(optax.sgd(1.0))
    updates, _ = jax.jit(optimizer.update)(grads, optimizer.init(params), params)
    key = path_key(jax.random.fold_in(jax.random.key(0), 0), "")
    exact = params.astype(jnp.float32) - grads
    expected = optim.round_stochastically(key, exact)
    np.testing.assert_array_equal(optax.apply_updates(params, updates), expected)
    assert (expected != exact.astype(jnp.bfloat16)).mean() > 0.1


def test_follows_from_the_seed_and_the_step():
    params = {
        "w": jnp.full(64, 2.0, jnp.bfloat16),
        "v": jnp.full(64, 2.0, jnp.bfloat16),
    }

    @jax.jit
    def step(params, state):
        updates, state = optim.stochastic_rounding(sgd).update(params, state, params)
        return optax.apply_updates(params, updates), state

    sgd = optax.sgd(2**-10)
    first, other = (
        step(params, optim.stochastic_rounding(sgd, seed).init(params))[0]
        for seed in (0, 1)
    )
    state = optim.stochastic_rounding(sgd).init(params)
    again, later = step(params, state)
    chex.assert_trees_all_equal(first, again)
    assert (first["w"] != other["w"]).any()
    assert (first["w"] != first["v"]).any()
    assert (first["w"] != step(params, later)[0]["w"]).any()


def test_the_optimiser_sees_float32():
    params = {"w": jnp.ones(3, jnp.bfloat16)}
    optimizer = optim.stochastic_rounding(optax.adamw(1e-3))
    state = jax.eval_shape(optimizer.init, params)
    dtypes = {x.dtype for x in jax.tree.leaves(state.inner_state) if x.ndim}
    assert dtypes == {jnp.dtype("float32")}
    with pytest.raises(ValueError, match="update\\(..., params\\)"):
        optimizer.update(params, optimizer.init(params))


def test_trains_in_the_step_and_on_a_mesh():
    """The step of jaxdl.train needs no option for it, and sharding changes no bit."""
    optimizer = optim.stochastic_rounding(optax.adam(1e-3))
    params = {"w": jnp.ones((8, 4), jnp.bfloat16)}

    def loss(params, batch):
        return jnp.sum(jnp.square(params["w"] - 2.0)).astype(jnp.float32)

    state = train.TrainState.create(params, optimizer, key=jax.random.key(0))
    mesh = jd.mesh(fsdp=8)
    placed = jd.shard.place(params, mesh, {"embed": "fsdp"}, axes=("embed",))
    split = train.TrainState.create(placed, optimizer, key=jax.random.key(0))
    step = train.make_step(loss, optimizer)
    for _ in range(3):
        state, _ = step(state, {})
        split, _ = step(split, {})
    np.testing.assert_array_equal(state.params["w"], split.params["w"])
    assert len(np.unique(np.asarray(state.params["w"], np.float32))) > 1
