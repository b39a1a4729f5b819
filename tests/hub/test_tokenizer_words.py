"""CLIP's BPE and SentencePiece's models: the ids of transformers, or the package's."""

import json
import random
import struct

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
import pytest
import tokenizers as t

from jaxdl.hub import HubError, open_tokenizer
from jaxdl.hub.sentencepiece_file import read_sentencepiece
from tests.hub.published import mutate
from tests.hub.test_tokenizer_files import compare, reference
from tests.hub.vocabularies import LINES, TEXTS, merges, sentencepiece, unigram

ANY = st.text(st.sampled_from("aehtoxTHE  '\t\n.,!?1234éñœ中の😀▁<s>/"), max_size=40)
FEW = settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
ENDS = ["<|startoftext|>", "<|endoftext|>"]


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A folder with vocab.json and merges.txt, as CLIP's."""
    folder = tmp_path_factory.mktemp("clip")
    core = t.Tokenizer(t.models.BPE(end_of_word_suffix="</w>"))
    core.normalizer = t.normalizers.Lowercase()
    core.pre_tokenizer = t.pre_tokenizers.ByteLevel(add_prefix_space=False)
    letters = sorted(t.pre_tokenizers.ByteLevel.alphabet())
    trainer = t.trainers.BpeTrainer(
        vocab_size=600, show_progress=False, initial_alphabet=letters,
        end_of_word_suffix="</w>",
    )  # fmt: skip
    core.train_from_iterator(LINES, trainer)
    made = [token for token in core.get_vocab() if token not in letters]
    ends = [f"{letter}</w>" for letter in letters]
    tokens = dict.fromkeys([*letters, *ends, *made, *ENDS])
    vocab = {token: id for id, token in enumerate(tokens)}
    (folder / "vocab.json").write_text(json.dumps(vocab))
    lines = "\n".join(["#version: 0.2", *merges(core), ""])
    (folder / "merges.txt").write_text(lines)
    write_config(folder, tokenizer_class="CLIPTokenizer")
    (folder / "config.json").write_text('{"model_type": "clip"}')
    return folder


def write_config(folder, **config):
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def test_clip_has_the_ids_of_transformers(clip):
    ours, theirs = open_tokenizer(clip), reference(clip)
    compare(ours, theirs, [*TEXTS, "a<|endoftext|>B", "e\u0301 È"])
    assert ours.encode("Fox")[0] == ours.bos_id
    assert ours.eos_ids == {ours.pad_id} == {theirs.eos_token_id}

    @given(ANY)
    @FEW
    def same(text):
        ids = theirs(text)["input_ids"]
        assert ours.encode(text) == ids
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)

    same()


def test_clip_is_known_by_its_tokens_and_another_is_refused(clip, tmp_path):
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / name).write_bytes((clip / name).read_bytes())
    assert open_tokenizer(tmp_path).encode("fox") == open_tokenizer(clip).encode("fox")
    write_config(tmp_path, tokenizer_class="OpenAIGPTTokenizer")
    with pytest.raises(HubError, match="GPT-2's or CLIP's kind"):
        open_tokenizer(tmp_path)


def varint(number):
    number %= 2**64
    out = b""
    while number > 127:
        out, number = out + bytes([number & 127 | 128]), number >> 7
    return out + bytes([number])


