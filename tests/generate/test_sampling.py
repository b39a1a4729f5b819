from hypothesis import given
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdl import generate

VOCAB = 17
rows = st.lists(
    st.lists(st.integers(-60, 60), min_size=VOCAB, max_size=VOCAB),
    min_size=3, max_size=3,
).map(lambda rows: jnp.asarray(rows, jnp.float32) / 7)  # fmt: skip
parts = st.floats(0.01, 1.0)


def kept(logits):
    return np.isfinite(np.asarray(logits))


@pytest.mark.parametrize(
    "ours, theirs, settings",
    [
        (generate.temperature(0.7), "TemperatureLogitsWarper", (0.7,)),
        (generate.top_k(4), "TopKLogitsWarper", (4,)),
        (generate.top_p(0.8), "TopPLogitsWarper", (0.8,)),
        (generate.min_p(0.2), "MinPLogitsWarper", (0.2,)),
        (generate.repetition_penalty(1.7), "RepetitionPenaltyLogitsProcessor", (1.7,)),
    ],
    ids=str,
)
def test_a_sampler_gives_the_logits_of_transformers(ours, theirs, settings):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(50, VOCAB)).astype(np.float32) * 3
    tokens = rng.integers(0, VOCAB, (50, 6))
    processor = getattr(transformers, theirs)(*settings)
    expected = processor(torch.tensor(tokens), torch.tensor(logits)).numpy()
    history = generate.History(jnp.asarray(tokens), jnp.ones((50, 6), bool), 6)
    got = generate.chain(ours)(jnp.asarray(logits), history=history)
    np.testing.assert_array_equal(kept(got), kept(expected))
    # Dividing by 0.7 may round otherwise than multiplying by its inverse.
    np.testing.assert_allclose(got, expected, rtol=1e-6)


@given(rows, parts)
def test_top_p_leaves_the_fewest_that_together_have_p(logits, p):
    probs = np.asarray(jax.nn.softmax(logits), np.float64)
    here = kept(generate.top_p(p)(logits))
    for row, stays in zip(probs, here, strict=True):
        assert row[stays].sum() >= p - 1e-5 and stays[row.argmax()]
        least = row[stays].min()
        # Without the last of them (and its ties) there would not be enough.
        assert row[row > least].sum() < p + 1e-5
        assert stays[row >= least].all()


@given(rows, st.integers(1, VOCAB + 3))
def test_top_k_leaves_k_and_ties(logits, k):
    here = kept(generate.top_k(k)(logits))
    for row, stays in zip(np.asarray(logits), here, strict=True):
        assert (stays == (row >= np.sort(row)[::-1][min(k, VOCAB) - 1])).all()


@given(rows, parts)
def test_min_p_leaves_what_is_near_the_likeliest(logits, p):
    probs = np.asarray(jax.nn.softmax(logits), np.float64)
    bound = p * probs.max(-1, keepdims=True)
    here = kept(generate.min_p(p)(logits))
    near = np.isclose(probs, bound, rtol=1e-4)
    assert ((here == (probs >= bound)) | near).all() and here.any(-1).all()


@given(rows, parts, st.integers(1, VOCAB), parts)
def test_samplers_only_take_away_and_never_all(logits, p, k, least):
    for sampler in (
        generate.top_p(p),
        generate.top_k(k),
        generate.min_p(least),
        generate.greedy,
    ):
        got = sampler(logits)
        here = kept(got)
        assert (np.asarray(got)[here] == np.asarray(logits)[here]).all()
        assert here[range(3), np.asarray(logits).argmax(-1)].all()


def test_a_penalty_counts_what_is_real_alone():
    logits = jnp.array([[1.0, -1.0, 2.0, -2.0]])
    tokens, real = jnp.array([[0, 3, 2, 1]]), jnp.array([[False, True, True, False]])
    history = generate.History(tokens, real, 2)
    got = generate.repetition_penalty(2.0)(logits, history=history)
    np.testing.assert_array_equal(got, [[1.0, -1.0, 1.0, -4.0]])
    assert history.counts.tolist() == [1]
    assert history.generated.tolist() == [[2, 1]]


def test_a_chain_of_equal_samplers_is_equal_and_plain_functions_stand_in_it():
    def make():
        return generate.chain(
            generate.temperature(0.5), jnp.negative, generate.constrain(odd)
        )

    assert make() == make() and hash(make()) == hash(make())
    history = generate.History(jnp.zeros((1, 1), int), jnp.ones((1, 1), bool), 1)
    got = make()(jnp.array([[1.0, 2.0, 3.0]]), history=history)
    np.testing.assert_array_equal(got, [[-np.inf, -4.0, -np.inf]])


def odd(history):
    rows = history.tokens.shape[0]
    return jnp.broadcast_to(jnp.arange(3) % 2 == 1, (rows, 3))


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: generate.temperature(0.0), "a value above 0; greedy"),
        (lambda: generate.top_k(0), "a k of at least 1, got top_k"),
        (lambda: generate.top_p(1.5), "a p above 0 and at most 1"),
        (lambda: generate.min_p(0.0), "a p above 0 and at most 1, got min_p"),
        (lambda: generate.repetition_penalty(0.0), "a penalty above 0"),
    ],
)
def test_settings_out_of_range_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_mask_of_another_shape_is_refused():
    history = generate.History(jnp.zeros((1, 1), int), jnp.ones((1, 1), bool), 1)
    with pytest.raises(ValueError, match=r"expected bool\[1, 5\] of the function, got"):
        generate.constrain(odd)(jnp.zeros((1, 5)), history=history)
