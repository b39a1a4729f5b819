import functools
import re

import chex
from hypothesis import given
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdl import losses

DIM, VOCAB, TOKENS = 6, 11, 12
# Every choice of options, each in one of several shapes of the same tokens: one program
# holds them all, so that an example of other numbers compiles nothing.
SHAPES = [(12,), (3, 4), (2, 2, 3)]
OPTIONS = [
    {"label_smoothing": smoothing, "z_loss": z_loss, "soft_cap": soft_cap}
    for smoothing in (0.0, 0.1)
    for z_loss in (0.0, 1e-2)
    for soft_cap in (None, 2.0)
]
CHUNKS = [1, 2, 5, 9, 12, 20]
seeds = st.integers(0, 10**6)


def draw(seed, shape=(TOKENS,)):
    rng = np.random.default_rng(seed)
    hidden = rng.normal(size=(*shape, DIM)).astype(np.float32)
    kernel = rng.normal(size=(DIM, VOCAB)).astype(np.float32)
    labels = rng.integers(0, VOCAB, shape).astype(np.int32)
    weights = rng.integers(0, 3, shape).astype(np.float32)
    return jax.device_put((hidden, kernel, labels, weights))


def shaped(number, *arrays):
    """Arrays [tokens, ...] with their tokens in the shape of this choice of options."""
    shape = SHAPES[number % len(SHAPES)]
    return [array.reshape(*shape, *array.shape[1:]) for array in arrays]


def by_optax(logits, labels, weights, label_smoothing=0.0, z_loss=0.0, soft_cap=None):
    """The loss from optax's parts and the papers' formulas."""
    if soft_cap is not None:
        logits = soft_cap * jnp.tanh(logits / soft_cap)
    targets = optax.smooth_labels(jax.nn.one_hot(labels, VOCAB), label_smoothing)
    values = optax.softmax_cross_entropy(logits, targets)
    values = values + z_loss * jax.nn.logsumexp(logits, -1) ** 2
    return jnp.sum(values * weights) / jnp.maximum(weights.sum(), 1e-30)


@jax.jit
def plain_and_optax(logits, labels, weights):
    """Values and gradients of both, for every choice of options."""

    def one_choice(number, options):
        given = shaped(number, logits, labels, weights)
        ours = functools.partial(losses.cross_entropy, **options)
        theirs = functools.partial(by_optax, **options)
        return [value_and_grad(loss, *given) for loss in (ours, theirs)]

    def value_and_grad(loss, logits, labels, weights):
        return jax.value_and_grad(lambda x: loss(x, labels, weights=weights))(logits)

    return [one_choice(number, options) for number, options in enumerate(OPTIONS)]


@given(seeds)
def test_cross_entropy_is_that_of_optax_with_its_options(seed):
    hidden, kernel, labels, weights = draw(seed)
    for result, expected in plain_and_optax(hidden @ kernel, labels, weights):
        chex.assert_trees_all_close(result, expected, rtol=1e-4, atol=1e-6)


@jax.jit
def chunked_and_whole(hidden, kernel, bias, weights, labels):
    """Values and gradients of both, and the chunked value alone, for every choice."""

    def one_choice(number, options):
        own_hidden, own_weights, own = shaped(number, hidden, weights, labels)
        chunk, biased = CHUNKS[number % len(CHUNKS)], number % 4 < 2

        def chunked(hidden, kernel, bias, weights):
            return losses.chunked_cross_entropy(
                hidden, kernel, own, chunk_size=chunk, bias=bias if biased else None,
                weights=weights, **options,
            )  # fmt: skip

        def whole(hidden, kernel, bias, weights):
            logits = hidden @ kernel + (bias if biased else 0.0)
            return by_optax(logits, own, weights, **options)

        given = (own_hidden, kernel, bias, own_weights)
        both = [jax.value_and_grad(f, (0, 1, 2, 3))(*given) for f in (chunked, whole)]
        return *both, chunked(*given)

    return [one_choice(number, options) for number, options in enumerate(OPTIONS)]


