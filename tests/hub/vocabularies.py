"""Small tokenizers of every kind for the tests, learned from a few lines of text."""

import functools
import json
from pathlib import Path

import gguf
import tokenizers as t
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

LINES = [
    "The quick brown fox jumps over the lazy dog, and the dog's bark is 1234 dB.",
    "It's what they'll say: naïve cafés in 2024 don't cost $3.50!\n\tNo?",
    "中文字符和日本語のテキスト。 Ünïcödé wörds, ελληνικά, русский текст",
    "def f(x):\n    return x  # the end\n\n\nclass A:\n        pass",
    "😀 emoji 👩‍👩‍👧 and the quick dog the dog the fox the fox",
]

TEXTS = [
    *LINES,
    "",
    " ",
    "  two leading",
    "trailing  ",
    "unseen: Ωmega ☃ \u0301 combining",
    "DON'T SHOUT 123456 7",
    "a" * 60,
    "tabs\t\ttabs\r\nand\rreturns",
]


@functools.cache
def byte_level(split: str | None = None) -> t.Tokenizer:
    core = t.Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(False, use_regex=split is None)
    if split:
        pattern = pre_tokenizers.Split(t.Regex(split), "isolated")
        core.pre_tokenizer = pre_tokenizers.Sequence([pattern, core.pre_tokenizer])
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        show_progress=False,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    core.train_from_iterator(LINES, trainer)
    return core


@functools.cache
def word_piece() -> t.Tokenizer:
    core = t.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    core.normalizer = normalizers.BertNormalizer()
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(
        vocab_size=250, show_progress=False, special_tokens=names
    )
    core.train_from_iterator(LINES, trainer)
    return core


@functools.cache
def sentencepiece() -> tuple[list[str], list[float], list[int]]:
    """Tokens, scores and GGUF's types of a vocabulary like Llama 2's."""
    core = t.Tokenizer(models.BPE(unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=300, show_progress=False)
    core.train_from_iterator(LINES[:3], trainer)
    merged = [a + b for a, b in json.loads(core.to_str())["model"]["merges"]]
    letters = [token for token in core.get_vocab() if token not in merged]
    pieces = list(dict.fromkeys(merged)) + sorted(letters)
    raw = [f"<0x{byte:02X}>" for byte in range(256)]
    tokens = ["<unk>", "<s>", "</s>", *raw, *pieces]
    scores = [0.0] * 259 + [-float(i) for i in range(len(pieces))]
    kinds = [2, 3, 3] + [6] * 256 + [1] * len(pieces)
    return tokens, scores, kinds


@functools.cache
def unigram() -> tuple[list[str], list[float], list[int]]:
    core = t.Tokenizer(models.Unigram())
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=200,
        show_progress=False,
        special_tokens=["<pad>", "</s>", "<unk>"],
        unk_token="<unk>",
    )
    core.train_from_iterator(LINES, trainer)
    pieces = json.loads(core.to_str())["model"]["vocab"]
    tokens = [token for token, _ in pieces]
    return tokens, [score for _, score in pieces], [3, 3, 2] + [1] * (len(pieces) - 3)


def ordered(core: t.Tokenizer) -> list[str]:
    vocab = core.get_vocab()
    return sorted(vocab, key=vocab.__getitem__)


def merges(core: t.Tokenizer) -> list[str]:
    return [" ".join(pair) for pair in json.loads(core.to_str())["model"]["merges"]]


def write_gguf_tokenizer(path: Path, kind: str, tokens: list[str], **keys) -> None:
    """A GGUF file with no tensors: a list, number, text or flag for each key."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model(kind)
    writer.add_token_list(tokens)
    for key, value in keys.items():
        name = key if key == "chat_template" else f"ggml.{key}"
        if isinstance(value, bool):
            writer.add_bool(f"tokenizer.{name}", value)
        elif isinstance(value, int):
            writer.add_uint32(f"tokenizer.{name}", value)
        elif isinstance(value, str):
            writer.add_string(f"tokenizer.{name}", value)
        else:
            writer.add_array(f"tokenizer.{name}", value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
