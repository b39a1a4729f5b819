import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdl import nn
from jaxdl.testing import check_module
from tests.drawn import drawn

BATCH, SEQ, DIM = 2, 11, 6
rng = np.random.default_rng(0)
x = jnp.asarray(rng.normal(size=(BATCH, SEQ, DIM)), jnp.float32)
close = dict(rtol=1e-4, atol=1e-5)


def layer_and_params(**given):
    layer = nn.Mamba(DIM, 3, rank=2, **given)
    return layer, drawn(layer)


def one_by_one(layer, params, x):
    """The definition, one sequence and step at a time, in float64: [seq, dim]."""
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    x, gate = np.split(x @ p["project"]["kernel"], 2, axis=-1)
    window = np.concatenate([np.zeros((3, layer.inner)), x])
    mixed = np.stack([window[t : t + 4] for t in range(len(x))])
    x = (mixed * p["conv"]["kernel"][:, 0]).sum(1) + p["conv"]["bias"]
    x = x / (1 + np.exp(-x))
    step, into, out = np.split(x @ p["select"]["kernel"], [2, 5], axis=-1)
    step = np.log1p(np.exp(step @ p["step"]["kernel"] + p["step"]["bias"]))
    decay, state, y = -np.exp(p["log_decay"]), np.zeros((layer.inner, 3)), []
    for t in range(len(x)):
        state = np.exp(step[t][:, None] * decay) * state
        state = state + (step[t] * x[t])[:, None] * into[t]
        y.append(state @ out[t] + p["skip"] * x[t])
    return (np.stack(y) * gate / (1 + np.exp(-gate))) @ p["out"]["kernel"]


@pytest.mark.parametrize("chunk", [64, 4, 1])
def test_it_is_the_recurrence_of_the_paper_in_any_chunks(chunk):
    layer, params = layer_and_params(chunk=chunk)
    expected = np.stack([one_by_one(layer, params, np.asarray(row)) for row in x])
    np.testing.assert_allclose(jax.jit(layer)(params, x), expected, **close)


def test_chunks_change_no_gradient():
    whole, params = layer_and_params()
    pieces, _ = layer_and_params(chunk=2)

    def loss(layer):
        return jax.jit(jax.grad(lambda p, x: jnp.sin(layer(p, x)).sum(), (0, 1)))

    ours, theirs = (loss(layer)(params, x[:, :5]) for layer in (pieces, whole))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **close), ours, theirs)


@pytest.mark.parametrize("sizes", [[1] * SEQ, [5, 1, 5], [2, 9]])
def test_piece_by_piece_is_as_all_at_once(sizes):
    layer, params = layer_and_params(chunk=4)
    cache, pieces, start = layer.init_cache(BATCH, 0), [], 0
    run = jax.jit(layer)
    for size in sizes:
        y, cache = run(params, x[:, start : start + size], cache=cache)
        pieces.append(y)
        start += size
    np.testing.assert_allclose(np.concatenate(pieces, 1), run(params, x), **close)
    assert int(cache.length) == SEQ


def test_packed_and_padded_rows_are_as_if_alone():
    layer, params = layer_and_params(chunk=4)
    segments = jnp.array([[3] * 2 + [4] * 5 + [3] * 4] * BATCH)
    run = jax.jit(layer)
    packed = run(params, x, segment_ids=segments)
    for start, stop in ((0, 2), (2, 7), (7, 11)):
        alone = run(params, x[:, start:stop])
        np.testing.assert_allclose(packed[:, start:stop], alone, **close)
    padded = run(params, x, positions=jnp.arange(SEQ) - 4)
    np.testing.assert_allclose(padded[:, 4:], run(params, x[:, 4:]), **close)
    empty = layer.init_cache(BATCH, 0)
    _, cache = run(params, x[:, :6], positions=jnp.arange(6) - 4, cache=empty)
    _, alone = run(params, x[:, 4:6], cache=empty)
    np.testing.assert_allclose(cache.ssm, alone.ssm, **close)
    np.testing.assert_allclose(cache.conv, alone.conv, **close)


def test_mamba_keeps_the_contract():
    check_module(nn.Mamba(DIM, 3, bias=True, chunk=2), x[:, :5])


def test_steps_and_decays_start_where_the_paper_has_them():
    layer = nn.Mamba(64)
    params = layer.init(jax.random.key(0))
    step = jax.nn.softplus(params["step"]["bias"])
    assert 0.001 <= step.min() < 0.01 and 0.05 < step.max() <= 0.1
    decay = jnp.exp(params["log_decay"])
    expected = np.broadcast_to(np.arange(1.0, 17), (128, 16))
    np.testing.assert_allclose(decay, expected, rtol=1e-5)
