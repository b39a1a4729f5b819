"""Published models as a whole: a folder or repository becomes model and params."""

from collections.abc import Iterator, Mapping
import contextlib
import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxdl import shard
from jaxdl.core.derive import abstract, abstract_state
from jaxdl.core.layout import Rules
from jaxdl.core.module import Module, is_stateful
from jaxdl.hub.families.family import family_of
from jaxdl.hub.families.gguf import gguf_family
from jaxdl.hub.families.heads import is_bare
from jaxdl.hub.files import HubError, read_json, short
from jaxdl.hub.read import load_params
from jaxdl.hub.tensors import Tensors, open_tensors
from jaxdl.hub.tokenizer_files import SENTENCEPIECE, SOURCES, open_tokenizer
from jaxdl.hub.tokenizer_gguf import gguf_tokenizer
from jaxdl.hub.write import save_params


class Pretrained(NamedTuple):
    """What `load` returns: model, params and tokenizer, and config.json as a dict.

    tokenizer is None where the folder has none. state is that of a model with batch
    statistics (`ResNet`), {} of any other.
    """

    model: Any
    params: Any
    tokenizer: Any
    config: Mapping[str, Any]
    state: Any


def load(
    path: str | os.PathLike,
    mesh: Mesh | None = None,
    rules: Rules | None = None,
    dtype: Any = None,
) -> Pretrained:
    """Opens published weights: a folder, a .gguf file, or a repository as owner/name.

    A folder has config.json and .safetensors files; repositories are Hugging Face's.
    dtype is that of every parameter, float32 unless given. With a mesh each device is
    given its own part straight from the file, by `rules` such as `jd.shard.FSDP`; what
    has no rule, or does not divide, is whole on every device (`jd.shard.explain`).

    Raises HubError for a family that is not known and for tensors that do not fit.
    """
    place = _place(path)
    tensors = open_tensors(place)
    with _describing(place):
        if place.suffix == ".gguf":
            config, family = gguf_family(tensors)
        else:
            config = read_json(place / "config.json")
            family = family_of(config)
        model = family.build(config)
    tensors = family.view(tensors)
    wanted, own = (abstract(model), abstract_state(model))
    shardings = None
    if mesh is not None:
        whole = NamedSharding(mesh, PartitionSpec())
        shardings = shard.shardings(model, mesh, rules or {})
        shardings = _merged(shardings, jax.tree.map(lambda leaf: whole, own))
    both = load_params(
        {family.current_name(name): tensor for name, tensor in tensors.items()},
        family.rules,
        _merged(wanted, own),
        # Statistics stay as wide as they are declared.
        dtype=None if own else dtype,
        shardings=shardings,
        layers=family.layers(model),
        ignore=(*family.ignore, *_tied(config)),
        prefix=family.prefix,
    )
    params, state = _taken(both, wanted), _taken(both, own)
    if own and dtype is not None:
        params = jax.tree.map(lambda leaf: leaf.astype(dtype), params)
    # What was packed is decoded: saved again it is what is then said of it.
    config = {n: v for n, v in config.items() if n != "quantization_config"}
    return Pretrained(model, params, _tokenizer(place, tensors), config, state)


def save(
    path: str | os.PathLike,
    model: Module,
    params: Any,
    config: Mapping[str, Any],
    *,
    state: Any = None,
    max_shard_bytes: int = 5_000_000_000,
) -> None:
    """Writes params and config.json in the published layout, into an empty folder.

    `config` is the dict that `load` returned, or one made for the model. A model with
    state is saved with it. Raises HubError if the model and config do not fit.
    """
    family = family_of(config)
    if family.build(config) != model:
        raise HubError(
            f"{path}: the model is not the one that this config describes; "
            "change config with it"
        )
    if is_stateful(model) and not state:
        raise HubError(f"{path}: {type(model).__name__} has state: save it with state=")
    save_params(
        _merged(params, state or {}),
        family.rules,
        path,
        layers=family.layers(model),
        max_shard_bytes=max_shard_bytes,
        without=family.prefix if is_bare(config) else "",
    )
    text = json.dumps(dict(config), indent=2, sort_keys=True)
    (Path(path) / "config.json").write_text(text + "\n")


@contextlib.contextmanager
def _describing(place: Path) -> Iterator[None]:
    """Names the file whose configuration makes no model: it may say anything."""
    try:
        yield
    except HubError as error:
        if str(place) in str(error):
            raise
        raise HubError(f"{place}: {error}") from error
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as e:
        problem = f"{type(e).__name__}: {short(str(e), quote=False)}"
        raise HubError(f"{place}: its configuration makes no model: {problem}") from e


def _merged(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """Two trees of one model in one: params, and the state beside them."""
    merged = dict(first)
    for name, node in second.items():
        inner = isinstance(node, Mapping) and name in first
        merged[name] = _merged(first[name], node) if inner else node
    return merged


def _taken(whole: Mapping[str, Any], like: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a tree that has the structure of another."""
    return {
        name: _taken(whole[name], node) if isinstance(node, Mapping) else whole[name]
        for name, node in like.items()
    }


def _place(path: str | os.PathLike) -> Path:
    """The folder or .gguf file of a path; of a repository's name what is downloaded."""
    place = Path(path)
    if place.is_dir() or (place.is_file() and place.suffix == ".gguf"):
        return place
    if place.exists() or str(path).count("/") != 1 or str(path).startswith("."):
        raise HubError(
            f"{path}: expected a folder, a .gguf file, or a repository as owner/name"
        )
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise HubError(
            f'{path}: is no folder; repositories need pip install "jaxdl[hub]"'
        ) from error
    wanted = ["*.json", "*.safetensors", "*.txt", "*.jinja", *SENTENCEPIECE]
    return Path(snapshot_download(str(path), allow_patterns=wanted))


def _tokenizer(place: Path, tensors: Tensors) -> Any:
    """The tokenizer of a folder or file; None where there is none to read."""
    if place.suffix == ".gguf":
        if "tokenizer.ggml.model" not in tensors.metadata:
            return None
        return gguf_tokenizer(tensors.metadata, str(place))
    if not any((place / name).exists() for name in SOURCES):
        return None
    return open_tokenizer(place)


def _tied(config: Mapping[str, Any]) -> tuple[str, ...]:
    """A tied head is in some files all the same."""
    tied = config.get("tie_word_embeddings", False) or config["model_type"] == "gpt2"
    return ("lm_head.weight",) if tied else ()
