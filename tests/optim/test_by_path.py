import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdl import nn, optim
from jaxdl.core import tree

rng = np.random.default_rng(0)
params = nn.Sequential([nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2)]).init(
    jax.random.key(0)
)


def gradients():
    return jax.tree.map(
        lambda p: jnp.asarray(rng.normal(size=p.shape), p.dtype), params
    )


def run(optimizer, params, steps):
    """Trains on the given gradients, one jitted update after the other."""

    @jax.jit
    def update(params, state, grads):
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    state = optimizer.init(params)
    for grads in steps:
        params, state = update(params, state, grads)
    return params, state


def test_a_factor_is_a_learning_rate_of_its_own():
    steps = [gradients() for _ in range(3)]
    scale = optim.scale_by_path({"0/**": 10.0, "**/scale": 0.0})
    ours, _ = run(optax.chain(optax.adam(1e-3), scale), params, steps)
    usual, _ = run(optax.adam(1e-3), params, steps)
    fast, _ = run(optax.adam(1e-2), params, steps)
    for path, leaf in tree.flatten(ours).items():
        expected = {"0": fast, "1": usual, "2": usual}[path[0]]
        if path.endswith("scale"):
            expected = params
        np.testing.assert_allclose(
            leaf, tree.flatten(expected)[path], rtol=1e-5, atol=1e-7
        )


def test_a_factor_may_be_a_schedule():
    schedule = optax.linear_schedule(0.0, 2.0, 2)
    scale = optim.scale_by_path({"2/bias": schedule})
    state, ones = scale.init(params), jax.tree.map(jnp.ones_like, params)
    seen = []
    for _ in range(3):
        updates, state = scale.update(ones, state)
        seen.append(float(updates["2"]["bias"][0]))
        assert (updates["2"]["kernel"] == 1).all()
    assert seen == [0.0, 1.0, 2.0]


def test_a_pattern_that_fits_nothing_and_a_leaf_that_fits_two_are_errors():
    with pytest.raises(ValueError, match="'3/\\*\\*' fits no path"):
        optim.scale_by_path({"3/**": 1.0}).init(params)
    with pytest.raises(ValueError, match="0/bias: expected one pattern that fits"):
        optim.scale_by_path({"0/**": 1.0, "**/bias": 2.0}).init(params)


def test_frozen_leaves_keep_every_bit_and_have_no_state():
    optimizer = optim.freeze(optax.adamw(1e-2, weight_decay=0.5), ["0/**", "**/scale"])
    trained, state = run(optimizer, params, [gradients() for _ in range(3)])
    chex.assert_trees_all_equal(trained["0"], params["0"])
    np.testing.assert_array_equal(trained["1"]["scale"], params["1"]["scale"])
    assert not np.array_equal(trained["2"]["kernel"], params["2"]["kernel"])
    arrays = [path for path in tree.flatten(state) if "/mu/" in path]
    assert {path.split("/mu/")[1] for path in arrays} == {
        "1/bias",
        "2/bias",
        "2/kernel",
    }


def test_the_leaves_that_are_not_frozen_train_as_if_alone():
    steps = [gradients() for _ in range(3)]
    ours, _ = run(optim.freeze(optax.adamw(1e-2), "0/**"), params, steps)
    rest = {name: params[name] for name in "12"}
    alone, _ = run(optax.adamw(1e-2), rest, [{n: g[n] for n in "12"} for g in steps])
    chex.assert_trees_all_close({n: ours[n] for n in "12"}, alone, rtol=1e-6)


def test_freezing_nothing_is_an_error():
    with pytest.raises(ValueError, match="fits no path"):
        optim.freeze(optax.sgd(0.1), "backbone/**").init(params)


def test_patterns_may_name_what_an_outer_freeze_has_taken_away():
    inner = optax.chain(
        optax.adamw(1e-2, mask=optim.decay_mask("**/scale")),
        optim.scale_by_path({"0/**": 0.5}),
        optim.freeze(optax.identity(), "1/*"),
    )
    steps = [gradients()]
    ours, _ = run(optim.freeze(inner, ["0/**", "1/**"]), params, steps)
    plain, _ = run(optim.freeze(optax.adamw(1e-2), ["0/**", "1/**"]), params, steps)
    chex.assert_trees_all_close(ours, plain, rtol=1e-6)


def test_optax_finds_the_parameters_within_their_states():
    inner = optax.adamw(1e-3, mask=optim.decay_mask("**/bias"))
    scale = optim.scale_by_path({"2/**": optax.constant_schedule(2.0)})
    optimizer = optim.freeze(optax.chain(inner, scale), "0/**")
    paths = tree.map_with_path(lambda path, _: path, params)
    state = optax.tree_utils.tree_map_params(
        optimizer,
        lambda leaf, path: path,
        optimizer.init(params),
        paths,
        transform_non_params=lambda leaf: None,
        is_leaf=lambda x: isinstance(x, optax.MaskedNode),
    )
    named = tree.flatten(state)
    trained = {path for path in named if "trained" in path}
    assert {named[path] for path in trained} == set(tree.flatten(params))
    assert all(path.endswith(named[path]) for path in trained)


def test_any_pytree_will_do():
    tuples = ({"w": jnp.ones(2)}, [jnp.ones(3)])
    optimizer = optim.freeze(optax.sgd(1.0), "0/w")
    updates, _ = optimizer.update(tuples, optimizer.init(tuples), tuples)
    assert (updates[0]["w"] == 0).all() and (updates[1][0] == -1).all()


def test_decay_spares_biases_and_scales_or_what_is_named():
    mask = tree.flatten(optim.decay_mask()(params))
    assert {path for path, decayed in mask.items() if decayed} == {
        "0/kernel",
        "2/kernel",
    }
    named = tree.flatten(optim.decay_mask("0/**")(params))
    assert {path for path, decayed in named.items() if not decayed} == {
        "0/kernel",
        "0/bias",
    }
    with pytest.raises(ValueError, match="fits no path"):
        optim.decay_mask("embed/**")(params)


def test_the_mask_is_what_optax_takes():
    zeros = jax.tree.map(jnp.zeros_like, params)
    decayed, _ = run(
        optax.adamw(1e-1, weight_decay=1.0, mask=optim.decay_mask()), params, [zeros]
    )
    np.testing.assert_array_equal(decayed["1"]["scale"], params["1"]["scale"])
    np.testing.assert_allclose(
        decayed["0"]["kernel"], 0.9 * params["0"]["kernel"], rtol=1e-5
    )
