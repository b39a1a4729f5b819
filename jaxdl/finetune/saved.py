"""Adapters on disk: one small .safetensors file beside the weights they belong to."""

import os
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxdl.core import tree
from jaxdl.core.module import Module, check_params
from jaxdl.finetune.partition import ADAPTERS, split
from jaxdl.finetune.surgery import put
from jaxdl.hub.files import needs
from jaxdl.hub.tensors import open_tensors


def save_adapters(path: str | os.PathLike, params: Any, patterns: Any = ADAPTERS):
    """Writes the leaves that fit a pattern, by their paths, to a .safetensors file.

    The adapters unless told else. It has its name only when it is whole. Raises
    ValueError for a pattern that fits nothing and for a path of another suffix.
    """
    path = _checked(path)
    save_file = needs("safetensors.numpy", "a .safetensors file").save_file
    trained, _ = split(params, patterns)
    arrays = {k: np.ascontiguousarray(v) for k, v in tree.flatten(trained).items()}
    unfinished = path.with_name(path.name + ".tmp")
    save_file(arrays, unfinished)
    unfinished.replace(path)


def load_adapters(path: str | os.PathLike, model: Module, params: Any) -> Any:
    """The params of an adapted model, with what `save_adapters` wrote in its place.

    `lora` or `dora` with the same patterns and rank makes the model; its base must be
    the one that the adapters were trained on. Raises ValueError naming every path that
    does not fit, and for adapters that the file lacks.
    """
    tensors, known = open_tensors(_checked(path)), tree.flatten(params)
    unknown = sorted(set(tensors) - set(known))
    adapters = {name for name in known if tree.matches(ADAPTERS, name)}
    missing = sorted(adapters - set(tensors))
    if unknown or missing:
        raise ValueError(
            f"{path}: expected the adapters of these params; it lacks {missing[:4]} "
            f"and has {unknown[:4]} besides"
        )
    for name, tensor in tensors.items():
        params = put(params, name, jnp.asarray(tensor.read()))
    check_params(model, params)
    return params


def _checked(path: str | os.PathLike) -> Path:
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"{path}: expected a name that ends in .safetensors")
    return path
