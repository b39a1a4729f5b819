import functools

import chex
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
import numpy as np
import optax
import pytest
from sklearn.datasets import load_digits

import jaxdl as jd
from jaxdl import models, nn, optim
from jaxdl.core import tree

rng = np.random.default_rng(0)


def draw(shape):
    return jnp.asarray(rng.normal(size=shape), jnp.float32)


SMALL = {
    "8bit": functools.partial(optim.adamw_8bit, min_size=1),
    "bf16": optim.adamw_bf16,
}


@functools.cache
def digits():
    images, labels = load_digits(return_X_y=True)
    return jnp.asarray(images / 16, jnp.float32), jnp.asarray(labels)


@functools.cache
def losses(make):
    """The training loss of each of 200 steps on handwritten digits."""
    images, labels = digits()
    model = models.mlp([64, 64, 10])
    optimizer = make(3e-3)

    def loss(params, rows):
        logits = model(params, images[rows])
        return optax.softmax_cross_entropy_with_integer_labels(
            logits, labels[rows]
        ).mean()

    @jax.jit
    def train(params):
        def step(carry, key):
            params, state = carry
            rows = jax.random.randint(key, (128,), 0, len(labels))
            value, grads = jax.value_and_grad(loss)(params, rows)
            updates, state = optimizer.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), value

        keys = jax.random.split(jax.random.key(1), 200)
        return jax.lax.scan(step, (params, optimizer.init(params)), keys)[1]

    return np.asarray(train(model.init(jax.random.key(0))))


@pytest.mark.parametrize(("kind", "margin"), [("8bit", 0.03), ("bf16", 0.001)])
def test_learns_as_with_float32(kind, margin):
    """The means over 20 steps stay within the margin all along."""
    ours, exact = losses(SMALL[kind]), losses(optax.adamw)
    smooth = functools.partial(np.convolve, np.ones(20) / 20, mode="valid")
    np.testing.assert_allclose(smooth(ours), smooth(exact), rtol=margin)
    assert exact[-20:].mean() < 0.1 * exact[0]


@jax.jit
def first_updates(params, grads):
    makes = [*SMALL.values(), optax.adamw]
    return [
        optimizer.update(grads, optimizer.init(params), params)[0]
        for optimizer in (make(1e-2, weight_decay=0.1) for make in makes)
    ]


def test_the_first_step_is_that_of_adamw():
    params, grads = draw((2, 8, 300))
    *ours, plain = first_updates(params, grads)
    for updates in ours:
        np.testing.assert_allclose(updates, plain, rtol=1e-5)


def test_bytes_for_each_parameter():
    model = nn.Sequential([nn.Embedding(64, 512), nn.Repeat(nn.Linear(512, 512), 4)])
    params = jd.abstract(model)

    def moments(optimizer, pattern="**"):
        state = tree.flatten(jax.eval_shape(optimizer.init, params))
        found = {p: leaf for p, leaf in state.items() if tree.matches(pattern, p)}
        return tree.nbytes({p: x for p, x in found.items() if x.ndim})

    weights = 4 * 512 * 512
    numbers = weights + 64 * 512 + 4 * 512
    assert moments(optax.adamw(1e-3)) == 8 * numbers
    assert moments(optim.adamw_bf16(1e-3)) == 4 * numbers
    small = optim.adamw_8bit(1e-3, keep=jd.paths(model, role="embedding"))
    # Two bytes, and two scales of four for every 256.
    assert moments(small, "**/1/kernel") == weights * (2 + 8 / 256)
    assert moments(small, "**/0/embedding") == 8 * 64 * 512
    assert moments(small, "**/1/bias") == 8 * 4 * 512


def test_states_are_sharded_as_their_parameters():
    mesh = jd.mesh(fsdp=4, tensor=2)
    model = nn.Repeat(nn.Linear(8, 512, axes=("embed", "mlp")), 3)
    placed = jd.shard.shardings(model, mesh, jd.shard.FSDP_TENSOR)
    optimizer = optim.adamw_8bit(1e-3, min_size=1)
    follow = jd.shard.optimizer_state(optimizer, model, placed)
    state = follow[0].inner_states["8bit"].inner_state
    for name in ("mu", "nu"):
        kernel, scale = (
            getattr(state, n)["kernel"].spec for n in (name, f"{name}_scale")
        )
        assert kernel == PartitionSpec(None, "fsdp", "tensor")
        assert scale == PartitionSpec(None, "fsdp")
    params = jax.tree.map(lambda x: draw(x.shape), jd.abstract(model))
    step = jax.jit(optimizer.update, out_shardings=(placed, follow))
    update = jax.jit(optimizer.update)
    whole = jax.jit(optimizer.init)(params)
    split = jax.device_put(whole, follow)
    for _ in range(2):
        one, whole = update(params, whole, params)
        many, split = step(jax.device_put(params, placed), split, params)
    chex.assert_trees_all_close(one, many, rtol=1e-6)
    chex.assert_trees_all_equal(*(s[0].inner_states["8bit"] for s in (whole, split)))


def test_the_second_moment_shrinks_in_bfloat16_too():
    """To nearest it would stay where it is: 0.999 of a number is that number."""
    optimizer = optim.scale_by_adam_bf16()
    state = optimizer.init(jnp.zeros(2000))
    state = state._replace(nu=jnp.ones(2000, jnp.bfloat16), count=jnp.int32(1000))

    @jax.jit
    def run(state):
        def step(_, state):
            return optimizer.update(jnp.zeros(2000), state)[1]

        return jax.lax.fori_loop(0, 500, step, state)

    state = run(state)
    left = float(state.nu.astype(jnp.float32).mean())
    # Each step moves a number by at most 2^-8, so its variance is below 500 * 2^-16.
    bound = 6 * (500 * 2**-16 / 2000) ** 0.5
    assert abs(left - 0.999**500) < bound


def test_optax_finds_the_parameters_in_the_states():
    params = {"w": jnp.ones((4, 300)), "b": jnp.ones(300)}
    paths = {"w": "w", "b": "b"}
    for make, trees in ((SMALL["8bit"], 4), (SMALL["bf16"], 2)):
        named = optax.tree_utils.tree_map_params(
            make(1e-3),
            lambda leaf, path: leaf if isinstance(leaf, optax.MaskedNode) else path,
            jax.eval_shape(make(1e-3).init, params),
            paths,
            transform_non_params=lambda leaf: None,
            is_leaf=lambda x: isinstance(x, optax.MaskedNode),
        )
        found = tree.flatten(named)
        assert all(path.endswith(name) for path, name in found.items())
        assert list(found.values()).count("w") == trees


def test_keeping_what_is_not_there_is_an_error():
    with pytest.raises(ValueError, match="'embed/\\*\\*' fits no path"):
        optim.adamw_8bit(1e-3, keep="embed/**").init({"w": jnp.ones((2, 2))})
