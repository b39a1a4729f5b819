import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdl import nn
from jaxdl.testing import check_module

BATCH, SEQ, DIM = 2, 11, 6
rng = np.random.default_rng(0)
x = jnp.asarray(rng.normal(size=(BATCH, SEQ, DIM)), jnp.float32)
close = dict(rtol=1e-4, atol=1e-5)


def layer_and_params(**given):
    layer = nn.Mamba(DIM, 3, rank=2, **given)
    noise = lambda leaf: leaf + 0.2 * rng.normal(size=leaf.shape).astype(leaf.dtype)  # noqa: E731
    return layer, jax.tree.map(noise, layer.init(jax.random.key(0)))


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
    np.testing.assert_allclose(layer(params, x), expected, **close)


def test_chunks_change_no_gradient():
    whole, params = layer_and_params()
    pieces = nn.Mamba(DIM, 3, rank=2, chunk=4)

    def loss(layer):
        return jax.jit(jax.grad(lambda p, x: jnp.sin(layer(p, x)).sum(), (0, 1)))

    ours, theirs = loss(pieces)(params, x), loss(whole)(params, x)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **close), ours, theirs)


@pytest.mark.parametrize("sizes", [[1] * SEQ, [5, 1, 5], [2, 9]])
def test_piece_by_piece_is_as_all_at_once(sizes):
    layer, params = layer_and_params(chunk=4)
    cache, pieces, start = layer.init_cache(BATCH, 0), [], 0
    for size in sizes:
        y, cache = layer(params, x[:, start : start + size], cache=cache)
        pieces.append(y)
        start += size
    np.testing.assert_allclose(jnp.concatenate(pieces, 1), layer(params, x), **close)
    assert int(cache.length) == SEQ


def test_packed_and_padded_rows_are_as_if_alone():
    layer, params = layer_and_params(chunk=4)
    segments = jnp.array([[3] * 2 + [4] * 5 + [3] * 4] * BATCH)
    packed = layer(params, x, segment_ids=segments)
    for start, stop in ((0, 2), (2, 7), (7, 11)):
        alone = layer(params, x[:, start:stop])
        np.testing.assert_allclose(packed[:, start:stop], alone, **close)
    padded = layer(params, x, positions=jnp.arange(SEQ) - 4)
    np.testing.assert_allclose(padded[:, 4:], layer(params, x[:, 4:]), **close)
    _, cache = layer(
        params, x[:, :6], positions=jnp.arange(6) - 4, cache=layer.init_cache(BATCH, 0)
    )
    _, alone = layer(params, x[:, 4:6], cache=layer.init_cache(BATCH, 0))
    np.testing.assert_allclose(cache.ssm, alone.ssm, **close)
    np.testing.assert_allclose(cache.conv, alone.conv, **close)


def test_mamba_keeps_the_contract():
    check_module(nn.Mamba(DIM, 3, bias=True, chunk=4), x)


def test_steps_and_decays_start_where_the_paper_has_them():
    layer = nn.Mamba(64)
    params = layer.init(jax.random.key(0))
    step = jax.nn.softplus(params["step"]["bias"])
    assert 0.001 <= step.min() < 0.01 and 0.05 < step.max() <= 0.1
    decay = jnp.exp(params["log_decay"])
    expected = np.broadcast_to(np.arange(1.0, 17), (128, 16))
    np.testing.assert_allclose(decay, expected, rtol=1e-5)
