import chex
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
import numpy as np
import optax
from optax.contrib import MuonDimensionNumbers
import pytest

import jaxdl as jd
from jaxdl import nn, optim
from jaxdl.core import tree

rng = np.random.default_rng(0)


def draw(*shape):
    return jnp.asarray(rng.normal(size=shape), jnp.float32)


def run(optimizer, params, steps):
    """The updates of a few gradients, which are stacked in front, as one program."""

    @jax.jit
    def all_steps(params, steps):
        def step(state, grads):
            updates, state = optimizer.update(grads, state, params)
            return state, updates

        return jax.lax.scan(step, optimizer.init(params), steps)[1]

    return all_steps(params, steps)


class Reference:
    """SOAP of one matrix in NumPy, written from the paper's algorithms 3 and 4."""

    def __init__(self, shape, left=True, right=True, b1=0.9, b2=0.8, beta=0.7, every=2):
        self.b1, self.b2, self.beta, self.every = b1, b2, beta, every
        self.m, self.v, self.t = np.zeros(shape), np.zeros(shape), 0
        self.sides = [left, right]
        self.factors = [np.zeros((n, n)) for n in shape]
        self.bases = [np.eye(n) for n in shape]

    def step(self, g):
        update = np.zeros_like(g)
        if self.t:
            self.m = self.b1 * self.m + (1 - self.b1) * g
            ql, qr = self.bases
            self.v = self.b2 * self.v + (1 - self.b2) * (ql.T @ g @ qr) ** 2
            m = ql.T @ self.m @ qr / (1 - self.b1**self.t)
            v = self.v / (1 - self.b2**self.t)
            update = ql @ (m / (np.sqrt(v) + 1e-8)) @ qr.T
        for side, outer in enumerate([g @ g.T, g.T @ g]):
            new = self.beta * self.factors[side] + (1 - self.beta) * outer
            self.factors[side] = new
            if self.sides[side]:
                self.renew(side)
        self.t += 1
        return update

    def renew(self, side):
        factor, basis = self.factors[side], self.bases[side]
        if self.t == 0:
            _, vectors = np.linalg.eigh(factor)
            self.bases[side] = vectors[:, ::-1]
        elif self.t % self.every == 0:
            order = np.argsort(-np.diag(basis.T @ factor @ basis))
            self.v = self.v[order] if side == 0 else self.v[:, order]
            self.bases[side], _ = np.linalg.qr(factor @ basis[:, order])


SETTINGS = {"b1": 0.9, "b2": 0.8, "shampoo_beta": 0.7, "preconditioner_frequency": 2}


@pytest.mark.parametrize("max_dim", [10, 4])
def test_matches_the_paper_over_several_steps(max_dim):
    steps = draw(7, 5, 4)
    ours = run(optim.scale_by_soap(max_dim=max_dim, **SETTINGS), steps[0], steps)
    reference = Reference((5, 4), left=max_dim >= 5)
    for update, g in zip(ours, steps, strict=True):
        expected = reference.step(np.asarray(g, np.float64))
        np.testing.assert_allclose(update, expected, atol=2e-4)


def test_stacked_layers_are_preconditioned_each_on_its_own():
    steps = draw(5, 3, 4, 5)
    stacked = optim.scale_by_soap({"w": MuonDimensionNumbers(1, 2)}, **SETTINGS)
    ours = run(stacked, {"w": steps[0]}, {"w": steps})["w"]
    single = optim.scale_by_soap(**SETTINGS)
    alone = jax.vmap(lambda g: run(single, g[0], g), 1, 1)(steps)
    np.testing.assert_allclose(ours, alone, atol=1e-4)


def test_vectors_scalars_and_what_is_too_long_are_adams():
    params = {"wide": draw(9, 8), "bias": draw(4), "gain": draw(), "w": draw(4, 3)}
    steps = jax.tree.map(lambda p: draw(3, *p.shape), params)
    ours = run(optim.soap(0.1, max_dim=5), params, steps)
    adam = run(optax.adam(0.1, 0.95, 0.95), params, steps)
    for path in ("wide", "bias", "gain"):
        np.testing.assert_allclose(ours[path], adam[path], rtol=1e-6)
    assert not np.allclose(ours["w"][-1], adam["w"][-1])


