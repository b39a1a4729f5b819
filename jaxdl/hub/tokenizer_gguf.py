"""A tokenizer made from the metadata of a .gguf file."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxdl.hub import vocabulary
from jaxdl.hub.files import HubError, short
from jaxdl.hub.tokenizer import Tokenizer
from jaxdl.hub.vocabulary import DIGITS, GPT4O, LLAMA3, QWEN2, SPACE, TEKKEN

# What llama.cpp calls the ways to split text: llama-vocab.cpp, LLAMA_VOCAB_PRE_TYPE.
SPLITS = {
    **dict.fromkeys(["default", "gpt-2", "gpt2", "phi-2", "olmo", "mpt"], None),
    **dict.fromkeys(["smollm", "starcoder", "refact", "command-r"], DIGITS),
    **dict.fromkeys(["codeshell", "exaone", "minerva-7b"], DIGITS),
    **dict.fromkeys(["llama3", "llama-v3", "llama-bpe", "falcon3", "pixtral"], LLAMA3),
    **dict.fromkeys(["falcon-h1", "lfm2", "dbrx", "smaug-bpe"], LLAMA3),
    **dict.fromkeys(["qwen2", "deepseek-r1-qwen", "megrez"], QWEN2),
    **dict.fromkeys(["gpt-4o", "llama4"], GPT4O),
    "tekken": TEKKEN,
}
WORDS_FIRST = {"llama3", "llama-v3", "llama-bpe", "falcon3", "pixtral", "tekken"}
WORDS_FIRST |= {"falcon-h1", "lfm2"}
COMPOSED = {"qwen2", "deepseek-r1-qwen", "megrez"}

UNKNOWN, CONTROL, USER_DEFINED = 2, 3, 4
NAMES = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id",
    "sep_token": "seperator_token_id",
    "cls_token": "cls_token_id",
    "mask_token": "mask_token_id",
}


def gguf_tokenizer(metadata: Mapping[str, Any], source: str = "GGUF") -> Tokenizer:
    """The tokenizer that a GGUF file describes: `gguf_tokenizer(tensors.metadata)`.

    Byte-level BPE (`gpt2`, with the split of `tokenizer.ggml.pre`), SentencePiece's BPE
    (`llama`) and unigram (`t5`), and WordPiece (`bert`). Raises HubError, naming the
    key, for any other and for metadata that is not whole.
    """
    file = _Metadata(metadata, source)
    kind = file.get("model", str)
    build = BUILDERS.get(kind)
    if build is None:
        raise file.error("model", f"one of {', '.join(BUILDERS)}", kind)
    tokens = file.get("tokens", list)
    if len(set(tokens)) < len(tokens):
        twice = next(t for t in tokens if tokens.count(t) > 1)
        raise file.error("tokens", "tokens that differ", twice)
    special = {
        name: tokens[file.id(key, len(tokens))]
        for name, key in NAMES.items()
        if file.has(key)
    }
    try:
        core = build(file, tokens, special)
        _mark(core, file, tokens)
        _surround(core, file, kind, special)
    except HubError:
        raise
    except Exception as error:  # the package raises that class itself
        raise HubError(f"{source}: no tokenizer: {short(str(error), False)}") from error
    ends = ["eos_token_id", "eot_token_id", "eom_token_id"]
    eos = {file.id(key, len(tokens)) for key in ends if file.has(key)}
    chat = metadata.get("tokenizer.chat_template")
    return Tokenizer(
        core,
        special,
        frozenset(eos),
        templates={"default": chat} if isinstance(chat, str) else {},
    )


class _Metadata:
    """The keys `tokenizer.ggml.*` of a file, held to their types."""

    def __init__(self, metadata: Mapping[str, Any], source: str):
        self.metadata, self.source = metadata, source

    def error(self, key: str, expected: str, got: Any) -> HubError:
        where = f"{self.source}: tokenizer.ggml.{key}"
        return HubError(f"{where}: expected {expected}, got {short(got)}")

    def has(self, key: str) -> bool:
        return f"tokenizer.ggml.{key}" in self.metadata

    def get(self, key: str, kind: type, default: Any = None) -> Any:
        value = self.metadata.get(f"tokenizer.ggml.{key}", default)
        if not isinstance(value, kind):
            raise self.error(key, f"a {kind.__name__}", value)
        return value

    def id(self, key: str, count: int) -> int:
        value = self.get(key, int)
        if not 0 <= value < count:
            raise self.error(key, f"an id below {count}", value)
        return value

    def numbers(self, key: str, count: int) -> list:
        values = self.get(key, np.ndarray)
        if len(values) != count:
            raise self.error(key, f"{count} numbers, one for each token", len(values))
        return values.tolist()

    def merges(self) -> list[tuple[str, str]]:
        lines = self.get("merges", list)
        wrong = next((line for line in lines if str(line).count(" ") != 1), None)
        if wrong is not None:
            raise self.error("merges", "two tokens and a space between", wrong)
        return vocabulary.merges_of(lines)


def _byte_level(file: _Metadata, tokens: list[str], special) -> Any:
    split = file.get("pre", str, "default")
    if split not in SPLITS:
        # A wrong split gives ids that look right and that no model was trained on.
        raise file.error("pre", f"one of {', '.join(SPLITS)}", split)
    return vocabulary.byte_level(
        {token: id for id, token in enumerate(tokens)},
        file.merges(),
        SPLITS[split],
        nfc=split in COMPOSED,
        ignore_merges=split in WORDS_FIRST,
        add_prefix_space=file.get("add_space_prefix", bool, False),
    )


def _sentencepiece(file: _Metadata, tokens: list[str], special) -> Any:
    if file.has("merges"):
        merges = file.merges()
    else:
        scores = file.numbers("scores", len(tokens))
        merges = vocabulary.implied_merges(dict(zip(tokens, scores, strict=True)))
    return vocabulary.sentencepiece_bpe(
        {token: id for id, token in enumerate(tokens)},
        merges,
        special.get("unk_token"),
        prefix=file.get("add_space_prefix", bool, True),
    )


def _unigram(file: _Metadata, tokens: list[str], special) -> Any:
    pieces = zip(tokens, file.numbers("scores", len(tokens)), strict=True)
    charsmap = file.get("precompiled_charsmap", np.ndarray, np.zeros(0, np.uint8))
    unknown = file.id("unknown_token_id", len(tokens))
    return vocabulary.unigram(list(pieces), unknown, charsmap.tobytes())


def _word_piece(file: _Metadata, tokens: list[str], special) -> Any:
    # GGUF marks the start of a word, BERT what goes on with one.
    vocab = {}
    for id, token in enumerate(tokens):
        if token.startswith(SPACE):
            token = token.removeprefix(SPACE)
        elif not (token.startswith("[") and token.endswith("]")):
            token = "##" + token
        vocab[token] = id
    return vocabulary.word_piece(vocab, unknown=special.get("unk_token", "[UNK]"))


BUILDERS = {
    "gpt2": _byte_level,
    "llama": _sentencepiece,
    "t5": _unigram,
    "bert": _word_piece,
}


def _mark(core: Any, file: _Metadata, tokens: list[str]) -> None:
    """Makes control tokens and those of the user's be found whole in a text."""
    if not file.has("token_type"):
        return
    kinds = file.numbers("token_type", len(tokens))
    by_kind = {
        wanted: [t for t, kind in zip(tokens, kinds, strict=True) if kind == wanted]
        for wanted in (CONTROL, USER_DEFINED)
    }
    vocabulary.add_special(core, by_kind[CONTROL])
    vocabulary.add_special(core, by_kind[USER_DEFINED], special=False)


def _surround(core: Any, file: _Metadata, kind: str, special: dict[str, str]) -> None:
    """What the model wants around a text; llama.cpp's choice where none is said."""
    words_first = file.get("pre", str, "default") in WORDS_FIRST
    bos = file.get("add_bos_token", bool, kind in ("llama", "bert") or words_first)
    eos = file.get("add_eos_token", bool, kind == "t5")
    before, after = special.get("bos_token"), special.get("eos_token")
    if kind == "bert":
        before, after = special.get("cls_token", before), special.get("sep_token")
        eos = True
    vocabulary.surround(core, before if bos else None, after if eos else None)
