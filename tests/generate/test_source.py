"""Encoder-decoders under every way of generating, beside whole rows without a cache."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdl as jd
from jaxdl import generate, models
from jaxdl.generate.prompts import right_padded
from jaxdl.models.t5 import T5Config
from jaxdl.models.whisper import WhisperConfig

VOCAB, NEW, LONGEST = 13, 6, 12
SOURCE = [[1, 2, 3], [4, 5, 6, 7, 8, 3, 9], [9]]
STARTS = [[0], [0, 3, 5], [0, 7]]
BLOCKS = models.TransformerConfig(dim=8, num_layers=2, num_heads=2, hidden=12)


def drawn(model, seed=0):
    """Params that say something else after every source."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(0, 0.6, leaf.shape), jnp.float32),
        jd.abstract(model),
    )


def t5(seed=0, **changes):
    inner = dataclasses.replace(BLOCKS, norm="rms", bias=False, scale=1.0, dropout=0.1)
    decoder = dataclasses.replace(inner, causal=True, cross=True)
    sizes = {"num_buckets": 6, "max_distance": 8, "tie_embeddings": False, **changes}
    model = models.T5(T5Config(VOCAB, inner, decoder, **sizes))
    return model, drawn(model, seed)


def whisper():
    decoder = dataclasses.replace(BLOCKS, causal=True, cross=True)
    model = models.Whisper(WhisperConfig(VOCAB, BLOCKS, decoder, 3, 5, LONGEST))
    return model, drawn(model)


FRAMES = np.random.default_rng(1).normal(size=(3, 10, 3)).astype(np.float32)
MODELS = {
    "t5": (*t5(), SOURCE),
    "umt5": (*t5(shared_bias=False), SOURCE),
    "whisper": (*whisper(), FRAMES),
}


@functools.partial(jax.jit, static_argnums=0)
def whole(model, params, source, mask, tokens):
    given = {} if mask is None else {"mask": mask}
    return jax.nn.log_softmax(model(params, source, tokens, key=None, **given))


def log_probs(model, params, source, rows):
    """Of every token of rows after the first, a row for each of the source."""
    mask = None
    if isinstance(source, list):
        source, mask = right_padded(source)
    tokens = np.zeros((len(rows), LONGEST), int)
    for row, given in zip(tokens, rows, strict=True):
        row[: len(given)] = given
    scores = whole(model, params, source, mask, tokens[:, :-1])
    here = jnp.take_along_axis(scores, tokens[:, 1:, None], axis=-1)[..., 0]
    return scores, [here[n, : len(row) - 1] for n, row in enumerate(rows)]


@functools.cache
def said(name):
    model, params, source = MODELS[name]
    reading = generate.conditioned(model, params, source)
    return reading, generate.generate(*reading, STARTS, max_new=NEW)


@pytest.mark.parametrize("name", MODELS)
def test_it_says_what_whole_rows_say_with_their_log_probabilities(name):
    # The starts are padded on the left, the sources on the right.
    model, params, source = MODELS[name]
    new = said(name)[1]
    rows = [[*start, *row] for start, row in zip(STARTS, new.rows(), strict=True)]
    scores, expected = log_probs(model, params, source, rows)
    for n, (start, row) in enumerate(zip(STARTS, new.rows(), strict=True)):
        best = scores[n].argmax(-1)[len(start) - 1 :][:NEW]
        assert row == best.tolist()
        here = expected[n][len(start) - 1 :]
        np.testing.assert_allclose(new.log_probs[n], here, rtol=1e-5, atol=1e-5)
    assert len({tuple(row) for row in new.rows()}) == len(STARTS)


def test_beams_read_one_memory_and_their_scores_are_those_of_their_tokens():
    model, params, source = MODELS["t5"]
    reading = said("t5")[0]
    best = generate.beam_search(*reading, STARTS, max_new=NEW, beams=2, eos=4)
    for beam in range(2):
        rows = []
        for n, start in enumerate(STARTS):
            length = int(best.lengths[n, beam])
            rows.append([*start, *best.tokens[n, beam, :length].tolist()])
        expected = log_probs(model, params, source, rows)[1]
        for n, start in enumerate(STARTS):
            here = expected[n][len(start) - 1 :]
            np.testing.assert_allclose(
                best.log_probs[n, beam, : len(here)], here, rtol=1e-4, atol=1e-5
            )
            np.testing.assert_allclose(
                best.scores[n, beam], here.sum() / len(here), rtol=1e-4
            )
    assert (best.scores[:, 0] >= best.scores[:, 1]).all()


