"""The step: the hand-written loop's numbers, donated, compiled once, skipped whole."""

import re

import chex
from flax import linen
import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec
import numpy as np
import optax
import pytest

from jaxdl.core.precision import Policy
from jaxdl.train import TrainState, make_step

OPTIMIZER = optax.adamw(1e-2)


def initial(key):
    up, down = jax.random.split(key)
    return {
        "up": {"kernel": jax.random.normal(up, (4, 8)) / 2, "bias": jnp.zeros(8)},
        "down": {"kernel": jax.random.normal(down, (8, 3)) / 3},
    }


def forward(params, x):
    return (
        jnp.tanh(x @ params["up"]["kernel"] + params["up"]["bias"])
        @ (params["down"]["kernel"])
    )


def loss_fn(params, batch):
    return jnp.mean((forward(params, batch["x"]) - batch["y"]) ** 2)


def weighted_loss(params, batch):
    """A mean over the tokens that the mask keeps."""
    errors = jnp.sum((forward(params, batch["x"]) - batch["y"]) ** 2, axis=-1)
    weight = batch["mask"].sum()
    loss = jnp.sum(errors * batch["mask"]) / weight
    largest = jnp.sum(batch["y"][:, 0] * batch["mask"]) / weight
    return loss, {"weight": weight, "metrics": {"first": largest}}


def dropout_loss(params, batch, key):
    kept = jax.random.bernoulli(key, 0.5, batch["x"].shape)
    return loss_fn(params, {**batch, "x": batch["x"] * kept})


def batch_of(key, size=8):
    x, y, mask = jax.random.split(key, 3)
    return {
        "x": jax.random.normal(x, (size, 4)),
        "y": jax.random.normal(y, (size, 3)),
        "mask": jax.random.bernoulli(mask, 0.6, (size,)).astype(jnp.float32),
    }


def state_of(key, **options):
    return TrainState.create(initial(key), OPTIMIZER, key=key, **options)


def mesh_of_four(axis_type):
    return jax.make_mesh((4,), ("data",), (axis_type,), devices=jax.devices()[:4])


def snapshot(state):
    """The bits of every leaf, as numpy: the state itself is donated."""

    def bits(leaf):
        is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        # A copy: on CPU an array shares its memory with the buffer that is donated.
        return np.array(jax.random.key_data(leaf) if is_key else leaf)

    return jax.tree.map(bits, state)


def assert_same_bits(one, other):
    chex.assert_trees_all_equal(one, other, strict=True)


def test_it_is_the_hand_written_optax_loop(key):
    @jax.jit
    def by_hand(params, opt_state, batch):
        loss, grads = jax.value_and_grad(loss_fn)(params, batch)
        updates, opt_state = OPTIMIZER.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss

    state, step = state_of(key), make_step(loss_fn, OPTIMIZER)
    params, opt_state = initial(key), OPTIMIZER.init(initial(key))
    for index in range(5):
        batch = batch_of(jax.random.fold_in(key, index))
        params, opt_state, loss = by_hand(params, opt_state, batch)
        state, metrics = step(state, batch)
        assert metrics["loss"] == loss
    chex.assert_trees_all_close(state.params, params, rtol=1e-6)
    chex.assert_trees_all_close(state.opt_state, opt_state, rtol=1e-6)
    assert state.step == 5


def test_clipping_is_optax_and_the_norm_is_reported_before_it(key):
    batch, params = batch_of(key), initial(key)
    grads = jax.grad(loss_fn)(params, batch)
    chain = optax.chain(optax.clip_by_global_norm(0.1), optax.sgd(1.0))
    updates, _ = chain.update(grads, chain.init(params), params)

    state = TrainState.create(params, optax.sgd(1.0), key=key)
    state, metrics = make_step(loss_fn, optax.sgd(1.0), clip_norm=0.1)(state, batch)
    chex.assert_trees_all_close(
        state.params, optax.apply_updates(params, updates), rtol=1e-6
    )
    np.testing.assert_allclose(metrics["grad_norm"], optax.tree.norm(grads), rtol=1e-6)
    assert metrics["grad_norm"] > 0.1


