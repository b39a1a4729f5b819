import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdl import generate
from jaxdl.generate.prompts import left_padded
from tests.generate.small import PROMPTS, VOCAB, decoder, step_by_step

model, params = decoder()
NEW = 8
greedy = generate.generate(model, params, PROMPTS, max_new=NEW)


def test_it_says_what_the_whole_row_says_token_by_token():
    for row, log_probs, prompt in zip(
        greedy.rows(), greedy.log_probs, PROMPTS, strict=True
    ):
        tokens, expected = step_by_step(model, params, prompt, NEW)
        assert row == tokens
        np.testing.assert_allclose(log_probs, expected, rtol=1e-5, atol=1e-5)
    assert len({tuple(row) for row in greedy.rows()}) == len(PROMPTS)
    assert not greedy.ended.any()


def test_log_probabilities_of_training_are_those_of_generation():
    prompt, row = PROMPTS[1], greedy.rows()[1]
    ids = jnp.asarray([prompt + row])

    logits = jax.nn.log_softmax(jax.jit(model)(params, ids[:, :-1]))
    expected = jnp.take_along_axis(logits, ids[:, 1:, None], -1)[0, -NEW:, 0]
    np.testing.assert_allclose(greedy.log_probs[1], expected, rtol=1e-5, atol=1e-5)


def test_a_row_among_others_is_as_alone():
    for number, prompt in enumerate(PROMPTS):
        alone = generate.generate(model, params, [prompt], max_new=NEW, multiple=8)
        assert alone.rows()[0] == greedy.rows()[number]
        np.testing.assert_allclose(
            alone.log_probs[0], greedy.log_probs[number], rtol=1e-5, atol=1e-5
        )


def test_a_row_ends_at_eos_and_the_others_go_on():
    rows = greedy.rows()
    eos = rows[0][2]
    stopped = generate.generate(model, params, PROMPTS, max_new=NEW, eos=eos, pad=12)
    for number, row in enumerate(rows):
        wanted = row[: row.index(eos) + 1] if eos in row else row
        assert stopped.rows()[number] == wanted
        assert bool(stopped.ended[number]) == (eos in row)
        length = int(stopped.lengths[number])
        assert (stopped.tokens[number, length:] == 12).all()
        assert (stopped.log_probs[number, length:] == 0).all()
        np.testing.assert_allclose(
            stopped.log_probs[number, :length], greedy.log_probs[number, :length],
            rtol=1e-5, atol=1e-5,
        )  # fmt: skip


def test_the_loop_stops_when_every_row_has_ended():
    steps = []

    def counting(params, tokens, *, cache, positions):
        jax.debug.callback(lambda: steps.append(1))
        return model(params, tokens, cache=cache, positions=positions)

    counting.init_cache = model.init_cache
    first = {row[0] for row in greedy.rows()} | {row[1] for row in greedy.rows()}
    generate.generate(counting, params, PROMPTS, max_new=NEW, eos=first)
    jax.effects_barrier()
    assert len(steps) <= 2  # the prompt, and at most one more


def test_one_program_reads_and_one_loops_whatever_the_prompts_say():
    traces = []

    def traced(params, tokens, *, cache, positions):
        traces.append(tokens.shape)
        return model(params, tokens, cache=cache, positions=positions)

    traced.init_cache = model.init_cache

    def run(prompts, **given):
        sampler = generate.chain(generate.temperature(0.9), generate.top_k(5))
        given = {"sampler": sampler, "key": jax.random.key(3), "multiple": 8, **given}
        return generate.generate(traced, params, prompts, max_new=NEW, **given)

    run(PROMPTS)
    once = len(traces)
    assert set(traces) == {(3, 8), (3, 1)}
    run([[3, 4], [5], [6, 7, 8, 9]])
    run(PROMPTS, key=jax.random.key(4))
    assert len(traces) == once


def test_a_key_draws_from_the_distribution_of_the_sampler():
    # A model that always says the same: the counts are those of its softmax.
    logits = jnp.log(jnp.array([0.5, 0.3, 0.15, 0.05]))

    def constant(params, tokens, *, cache, positions):
        return jnp.broadcast_to(params, (*tokens.shape, 4)), cache

    constant.init_cache = lambda batch, slots, dtype, chunk: ()
    drawn = generate.generate(
        constant, logits, [[0]] * 50, max_new=40,
        sampler=generate.top_k(3), key=jax.random.key(0),
    )  # fmt: skip
    counts = np.bincount(np.asarray(drawn.tokens).ravel(), minlength=4)
    expected = 2000 * np.array([0.5, 0.3, 0.15]) / 0.95
    assert counts[3] == 0
    assert (((counts[:3] - expected) ** 2) / expected).sum() < 13.8  # p = 0.001
    # Log-probabilities are the model's, not the sampler's.
    np.testing.assert_allclose(drawn.log_probs, logits[drawn.tokens], rtol=1e-5)