def field(number, value):
    """One field of a protocol buffer: an int, a float, or bytes."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    if isinstance(value, float):
        return varint(number << 3 | 5) + struct.pack("<f", value)
    return varint(number << 3 | 2) + varint(len(value)) + value


BPE = {3: 2, 35: 1, 40: 0, 41: 1, 42: 2, 43: -1}
UNIGRAM = {3: 1, 40: 2, 41: -1, 42: 1, 43: 0}


def model_bytes(tokens, scores, kinds, trainer, normaliser):
    """A tokenizer.model, by sentencepiece_model.proto."""
    pieces = zip(tokens, scores, kinds, strict=True)
    each = [
        field(1, token.encode()) + field(2, float(score)) + field(3, kind)
        for token, score, kind in pieces
    ]
    specs = [
        b"".join(field(n, v) for n, v in spec.items()) for spec in (trainer, normaliser)
    ]
    pieces = b"".join(field(1, piece) for piece in each)
    return pieces + field(2, specs[0]) + field(3, specs[1])


def bpe_bytes(trainer=None, normaliser=None):
    spec = BPE | (trainer or {})
    return model_bytes(*sentencepiece(), spec, {4: 0} | (normaliser or {}))


def unigram_bytes(trainer=None, normaliser=None):
    tokens, scores, kinds = unigram()
    return model_bytes(
        tokens, scores, kinds, UNIGRAM | (trainer or {}), normaliser or {}
    )


def folder_of(folder, data, **config):
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.model").write_bytes(data)
    write_config(folder, **config)
    return folder


@pytest.mark.parametrize("prefix", [True, False])
def test_sentencepiece_bpe_has_the_ids_of_transformers(tmp_path, prefix):
    transformers = pytest.importorskip("transformers")
    config = {"tokenizer_class": "LlamaTokenizer", "add_prefix_space": prefix}
    ours = open_tokenizer(folder_of(tmp_path, bpe_bytes(), **config))
    tokens, scores, _ = sentencepiece()
    vocab = {token: id for id, token in enumerate(tokens)}
    # By rank, as transformers orders them where it reads the file itself.
    ranks = {token: -id for token, id in vocab.items()}
    pairs = [
        (-ranks[token], token[:i], token[i:])
        for token in tokens[259:]
        for i in range(1, len(token))
        if token[:i] in vocab and token[i:] in vocab
    ]
    pairs = [(left, right) for _, left, right in sorted(pairs)]
    theirs = transformers.LlamaTokenizer(
        vocab=vocab, merges=pairs, add_prefix_space=prefix, add_bos_token=True
    )
    compare(ours, theirs, [*TEXTS, "the </s> end"])
    assert ours.encode("x")[0] == ours.bos_id == 1 and ours.eos_ids == {2}

    @given(ANY)
    @FEW
    def same(text):
        assert ours.encode(text) == theirs(text)["input_ids"]

    same()


def test_sentencepiece_unigram_has_the_ids_of_transformers(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = {"tokenizer_class": "T5Tokenizer", "extra_ids": 3}
    ours = open_tokenizer(folder_of(tmp_path, unigram_bytes(), **config))
    tokens, scores, _ = unigram()
    pieces = [*zip(tokens, scores, strict=True)]
    extra = [(f"<extra_id_{i}>", 0.0) for i in (2, 1, 0)]
    theirs = transformers.T5Tokenizer(vocab=[*pieces, *extra], extra_ids=3)
    ids = theirs("the <extra_id_0> end")["input_ids"]
    assert ours.encode("the <extra_id_0> end") == ids
    assert ours.pad_id == 0 and ours.eos_ids == {1}

    @given(ANY)
    @FEW
    def same(text):
        assert ours.encode(text) == theirs(text)["input_ids"]

    for text in TEXTS:
        assert ours.encode(text) == theirs(text)["input_ids"]
    same()


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_a_model_that_was_trained_has_the_ids_of_its_own_package(kind, tmp_path):
    package = pytest.importorskip("sentencepiece")
    text = tmp_path / "text.txt"
    text.write_text("\n".join(line.replace("\n", " ") for line in LINES))
    given_too = {
        "bpe": {
            "byte_fallback": True, "remove_extra_whitespaces": False,
            "normalization_rule_name": "identity", "vocab_size": 400,
        },
        "unigram": {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1,
                    "vocab_size": 150},
    }  # fmt: skip
    package.SentencePieceTrainer.train(
        input=str(text), model_prefix=str(tmp_path / "tokenizer"), model_type=kind,
        minloglevel=2, hard_vocab_limit=False, **given_too[kind],
    )  # fmt: skip
    ours = open_tokenizer(tmp_path)
    theirs = package.SentencePieceProcessor(model_file=f"{tmp_path}/tokenizer.model")
    for line in TEXTS:
        # transformers puts no space before one, and so do we.
        if kind == "unigram" or not line.startswith(" "):
            assert ours.encode(line, add_special=False) == theirs.encode(line), line


@pytest.mark.parametrize(
    "make, trainer, normaliser, config, problem",
    [
        (bpe_bytes, {3: 4}, {}, {}, "algorithm 4"),
        (bpe_bytes, {35: 0}, {}, {}, "bytes"),
        (bpe_bytes, {24: 1}, {}, {}, "a space that ends words"),
        (bpe_bytes, {}, {4: 1}, {}, "extra spaces"),
        (bpe_bytes, {}, {2: b"map"}, {}, "normalised BPE"),
        (bpe_bytes, {}, {}, {"tokenizer_class": "T5Tokenizer"}, "class T5Tokenizer"),
        (unigram_bytes, {}, {3: 0}, {}, "no space before"),
        (unigram_bytes, {}, {}, {"tokenizer_class": "XLMRobertaTokenizer"},
         "class XLMRobertaTokenizer"),
        (unigram_bytes, {}, {}, {"tokenizer_class": "T5Tokenizer", "extra_ids": 10**9},
         "extra_ids: expected a number up to 10000"),
        (bpe_bytes, {41: 10**6}, {}, {}, "no whole SentencePiece model"),
        (bpe_bytes, {3: b"x"}, {}, {}, "field 3: a int is expected"),
    ],
)  # fmt: skip
def test_another_way_of_splitting_is_refused(
    make, trainer, normaliser, config, problem, tmp_path
):
    folder = folder_of(tmp_path, make(trainer, normaliser), **config)
    with pytest.raises(HubError, match=problem) as refused:
        open_tokenizer(folder)
    assert str(tmp_path) in str(refused.value)


@pytest.mark.parametrize("count", [60, pytest.param(2000, marks=pytest.mark.slow)])
def test_damaged_models_are_read_or_refused(tmp_path, count, capfd):
    whole = {"bpe": bpe_bytes(), "unigram": unigram_bytes()}
    for seed in range(count):
        draw = random.Random(seed)
        data = whole[draw.choice(list(whole))]
        folder_of(tmp_path, mutate(data, draw, len(data)))
        try:
            read_sentencepiece(tmp_path / "tokenizer.model")
            ours = open_tokenizer(tmp_path)
            ours.decode(ours.encode(LINES[0]))
        except HubError as error:
            assert str(tmp_path) in str(error) and len(str(error)) < 2000
    capfd.readouterr()  # a panic of Rust, which is caught, writes of itself
