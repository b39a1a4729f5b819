"""Adapters as functions of (model, params): put on, merged, taken off."""

from collections.abc import Iterable
from typing import Any

import jax

from jaxdl.core import tree
from jaxdl.core.module import Module, check_params, declared, map_modules
from jaxdl.core.naming import join
from jaxdl.core.param import Param
from jaxdl.finetune.adapters import DoRA, LoRA
from jaxdl.finetune.factors import KINDS
from jaxdl.finetune.quantized import QuantizedEmbedding, QuantizedLinear
from jaxdl.finetune.surgery import chosen, convert, get, places, put
from jaxdl.nn.kernel_norm import SpectralNorm, WeightNorm, WeightStandardized
from jaxdl.nn.linear import Embedding

Patterns = str | Iterable[str]

_NORMALISED = (SpectralNorm, WeightNorm, WeightStandardized)


def lora(
    model: Module,
    params: Any,
    patterns: Patterns,
    rank: int = 8,
    alpha: float = 16.0,
    *,
    key: jax.Array,
    dropout: float = 0.0,
) -> tuple[Any, Any]:
    """Puts a `LoRA` on each layer whose path fits: (model, params) -> (model, params).

    Patterns are of the layers' paths: `"**/attn/*"`, or `("**/q", "**/v")`. Linear,
    Conv, ConvTranspose, Einsum, Embedding, the experts of a mixture, and any layer with
    `in_features`, `out_features` and a `matrix` can be adapted, quantised or not; what
    else fits a pattern stays as it is. The layers that `nn.Repeat` repeats share a
    path, and are adapted together, each with numbers of its own, as experts are. The
    new model gives what the old one gave. Arrays that were there are not copied; the
    new ones are float32 and depend on the key and their path alone.

    Raises ValueError for a pattern that fits no such layer, for a layer that has an
    adapter already or whose kernel is normalised, and for params that do not fit the
    model.

    >>> from jaxdl import nn
    >>> model = nn.Sequential([nn.Linear(4, 8), nn.Linear(8, 2)])
    >>> params = model.init(jax.random.key(0))
    >>> model, params = lora(model, params, "1", rank=2, key=jax.random.key(1))
    >>> sorted(tree.flatten(params["1"]))
    ['bias', 'kernel', 'lora/a', 'lora/b']
    """
    return _adapted(LoRA, model, params, patterns, rank, alpha, dropout, key)


def dora(
    model: Module,
    params: Any,
    patterns: Patterns,
    rank: int = 8,
    alpha: float = 16.0,
    *,
    key: jax.Array,
    dropout: float = 0.0,
) -> tuple[Any, Any]:
    """Puts a `DoRA` on each layer whose path fits; else as `lora`."""
    model, params = _adapted(DoRA, model, params, patterns, rank, alpha, dropout, key)
    for path, layer in places(model, DoRA).items():
        there = get(params, path)
        kernel = layer.inner.matrix(there)  # type: ignore[attr-defined]
        magnitude = layer.form.lengths(kernel)  # type: ignore[attr-defined]
        params = put(params, join(path, "lora/magnitude"), magnitude)
    return model, params


def merge(model: Module, params: Any) -> tuple[Any, Any]:
    """Adds every adapter to its layer: the plain (model, params) with equal outputs.

    Kernels keep their dtype. A quantised layer with an adapter becomes the plain one in
    the dtype of its scales: its integers could not hold the change.
    """

    def change(path: str, module: Any, there: Any):
        layer = module.inner
        if isinstance(layer, QuantizedLinear | QuantizedEmbedding):
            layer = layer.plain()
        name = "embedding" if isinstance(layer, Embedding) else "kernel"
        spec = declared(layer)
        if name not in spec:
            kind = type(layer).__name__
            raise TypeError(f"{path}: expected a {kind} with a {name}, got {[*spec]}")
        rest = {other: there[other] for other in spec if other != name}
        return layer, {name: module.matrix(there), **rest}

    return convert(model, params, change, LoRA)


def remove(model: Module, params: Any) -> tuple[Any, Any]:
    """Takes every adapter off: the (model, params) that it was put on.

    Preference tuning needs them as its reference. No array is copied.
    """

    def change(path: str, module: Any, there: Any):
        return module.inner, {k: v for k, v in there.items() if k != "lora"}

    return convert(model, params, change, LoRA)


def _adapted(kind, model, params, patterns, rank, alpha, dropout, key):
    check_params(model, params)
    paths = set(chosen(model, KINDS, patterns))
    for path in places(model, LoRA):
        if path in paths:
            raise ValueError(f"{path}: expected a layer without an adapter; merge")
    for path, norm in places(model, _NORMALISED).items():
        if path in paths:
            # What is merged would be normalised, and the change with it.
            name = type(norm).__name__
            raise ValueError(f"{path}: expected a plain layer, got one in a {name}")

    def visit(path: str, module: Module) -> Module:
        wanted = path in paths and isinstance(module, KINDS)
        return kind(module, rank, alpha, dropout) if wanted else module

    model = map_modules(visit, model)
    spec = declared(model, Param)
    for path in paths:
        place = join(path, "lora")
        drawn = tree.map_with_path(
            lambda name, param, place=place: param.sample(key, join(place, name)),
            get(spec, place),
        )
        params = put(params, place, drawn)
    return model, params