def test_the_same_key_says_the_same_and_none_is_the_likeliest():
    def run(key, sampler=generate.temperature(2.0)):  # noqa: B008
        given = dict(max_new=NEW, key=key, sampler=sampler)
        return generate.generate(model, params, PROMPTS, **given).rows()

    assert run(jax.random.key(1)) == run(jax.random.key(1)) != run(jax.random.key(2))
    assert run(None) == greedy.rows()
    with pytest.raises(TypeError, match="draws: give a key, or key=None"):
        generate.generate(
            model, params, PROMPTS, max_new=1, sampler=generate.temperature(2.0)
        )


def rising(history):
    """Each token is larger than the one before; nothing is larger than the last."""
    counts = history.counts
    last = jnp.take_along_axis(
        history.generated, jnp.maximum(counts - 1, 0)[:, None], axis=1
    )
    first = counts[:, None] == 0
    return first | (jnp.arange(VOCAB) > last)


def test_a_constraint_holds_and_where_nothing_is_allowed_a_row_ends_with_nan():
    sampler = generate.chain(
        generate.constrain(rising), generate.greedy
    )  # no key: nothing is drawn
    got = generate.generate(model, params, PROMPTS, max_new=VOCAB + 2, sampler=sampler)
    for row, log_probs, ended in zip(got.rows(), got.log_probs, got.ended, strict=True):
        assert row == sorted(set(row)) and row[-1] == VOCAB - 1
        assert np.isfinite(log_probs[: len(row)]).all() and np.isnan(
            log_probs[len(row)]
        )
        assert (log_probs[len(row) + 1 :] == 0).all() and not ended


def test_dropout_is_off():
    # The same parts, some with a rate.
    noisy = type(model)(dataclasses.replace(model.config, dropout=0.5))
    got = generate.generate(noisy, params, PROMPTS, max_new=NEW)
    assert got.rows() == greedy.rows()


@pytest.mark.parametrize("chunk", [1, 3])
def test_a_prompt_read_in_pieces_is_the_same_prompt(chunk):
    got = generate.generate(model, params, PROMPTS, max_new=NEW, chunk=chunk)
    assert got.rows() == greedy.rows()
    np.testing.assert_allclose(got.log_probs, greedy.log_probs, rtol=1e-5, atol=1e-5)


def test_learned_positions_count_from_the_first_real_token():
    other, weights = decoder(1, positions="learned", norm="layer", bias=True)
    got = generate.generate(other, weights, PROMPTS, max_new=4)
    for row, prompt in zip(got.rows(), PROMPTS, strict=True):
        assert row == step_by_step(other, weights, prompt, 4)[0]


def test_prompts_are_padded_on_the_left():
    padded = left_padded(PROMPTS, multiple=4)
    assert padded.tokens.shape == (3, 8)
    assert padded.positions[0].tolist() == [-5, -4, -3, -2, -1, 0, 1, 2]
    assert padded.tokens[2].tolist() == [0] * 7 + [9]


@pytest.mark.parametrize(
    "given, error, message",
    [
        ({"prompts": []}, ValueError, "a list of rows of token ids, got none"),
        ({"prompts": [1, 2]}, ValueError, "rows of token ids, got one row"),
        ({"prompts": [[1], []]}, ValueError, "at least one token, got shape .0,. in"),
        ({"prompts": [[1.5]]}, TypeError, "whole numbers, got float64 in row 0"),
        ({"prompts": "text"}, TypeError, "rows of token ids, got text"),
        ({"max_new": 0}, ValueError, "max_new of at least 1, got 0"),
        ({"chunk": 0}, ValueError, "of at least 1, got multiple=1, chunk=0"),
    ],
)
def test_bad_calls_are_refused(given, error, message):
    with pytest.raises(error, match=message):
        generate.generate(
            model, params, **{"prompts": PROMPTS, "max_new": NEW, **given}
        )
