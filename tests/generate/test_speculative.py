import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdl import generate, nn
from jaxdl.models.decoder import Layer
from tests.generate.small import PROMPTS, VOCAB, decoder

NEW = 9
rope = nn.RoPE(2)
LOCAL = {"layers": (Layer(rope, 3), Layer(rope)), "num_layers": 2}


def table(params, tokens, *, cache, positions):
    """A model whose next token depends on the last alone: params are its logits."""
    return params[tokens], cache


table.init_cache = lambda batch, slots, dtype, chunk=None: ()


def chi_square(counts, expected):
    """How far counts are from those expected; rare cells are one cell."""
    rare = expected < 5
    if rare.any():
        pool = lambda x: np.append(x[~rare], x[rare].sum())  # noqa: E731
        counts, expected = pool(counts), pool(expected)
    assert ((expected > 0) | (counts == 0)).all()
    fine = expected > 0
    return (((counts - expected) ** 2)[fine] / expected[fine]).sum(), fine.sum() - 1


@pytest.mark.parametrize(
    "sampler, ahead",
    [
        (generate.temperature(1.0), 3),
        (generate.chain(generate.temperature(1.3), generate.top_k(3)), 1),
        (generate.chain(generate.repetition_penalty(2.0), generate.top_p(0.95)), 3),
    ],
    ids=["plain", "top_k", "penalty"],
)
def test_the_distribution_is_that_of_the_model_alone(ahead, sampler):
    rng = np.random.default_rng(0)
    target, draft = jnp.asarray(rng.normal(size=(2, 5, 5)) * 1.5, jnp.float32)
    rows, length = 6000, 3
    got = generate.speculate(
        table, target, table, draft, [[2]] * rows, max_new=length, ahead=ahead,
        sampler=sampler, key=jax.random.key(5),
    )  # fmt: skip
    assert (got.lengths == length).all()
    counts = np.zeros((5, 5, 5))
    np.add.at(counts, tuple(np.asarray(got.tokens).T), 1)
    expected = rows * joint(target, sampler, [2], length)
    statistic, freedom = chi_square(counts.ravel(), expected.ravel())
    # Wilson and Hilferty's bound that one in a thousand exceeds.
    bound = freedom * (1 - 2 / (9 * freedom) + 3.09 * (2 / (9 * freedom)) ** 0.5) ** 3
    assert statistic < bound
    # The draft is another distribution, and some of it is accepted.
    other = rows * joint(draft, sampler, [2], length)
    assert chi_square(counts.ravel(), other.ravel() + 1e-9)[0] > 10 * bound
    assert 0 < int(got.accepted.sum()) < rows * length


def joint(logits, sampler, prompt, length):
    """The probability of every continuation, by the chain rule: [5] * length."""
    probs = np.ones(())
    for place in range(length):
        heads = np.array(list(np.ndindex(*[5] * place))).reshape(5**place, place)
        tokens = jnp.asarray(np.concatenate([[prompt] * len(heads), heads], 1), int)
        history = generate.History(tokens, jnp.ones(tokens.shape, bool), len(prompt))
        scores = generate.chain(sampler)(logits[tokens[:, -1]], history=history)
        each = np.asarray(jax.nn.softmax(scores), np.float64)
        probs = probs[..., None] * each.reshape(*[5] * place, 5)
    return probs


@pytest.mark.parametrize(
    "changes, prompts",
    [
        pytest.param({}, PROMPTS, id="batch"),
        pytest.param(LOCAL, PROMPTS[1:2], id="one, window"),
        pytest.param(LOCAL, PROMPTS, id="batch, window", marks=pytest.mark.slow),
        pytest.param({}, PROMPTS[:1], id="one", marks=pytest.mark.slow),
    ],
)
def test_without_a_draw_it_says_what_the_model_says(changes, prompts):
    model, params = decoder(**changes)
    draft, draft_params = near(params, model)
    given = dict(max_new=NEW, eos=3, pad=11)
    expected = generate.generate(model, params, prompts, **given)
    got = generate.speculate(
        model, params, draft, draft_params, prompts, ahead=3, **given
    )
    np.testing.assert_array_equal(got.tokens, expected.tokens)
    np.testing.assert_array_equal(got.lengths, expected.lengths)
    np.testing.assert_array_equal(got.ended, expected.ended)
    np.testing.assert_allclose(got.log_probs, expected.log_probs, rtol=1e-5, atol=1e-5)
    assert int(got.accepted.sum()) > 0


def near(params, model):
    """A draft that agrees now and then."""
    rng = np.random.default_rng(1)
    noise = lambda leaf: leaf + 0.05 * rng.normal(size=leaf.shape).astype(np.float32)  # noqa: E731
    return model, jax.tree.map(noise, params)


def test_a_draft_that_is_the_model_is_always_accepted():
    model, params = decoder()
    got = generate.speculate(
        model, params, model, params, PROMPTS, max_new=13, ahead=3,
        sampler=generate.temperature(1.0), key=jax.random.key(0), cache_dtype=jnp.int8,
    )  # fmt: skip
    # One token of the prompt, then 3 rounds of 4.
    assert int(got.rounds) == 3
    assert got.accepted.tolist() == [9] * 3
    assert np.isfinite(got.log_probs).all()


def rising(history):
    counts = history.counts
    last = jnp.take_along_axis(
        history.generated, jnp.maximum(counts - 1, 0)[:, None], axis=1
    )
    return (counts[:, None] == 0) | (jnp.arange(VOCAB) > last)


def test_where_a_constraint_leaves_nothing_it_ends_as_the_model_does():
    model, params = decoder()
    draft, draft_params = near(params, model)
    given = dict(max_new=VOCAB + 2, sampler=generate.constrain(rising), key=None)
    expected = generate.generate(model, params, PROMPTS, **given)
    got = generate.speculate(model, params, draft, draft_params, PROMPTS, **given)
    np.testing.assert_array_equal(got.tokens, expected.tokens)
    np.testing.assert_array_equal(got.lengths, expected.lengths)
    np.testing.assert_allclose(got.log_probs, expected.log_probs, rtol=1e-5, atol=1e-5)
    assert np.isnan(got.log_probs).any(1).all()


def test_bad_calls_are_refused():
    small, large = jnp.zeros((4, 4)), jnp.zeros((5, 5))
    with pytest.raises(ValueError, match="ahead of at least 1, got 0"):
        generate.speculate(table, large, table, large, [[1]], max_new=3, ahead=0)
    with pytest.raises(ValueError, match="vocabulary of 5, got 4"):
        generate.speculate(table, large, table, small, [[1]], max_new=3)
