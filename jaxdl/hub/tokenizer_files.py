"""Tokenizers opened from the files that are published beside weights."""

from collections.abc import Mapping
import os
from pathlib import Path
from typing import Any

from jaxdl.hub import vocabulary
from jaxdl.hub.files import HubError, needs, parse_json, read_json, read_text, short
from jaxdl.hub.tokenizer import Tokenizer
from jaxdl.hub.tokenizer_sentencepiece import sentencepiece_tokenizer

SPECIAL = ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token"]
SPECIAL += ["cls_token", "mask_token"]
SENTENCEPIECE = ("tokenizer.model", "spiece.model")
# What a tokenizer can be read from, in a folder.
SOURCES = ("tokenizer.json", "vocab.json", "vocab.txt", *SENTENCEPIECE)


def open_tokenizer(path: str | os.PathLike) -> Tokenizer:
    """Opens the tokenizer in a folder, a tokenizer.json, or a .gguf file.

    A folder has tokenizer.json, or vocab.json with merges.txt (GPT-2, RoBERTa, Qwen,
    CLIP), or vocab.txt (BERT), or SentencePiece's tokenizer.model as Llama 2 and T5
    have it; tokenizer_config.json, special_tokens_map.json,
    generation_config.json and chat_template.jinja are read where they are there.
    Raises HubError, naming the file, for what is damaged or of another kind.
    """
    path = Path(path).expanduser()
    if path.suffix == ".gguf":
        from jaxdl.hub.tensors import open_tensors
        from jaxdl.hub.tokenizer_gguf import gguf_tokenizer

        return gguf_tokenizer(open_tensors(path).metadata, str(path))
    folder = path if path.is_dir() else path.parent
    config = _config(folder)
    special = _special(folder, config)
    file = path if path.is_file() else folder / "tokenizer.json"
    if file.is_file() and file.suffix == ".json":
        core = _core(file, config, special)
    elif path.is_dir():
        core = _from_vocabulary(folder, config, special)
    else:
        raise HubError(f"{path}: expected a folder, a tokenizer.json or a .gguf file")
    side = config.get("padding_side", "right")
    if side not in ("left", "right"):
        raise HubError(f"{folder}: padding_side: expected left or right, got {side!r}")
    vocabulary.add_special(core, list(special.values()))
    eos_ids, templates = _eos_ids(folder, core, special), _templates(folder, config)
    return Tokenizer(core, special, eos_ids, side, templates)


def _core(file: Path, config: dict[str, Any], special: dict[str, str]) -> Any:
    """A `tokenizers.Tokenizer` of a tokenizer.json, without its padding and cutting."""
    tokenizers = needs("tokenizers", "a tokenizer")
    text = read_text(file)
    parse_json(text.encode(), file)
    core = _made(file, lambda: tokenizers.Tokenizer.from_str(text))
    if core.padding:
        special.setdefault("pad_token", core.padding["pad_token"])
        config.setdefault("padding_side", core.padding["direction"])
    core.no_padding()
    core.no_truncation()
    _add_tokens(core, config, file)
    return core


def _made(file: Path, make: Any) -> Any:
    try:
        return make()
    except HubError:
        raise
    except BaseException as error:
        # The package raises Exception itself, and a panic of Rust is not even that.
        panic = type(error).__name__ == "PanicException"
        if not (panic or isinstance(error, Exception)):
            raise
        reason = short(str(error), quote=False)
        raise HubError(f"{file}: not a tokenizer: {reason}") from error


def _config(folder: Path) -> dict[str, Any]:
    """tokenizer_config.json, and what older folders have in special_tokens_map.json."""
    config = _json(folder / "tokenizer_config.json")
    if "added_tokens_decoder" in config:
        return config
    return {**config, **_json(folder / "special_tokens_map.json")}


def _json(file: Path) -> dict[str, Any]:
    """A JSON object, {} if there is no such file."""
    if not file.is_file():
        return {}
    value = read_json(file)
    if not isinstance(value, dict):
        raise HubError(f"{file}: expected a JSON object, got {short(value)}")
    return value