def gradient_by_step(key, loss, batch, accumulate):
    """With a learning rate of 1 the params move by the gradient itself."""
    params = initial(key)
    state = TrainState.create(params, optax.sgd(1.0), key=key)
    step = make_step(loss, optax.sgd(1.0), accumulate=accumulate)
    state, metrics = step(state, batch)
    return jax.tree.map(jnp.subtract, params, state.params), metrics


@pytest.mark.parametrize("accumulate", [2, 4])
def test_accumulation_is_the_full_batch_whatever_the_weights(key, accumulate):
    batch = batch_of(key)
    # Microbatch 0 holds no token at all, the others hold different numbers of them.
    mask = batch["mask"].at[0::accumulate].set(0).at[1].set(1)
    batch = {**batch, "mask": mask}
    whole, metrics = gradient_by_step(key, weighted_loss, batch, 1)
    parts, accumulated = gradient_by_step(key, weighted_loss, batch, accumulate)
    chex.assert_trees_all_close(parts, whole, atol=1e-6)
    chex.assert_trees_all_close(accumulated, metrics, rtol=1e-6)
    assert accumulated["weight"] == mask.sum()


def test_accumulation_without_weights_is_the_full_batch(key):
    whole, metrics = gradient_by_step(key, loss_fn, batch_of(key), 1)
    parts, accumulated = gradient_by_step(key, loss_fn, batch_of(key), 4)
    chex.assert_trees_all_close(parts, whole, atol=1e-6)
    chex.assert_trees_all_close(accumulated, metrics, rtol=1e-6)


def test_a_batch_that_does_not_divide_is_named(key):
    step = make_step(loss_fn, OPTIMIZER, accumulate=3)
    with pytest.raises(ValueError, match=r"batch/mask: .*accumulate=3.*\(8,\)"):
        jax.eval_shape(step, state_of(key), batch_of(key))


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_microbatches_of_a_sharded_batch_are_spread_over_all_devices(key, axis_type):
    mesh = mesh_of_four(axis_type)
    rows = NamedSharding(mesh, PartitionSpec("data"))
    batch = jax.device_put(batch_of(key, size=24), rows)
    params = jax.device_put(initial(key), NamedSharding(mesh, PartitionSpec()))
    state = TrainState.create(params, OPTIMIZER, key=key)
    step = make_step(loss_fn, OPTIMIZER, accumulate=2, shardings=state.shardings)
    text = step.lower(state, batch).compile().as_text()
    # Each device has 6 of the 24 rows, 3 of each microbatch, and needs no others'.
    assert re.search(r"f32\[3,8\]", text)
    assert not re.search(r"f32\[(6|12|24),8\]", text)
    assert not re.search(r"all-gather|all-to-all|collective-permute", text)


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_the_result_keeps_the_shardings_and_traces_once(key, axis_type):
    mesh = mesh_of_four(axis_type)
    split = NamedSharding(mesh, PartitionSpec("data"))
    whole = NamedSharding(mesh, PartitionSpec())
    params = initial(key)
    params["up"]["kernel"] = jax.device_put(params["up"]["kernel"], split)
    params = {"up": params["up"], "down": jax.device_put(params["down"], whole)}
    state = TrainState.create(params, OPTIMIZER, key=key, ema=True)
    layout = state.shardings
    step = make_step(loss_fn, OPTIMIZER, shardings=layout, ema_decay=0.9)
    batch = jax.device_put(batch_of(key), split)
    for _ in range(2):
        state, _ = step(state, batch)
        assert state.shardings == layout
    assert step._cache_size() == 1


class Net(linen.Module):
    @linen.compact
    def __call__(self, x, train):
        x = linen.BatchNorm(use_running_average=not train, momentum=0.9)(x)
        return linen.Dense(3)(linen.Dropout(0.5, deterministic=not train)(x))