@given(seeds)
def test_the_chunked_loss_and_its_gradients_are_those_of_the_whole(seed):
    hidden, kernel, labels, weights = draw(seed)
    bias = np.linspace(-1.0, 1.0, VOCAB, dtype=np.float32)
    results = chunked_and_whole(hidden, kernel, bias, weights + 0.5, labels)
    for ours, theirs, value in results:
        chex.assert_trees_all_close(ours, theirs, rtol=1e-4, atol=1e-5)
        chex.assert_trees_all_close(value, ours[0], rtol=1e-6)


@pytest.mark.parametrize("shards", [1, 2, 5])
def test_shards_of_the_tokens_change_nothing(shards):
    hidden, kernel, labels, weights = draw(0, (2, 5))

    def loss(hidden, kernel, shards):
        return losses.chunked_cross_entropy(
            hidden, kernel, labels, chunk_size=2, weights=weights, token_shards=shards
        )

    value_and_grad = jax.jit(jax.value_and_grad(loss, (0, 1)), static_argnums=2)
    ours, whole = (
        value_and_grad(hidden, kernel, shards),
        value_and_grad(hidden, kernel, 1),
    )
    chex.assert_trees_all_close(ours, whole, rtol=1e-5, atol=1e-6)


def collectives_on_a_mesh(token_shards, chunk_size):
    """What 4 devices exchange in a step: shapes inside the loop, and outside it."""
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spread, whole = (jax.NamedSharding(mesh, spec) for spec in (jax.P("data"), jax.P()))
    hidden = jax.ShapeDtypeStruct((32, DIM), jnp.float32, sharding=spread)
    labels = jax.ShapeDtypeStruct((32,), jnp.int32, sharding=spread)
    kernel = jax.ShapeDtypeStruct((DIM, VOCAB), jnp.float32, sharding=whole)

    def loss(kernel, hidden, labels):
        return losses.chunked_cross_entropy(
            hidden, kernel, labels, chunk_size=chunk_size, token_shards=token_shards
        )

    step = jax.jit(jax.value_and_grad(loss))
    text = step.lower(kernel, hidden, labels).compile().as_text()
    (loop,) = set(re.findall(r"while\(.*body=%?([\w.-]+)", text))
    start = text.index(f"%{loop} (")
    end = text.index("\n}", start)
    return exchanged(text[start:end]), exchanged(text[:start] + text[end:])


def exchanged(text):
    results = re.findall(
        r"= (.*) (?:all-|collective-|reduce-scatter)[\w-]*\(.*channel_id", text
    )
    return sorted(re.findall(r"\w+\[[\d,]*\]", " ".join(results)))


def test_on_a_mesh_each_device_keeps_its_tokens_and_the_gradient_is_reduced_once():
    inside, outside = collectives_on_a_mesh(token_shards=4, chunk_size=2)
    assert inside == []
    # Beside gradient and loss, one bit: whether some label was out of range.
    assert outside == [f"f32[{DIM},{VOCAB}]", "f32[]", "pred[]"]


def test_on_a_mesh_that_it_is_not_told_of_tokens_still_stay_where_they_are():
    inside, outside = collectives_on_a_mesh(token_shards=1, chunk_size=8)
    assert inside == [f"f32[1,{DIM},{VOCAB}]", "f32[1]"]
    assert outside == ["pred[]"]


def test_bfloat16_inputs_sum_in_float32_and_gradients_keep_their_dtype():
    hidden, kernel, labels, weights = draw(1, (64,))
    narrow = (hidden.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16))

    def loss(hidden, kernel):
        return losses.chunked_cross_entropy(hidden, kernel, labels, chunk_size=16)

    run = jax.jit(jax.value_and_grad(loss, (0, 1)))
    value, grads = run(*narrow)
    assert value.dtype == jnp.float32
    assert [g.dtype for g in grads] == [jnp.bfloat16, jnp.bfloat16]
    wide = [x.astype(jnp.float32) for x in narrow]
    exact, exact_grads = run(*wide)
    np.testing.assert_allclose(value, exact, rtol=1e-5)
    for grad, exact_grad in zip(grads, exact_grads, strict=True):
        scale = float(jnp.abs(exact_grad).max())
        np.testing.assert_allclose(
            grad.astype(jnp.float32), exact_grad, atol=0.01 * scale
        )


