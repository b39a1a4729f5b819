"""Weight-only quantisation as a function of (model, params), and back."""

from collections.abc import Iterable
from typing import Any, Literal

from jaxdl.core.module import Module
from jaxdl.finetune import codes
from jaxdl.finetune.quantized import QuantizedEmbedding, QuantizedLinear
from jaxdl.finetune.surgery import chosen, convert
from jaxdl.nn.linear import Embedding, Linear


def quantize(
    model: Module,
    params: Any,
    bits: Literal[8, 4] = 8,
    group: int | None = None,
    patterns: str | Iterable[str] | None = None,
) -> tuple[Any, Any]:
    """Keeps the weights of Linear and Embedding layers as integers of 8 or 4 bits.

    (model, params) -> (model, params), of each layer whose path fits, or of all. A
    `group` of inputs has one scale for each output (for an Embedding: of features, for
    each row); None is all of them for 8 bits and 32 for 4 bits. Rounding is symmetric
    and to the nearest, so a weight moves by at most half a scale: the largest of its
    group over 254, or over 14.

    Integers have no gradient: differentiate the part of params that `split` gives.
    Raises ValueError for a pattern that fits no such layer, and for a group that does
    not divide a layer's inputs.

    >>> import jax
    >>> from jaxdl import nn
    >>> layer = nn.Linear(64, 2, bias=False)
    >>> layer, params = quantize(layer, layer.init(jax.random.key(0)), bits=4)
    >>> params["codes"].shape, params["codes"].dtype, params["scale"].shape
    ((32, 2), dtype('uint8'), (2, 2))
    """
    paths = set(chosen(model, (Linear, Embedding), patterns))
    group = 32 if group is None and bits == 4 else group

    def change(path: str, module: Any, there: Any):
        if path not in paths:
            return module, there
        try:
            return _quantized(module, there, bits, group)
        except ValueError as error:
            raise ValueError(f"{path}: {error}" if path else str(error)) from None

    return convert(model, params, change, (Linear, Embedding))


def dequantize(
    model: Module, params: Any, patterns: str | Iterable[str] | None = None
) -> tuple[Any, Any]:
    """Turns quantised layers into plain ones with the same outputs, in their dtype."""
    kinds = (QuantizedLinear, QuantizedEmbedding)
    paths = set(chosen(model, kinds, patterns))

    def change(path: str, module: Any, there: Any):
        if path not in paths:
            return module, there
        rest = {k: v for k, v in there.items() if k not in ("codes", "scale")}
        name = "kernel" if isinstance(module, QuantizedLinear) else "embedding"
        return module.plain(), {name: module.matrix(there), **rest}

    return convert(model, params, change, kinds)


def _quantized(module: Any, there: Any, bits: Literal[8, 4], group: int | None):
    linear = isinstance(module, Linear)
    name, axis = ("kernel", -2) if linear else ("embedding", -1)
    size = module.in_features if linear else module.features
    layer = (
        QuantizedLinear(
            size, module.out_features, module.bias, module.axes, bits, group
        )
        if linear
        else QuantizedEmbedding(module.num_embeddings, size, module.axes, bits, group)
    )
    groups = size // (group or size)
    integers, scale = codes.encode(there[name], bits, groups, axis)
    rest = {k: v for k, v in there.items() if k != name}
    return layer, {"codes": integers, "scale": scale, **rest}
