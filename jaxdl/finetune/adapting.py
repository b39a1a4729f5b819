"""Adapters as functions of (model, params): put on, merged, taken off."""

from collections.abc import Iterable
from typing import Any

import jax

from jaxdl.core import tree
from jaxdl.core.module import Module, check_params, declared, map_modules
from jaxdl.core.naming import join
from jaxdl.core.param import Param
from jaxdl.finetune.adapters import DoRA, LoRA, lengths
from jaxdl.finetune.quantized import QuantizedLinear
from jaxdl.finetune.surgery import chosen, convert, get, places, put
from jaxdl.nn.linear import Linear

Patterns = str | Iterable[str]


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
    """Puts a `LoRA` on each Linear whose path fits: (model, params) -> (model, params).

    Patterns are of the layers' paths: `"**/attn/*"`, or `("**/q", "**/v")`. The layers
    that `nn.Repeat` repeats share a path, and are adapted together, each with numbers
    of its own. The new model gives what the old one gave. Arrays that were there are
    not copied; the new ones are float32 and depend on the key and their path alone.

    Raises ValueError for a pattern that fits no Linear, for a layer that has an adapter
    already, and for params that do not fit the model.

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
    """Puts a `DoRA` on each Linear whose path fits; else as `lora`."""
    model, params = _adapted(DoRA, model, params, patterns, rank, alpha, dropout, key)
    for path, layer in places(model, DoRA).items():
        there = get(params, path)
        magnitude = lengths(layer.inner.matrix(there))  # type: ignore[attr-defined]
        params = put(params, join(path, "lora/magnitude"), magnitude)
    return model, params


def merge(model: Module, params: Any) -> tuple[Any, Any]:
    """Adds every adapter to its layer: the plain (model, params) with equal outputs.

    Kernels keep their dtype. A quantised layer with an adapter becomes an `nn.Linear`
    in the dtype of its scales: its integers could not hold the change.
    """

    def change(path: str, module: Any, there: Any):
        layer = module.inner
        if isinstance(layer, QuantizedLinear):
            layer = Linear(
                layer.in_features, layer.out_features, layer.bias, layer.axes
            )
        bias = {"bias": there["bias"]} if layer.bias else {}
        return layer, {"kernel": module.matrix(there), **bias}

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
    paths = set(chosen(model, (Linear, QuantizedLinear), patterns))
    for path in places(model, LoRA):
        if path in paths:
            raise ValueError(f"{path}: expected a layer without an adapter; merge")

    def visit(path: str, module: Module) -> Module:
        wanted = path in paths and isinstance(module, Linear | QuantizedLinear)
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
