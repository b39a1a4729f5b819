"""Whatever comes in: the documented shape comes out, or an error that says where.

Hypothesis draws shapes and dtypes, near the right ones and far from them. `wanted` is
the rule of the docstring: the shape that comes out, or None where the input does not
fit. A layer must agree with it, and refuse with its path and what it expected.
"""

from collections.abc import Callable
import math

from hypothesis import given
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import pytest

import jaxdl as jd
from jaxdl import nn

FLOATS = (jnp.float32, jnp.bfloat16)
OTHERS = (jnp.int32, jnp.bool_, jnp.complex64)


class Outer(jd.Module):
    """Gives the layer a path."""

    layer: jd.Module

    def __call__(self, params, *inputs, **given):
        return self.layer(params["layer"], *inputs, **given)


def last(features: int, out: int | None = None, rank: int = 1) -> Callable:
    """[..., features] of at least some rank -> [..., out]."""

    def wanted(shape):
        if len(shape) < rank or shape[-1] != features:
            return None
        return (*shape[:-1], features if out is None else out)

    return wanted


def exactly(rank: int, features: int, out: Callable) -> Callable:
    """Of exactly this rank, with these features last."""

    def wanted(shape):
        fits = len(shape) == rank and shape[-1] == features
        return out(shape) if fits else None

    return wanted


def same(shape):
    return shape


def conv(size: int, in_features: int, out: int, padding: str) -> Callable:
    def wanted(shape):
        if len(shape) < 2 or shape[-1] != in_features:
            return None
        lost = size - 1 if padding == "VALID" else 0
        return (*shape[:-2], shape[-2] - lost, out) if shape[-2] > lost else None

    return wanted