def _special(folder: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """The special tokens by name; a token is text, or a dict that has it."""
    found = {}
    for name in SPECIAL:
        token = _content(config.get(name))
        if token is not None and not isinstance(token, str):
            raise HubError(f"{folder}: {name}: expected text, got {short(token)}")
        if token is not None:
            found[name] = token
    return found


def _content(token: Any) -> Any:
    return token.get("content") if isinstance(token, dict) else token


def _add_tokens(core: Any, config: Mapping[str, Any], file: Path) -> None:
    """Adds what tokenizer_config.json has beyond tokenizer.json."""
    added = config.get("added_tokens_decoder") or {}
    if not isinstance(added, dict) or not all(id.isdecimal() for id in added):
        raise HubError(f"{file}: added_tokens_decoder: expected tokens by id")
    for _, token in sorted(added.items(), key=lambda item: int(item[0])):
        if isinstance(token, dict) and isinstance(token.get("content"), str):
            special = bool(token.get("special"))
            vocabulary.add_special(core, [token["content"]], special)
    more = config.get("additional_special_tokens") or []
    names = [_content(token) for token in more] if isinstance(more, list) else []
    vocabulary.add_special(core, [name for name in names if isinstance(name, str)])


def _eos_ids(folder: Path, core: Any, special: Mapping[str, str]) -> frozenset[int]:
    """The tokenizer's end of text, and those that generation stops at."""
    found = _json(folder / "generation_config.json").get("eos_token_id")
    ids = found if isinstance(found, list) else [] if found is None else [found]
    if not all(isinstance(id, int) for id in ids):
        raise HubError(f"{folder}: eos_token_id: expected ids, got {short(found)}")
    own = core.token_to_id(special["eos_token"]) if "eos_token" in special else None
    return frozenset(ids if own is None else [*ids, own])


def _templates(folder: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """The chat templates by name: a file of its own, or in tokenizer_config.json."""
    if (folder / "chat_template.jinja").is_file():
        return {"default": read_text(folder / "chat_template.jinja")}
    found = config.get("chat_template")
    if isinstance(found, str):
        return {"default": found}
    if not isinstance(found, list | None):
        raise HubError(f"{folder}: chat_template: expected text, got {short(found)}")
    named = [item for item in found or [] if isinstance(item, dict)]
    return {str(item.get("name")): str(item.get("template")) for item in named}


def _from_vocabulary(folder: Path, config: dict[str, Any], special: dict) -> Any:
    core = _of_words(folder, config, special)
    if "add_bos_token" in config or "add_eos_token" in config:
        before, after = special.get("bos_token"), special.get("eos_token")
        vocabulary.add_special(core, [name for name in (before, after) if name])
        vocabulary.surround(
            core,
            before if config.get("add_bos_token") else None,
            after if config.get("add_eos_token") else None,
        )
    return core


def _of_words(folder: Path, config: dict[str, Any], special: dict) -> Any:
    vocab = folder / "vocab.json"
    if vocab.is_file() and (folder / "merges.txt").is_file():
        return _made(vocab, lambda: _pairs(folder, config, special))
    if (folder / "vocab.txt").is_file():
        return _made(folder / "vocab.txt", lambda: _word_piece(folder, config, special))
    models = [folder / name for name in SENTENCEPIECE]
    if model := next((file for file in models if file.is_file()), None):
        return _made(model, lambda: sentencepiece_tokenizer(model, config, special))
    raise HubError(
        f"{folder}: expected tokenizer.json, or vocab.json with merges.txt, or "
        f"vocab.txt, or {SENTENCEPIECE[0]}; found none"
    )


def _pairs(folder: Path, config: Mapping[str, Any], special: dict) -> Any:
    """BPE of vocab.json and merges.txt: GPT-2's kind, or CLIP's."""
    vocab = _json(folder / "vocab.json")
    lines = read_text(folder / "merges.txt").splitlines()
    lines = lines[1:] if lines and lines[0].startswith("#version") else lines
    lines = [line for line in lines if line]
    clip = any("</w>" in token for token in vocab)
    kind = str(config.get("tokenizer_class"))
    first, last = vocabulary.CLIP_ENDS
    known = kind.startswith("CLIP") or (kind == "None" and {first, last} <= set(vocab))
    if any(line.count(" ") != 1 for line in lines) or (clip and not known):
        raise HubError(
            f"{folder}: expected GPT-2's or CLIP's kind of vocab.json and merges.txt, "
            "this is another; publish it with tokenizer.json"
        )
    if clip:
        special.setdefault("bos_token", first)
        for name in ("eos_token", "unk_token", "pad_token"):
            special.setdefault(name, last)
        return vocabulary.clip(vocab, vocabulary.merges_of(lines), special)
    return _byte_level(vocab, lines, config)


def _byte_level(vocab: dict, lines: list[str], config: Mapping[str, Any]) -> Any:
    kind = str(config.get("tokenizer_class"))
    qwen = kind.startswith("Qwen2")
    core = vocabulary.byte_level(
        vocab,
        vocabulary.merges_of(lines),
        vocabulary.QWEN2 if qwen else None,
        nfc=qwen,
        add_prefix_space=bool(config.get("add_prefix_space", False)),
    )
    if kind.startswith("Roberta"):
        vocabulary.surround(core, "<s>", "</s>")
    return core


def _word_piece(folder: Path, config: Mapping[str, Any], special: dict) -> Any:
    lines = read_text(folder / "vocab.txt").split("\n")
    lines = lines[:-1] if lines and not lines[-1] else lines
    core = vocabulary.word_piece(
        {token.removesuffix("\r"): id for id, token in enumerate(lines)},
        unknown=special.get("unk_token", "[UNK]"),
        lowercase=bool(config.get("do_lower_case", True)),
        strip_accents=config.get("strip_accents"),
        chinese=bool(config.get("tokenize_chinese_chars", True)),
    )
    names = [special.get("cls_token", "[CLS]"), special.get("sep_token", "[SEP]")]
    vocabulary.add_special(core, names)
    vocabulary.surround(core, *names)
    return core
