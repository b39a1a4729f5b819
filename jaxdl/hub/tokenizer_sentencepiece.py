"""A tokenizer made from a SentencePiece `tokenizer.model` alone."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxdl.hub import vocabulary
from jaxdl.hub.files import HubError, short
from jaxdl.hub.sentencepiece_file import (
    BPE,
    CONTROL,
    NORMAL,
    UNIGRAM,
    USER_DEFINED,
    SentencePiece,
    read_sentencepiece,
)
from jaxdl.hub.vocabulary import SPACE

# Classes of transformers that are no more than this: others move ids, or split texts
# in their own way.
CLASSES = {
    **dict.fromkeys(["LlamaTokenizer", "GemmaTokenizer"], BPE),
    **dict.fromkeys(["T5Tokenizer", "MT5Tokenizer"], UNIGRAM),
}
MOST_EXTRA = 10_000


def sentencepiece_tokenizer(
    path: Path, config: dict[str, Any], special: dict[str, str]
) -> Any:
    """The `tokenizers.Tokenizer` of a model file, and of what is said beside it.

    config: tokenizer_config.json, where defaults of its class are filled in.
    special: the special tokens, filled in likewise.

    A text that begins with a space gets no other before it, as in transformers;
    SentencePiece itself puts one there. Raises HubError for a model that splits in a
    way which is not known here to give the ids it was trained with.
    """
    model = read_sentencepiece(path)
    name = str(config.get("tokenizer_class", "")).removesuffix("Fast")
    _check(path, model, name)
    for token, id in model.special.items():
        special.setdefault(token, model.pieces[id].text)
    if name in ("LlamaTokenizer", "GemmaTokenizer"):
        config.setdefault("add_bos_token", True)
    if name in ("T5Tokenizer", "MT5Tokenizer"):
        config["add_eos_token"] = True
    core = (_bpe if model.algorithm == BPE else _unigram)(model, config)
    for kind, hidden in ((CONTROL, True), (USER_DEFINED, False)):
        found = [piece.text for piece in model.pieces if piece.kind == kind]
        vocabulary.add_special(core, found, hidden)
    if CLASSES.get(name) == UNIGRAM:
        number = config.get("extra_ids", 100)
        if not isinstance(number, int) or not 0 <= number <= MOST_EXTRA:
            raise HubError(
                f"{path.parent}: extra_ids: expected a number up to {MOST_EXTRA}, got "
                f"{short(number)}"
            )
        extra = [f"<extra_id_{i}>" for i in range(number - 1, -1, -1)]
        vocabulary.add_special(core, extra)
    return core


def _check(path: Path, model: SentencePiece, name: str) -> None:
    """Holds a model to one of the two ways that are known."""
    spaced = [p for p in model.pieces if SPACE in p.text[1:].lstrip(SPACE)]
    own = [p for p in model.pieces if p.kind == USER_DEFINED and SPACE in p.text]
    wrong = {
        f"class {name}": bool(name) and CLASSES.get(name) != model.algorithm,
        f"algorithm {model.algorithm}": model.algorithm not in (UNIGRAM, BPE),
        "a space that ends words": model.spaces_last or not model.escape_spaces,
        "words in one piece": model.algorithm == UNIGRAM and bool(spaced),
        "spaces of the user's": bool(own),
        "bytes": model.byte_fallback != (model.algorithm == BPE),
        "extra spaces": model.remove_extra_spaces != (model.algorithm == UNIGRAM),
        "no space before": model.algorithm == UNIGRAM and not model.prefix,
        "normalised BPE": model.algorithm == BPE and bool(model.charsmap),
    }
    found = ", ".join(what for what, is_so in wrong.items() if is_so)
    if found:
        raise HubError(
            f"{path}: expected a model as Llama's (BPE on bytes) or T5's (unigram) is, "
            f"this is another ({found}); convert it: transformers.AutoTokenizer"
            ".from_pretrained(folder).save_pretrained(folder) writes tokenizer.json"
        )


def _bpe(model: SentencePiece, config: Mapping[str, Any]) -> Any:
    # What is special, and bytes, are never made of other pieces.
    scores = {p.text: p.score for p in model.pieces if p.kind == NORMAL}
    unknown = model.special.get("unk_token")
    prefix = config.get("add_prefix_space")
    return vocabulary.sentencepiece_bpe(
        {piece.text: id for id, piece in enumerate(model.pieces)},
        vocabulary.implied_merges(scores),
        None if unknown is None else model.pieces[unknown].text,
        prefix=model.prefix if prefix is None else bool(prefix),
    )


def _unigram(model: SentencePiece, config: Mapping[str, Any]) -> Any:
    pieces = [(piece.text, piece.score) for piece in model.pieces]
    return vocabulary.unigram(pieces, model.special["unk_token"], model.charsmap)