def pooled(window: int) -> Callable:
    def wanted(shape):
        if len(shape) < 2 or shape[-2] < window:
            return None
        return (*shape[:-2], shape[-2] // window, shape[-1])

    return wanted


LAYERS = {
    "Linear": (nn.Linear(3, 4), last(3, 4)),
    "Einsum": (
        nn.Einsum("bd,dhk->bhk", (3, 2, 2)),
        exactly(2, 3, lambda s: (s[0], 2, 2)),
    ),
    "Conv": (nn.Conv(3, 4, (2,)), conv(2, 3, 4, "SAME")),
    "Conv VALID": (nn.Conv(3, 4, (2,), padding="VALID"), conv(2, 3, 4, "VALID")),
    "ConvTranspose": (
        nn.ConvTranspose(3, 4, (2,), 2),
        lambda s: (
            (*s[:-2], 2 * s[-2], 4) if len(s) >= 2 and s[-1] == 3 else None
        ),
    ),
    "LayerNorm": (nn.LayerNorm(3), last(3)),
    "RMSNorm": (nn.RMSNorm(3), last(3)),
    "GroupNorm": (nn.GroupNorm(1, 3), last(3, rank=2)),
    "InstanceNorm": (nn.InstanceNorm(3), last(3, rank=3)),
    "MaxPool": (nn.MaxPool((2,)), pooled(2)),
    "AvgPool": (nn.AvgPool((2,)), pooled(2)),
    "GlobalAvgPool": (
        nn.GlobalAvgPool(),
        lambda s: (s[0], s[-1]) if len(s) >= 3 else None,
    ),
    "GlobalMaxPool": (
        nn.GlobalMaxPool(),
        lambda s: (s[0], s[-1]) if len(s) >= 3 else None,
    ),
    "AdaptiveAvgPool": (
        nn.AdaptiveAvgPool((3,)),
        lambda s: (*s[:-2], 3, s[-1]) if len(s) >= 2 else None,
    ),
    "AdaptiveMaxPool": (
        nn.AdaptiveMaxPool((3,)),
        lambda s: (*s[:-2], 3, s[-1]) if len(s) >= 2 else None,
    ),
    "AttentionPool": (
        nn.AttentionPool(4, 2),
        exactly(3, 4, lambda s: (s[0], 4)),
    ),
    "Flatten": (
        nn.Flatten(),
        lambda s: (s[0], math.prod(s[1:])) if s else None,
    ),
    "Dropout": (nn.Dropout(0.5), same),
    "DropPath": (nn.DropPath(0.5), lambda s: s if s else None),
    "Attention": (nn.Attention(4, 2), exactly(3, 4, same)),
    "FeedForward": (nn.FeedForward(3, 5), last(3)),
    "PReLU": (nn.PReLU(3), last(3)),
    "LayerScale": (nn.LayerScale(3), last(3)),
    "SqueezeExcite": (nn.SqueezeExcite(3), last(3, rank=3)),
    "Recurrent": (
        nn.Recurrent(nn.GRUCell(3, 4)),
        exactly(3, 3, lambda s: (*s[:2], 4)),
    ),
    "WeightNorm": (nn.WeightNorm(nn.Linear(3, 4)), last(3, 4)),
    "WeightStandardized": (nn.WeightStandardized(nn.Linear(3, 4)), last(3, 4)),
    "AddPosition": (
        nn.AddPosition(nn.Embedding(3, 4)),
        exactly(3, 4, lambda s: s if s[1] <= 3 else None),
    ),
    "FourierFeatures": (nn.FourierFeatures(3, 4), last(3, 8)),
    "PatchEmbedding": (
        nn.PatchEmbedding((2,), 3, 4),
        exactly(3, 3, lambda s: None if s[1] % 2 else (s[0], s[1] // 2, 4)),
    ),
    "Upsample": (
        nn.Upsample(2, "linear"),
        lambda s: (
            (s[0], *(2 * n for n in s[1:-1]), s[-1]) if len(s) >= 3 else None
        ),
    ),
    "PixelShuffle": (
        nn.PixelShuffle(1),
        lambda s: s if len(s) >= 3 else None,
    ),
    "Sequential": (nn.Sequential([nn.Linear(3, 4), nn.Linear(4, 2)]), last(3, 2)),
    "Residual": (nn.Residual(nn.Linear(3, 3)), last(3)),
    "Repeat": (nn.Repeat(nn.Linear(3, 3), 2), last(3)),
}  # fmt: skip

shapes = st.lists(st.sampled_from([1, 2, 3, 4, 5]), max_size=5).map(tuple)
# Near misses find more than noise: the right number of features last, often.
near = st.tuples(st.lists(st.integers(1, 4), max_size=3), st.sampled_from([3, 4]))
shapes = st.one_of(shapes, near.map(lambda pair: (*pair[0], pair[1])))


@pytest.mark.parametrize("name", LAYERS)
@given(shape=shapes, dtype=st.sampled_from(FLOATS * 3 + OTHERS))
def test_a_layer_gives_its_documented_shape_or_says_where_and_why(name, shape, dtype):
    layer, wanted = LAYERS[name]
    fits = dtype in FLOATS or isinstance(layer, nn.Flatten | nn.PixelShuffle)
    if isinstance(layer, nn.Repeat):
        fits = dtype == jnp.float32  # what goes round must come back the same
    expected = wanted(shape) if fits else None
    outcome(layer, expected, jax.ShapeDtypeStruct(shape, dtype))


SECOND = {
    "Bilinear": (nn.Bilinear(3, 2, 5), (4, 3), (4, 2), (4, 5)),
    "FiLM": (nn.FiLM(3, 2), (4, 6, 3), (4, 2), (4, 6, 3)),
    "memory": (nn.Attention(4, 2, memory_dim=2), (4, 6, 4), (4, 5, 2), (4, 6, 4)),
    "mask": (nn.Attention(4, 2), (3, 6, 4), (1, 2, 6, 6), (3, 6, 4)),
    "score_bias": (nn.Attention(4, 2), (3, 6, 4), (1, 2, 6, 6), (3, 6, 4)),
    "segment_ids": (nn.Attention(4, 2), (3, 6, 4), (3, 6), (3, 6, 4)),
    "positions": (nn.Attention(4, 2, rope=nn.RoPE(2)), (3, 6, 4), (3, 6), (3, 6, 4)),
    "lengths": (nn.Recurrent(nn.LSTMCell(3, 2)), (4, 6, 3), (4,), (4, 6, 2)),
}
KINDS = {"mask": jnp.bool_, "segment_ids": jnp.int32, "positions": jnp.int32}
KINDS["lengths"] = jnp.int32
BROADCAST = {"mask": (3, 2, 6, 6), "score_bias": (3, 2, 6, 6)}


@pytest.mark.parametrize("name", SECOND)
@given(data=st.data(), kind=st.sampled_from([jnp.float32, jnp.int32, jnp.bool_]))
def test_a_second_argument_fits_the_first_or_is_refused(name, data, kind):
    layer, first, second, out = SECOND[name]
    near = [st.sampled_from([size, size, size, 1, 2, 7]) for size in second]
    rank = st.integers(0, len(second) + 1)
    shape = (*data.draw(st.tuples(*near)), 2)[: data.draw(rank)]
    right = kind == KINDS.get(name, jnp.float32)
    fits = shape == second
    if name in BROADCAST:
        sizes = zip(shape[:3], BROADCAST[name], strict=False)
        fits = len(shape) == 4 and all(n in (1, full) for n, full in sizes)
        fits = fits and shape[3] == 6
    elif name == "positions":
        fits = shape in ((6,), (3, 6), (1, 6))
    elif name == "memory":
        fits = len(shape) == 3 and shape[::2] == second[::2]
    struct = jax.ShapeDtypeStruct
    arrays = [struct(first, jnp.float32), struct(shape, kind)]
    keywords = {} if name in ("Bilinear", "FiLM") else {name: arrays.pop()}
    outcome(layer, out if fits and right else None, *arrays, **keywords)


@given(shape=shapes, dtype=st.sampled_from(FLOATS + OTHERS))
def test_tokens_are_integers_of_any_shape(shape, dtype):
    expected = (*shape, 4) if dtype == jnp.int32 else None
    outcome(nn.Embedding(9, 4), expected, jax.ShapeDtypeStruct(shape, dtype))


CONSTRUCTORS = {
    nn.Linear: {"in_features": 3, "out_features": 4},
    nn.Bilinear: {"first_features": 3, "second_features": 4, "out_features": 5},
    nn.Embedding: {"num_embeddings": 3, "features": 4},
    nn.Conv: {
        "in_features": 3, "out_features": 4, "kernel_size": 3, "strides": 1,
        "dilation": 1, "groups": 1,
    },
    nn.ConvTranspose: {"in_features": 3, "out_features": 4, "kernel_size": (3, 3)},
    nn.LayerNorm: {"features": 3},
    nn.RMSNorm: {"features": 3},
    nn.BatchNorm: {"features": 3},
    nn.InstanceNorm: {"features": 3},
    nn.GroupNorm: {"num_groups": 2, "features": 4},
    nn.MaxPool: {"window": (2, 2), "strides": 1},
    nn.AdaptiveAvgPool: {"sizes": (2,)},
    nn.AttentionPool: {"dim": 4, "num_heads": 2, "num_queries": 3},
    nn.Attention: {
        "dim": 8, "num_heads": 4, "num_kv_heads": 2, "head_dim": 6, "window": 3,
        "memory_dim": 5,
    },
    nn.FeedForward: {"dim": 3, "hidden": 4},
    nn.LSTMCell: {"in_features": 3, "hidden": 4},
    nn.Repeat: {"block": nn.Linear(3, 3), "num_layers": 2},
    nn.RoPE: {"head_dim": 8, "rotary_dim": 4},
    nn.RelativeBias: {"num_heads": 2, "num_buckets": 8, "max_distance": 9},
    nn.PatchEmbedding: {"patch": (2, 2), "in_features": 3, "features": 4},
    nn.PixelShuffle: {"factor": 2},
    nn.FourierFeatures: {"in_features": 3, "num_features": 4},
    nn.SqueezeExcite: {"features": 8, "reduction": 4},
}  # fmt: skip
bad_sizes = st.sampled_from([0, -1, 2.5, 1.0, "3", (0,), (2, -3), (1.5,), [2.5]])


@pytest.mark.parametrize("layer", CONSTRUCTORS, ids=lambda layer: layer.__name__)
@given(data=st.data(), value=bad_sizes)
def test_a_size_that_is_none_is_refused_by_name(layer, data, value):
    good = CONSTRUCTORS[layer]
    assert layer(**good) == layer(**good)
    name = data.draw(st.sampled_from([n for n in good if n != "block"]))
    with pytest.raises((TypeError, ValueError)) as caught:
        layer(**{**good, name: value})
    message = str(caught.value)
    assert message.startswith(f"{layer.__name__}.{name}: expected"), message
    assert "whole number" in message and f"got {value!r}" in message, message


def outcome(layer, expected, *inputs, **keywords):
    """Runs abstractly, and holds the result or the error to the rule."""
    outer = Outer(layer)
    params = jd.abstract(outer)
    if "key" in nn.keywords(layer):
        keywords["key"] = (
            None
            if not isinstance(layer, nn.Dropout | nn.DropPath)
            else (jax.eval_shape(lambda: jax.random.key(0)))
        )
    message, y = "", None
    try:
        y = jax.eval_shape(outer, params, *inputs, **keywords)
    except (TypeError, ValueError) as error:
        message = str(error)
    if expected is None:
        assert y is None, f"gave {y}, expected an error"
        assert message.startswith("layer"), message
        assert "expected" in message and "got" in message, message
    else:
        assert y is not None, f"refused: {message}, expected {expected}"
        assert y.shape == expected