def test_one_side_of_an_embedding_is_too_long():
    model = nn.Sequential([nn.Embedding(40, 6), nn.Repeat(nn.Linear(6, 6), 3)])
    state = jax.eval_shape(optim.soap(1e-3, model, max_dim=8).init, jd.abstract(model))
    shapes = {p: x.shape for p, x in tree.flatten(state).items() if "/soap/" in p}
    named = {p.split("/soap/inner_state/")[1]: shape for p, shape in shapes.items()}
    assert "left/0/embedding" not in named
    assert named["right/0/embedding"] == named["right_basis/0/embedding"] == (6, 6)
    assert named["left/1/kernel"] == (3, 6, 6)
    assert not any("bias" in path for path in named)


def test_beats_adam_where_the_curvature_is_not_along_the_axes():
    """A least-squares problem with conditions of 100 on either side, rotated."""

    def ill(n):
        q, _ = np.linalg.qr(rng.normal(size=(n, n)))
        return jnp.asarray(q * np.geomspace(1, 1e-2, n) @ q.T, jnp.float32)

    left, right, target = ill(12), ill(12), draw(12, 12)

    def loss(w):
        return jnp.sum((left @ (w - target) @ right) ** 2)

    def best(make):
        def train(rate):
            optimizer = make(rate)

            def step(carry, _):
                w, state = carry
                updates, state = optimizer.update(jax.grad(loss)(w), state, w)
                return (optax.apply_updates(w, updates), state), None

            w = jnp.zeros_like(target)
            (w, _), _ = jax.lax.scan(step, (w, optimizer.init(w)), None, 150)
            return loss(w)

        return min(float(jax.jit(train)(rate)) for rate in (0.1, 0.3, 1.0))

    assert best(optim.soap) < 0.2 * best(lambda rate: optax.adam(rate, 0.95, 0.95))


def test_a_sharded_state_gives_the_same_updates():
    mesh = jd.mesh(fsdp=4, tensor=2)
    model = nn.Repeat(nn.Linear(8, 8, False, axes=("embed", "mlp")), 4)
    params = model.init(jax.random.key(0))
    steps = jax.tree.map(lambda p: draw(3, *p.shape), params)
    optimizer = optim.soap(0.1, model, preconditioner_frequency=2)
    whole = run(optimizer, params, steps)
    placed = jd.shard.shardings(model, mesh, jd.shard.FSDP_TENSOR)
    follow = jd.shard.optimizer_state(optimizer, params, placed)
    soap_state = follow[0].inner_states["soap"].inner_state
    assert soap_state.mu["kernel"].spec == PartitionSpec(None, "fsdp", "tensor")
    state = jax.device_put(optimizer.init(params), follow)
    update = jax.jit(optimizer.update, out_shardings=(placed, follow))
    for i in range(3):
        grads, expected = jax.tree.map(lambda x, i=i: x[i], (steps, whole))
        updates, state = update(jax.device_put(grads, placed), state, params)
        chex.assert_trees_all_close(updates, expected, atol=1e-5)


def test_optax_finds_the_parameters_in_the_state():
    params = {"w": draw(4, 3), "b": draw(3)}
    optimizer = optim.soap(1e-3)
    named = optax.tree_utils.tree_map_params(
        optimizer,
        lambda leaf, path: leaf if isinstance(leaf, optax.MaskedNode) else path,
        jax.eval_shape(optimizer.init, params),
        {"w": "w", "b": "b"},
        transform_non_params=lambda leaf: None,
        is_leaf=lambda x: isinstance(x, optax.MaskedNode),
    )
    assert all(path.endswith(name) for path, name in tree.flatten(named).items())
    assert list(tree.flatten(named).values()).count("w") == 6


def test_frequencies_below_one_are_errors():
    with pytest.raises(ValueError, match="preconditioner_frequency from 1, got 0"):
        optim.soap(1e-3, preconditioner_frequency=0)
