"""Kinds of tokenizers made from their vocabulary, as `tokenizers.Tokenizer`."""

from collections.abc import Mapping, Sequence
from typing import Any

from jaxdl.hub.files import needs

SPACE = "▁"

# How text is split before merges, by the name that llama.cpp has for it. With None it
# is as GPT-2 does, with DIGITS so too but each digit alone.
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
GPT4O = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
DIGITS = "digits"
CLIP_ENDS = ("<|startoftext|>", "<|endoftext|>")
CLIP = (
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d"
    r"|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
)

LONGEST_TOKEN = 1000
Merges = Sequence[tuple[str, str]]


def byte_level(
    vocab: Mapping[str, int],
    merges: Merges,
    split: str | None = None,
    *,
    nfc: bool = False,
    ignore_merges: bool = False,
    add_prefix_space: bool = False,
) -> Any:
    """BPE on bytes, as GPT-2, Llama 3 and Qwen have it.

    ignore_merges: a word that is a token is one, whatever merges there are.
    """
    t = needs("tokenizers", "a tokenizer")
    core = t.Tokenizer(
        t.models.BPE(dict(vocab), list(merges), ignore_merges=ignore_merges)
    )
    steps = t.pre_tokenizers
    bytes_of = steps.ByteLevel(add_prefix_space, use_regex=split in (None, DIGITS))
    if split == DIGITS:
        core.pre_tokenizer = steps.Sequence([steps.Digits(True), bytes_of])
    elif split is not None:
        pattern = steps.Split(t.Regex(split), "isolated")
        core.pre_tokenizer = steps.Sequence([pattern, bytes_of])
    else:
        core.pre_tokenizer = bytes_of
    if nfc:
        core.normalizer = t.normalizers.NFC()
    core.decoder = t.decoders.ByteLevel()
    return core


def clip(vocab: Mapping[str, int], merges: Merges, special: Mapping[str, str]) -> Any:
    """BPE on the bytes of lower-case words, whose last token ends in `</w>`: CLIP's.

    Spaces are lost, and the text that ids stand for has one between two words.
    """
    t = needs("tokenizers", "a tokenizer")
    bpe = t.models.BPE(
        dict(vocab), list(merges), unk_token=special["unk_token"],
        continuing_subword_prefix="", end_of_word_suffix="</w>",
    )  # fmt: skip
    core, n, p, d = t.Tokenizer(bpe), t.normalizers, t.pre_tokenizers, t.decoders
    one_space = n.Replace(t.Regex(r"\s+"), " ")
    core.normalizer = n.Sequence([n.NFC(), one_space, n.Lowercase()])
    words = p.Split(t.Regex(CLIP), "removed", invert=True)
    core.pre_tokenizer = p.Sequence([words, p.ByteLevel(add_prefix_space=False)])
    ends = d.Replace(t.Regex(r"^\s+|\s+$"), "")
    core.decoder = d.Sequence([d.ByteLevel(), d.Replace("</w>", " "), ends])
    first, last = special["bos_token"], special["eos_token"]
    add_special(core, [first, last])
    surround(core, first, last)
    return core


def sentencepiece_bpe(
    vocab: Mapping[str, int], merges: Merges, unknown: str | None, prefix: bool = True
) -> Any:
    """SentencePiece's BPE, as Llama 2 has it; unknown characters are bytes `<0x0A>`.

    prefix: a space is put before the text.
    """
    t = needs("tokenizers", "a tokenizer")
    bpe = t.models.BPE(
        dict(vocab), list(merges), unk_token=unknown, fuse_unk=True, byte_fallback=True
    )
    core = t.Tokenizer(bpe)
    core.pre_tokenizer = t.pre_tokenizers.Metaspace(
        SPACE, "first" if prefix else "never", split=False
    )
    d = t.decoders
    steps = [d.Replace(SPACE, " "), d.ByteFallback(), d.Fuse()]
    core.decoder = d.Sequence(steps + ([d.Strip(" ", 1, 0)] if prefix else []))
    return core


def unigram(
    pieces: Sequence[tuple[str, float]], unknown: int, charsmap: bytes | None = None
) -> Any:
    """SentencePiece's unigram model, as T5 has it; charsmap normalises text."""
    t = needs("tokenizers", "a tokenizer")
    core = t.Tokenizer(t.models.Unigram(list(pieces), unknown, byte_fallback=False))
    if charsmap:
        core.normalizer = t.normalizers.Precompiled(charsmap)
    space = t.pre_tokenizers.Metaspace(SPACE, "always", split=True)
    words = t.pre_tokenizers.WhitespaceSplit()
    core.pre_tokenizer = t.pre_tokenizers.Sequence([words, space])
    core.decoder = t.decoders.Metaspace(SPACE, "always", split=True)
    return core


def word_piece(
    vocab: Mapping[str, int],
    *,
    unknown: str = "[UNK]",
    lowercase: bool = True,
    strip_accents: bool | None = None,
    chinese: bool = True,
) -> Any:
    """WordPiece, as BERT has it, without the tokens around a text."""
    t = needs("tokenizers", "a tokenizer")
    core = t.Tokenizer(t.models.WordPiece(dict(vocab), unk_token=unknown))
    core.normalizer = t.normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=chinese,
        strip_accents=strip_accents,
        lowercase=lowercase,
    )
    core.pre_tokenizer = t.pre_tokenizers.BertPreTokenizer()
    core.decoder = t.decoders.WordPiece("##")
    return core


def surround(core: Any, before: str | None, after: str | None) -> None:
    """Puts a token before each text and one after it."""
    t = needs("tokenizers", "a tokenizer")
    names = [name for name in (before, after) if name is not None]
    first = f"{before}:0 " if before else ""
    last = f" {after}:0" if after else ""
    other = f" {after}:1" if after else ""
    core.post_processor = t.processors.TemplateProcessing(
        single=f"{first}$A:0{last}",
        pair=f"{first}$A:0{last} $B:1{other}",
        special_tokens=[
            (name, core.token_to_id(name)) for name in dict.fromkeys(names)
        ],
    )


def add_special(core: Any, names: Sequence[str], special: bool = True) -> None:
    """Makes tokens be found whole in any text; those that are so already stay as is."""
    t = needs("tokenizers", "a tokenizer")
    known = {token.content for token in core.get_added_tokens_decoder().values()}
    wanted = [name for name in dict.fromkeys(names) if name and name not in known]
    tokens = [t.AddedToken(n, normalized=False, special=special) for n in wanted]
    (core.add_special_tokens if special else core.add_tokens)(tokens)


def merges_of(lines: Sequence[str]) -> list[tuple[str, str]]:
    """Merges that are written as two tokens and a space between."""
    pairs = (line.partition(" ") for line in lines)
    return [(left, right) for left, _, right in pairs]


def implied_merges(scores: Mapping[str, float]) -> list[tuple[str, str]]:
    """The merges of SentencePiece's BPE, best first, of which a file has the scores.

    Any two tokens that make a third are merged, by the score of what they make. Raises
    ValueError for tokens so long that nobody ever made them.
    """
    longest = max(map(len, scores), default=0)
    if longest > LONGEST_TOKEN:
        raise ValueError(f"tokens of at most {LONGEST_TOKEN} characters, got {longest}")
    found = []
    for token, score in scores.items():
        for left, right in ((token[:i], token[i:]) for i in range(1, len(token))):
            if left in scores and right in scores:
                found.append((score, left, right))
    found.sort(key=lambda merge: (-merge[0], -len(merge[1])))
    return [(left, right) for _, left, right in found]
