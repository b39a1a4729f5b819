import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdl import nn
from jaxdl.testing import check_module
from tests.drawn import drawn

BATCH, SEQ, DIM, HEADS = 2, 9, 8, 4
close = dict(rtol=1e-5, atol=1e-5)
rng = np.random.default_rng(0)
x = jnp.asarray(rng.normal(size=(BATCH, SEQ, DIM)), jnp.float32)


def layer_and_params(**settings):
    layer = nn.Attention(DIM, HEADS, 2, causal=True, rope=nn.RoPE(2), **settings)
    return layer, drawn(layer)


def decode(layer, params, x, cache, sizes, positions=None):
    """Feeds x in pieces of these sizes, each by one jitted call."""
    run = jax.jit(layer)
    pieces, start = [], 0
    for size in sizes:
        at = None if positions is None else positions[:, start : start + size]
        y, cache = run(params, x[:, start : start + size], cache=cache, positions=at)
        pieces.append(y)
        start += size
    return np.concatenate(pieces, axis=1), cache


@pytest.mark.parametrize("implementation", [None, "xla"])
@pytest.mark.parametrize("sizes", [[1] * SEQ, [4, 1, 1, 3], [SEQ]])
def test_piece_by_piece_is_as_all_at_once(sizes, implementation):
    layer, params = layer_and_params(implementation=implementation)
    cache = layer.init_cache(BATCH, SEQ + 2)
    y, cache = decode(layer, params, x, cache, sizes)
    np.testing.assert_allclose(y, jax.jit(layer)(params, x), **close)
    assert int(cache.length) == SEQ
    np.testing.assert_array_equal(cache.positions[0], [*range(SEQ), -1, -1])


@pytest.mark.parametrize("window, slots, sizes", [(3, 3, [1] * SEQ), (3, 5, [3] * 3)])
def test_a_window_needs_no_more_slots_than_it_sees(window, slots, sizes):
    layer, params = layer_and_params(window=window)
    y, _ = decode(layer, params, x, layer.init_cache(BATCH, slots), sizes)
    np.testing.assert_allclose(y, jax.jit(layer)(params, x), **close)


def test_left_padding_is_never_seen():
    layer, params = layer_and_params()
    padded = jnp.concatenate([jnp.full((BATCH, 2, DIM), 3.0), x], axis=1)
    positions = jnp.broadcast_to(jnp.arange(-2, SEQ), (BATCH, SEQ + 2))
    run = jax.jit(layer)
    expected = run(params, x)
    whole = run(params, padded, positions=positions)
    np.testing.assert_allclose(whole[:, 2:], expected, **close)
    cache = layer.init_cache(BATCH, SEQ + 2)
    y, _ = decode(layer, params, padded, cache, [5, 1, 1, 4], positions)
    np.testing.assert_allclose(y[:, 2:], expected, **close)


def test_sequences_of_different_lengths_share_a_cache():
    layer, params = layer_and_params()
    # The second row has 3 tokens of prompt, padded in front to 5; then both go on.
    row = jnp.concatenate([jnp.zeros((2, DIM)), x[1, :7]])
    both = jnp.stack([x[0], row])
    positions = jnp.stack([jnp.arange(9), jnp.arange(9) - 2])
    cache = layer.init_cache(BATCH, SEQ)
    y, _ = decode(layer, params, both, cache, [5, 1, 1, 1, 1], positions)
    run = jax.jit(layer)
    np.testing.assert_allclose(y[0], run(params, x[:1])[0], **close)
    np.testing.assert_allclose(y[1, 2:], run(params, x[1:, :7])[0], **close)


@pytest.mark.parametrize("window, slots, size", [(None, 4, 1), (3, 4, 3), (4, 3, 1)])
def test_a_full_cache_gives_nan_and_no_wrong_number(window, slots, size):
    layer, params = layer_and_params(window=window)
    y, _ = decode(
        layer, params, x, layer.init_cache(BATCH, slots), [size] * (SEQ // size)
    )
    fits = slots // size * size
    assert np.isfinite(y[:, :fits]).all() and np.isnan(y[:, fits:]).all()


def test_a_cache_keeps_its_dtype_and_its_place():
    layer, params = layer_and_params()
    cache = layer.init_cache(BATCH, SEQ, jnp.bfloat16)
    step = jax.jit(lambda p, x, c: layer(p, x, cache=c), donate_argnums=2)
    y, new = step(params, x[:, :1], cache)
    assert new.k.dtype == new.v.dtype == jnp.bfloat16 and y.dtype == jnp.float32
    assert cache.k.is_deleted()  # donated: the step writes in place


def test_attention_with_every_option_keeps_the_contract():
    layer = nn.Attention(
        DIM, HEADS, 2, 6, causal=True, window=3, rope=nn.RoPE(6, rotary_dim=4),
        softcap=5.0, scale=0.3, bias=True, dropout=0.2,
        q_norm=nn.RMSNorm(6), k_norm=nn.LayerNorm(6),
    )  # fmt: skip
    check_module(layer, x)
    crossing = nn.Attention(DIM, HEADS, memory_dim=5)
    check_module(crossing, x, memory=x[..., :5])


def test_a_cache_refuses_what_does_not_fit():
    layer, params = layer_and_params()
    cache = layer.init_cache(BATCH, 4)
    with pytest.raises(ValueError, match="at most 4 tokens, the cache's slots"):
        layer(params, x, cache=cache)
    with pytest.raises(ValueError, match="a batch of 2, the cache's"):
        layer(params, x[:1, :1], cache=cache)
    with pytest.raises(ValueError, match="no segment_ids with a cache"):
        ids = jnp.zeros((BATCH, 1), int)
        layer(params, x[:, :1], cache=cache, segment_ids=ids)
    with pytest.raises(ValueError, match="causal=True with a cache"):
        nn.Attention(DIM, HEADS, 2)(params, x[:, :1], cache=cache)
    with pytest.raises(ValueError, match="no causal, window or rope with a memory"):
        layer(params, x, memory=x)
    with pytest.raises(ValueError, match=r"a memory \[batch, memory_seq, 8\]"):
        nn.Attention(DIM, HEADS, 2)(params, x, memory=x[..., :5])
