import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdl import generate, nn
from jaxdl.models.decoder import Layer
from tests.generate.small import PROMPTS, decoder

model, params = decoder()
rope = nn.RoPE(2)
NEW = 9
draws = dict(sampler=generate.temperature(1.5), key=jax.random.key(2))


@pytest.mark.parametrize("every", [1, 4, 100])
def test_a_stream_is_what_generate_says_piece_by_piece(every):
    whole = generate.generate(model, params, PROMPTS[:1], max_new=NEW, **draws)
    given = dict(max_new=NEW, every=every, **draws)
    pieces = list(generate.stream(model, params, PROMPTS[0], **given))
    assert sum(pieces, []) == whole.rows()[0]
    assert [len(piece) for piece in pieces[:2]] == [1, min(every, NEW - 1)]


def test_a_stream_ends_at_eos():
    row = generate.generate(model, params, PROMPTS[:1], max_new=NEW).rows()[0]
    eos = row[3]
    pieces = generate.stream(model, params, PROMPTS[0], max_new=NEW, eos=eos)
    assert sum(pieces, []) == row[: row.index(eos) + 1]


def test_bad_calls_are_refused():
    with pytest.raises(ValueError, match="every of at least 1, got 0"):
        next(generate.stream(model, params, [1], max_new=2, every=0))
    with pytest.raises(ValueError, match="at most 8 tokens, its slots, got 5 and max"):
        next(generate.Session(model, params, slots=8).reply([1] * 5, max_new=4))
    with pytest.raises(ValueError, match="at least one token"):
        next(generate.Session(model, params, slots=8).reply([], max_new=4))


def test_text_is_never_half_a_character():
    class Stream:
        """Tokens are bytes of UTF-8."""

        def __init__(self):
            self.bytes = b""

        def push(self, token):
            self.bytes += bytes([token])
            try:
                text, self.bytes = self.bytes.decode(), b""
            except UnicodeDecodeError:
                return ""
            return text

        def finish(self):
            return self.bytes.decode(errors="replace")

    class Tokenizer:
        stream = Stream

    raw = list("aé√b".encode())
    pieces = [raw[:2], raw[2:4], raw[4:], [0xC3]]
    texts = list(generate.text_of(Tokenizer(), pieces))
    assert "".join(texts) == "aé√b\ufffd" and texts[0] == "a" and "" not in texts


LOCAL = {"layers": (Layer(rope, 3), Layer(rope)), "num_layers": 2}


@pytest.mark.parametrize("changes", [{}, LOCAL], ids=["full", "window"])
def test_a_session_says_what_it_would_say_anew(changes):
    model, params = decoder(**changes)
    session = generate.Session(model, params, slots=60)
    rng = np.random.default_rng(0)
    text = rng.integers(0, 13, 19).tolist()

    def check(text):
        said = sum(session.reply(text, max_new=NEW, every=3, **draws), [])
        anew = generate.Session(model, params, slots=60)
        assert said == sum(anew.reply(text, max_new=NEW, every=4, **draws), [])
        fresh = generate.generate(
            model, params, [text], max_new=NEW, multiple=60, **draws
        )
        assert said == fresh.rows()[0]
        return said

    said = check(text)
    assert session.tokens == text + said[:-1]
    check(text + said + [3, 4])  # it goes on
    check(text + [1, 2])  # another answer was given
    check(text[:4])  # shorter than what is known
    check(text[:4])  # the same again


def test_a_session_reads_only_what_is_new():
    read = []

    def counting(params, tokens, *, cache, positions):
        jax.debug.callback(lambda at: read.append(int((at >= 0).sum())), positions)
        return model(params, tokens, cache=cache, positions=positions)

    counting.init_cache = model.init_cache
    session = generate.Session(counting, params, slots=60)
    text = list(range(13)) * 2
    said = sum(session.reply(text, max_new=5), [])
    jax.effects_barrier()
    assert sum(read) == len(text) + 4
    read.clear()
    list(session.reply(text + said + [7], max_new=5))
    jax.effects_barrier()
    assert sum(read) == 2 + 4  # the last one said, the new one, four of the answer


def test_an_answer_that_is_left_spoils_nothing():
    session = generate.Session(model, params, slots=40)
    whole = sum(session.reply([1, 2, 3], max_new=NEW, **draws), [])
    pieces = session.reply([1, 2, 3], max_new=NEW, every=2, **draws)
    assert next(pieces) + next(pieces) == whole[:3]
    pieces.close()
    assert session.tokens == [1, 2, 3, *whole[:2]]
    assert sum(session.reply([1, 2, 3], max_new=NEW, **draws), []) == whole


def test_an_interrupt_within_a_step_spoils_nothing(monkeypatch):
    session = generate.Session(model, params, slots=40)
    whole = sum(session.reply([1, 2, 3], max_new=NEW, every=2, **draws), [])
    pieces = session.reply([1, 2, 3], max_new=NEW, every=2, **draws)
    next(pieces)

    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("jaxdl.generate.streaming.go_on", interrupt)
        with pytest.raises(KeyboardInterrupt):
            next(pieces)
    assert sum(session.reply([1, 2, 3], max_new=NEW, every=2, **draws), []) == whole


def test_a_state_that_cannot_be_taken_back_is_built_anew():
    # A running sum of tokens stands for the state of a recurrence.
    def summing(params, tokens, *, cache, positions):
        real = positions >= 0
        sums = cache["sum"][:, None] + jnp.cumsum(jnp.where(real, tokens, 0), axis=1)
        logits = jax.nn.one_hot((sums * 5 + 1) % 13, 13) * 9
        return logits, {"sum": sums[:, -1]}

    summing.init_cache = lambda batch, slots, dtype, chunk: {
        "sum": jnp.zeros(batch, jnp.int32)
    }
    session = generate.Session(summing, {}, slots=60)
    for text in ([1, 2, 3], [1, 2], [1, 2, 5]):
        said = sum(session.reply(text, max_new=6), [])
        expected = generate.generate(summing, {}, [text], max_new=6).rows()[0]
        assert said == expected
