"""Tokenizers made from their parts: merges from scores, tokens around a text."""

import pytest

from jaxdl.hub import vocabulary
from tests.hub.vocabularies import byte_level, sentencepiece


def test_merges_follow_from_scores_as_in_transformers():
    base = pytest.importorskip("transformers.tokenization_utils_base")
    tokens, scores, _ = sentencepiece()
    by_token = dict(zip(tokens, scores, strict=True))
    vocab = {token: id for id, token in enumerate(tokens)}
    wanted = base.generate_merges(vocab, by_token)
    assert vocabulary.implied_merges(by_token) == wanted
    assert len(wanted) > 100


@pytest.mark.parametrize("before", ["<|im_start|>", None])
@pytest.mark.parametrize("after", ["<|im_end|>", None])
def test_tokens_around_a_text_and_a_pair(before, after):
    core = vocabulary.byte_level(byte_level().get_vocab(), [])
    vocabulary.surround(core, before, after)
    first, last = [1] * (before is not None), [2] * (after is not None)
    a, b = core.token_to_id("a"), core.token_to_id("b")
    assert core.encode("a").ids == [*first, a, *last]
    pair = core.encode("a", "b")
    assert pair.ids == [*first, a, *last, b, *last]
    assert pair.type_ids[-1 - len(last)] == 1


def test_tokens_that_are_special_already_stay_as_they_are():
    core = vocabulary.byte_level(byte_level().get_vocab(), [])
    vocabulary.add_special(core, ["<|im_end|>", "new", "new", ""])
    vocabulary.add_special(core, ["<|im_end|>"], special=False)
    added = core.get_added_tokens_decoder()
    assert {id: token.content for id, token in added.items()} == {
        2: "<|im_end|>",
        420: "new",
    }
    assert all(token.special for token in added.values())