def test_one_program_reads_a_source_and_none_is_compiled_for_another():
    traces = []

    @dataclasses.dataclass(frozen=True)
    class Traced:
        inner: object

        def __getattr__(self, name):
            return getattr(self.inner, name)

        def encode(self, params, source, *, mask, key):
            traces.append(("encode", source.shape))
            return self.inner.encode(params, source, mask=mask, key=key)

        def hidden(self, params, tokens, *, memory, cache, positions, key):
            traces.append(("hidden", tokens.shape))
            given = {"memory": memory, "cache": cache, "positions": positions}
            return self.inner.hidden(params, tokens, **given, key=key)

    model, params, source = MODELS["t5"]

    def run(source):
        reading = generate.conditioned(Traced(model), params, source, multiple=8)
        return generate.generate(*reading, STARTS, max_new=NEW).rows()

    first = run(source)
    assert first == said("t5")[1].rows()  # padding changes nothing
    assert {*traces} == {("encode", (3, 8)), ("hidden", (3, 3)), ("hidden", (3, 1))}
    once = len(traces)
    assert run([[2], [5, 6], [1] * 8]) != first
    assert len(traces) == once


def test_a_mask_says_which_ids_of_an_array_are_real():
    model, params, source = MODELS["t5"]
    ids, mask = right_padded(source)
    ids = np.where(mask, ids, 5)
    reading = generate.conditioned(model, params, ids, mask=mask)
    got = generate.generate(*reading, STARTS, max_new=NEW)
    np.testing.assert_array_equal(got.tokens, said("t5")[1].tokens)


def test_several_prompts_in_turn_read_the_same_source():
    model, params, source = MODELS["t5"]
    reading = generate.conditioned(model, params, source)
    twice = [start for start in STARTS for _ in range(2)]
    got = generate.generate(*reading, twice, max_new=NEW)
    expected = np.repeat(said("t5")[1].tokens, 2, axis=0)
    np.testing.assert_array_equal(got.tokens, expected)
    with pytest.raises(ValueError, match="a multiple of the memory's 3 rows"):
        generate.generate(*reading, STARTS[:2], max_new=NEW)


def test_a_stream_says_the_same():
    model, params, source = MODELS["whisper"]
    reading = generate.conditioned(model, params, source[1:2])
    pieces = list(generate.stream(*reading, STARTS[1], max_new=NEW, every=2))
    assert sum(pieces, []) == said("whisper")[1].rows()[1]


def test_a_draft_reads_the_source_too_and_changes_nothing():
    # What a row gives back leaves holes: biases go by position.
    model, params, source = MODELS["t5"]
    other, weights = t5(tie_embeddings=True)
    draft = generate.conditioned(other, weights, source)
    got = generate.speculate(*said("t5")[0], *draft, STARTS, max_new=NEW, ahead=2)
    np.testing.assert_array_equal(got.tokens, said("t5")[1].tokens)
    assert got.rounds < NEW * 2


def test_a_text_longer_than_its_positions_is_nan():
    model, params, _ = MODELS["whisper"]
    tokens, states = jnp.zeros((2, 1), int), jnp.zeros((2, 3, 8))

    def last(position):
        given = {"memory": states, "positions": position[None], "key": None}
        return model.decode(params, tokens, **given)

    logits = jax.jit(jax.vmap(last))(jnp.array([LONGEST - 1, LONGEST]))
    assert np.isfinite(logits[0]).all() and np.isnan(logits[1]).all()


@pytest.mark.parametrize(
    "source, given, error, message",
    [
        ([[1], []], {}, ValueError, "source: expected rows of at least one token"),
        ("text", {}, TypeError, "source: expected rows of token ids, got text"),
        ([[1]], {"mask": np.ones((1, 1), bool)}, TypeError, "no mask for rows"),
    ],
)
def test_bad_sources_are_refused(source, given, error, message):
    model, params, _ = MODELS["t5"]
    with pytest.raises(error, match=message):
        generate.conditioned(model, params, source, **given)


def test_decoding_with_a_cache_asks_for_what_was_remembered():
    model, params, _ = MODELS["t5"]
    cache = jax.eval_shape(lambda: model.init_cache(2, 4))
    tokens, states = jnp.zeros((2, 1), int), jnp.zeros((2, 3, 8))
    with pytest.raises(ValueError, match="a remembered memory with a cache"):
        jax.eval_shape(
            lambda c: model.decode(params, tokens, memory=states, cache=c, key=None),
            cache,
        )
    kept = jax.eval_shape(model.remember, params, states)
    with pytest.raises(ValueError, match="a memory of states, no cache"):
        jax.eval_shape(lambda m: model.decode(params, tokens, memory=m, key=None), kept)
