import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdl as jd
from jaxdl import nn
from jaxdl.testing import check_module

x = jax.random.normal(jax.random.key(1), (3, 4))
inner = nn.Sequential([nn.LayerNorm(4), nn.Linear(4, 4), jnp.tanh])
stateful = nn.Sequential([nn.Linear(4, 4), nn.BatchNorm(4), nn.Dropout(0.5)])


def perturbed(layer):
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: leaf + rng.normal(size=leaf.shape).astype(np.float32),
        layer.init(jax.random.key(0)),
    )


@pytest.mark.parametrize("remat", [False, True, jax.checkpoint_policies.dots_saveable])
@pytest.mark.parametrize("unroll", [1, 3])
def test_repeat_is_the_block_applied_layer_by_layer(remat, unroll):
    model = nn.Repeat(nn.Residual(inner), 3, remat=remat, unroll=unroll)
    params = perturbed(model)

    def unrolled(params, x):
        for i in range(3):
            x = x + inner(model.layer_params(params, i), x)
        return x

    def value_and_grads(function):
        return jax.jit(
            jax.value_and_grad(lambda p, x: jnp.sin(function(p, x)).sum(), (0, 1))
        )

    ours, theirs = (
        value_and_grads(model)(params, x),
        value_and_grads(unrolled)(params, x),
    )
    chex.assert_trees_all_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_the_program_does_not_grow_with_depth():
    def size(depth):
        model = nn.Repeat(nn.Residual(inner), depth)
        return len(str(jax.make_jaxpr(model)(jd.abstract(model), x)).splitlines())

    assert size(2) == size(20)


def test_repeat_stacks_state_and_splits_keys_over_the_layers():
    model = nn.Repeat(stateful, 2)
    params, state = perturbed(model), model.init_state()
    key = jax.random.key(3)
    y, new = model(params, x, state, key=key, train=True)
    expected, states = x, []
    for i, layer_key in enumerate(jax.random.split(key, 2)):
        layer = model.layer_params((params, state), i)
        expected, layer_state = stateful(
            layer[0], expected, layer[1], key=layer_key, train=True
        )
        states.append(layer_state)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
    chex.assert_trees_all_close(new, stacked, rtol=1e-5, atol=1e-5)


def test_sequential_gives_each_member_that_takes_one_a_key_of_its_own():
    model = nn.Sequential([nn.Dropout(0.5), jnp.abs, nn.Dropout(0.5)])
    key, ones = jax.random.key(0), jnp.ones(100)
    first, second = jax.random.split(key)
    expected = nn.Dropout(0.5)({}, nn.Dropout(0.5)({}, ones, key=first), key=second)
    params = model.init(key)
    np.testing.assert_array_equal(model(params, ones, key=key), expected)


def test_sequential_threads_state_by_name():
    params, state = perturbed(stateful), stateful.init_state()
    y, new = stateful(params, x, state, key=None, train=True)
    hidden = nn.Linear(4, 4)(params["0"], x)
    expected, part = nn.BatchNorm(4)(params["1"], hidden, state["1"], train=True)
    chex.assert_trees_all_close((y, new), (expected, {"1": part}), rtol=1e-6)


def test_parallel_gives_every_branch_the_same_input_and_joins():
    def branches(join=None):
        return nn.Parallel([nn.Linear(4, 4), jnp.sin, nn.BatchNorm(4)], join)

    params, state = perturbed(branches()), branches().init_state()
    linear = nn.Linear(4, 4)(params["0"], x)
    norm, new = nn.BatchNorm(4)(params["2"], x, state["2"], train=True)
    outputs = branches()(params, x, state, train=True)
    chex.assert_trees_all_close(outputs, ((linear, jnp.sin(x), norm), {"2": new}))
    joined, _ = branches(lambda *parts: sum(parts))(params, x, state, train=True)
    np.testing.assert_allclose(joined, linear + jnp.sin(x) + norm, rtol=1e-5)
    with pytest.raises(TypeError, match="a member has state"):
        branches()(params, x, train=True)