def test_at_a_vocabulary_of_32k_it_takes_a_quarter_of_the_memory(optimized):
    hidden = jax.ShapeDtypeStruct((4096, 64), jnp.float32)
    kernel = jax.ShapeDtypeStruct((64, 32_768), jnp.float32)
    labels = jax.ShapeDtypeStruct((4096,), jnp.int32)

    def temporary(loss):
        compiled = (
            jax.jit(jax.grad(loss, (0, 1))).lower(hidden, kernel, labels).compile()
        )
        return compiled.memory_analysis().temp_size_in_bytes

    def naive(hidden, kernel, labels):
        return losses.cross_entropy(hidden @ kernel, labels)

    def chunked(hidden, kernel, labels):
        return losses.chunked_cross_entropy(hidden, kernel, labels, chunk_size=256)

    assert temporary(chunked) <= temporary(naive) / 4


def test_a_label_out_of_range_is_nan_unless_it_does_not_count():
    hidden, kernel, labels, _ = draw(2, (6,))
    counted, ignored = np.ones(6, np.float32), np.ones(6, np.float32)
    ignored[2] = 0.0

    def chunked(hidden, kernel, labels, weights):
        return losses.chunked_cross_entropy(
            hidden, kernel, labels, chunk_size=4, weights=weights
        )

    def whole(hidden, kernel, labels, weights):
        return losses.cross_entropy(hidden @ kernel, labels, weights=weights)

    for loss in (chunked, whole):
        run = jax.jit(jax.value_and_grad(loss, (0, 1)))
        right = run(hidden, kernel, labels, ignored)
        for label in (-1, VOCAB, 1000):
            wrong = np.array(labels)
            wrong[2] = label
            bad = jax.device_get(run(hidden, kernel, wrong, counted))
            assert all(np.isnan(leaf).all() for leaf in jax.tree.leaves(bad)), label
            spared = run(hidden, kernel, wrong, ignored)
            chex.assert_trees_all_close(spared, right, rtol=1e-5, atol=1e-7)


def test_weights_that_sum_to_zero_give_zero_and_zero_gradients():
    hidden, kernel, labels, _ = draw(3, (6,))

    def loss(hidden, kernel):
        return losses.chunked_cross_entropy(
            hidden, kernel, labels, weights=jnp.zeros(6)
        )

    value, grads = jax.value_and_grad(loss, (0, 1))(hidden, kernel)
    assert value == 0.0
    assert all((grad == 0).all() for grad in grads)


def test_a_soft_cap_bounds_what_a_logit_can_do():
    huge = jnp.array([[1000.0, 0.0]])
    loss = losses.cross_entropy(huge, jnp.array([1]), soft_cap=5.0)
    np.testing.assert_allclose(loss, np.log1p(np.exp(5.0)), rtol=1e-5)


def test_what_does_not_fit_is_an_error():
    hidden, kernel, labels, _ = draw(4, (6,))
    with pytest.raises(ValueError, match=r"labels: expected shape \(6,\), got \(5,\)"):
        losses.cross_entropy(hidden @ kernel, labels[:5])
    with pytest.raises(ValueError, match="labels: expected integer classes"):
        losses.cross_entropy(hidden @ kernel, jnp.ones(6))
    with pytest.raises(
        ValueError, match=r"hidden \[..., dim\] and kernel \[dim, vocab\]"
    ):
        losses.chunked_cross_entropy(hidden, kernel.T, labels)
    with pytest.raises(ValueError, match="weights: expected one for each value"):
        losses.weighted_mean(jnp.ones((2, 3)), jnp.ones(3))
    with pytest.raises(ValueError, match="bias: expected shape"):
        losses.chunked_cross_entropy(hidden, kernel, labels, bias=jnp.ones(3))
    with pytest.raises(ValueError, match="token_shards that divides"):
        losses.chunked_cross_entropy(hidden, kernel, labels, token_shards=4)
    with pytest.raises(ValueError, match="label_smoothing"):
        losses.cross_entropy(hidden @ kernel, labels, label_smoothing=1.0)
    with pytest.raises(ValueError, match="soft_cap"):
        losses.cross_entropy(hidden @ kernel, labels, soft_cap=0.0)
    with pytest.raises(ValueError, match="z_loss"):
        losses.cross_entropy(hidden @ kernel, labels, z_loss=-1.0)
