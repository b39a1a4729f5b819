import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdl as jd
from jaxdl import nn
from jaxdl.testing import check_module
from tests.drawn import drawn

rng = np.random.default_rng(0)
x = jnp.asarray(rng.normal(size=(3, 7, 4)), jnp.float32)
close = dict(rtol=1e-4, atol=1e-5)


ROUTERS = {
    "softmax": nn.Router(4, 6, 2, normalize=False),
    "normalised": nn.Router(4, 6, 3),
    "sigmoid, groups": nn.Router(
        4, 6, 2, "sigmoid", scale=2.5, correction=True, groups=3, top_groups=2
    ),
    "top_k, bias": nn.Router(4, 6, 2, "top_k", bias=True),
}
routers = pytest.mark.parametrize("router", ROUTERS.values(), ids=ROUTERS)


def one_by_one(layer, params, x):
    """The definition: a loop over tokens and their experts, in numpy's float64."""
    rows = np.asarray(x, np.float64).reshape(-1, layer.dim)
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    result = []
    for row in rows:
        weights, experts = chosen(layer.router, params["router"], row)
        total = np.zeros_like(row)
        for weight, e in zip(weights, experts, strict=True):
            none, parts = [0.0] * 6, params["experts"].items()
            linear = {n: (p["kernel"][e], p.get("bias", none)[e]) for n, p in parts}
            gate, up = (row @ k + b for k, b in (linear["gate"], linear["up"]))
            kernel, bias = linear["down"]
            total += weight * ((gate / (1 + np.exp(-gate)) * up) @ kernel + bias)
        result.append(total)
    return np.reshape(result, x.shape)


def chosen(router, params, row):
    logits = row @ params["kernel"] + params.get("bias", 0.0)
    if router.score == "softmax":
        scores = np.exp(logits) / np.exp(logits).sum()
    else:
        scores = 1 / (1 + np.exp(-logits)) if router.score == "sigmoid" else logits
    choice = scores + params.get("correction", 0.0)
    if router.groups > 1:
        members = choice.reshape(router.groups, -1)
        sums = np.sort(members, axis=1)[:, -2:].sum(1)
        open_groups = np.argsort(-sums)[: router.top_groups]
        for group in set(range(router.groups)) - set(open_groups):
            members[group] = -np.inf
        choice = members.ravel()
    experts = np.argsort(-choice)[: router.top_k]
    weights = scores[experts]
    if router.score == "top_k":
        weights = np.exp(weights) / np.exp(weights).sum()
    elif router.normalize:
        weights = weights / weights.sum()
    return weights * router.scale, experts


@pytest.mark.parametrize("bias", [True, False])
@routers
def test_every_dispatch_is_the_sum_over_chosen_experts(router, bias):
    settings = {"bias": bias, "capacity": 6.0, "router": router}
    dispatches = ("ragged", "dense", "capacity")
    layers = [nn.MoE(4, 5, 6, dispatch=name, **settings) for name in dispatches]
    params = drawn(layers[0], 0.7)
    expected = one_by_one(layers[0], params, x)
    for y in jax.jit(lambda params: [layer(params, x) for layer in layers])(params):
        np.testing.assert_allclose(y, expected, **close)


@pytest.mark.parametrize("dispatch", ["ragged", "capacity"])
def test_gradients_are_those_of_the_dense_form(dispatch):
    dense = nn.MoE(4, 5, 6, dispatch="dense")
    layer = nn.MoE(4, 5, 6, dispatch=dispatch, capacity=6.0)
    params = drawn(dense, 0.7)

    def loss(layer):
        return lambda p, x: jnp.sum(jnp.sin(layer(p, x)))

    ours = jax.jit(jax.grad(loss(layer), (0, 1)))(params, x)
    theirs = jax.jit(jax.grad(loss(dense), (0, 1)))(params, x)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **close), ours, theirs)


def test_a_shared_expert_sees_every_token():
    alone = nn.MoE(4, 5, 6)
    shared = nn.FeedForward(4, 8, jax.nn.silu, gated=True)
    both = nn.MoE(4, 5, 6, shared=shared)
    params = drawn(both, 0.7)

    @jax.jit
    def run(params):
        return both(params, x), alone(params, x) + shared(params["shared"], x)

    np.testing.assert_allclose(*run(params), **close)