def test_a_flax_model_trains_with_its_batch_statistics_as_the_state(key):
    net, batch = Net(), batch_of(key)
    variables = net.init(key, batch["x"], train=False)

    def flax_loss(params, batch, *, key, state):
        predicted, updated = net.apply(
            {"params": params, "batch_stats": state},
            batch["x"],
            train=True,
            rngs={"dropout": key},
            mutable=["batch_stats"],
        )
        loss = jnp.mean((predicted - batch["y"]) ** 2)
        return loss, {"state": updated["batch_stats"]}

    state = TrainState.create(
        variables["params"], OPTIMIZER, key=key, model_state=variables["batch_stats"]
    )
    state, _ = make_step(flax_loss, OPTIMIZER)(state, batch)
    running = state.model_state["BatchNorm_0"]["mean"]
    np.testing.assert_allclose(running, 0.1 * batch["x"].mean(axis=0), rtol=1e-5)


def test_the_state_goes_through_the_microbatches_in_order(key):
    def counting(params, batch, state):
        total = batch["x"].sum()
        return loss_fn(params, batch), {"state": 10 * state + total}

    batch = batch_of(key) | {"x": jnp.arange(8.0)[:, None] * jnp.ones((8, 4))}
    state = state_of(key, model_state=jnp.float32(0))
    state, _ = make_step(counting, OPTIMIZER, accumulate=2)(state, batch)
    even, odd = 4 * (0 + 2 + 4 + 6), 4 * (1 + 3 + 5 + 7)
    assert state.model_state == 10 * even + odd


def test_the_second_call_does_not_trace(key):
    traces = []

    def counted(params, batch):
        traces.append(1)
        return loss_fn(params, batch)

    state, step = state_of(key, ema=True), make_step(counted, OPTIMIZER, ema_decay=0.9)
    for index in range(3):
        state, _ = step(state, batch_of(jax.random.fold_in(key, index)))
    assert len(traces) == 1


def test_every_leaf_of_the_state_is_donated(key, optimized):
    def loss(params, batch, key, state):
        return dropout_loss(params, batch, key), {"state": state + 1}

    state = state_of(key, ema=True, model_state=jnp.float32(0))
    step = make_step(loss, OPTIMIZER, ema_decay=0.9, accumulate=2, clip_norm=1.0)
    text = step.lower(state, batch_of(key)).compile().as_text()
    aliases = re.search(r"input_output_alias=\{ (.*?) \}, ", text)
    assert aliases is not None
    # The key comes back as it went in: jit hands the same buffer on.
    returned = len(jax.tree.leaves(state))
    assert aliases.group(1).count("-alias") == returned

    before = jax.tree.leaves(state)
    step(state, batch_of(key))
    assert all(leaf.is_deleted() for leaf in before)


@pytest.mark.parametrize("poison", [jnp.nan, jnp.inf])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_step_that_is_not_finite_changes_nothing_and_is_counted(
    key, poison, accumulate
):
    def loss(params, batch, state):
        return loss_fn(params, batch), {"state": state + batch["x"].sum()}

    step = make_step(loss, OPTIMIZER, ema_decay=0.9, accumulate=accumulate)
    state = state_of(key, ema=True, model_state=jnp.float32(0))
    state, _ = step(state, batch_of(key))
    before = snapshot(state)
    bad = batch_of(key)
    state, metrics = step(state, bad | {"x": bad["x"].at[3, 1].set(poison)})
    assert metrics["skipped"] == 1
    expected = before.replace(step=before.step + 1, skipped=before.skipped + 1)
    assert_same_bits(snapshot(state), expected)

    state, metrics = step(state, batch_of(key))
    assert metrics["skipped"] == 1 and state.step == 3
    assert not np.array_equal(
        state.params["up"]["kernel"], before.params["up"]["kernel"]
    )


def test_skipping_can_be_turned_off(key):
    bad = batch_of(key)
    bad["x"] = bad["x"].at[0, 0].set(jnp.nan)
    state, metrics = make_step(loss_fn, OPTIMIZER, skip_nonfinite=False)(
        state_of(key), bad
    )
    assert jnp.isnan(state.params["up"]["kernel"]).any() and metrics["skipped"] == 0


