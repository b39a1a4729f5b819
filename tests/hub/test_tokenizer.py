"""Encoding, padding, decoding and streams, whatever files a tokenizer came from."""

import random

import numpy as np
import pytest

from jaxdl.hub import Tokenizer
from tests.hub.vocabularies import TEXTS, byte_level, sentencepiece

SPECIAL = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}
TOKENIZER = Tokenizer(byte_level(), SPECIAL, frozenset({0, 2}))


def test_ids_of_special_tokens():
    assert (TOKENIZER.bos_id, TOKENIZER.pad_id) == (1, None)
    assert TOKENIZER.eos_ids == {0, 2}
    assert TOKENIZER.token_of(2) == "<|im_end|>" and TOKENIZER.id_of("gone") is None
    assert TOKENIZER.vocab_size == 420


@pytest.mark.parametrize("text", TEXTS)
def test_text_comes_back(text):
    assert TOKENIZER.decode(TOKENIZER.encode(text)) == text


def test_special_tokens_are_found_whole_and_left_out_again():
    ids = TOKENIZER.encode("<|im_start|>user<|im_end|>")
    assert ids[0] == 1 and ids[-1] == 2
    assert TOKENIZER.decode(ids) == "user"
    assert TOKENIZER.decode(ids, skip_special=False) == "<|im_start|>user<|im_end|>"


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_batch_is_the_rows_with_padding(side):
    texts = ["the dog", "", "the quick brown fox jumps"]
    ids, mask = TOKENIZER.encode_batch(texts, side=side, length=20, pad_id=7)
    assert ids.shape == mask.shape == (3, 20)
    assert (ids.dtype, mask.dtype) == (np.int32, bool)
    for row, text in enumerate(texts):
        assert ids[row][mask[row]].tolist() == TOKENIZER.encode(text)
        assert (ids[row][~mask[row]] == 7).all()
    assert mask[0, -1 if side == "left" else 0]
    assert TOKENIZER.decode_batch([ids[r][mask[r]] for r in range(3)]) == texts


def test_a_batch_is_as_long_as_its_longest_text():
    ids, mask = TOKENIZER.encode_batch(["the dog", "the"])
    assert ids.shape == (2, len(TOKENIZER.encode("the dog")))
    assert mask[0].all() and ids[1, -1] == 0
    assert TOKENIZER.encode_batch([])[0].shape == (0, 0)


def test_a_batch_that_cannot_be_is_refused():
    with pytest.raises(ValueError, match="at most 1 tokens, got"):
        TOKENIZER.encode_batch(["the quick fox"], length=1)
    with pytest.raises(ValueError, match="side left or right, got 'top'"):
        TOKENIZER.encode_batch(["a"], side="top")


def of_pieces() -> Tokenizer:
    from jaxdl.hub import vocabulary

    tokens, scores, _ = sentencepiece()
    merges = vocabulary.implied_merges(dict(zip(tokens, scores, strict=True)))
    vocab = {token: id for id, token in enumerate(tokens)}
    core = vocabulary.sentencepiece_bpe(vocab, merges, "<unk>")
    vocabulary.add_special(core, ["<unk>", "<s>", "</s>"])
    return Tokenizer(core)


@pytest.mark.parametrize(
    "make", [lambda: TOKENIZER, of_pieces], ids=["bytes", "pieces"]
)
@pytest.mark.parametrize("text", TEXTS)
def test_a_stream_gives_whole_characters_and_all_of_them(make, text):
    tokenizer = make()
    ids = tokenizer.encode(text)
    stream = tokenizer.stream()
    parts = [stream.push(id) for id in ids]
    assert not any("\ufffd" in part for part in parts)
    assert "".join(parts) + stream.finish() == tokenizer.decode(ids)


@pytest.mark.parametrize("seed", range(20))
def test_a_stream_of_any_ids_is_what_they_decode_to(seed):
    draw = random.Random(seed)
    ids = [draw.randrange(420) for _ in range(80)]
    stream = TOKENIZER.stream()
    parts = [stream.push(id) for id in ids]
    assert "".join(parts) + stream.finish() == TOKENIZER.decode(ids)
    # Bytes that never become a character are given all the same, not kept for ever.
    assert sum(part != "" for part in parts) > 20


def test_a_stream_holds_back_half_a_character():
    ids = TOKENIZER.encode("☃")
    assert len(ids) == 3
    stream = TOKENIZER.stream()
    assert [stream.push(id) for id in ids] == ["", "", "☃"]
    half = TOKENIZER.stream()
    assert half.push(ids[0]) == "" and half.finish() == "\ufffd"


def test_a_stream_may_keep_special_tokens():
    ids = TOKENIZER.encode("the<|im_end|>")
    for skip, end in ((True, ""), (False, "<|im_end|>")):
        stream = TOKENIZER.stream(skip_special=skip)
        assert [stream.push(id) for id in ids][-1] == end