def test_beyond_its_capacity_an_expert_takes_first_choices_of_early_tokens():
    router = nn.Router(1, 2, 1, normalize=False)
    layer = nn.MoE(1, 1, 2, 1, dispatch="capacity", capacity=0.5, router=router)
    params = drawn(layer, 0.7)
    params["router"]["kernel"] = jnp.array([[9.0, -9.0]])
    rows = jnp.array([[1.0], [1.0], [-1.0], [1.0], [-1.0], [-1.0], [1.0], [1.0]])
    y = jax.jit(layer)(params, rows)[:, 0]  # 8 tokens, 2 places at either expert
    placed = np.array([1, 1, 1, 0, 1, 0, 0, 0], bool)
    assert (np.asarray(y) != 0).tolist() == placed.tolist()


def test_an_ensemble_of_ragged_experts_is_each_of_them():
    layer = nn.MoE(4, 5, 6)
    members = [drawn(layer, 0.7, seed) for seed in range(2)]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *members)
    both = jax.jit(jax.vmap(layer))(stacked, np.stack([x, x + 1]))
    run = jax.jit(layer)
    for i, params in enumerate(members):
        np.testing.assert_allclose(both[i], run(params, x + i), **close)


@pytest.mark.parametrize("dispatch", ["capacity", "dense"])
def test_experts_keep_the_contract(dispatch):
    check_module(nn.MoE(4, 5, 3, 2, dispatch=dispatch, bias=True, capacity=3.0), x)


def test_the_program_does_not_look_at_every_expert_for_every_token():
    layer = nn.MoE(4, 5, 6)
    jaxpr = str(jax.make_jaxpr(layer)(jd.abstract(layer), x))
    assert "ragged_dot" in jaxpr and "dot_general" in jaxpr  # the router's


def test_balance_losses_are_least_where_tokens_are_spread_evenly():
    even = jnp.eye(4)[jnp.arange(8) % 4] * 20.0
    skewed = jnp.eye(4)[jnp.zeros(8, int)] * 20.0
    for logits, expected in ((even, 1.0), (skewed, 4.0)):
        loss = nn.load_balance_loss(logits, logits.argmax(-1)[:, None])
        np.testing.assert_allclose(loss, expected, rtol=1e-4)
    np.testing.assert_allclose(nn.router_z_loss(jnp.zeros((3, 4))), np.log(4) ** 2)


def test_the_correction_moves_tokens_to_idle_experts():
    router = nn.Router(4, 6, 2, "sigmoid", correction=True)
    params = {**drawn(router, 0.7), "correction": jnp.zeros(6)}
    rows = jnp.asarray(rng.normal(size=(500, 4)) + 1.0, jnp.float32)

    @jax.jit
    def spreads(params):
        def move(correction, _):
            _, experts = router({**params, "correction": correction}, rows)
            load = jnp.bincount(experts.ravel(), length=6)
            moved = nn.balanced(correction, experts, 5e-3)
            return moved, load.max() / load.mean()

        return jax.lax.scan(move, params["correction"], length=301)[1]

    before, *_, after = np.asarray(spreads(params))
    assert before > 1.5 > 1.15 > after
    grads = jax.jit(jax.grad(lambda p: router(p, rows)[0].sum()))(params)
    assert not grads["correction"].any()


def test_taps_tell_the_choices_and_feed_the_losses():
    layer = nn.Sequential([nn.MoE(4, 5, 6)])
    params = drawn(layer, 0.7)
    _, values = jax.jit(jd.capture(layer, "*/router/*"))(params, x)
    shapes = {name: value.shape for name, value in values.items()}
    assert shapes == {
        "0/router/logits": (21, 6),
        "0/router/weights": (21, 2),
        "0/router/experts": (21, 2),
    }


def test_experts_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="MoE.dispatch: expected ragged, capacity or"):
        nn.MoE(4, 5, 6, dispatch="sorted")
    with pytest.raises(ValueError, match="top_k=4 experts within 1 of 2 equal groups"):
        nn.Router(4, 6, 4, groups=2)
    with pytest.raises(ValueError, match="Router.score: expected softmax, sigmoid or"):
        nn.Router(4, 6, 2, "relu")
