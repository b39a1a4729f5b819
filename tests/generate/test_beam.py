import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdl import generate
from tests.generate.small import LONGEST, PROMPTS, VOCAB, decoder, run

model, params = decoder()
NEW = 4


def log_prob_of(prompt, continuations):
    """The log-probability of each of several continuations of equal length."""
    rows = np.zeros((len(continuations), LONGEST), int)
    end = len(prompt) + len(continuations[0])
    rows[:, :end] = [[*prompt, *row] for row in continuations]
    logits = jax.nn.log_softmax(run(model, params, rows[:, :-1]))
    here = jnp.take_along_axis(logits, rows[:, 1:, None], axis=-1)[..., 0]
    return np.asarray(here[:, len(prompt) - 1 : end - 1])


def test_one_beam_is_greedy():
    best = generate.beam_search(model, params, PROMPTS, max_new=NEW, beams=1)
    greedy = generate.generate(model, params, PROMPTS, max_new=NEW)
    np.testing.assert_array_equal(best.tokens[:, 0], greedy.tokens)
    np.testing.assert_allclose(
        best.log_probs[:, 0], greedy.log_probs, rtol=1e-5, atol=1e-5
    )


def test_with_room_for_all_it_finds_the_likeliest_of_all():
    every = list(itertools.product(range(VOCAB), repeat=2))
    best = generate.beam_search(
        model, params, PROMPTS, max_new=2, beams=VOCAB, length_penalty=0.0
    )
    for number, prompt in enumerate(PROMPTS):
        totals = log_prob_of(prompt, every).sum(-1)
        order = np.argsort(-totals)[:VOCAB]
        np.testing.assert_allclose(best.scores[number], totals[order], rtol=1e-4)
        got = [tuple(row) for row in best.tokens[number].tolist()]
        assert got == [every[n] for n in order]


def test_a_row_among_others_is_as_alone_and_scores_are_those_of_its_tokens():
    given = dict(max_new=NEW, beams=3, eos=(0, 4), length_penalty=0.7, multiple=8)
    best = generate.beam_search(model, params, PROMPTS, **given)
    for number, prompt in enumerate(PROMPTS):
        alone = generate.beam_search(model, params, [prompt], **given)
        np.testing.assert_array_equal(alone.tokens[0], best.tokens[number])
        np.testing.assert_allclose(alone.scores[0], best.scores[number], rtol=1e-4)
        for beam in range(3):
            length = int(best.lengths[number, beam])
            tokens = best.tokens[number, beam, :length]
            expected = log_prob_of(prompt, [tokens])[0]
            got = best.log_probs[number, beam]
            np.testing.assert_allclose(got[:length], expected, rtol=1e-4, atol=1e-5)
            assert (got[length:] == 0).all()
            score = expected.sum() / length**0.7
            np.testing.assert_allclose(best.scores[number, beam], score, rtol=1e-4)
            assert not np.isin(tokens[:-1], (0, 4)).any()
            assert length == NEW or int(tokens[-1]) in (0, 4)


def nothing(history):
    return jnp.zeros((history.tokens.shape[0], VOCAB), bool)


def test_where_nothing_is_allowed_there_is_nothing():
    best = generate.beam_search(
        model, params, PROMPTS, max_new=NEW, beams=2,
        sampler=generate.constrain(nothing),
    )  # fmt: skip
    assert (best.lengths == 0).all() and np.isnan(best.scores).all()


def test_a_prefix_and_a_quantised_cache_serve_too():
    given = dict(max_new=NEW, beams=3, eos=4)
    prefix = generate.remember(model, params, [5, 6])
    got = generate.beam_search(model, params, PROMPTS, prefix=prefix, **given)
    whole = [[5, 6, *prompt] for prompt in PROMPTS]
    expected = generate.beam_search(model, params, whole, **given)
    np.testing.assert_array_equal(got.tokens, expected.tokens)
    small = generate.beam_search(model, params, whole, cache_dtype=jnp.int8, **given)
    np.testing.assert_allclose(small.scores, expected.scores, atol=0.3)


def test_bad_calls_are_refused():
    with pytest.raises(ValueError, match="beams of at least 1, got 0"):
        generate.beam_search(model, params, PROMPTS, max_new=2, beams=0)
    with pytest.raises(ValueError, match="early_stopping True, False or 'never'"):
        generate.beam_search(model, params, PROMPTS, max_new=2, early_stopping="always")