def test_the_average_has_its_closed_form(key):
    decay, history = 0.8, [initial(key)]
    state, step = state_of(key, ema=True), make_step(loss_fn, OPTIMIZER, ema_decay=0.8)
    for index in range(4):
        state, _ = step(state, batch_of(jax.random.fold_in(key, index)))
        history.append(jax.tree.map(jnp.copy, state.params))
    weights = [decay**4] + [(1 - decay) * decay ** (4 - i) for i in range(1, 5)]

    def closed(*values):
        return sum(w * v for w, v in zip(weights, values, strict=True))

    chex.assert_trees_all_close(state.ema, jax.tree.map(closed, *history), rtol=1e-5)


def test_an_average_that_is_missing_or_would_stand_still_is_an_error(key):
    with pytest.raises(ValueError, match="ema=True"):
        jax.eval_shape(
            make_step(loss_fn, OPTIMIZER, ema_decay=0.9), state_of(key), batch_of(key)
        )
    with pytest.raises(ValueError, match="give make_step an ema_decay"):
        jax.eval_shape(
            make_step(loss_fn, OPTIMIZER), state_of(key, ema=True), batch_of(key)
        )


def test_a_policy_casts_inside_and_keeps_float32_outside(key):
    def loss(params, batch):
        batch = {**batch, "x": batch["x"].astype(params["up"]["kernel"].dtype)}
        return loss_fn(params, batch)

    policy = Policy(jnp.bfloat16)
    step = make_step(loss, OPTIMIZER, policy=policy)
    state = state_of(key)
    dots = re.findall(
        r":(\w+)\[[\d,]*\] = dot_general", str(step.trace(state, batch_of(key)).jaxpr)
    )
    assert dots and set(dots) == {"bf16"}
    new, metrics = step(state, batch_of(key))
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(new.params))
    expected = jax.grad(lambda p: loss(policy.cast(p), batch_of(key)))(initial(key))
    np.testing.assert_allclose(
        metrics["grad_norm"], optax.tree.norm(expected), rtol=1e-2
    )


def test_seed_and_step_alone_decide_the_dropout(key):
    step = make_step(dropout_loss, OPTIMIZER)

    def loss_at(number, seed=key):
        state = state_of(key).replace(step=jnp.int32(number), key=jnp.copy(seed))
        return float(step(state, batch_of(key))[1]["loss"])

    assert loss_at(0) == loss_at(0)
    assert len({loss_at(0), loss_at(1), loss_at(0, jax.random.key(7))}) == 3
    expected = dropout_loss(initial(key), batch_of(key), jax.random.fold_in(key, 1))
    np.testing.assert_allclose(loss_at(1), expected, rtol=1e-6)


def test_every_microbatch_has_its_own_dropout(key):
    def noise(params, batch, key):
        return loss_fn(params, batch), {"metrics": {"noise": jax.random.uniform(key)}}

    _, metrics = make_step(noise, OPTIMIZER, accumulate=2)(state_of(key), batch_of(key))
    of_step = jax.random.fold_in(key, 0)
    both = [jax.random.uniform(jax.random.fold_in(of_step, i)) for i in range(2)]
    np.testing.assert_allclose(metrics["noise"], sum(both) / 2, rtol=1e-6)


def test_an_optimizer_that_looks_at_the_loss_is_given_it(key):
    optimizer = optax.chain(optax.sgd(0.1), optax.contrib.reduce_on_plateau(patience=1))
    state = TrainState.create(initial(key), optimizer, key=key)
    state, metrics = make_step(loss_fn, optimizer)(state, batch_of(key))
    assert state.opt_state[1].best_value == metrics["loss"]


@pytest.mark.parametrize(
    "options",
    [{"accumulate": 0}, {"accumulate": 1.5}, {"clip_norm": 0.0}, {"ema_decay": 1.0}],
)
def test_options_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        make_step(loss_fn, OPTIMIZER, **options)