def test_parallel_gives_each_branch_a_key_of_its_own(key):
    model = nn.Parallel([nn.Dropout(0.5), jnp.abs, nn.Dropout(0.5)])
    first, same, second = model(model.init(key), jnp.ones(100), key=key)
    assert (same == 1).all() and not jnp.array_equal(first, second)


def test_residual_adds_and_keeps_the_path_of_its_inner_layer():
    layer = nn.Residual(inner)
    params = perturbed(layer)
    assert jd.abstract(layer) == jd.abstract(inner)
    np.testing.assert_allclose(layer(params, x), x + inner(params, x), rtol=1e-6)


def test_keywords_go_to_the_members_whose_signature_names_them():
    attention = nn.Attention(4, 2, rope=nn.RoPE(2))
    model = nn.Sequential([nn.Linear(4, 4), nn.Repeat(nn.Residual(attention), 2)])
    params, batch = perturbed(model), x[None]
    positions = jnp.array([4, 5, 6])
    ours = model(params, batch, positions=positions, mask=None)
    expected = nn.Linear(4, 4)(params["0"], batch)
    for i in range(2):
        layer = jax.tree.map(lambda leaf, i=i: leaf[i], params["1"])
        expected = expected + attention(layer, expected, positions=positions)
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-5)
    assert nn.keywords(model) == nn.keywords(attention) >= {"mask", "positions", "key"}


def test_a_plain_function_may_take_a_keyword_too():
    def noisy(x, *, key):
        return x + jax.random.normal(key, x.shape)

    model = nn.Sequential([nn.Linear(4, 4), noisy])
    params, key = perturbed(model), jax.random.key(0)
    expected = noisy(nn.Linear(4, 4)(params["0"], x), key=key)
    (only,) = jax.random.split(key, 1)
    expected = noisy(nn.Linear(4, 4)(params["0"], x), key=only)
    np.testing.assert_allclose(model(params, x, key=key), expected, rtol=1e-6)


@pytest.mark.parametrize("model", [inner, nn.Residual(inner), nn.Repeat(inner, 2)])
def test_a_keyword_that_nobody_takes_is_refused(model):
    with pytest.raises(
        TypeError, match="no member takes the keyword 'train'; taken: none"
    ):
        model(perturbed(model), x, train=True)


def test_a_key_that_is_forgotten_is_an_error_at_any_depth():
    model = nn.Sequential([nn.Repeat(nn.Residual(nn.Sequential([nn.Dropout(0.1)])), 2)])
    with pytest.raises(TypeError, match="0/0: dropout with rate 0.1 needs key"):
        model(model.init(jax.random.key(0)), x)


def test_state_that_is_missing_or_not_wanted_is_an_error():
    with pytest.raises(TypeError, match=r"Sequential: a member has state: call it"):
        stateful(perturbed(stateful), x, key=None, train=True)
    with pytest.raises(TypeError, match="no member has state, but state was given"):
        inner(perturbed(inner), x, {})


def test_a_block_that_changes_the_shape_is_refused():
    for model in (nn.Repeat(nn.Linear(4, 5), 2), nn.Residual(nn.Linear(4, 5))):
        with pytest.raises(ValueError, match=r"to keep .*3, 4.*, got float32\[3, 5\]"):
            model(perturbed(model), x)


def test_params_of_another_depth_are_refused():
    params = perturbed(nn.Repeat(inner, 3))
    with pytest.raises(
        ValueError, match=r"Repeat: expected \[2, ...\], got float32\[3, "
    ):
        nn.Repeat(inner, 2)(params, x)


@pytest.mark.parametrize(
    ("model", "given"),
    [
        (inner, {}),
        (nn.Residual(inner), {}),
        (nn.Repeat(inner, 2, remat=True), {}),
        (
            nn.Sequential(
                [nn.Linear(4, 4), nn.Repeat(nn.Sequential([nn.Dropout(0.5)]), 2)]
            ),
            {},
        ),
        (
            nn.Sequential([nn.Linear(4, 4, bias=False), nn.BatchNorm(4)]),
            {"train": True},
        ),
    ],
)
def test_combinators_keep_the_contract(model, given):
    check_module(model, x, **given)
