import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdl import generate, nn
from jaxdl.generate import caches
from jaxdl.models.decoder import Layer
from tests.generate.small import PROMPTS, decoder, step_by_step

close = dict(rtol=1e-5, atol=1e-5)
rope = nn.RoPE(2)
LOCAL = {"layers": (Layer(rope, 3), Layer(rope), Layer(rope, 3), Layer(rope))}
NEW = 8


def test_a_window_has_a_small_cache_and_the_same_result():
    model, params = decoder(num_layers=4, **LOCAL)
    got = generate.generate(model, params, PROMPTS, max_new=NEW)
    for row, prompt in zip(got.rows(), PROMPTS, strict=True):
        assert row == step_by_step(model, params, prompt, NEW)[0]
    cache = caches.empty(model, 3, 100, jnp.float32, 4)
    slots = {leaf.slots for leaf in _nodes(_of_one_layer(cache))}
    assert slots == {100, 3 + 4 - 1}


def _nodes(cache):
    found = jax.tree.leaves(cache, is_leaf=lambda node: hasattr(node, "slots"))
    return [node for node in found if hasattr(node, "slots")]


def _of_one_layer(cache):
    """Without the leading axis of layers."""
    return jax.tree.map(lambda leaf: leaf[0], cache)


def test_a_shared_prefix_is_as_if_each_prompt_began_with_it():
    model, params = decoder(num_layers=4, **LOCAL)
    start = [5, 4, 3, 2, 8]
    prefix = generate.remember(model, params, start)
    got = generate.generate(model, params, PROMPTS, max_new=NEW, prefix=prefix)
    whole = [start + prompt for prompt in PROMPTS]
    expected = generate.generate(model, params, whole, max_new=NEW)
    assert got.rows() == expected.rows()
    np.testing.assert_allclose(got.log_probs, expected.log_probs, **close)
    # It is not used up.
    again = generate.generate(model, params, PROMPTS, max_new=NEW, prefix=prefix)
    assert again.rows() == got.rows()


def test_a_quantised_cache_is_nearly_the_whole_one_and_a_third_of_its_size():
    model, params = decoder(dim=64, num_heads=2, num_kv_heads=1, scale=0.1)
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 13, (3, 20))
    whole = model.init_cache(3, 20)
    small = model.init_cache(3, 20, jnp.int8)
    size = lambda cache: sum(leaf.nbytes for leaf in jax.tree.leaves(cache))  # noqa: E731
    assert size(small) < size(whole) / 3
    run = jax.jit(lambda cache: model(params, tokens, cache=cache))
    expected, _ = run(whole)
    got, cache = run(small)
    spread = float(expected.std())
    assert 0 < np.abs(got - expected).max() < 0.03 * spread
    assert cache.k_bytes.dtype == jnp.int8


def test_generation_from_a_quantised_cache_is_the_same_for_rows_alone():
    model, params = decoder(num_layers=4, **LOCAL)
    given = dict(max_new=NEW, cache_dtype=jnp.int8, multiple=8)
    got = generate.generate(model, params, PROMPTS, **given)
    exact = generate.generate(model, params, PROMPTS, max_new=NEW)
    assert np.mean(got.tokens == exact.tokens) > 0.5
    for number, prompt in enumerate(PROMPTS):
        alone = generate.generate(model, params, [prompt], **given)
        np.testing.assert_allclose(alone.log_probs[0], got.log_probs[number], **close)
    prefix = generate.remember(model, params, [1, 2], cache_dtype=jnp.int8)
    generate.generate(model, params, PROMPTS, prefix=prefix, max_new=2)


def test_what_is_read_back_is_off_by_half_a_step_at_most():
    rng = np.random.default_rng(0)
    k = jnp.asarray(rng.normal(size=(2, 5, 3, 8)), jnp.float32) * 10
    empty = nn.KVCache.empty(2, 6, 3, 8, jnp.int8)
    assert isinstance(empty, nn.QuantizedKVCache)
    positions = jnp.broadcast_to(jnp.arange(5), (2, 5))
    cache = empty.append(k, jnp.zeros_like(k), positions)
    step = jnp.abs(k).max(-1, keepdims=True) / 127
    assert (jnp.abs(cache.k[:, :5] - k) <= 0.501 * step).all()
    assert (cache.v == 0).all() and int(cache.length) == 5
    np.testing.assert_array_equal(cache.positions[0], [0, 1, 2, 3, 4, -1])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_does_not_become_finite(bad):
    k = jnp.ones((1, 1, 2, 4)).at[0, 0, 0, 1].set(bad)
    cache = nn.KVCache.empty(1, 2, 2, 4, jnp.int8)
    cache = cache.append(k, k, jnp.zeros((1, 1), jnp.int32))
    assert not np.isfinite(cache.k[0, 0, 0]).any()
    np.testing.assert_allclose(cache.k[0, 0, 1], 1.0, rtol=1e-6)


def test_a_dtype_that_is_neither_floats_nor_int8_is_refused():
    with pytest.raises(ValueError, match="jnp.int8 or a dtype of floats"):
        nn.KVCache.empty(1, 2, 2, 4, jnp.int16)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.int8])
def test_tokens_are_forgotten_row_by_row(dtype):
    model, params = decoder()
    run = jax.jit(
        lambda tokens, cache, at: model(params, tokens, cache=cache, positions=at)
    )
    tokens = jnp.array([[1, 2, 3, 4, 5, 6], [6, 5, 4, 3, 2, 1]])
    at = jnp.broadcast_to(jnp.arange(6), (2, 6))
    _, cache = run(tokens[:, :5], model.init_cache(2, 12, dtype), at[:, :5])
    # Of the last four tokens one row keeps three, the other one.
    cache = caches.forget(cache, 4, jnp.array([3, 1]))
    assert cache.length.tolist() == [4, 4]
    following = jnp.array([[4], [2]])
    got, _ = run(jnp.array([[9], [9]]), cache, following)
    for row, length in enumerate([4, 2]):
        _, alone = run(
            tokens[row : row + 1, :length], model.init_cache(1, 12, dtype),
            at[:1, :length],
        )  # fmt: skip
        expected, _ = run(jnp.array([[9]]), alone, following[row : row + 1])
        np.testing.assert_allclose(got[row], expected[0], **close)


def test_rows_are_found_in_any_cache_by_its_shapes():
    model, _ = decoder(num_layers=4, **LOCAL)
    cache = caches.empty(model, 3, 5, jnp.float32, None)
    axes = caches.row_axes(model, 5, jnp.float32, None)
    taken = caches.take_rows(cache, axes, jnp.array([2, 0, 1, 1]))
    expected = caches.empty(model, 4, 5, jnp.float32, None)
    assert jax.tree.map(jnp.shape, taken) == jax.tree.map(jnp.shape, expected)


def test_a_cache_that_cannot_be_quantised_or_forget_says_so():
    class Other:
        def init_cache(self, batch, slots, dtype, chunk=None):
            return jnp.zeros((batch, 4), dtype)

    with pytest.raises(TypeError, match="is not quantised, got int8"):
        caches.empty(Other(), 2, 3, jnp.int8, None)
    with pytest.raises(TypeError, match="a cache that can forget tokens, got"):
        caches.forget(jnp.zeros((2, 4)), 1, jnp.array([0, 0]))
