import numpy as np
import pytest

from jaxdl import nn
from tests.nn.against_torch import compare, linear, torch, weights_of

rng = np.random.default_rng(0)
functional = torch.nn.functional


def normal(*shape):
    return rng.normal(size=shape).astype(np.float32)


def nothing(weights):
    return {}


@pytest.mark.parametrize("sizes", [(3, 2), (4, 5), (1, 7), (9, 3)])
@pytest.mark.parametrize("kind", ["Avg", "Max"])
def test_adaptive_pooling_is_pytorch_s(kind, sizes):
    ours = getattr(nn, f"Adaptive{kind}Pool")(sizes)
    theirs = getattr(torch.nn, f"Adaptive{kind}Pool2d")(sizes)
    compare(ours, theirs, {}, nothing, (normal(2, 3, 8, 7),), channels_last=True)


@pytest.mark.parametrize("dims", [1, 3])
def test_adaptive_pooling_in_other_dimensions(dims):
    ours = nn.AdaptiveAvgPool((2,) * dims)
    theirs = getattr(torch.nn, f"AdaptiveAvgPool{dims}d")((2,) * dims)
    x = normal(2, 3, *(5, 4, 6)[:dims])
    compare(ours, theirs, {}, nothing, (x,), channels_last=True)


@pytest.mark.parametrize("num_queries", [1, 3])
def test_attention_pooling_is_multi_head_attention_of_a_learned_query(num_queries):
    theirs = torch.nn.MultiheadAttention(8, 4, batch_first=True)
    probe = torch.nn.Parameter(torch.tensor(normal(num_queries, 8)))

    def pool(x):
        y, _ = theirs(probe.expand(x.shape[0], -1, -1), x, x)
        return y[:, 0] if num_queries == 1 else y

    def convert(weights):
        kernels = np.split(weights["in_proj_weight"], 3)
        biases = np.split(weights["in_proj_bias"], 3)
        parts = zip("qkv", kernels, biases, strict=True)
        attn = {name: {"kernel": k.T, "bias": b} for name, k, b in parts}
        attn |= {"out": linear(weights, "out_proj"), "drop": {}}
        return {"probe": weights["probe"], "attn": attn}

    ours = nn.AttentionPool(8, 4, num_queries)
    weights = {**weights_of(theirs), "probe": probe}
    compare(ours, pool, weights, convert, (normal(2, 5, 8),))


@pytest.mark.parametrize("bias", [True, False])
def test_patches_are_a_convolution_whose_stride_is_its_kernel(bias):
    conv = torch.nn.Conv2d(3, 5, (2, 4), stride=(2, 4), bias=bias)

    def convert(weights):
        kernel = np.moveaxis(weights["weight"], (0, 1), (-1, -2))
        rest = {"bias": weights["bias"]} if bias else {}
        return {"project": {"kernel": kernel, **rest}}

    compare(
        nn.PatchEmbedding((2, 4), 3, 5, bias), lambda x: conv(x).flatten(2),
        weights_of(conv), convert, (normal(2, 3, 6, 8),), channels_last=True,
    )  # fmt: skip


@pytest.mark.parametrize("factor", [2, (3, 2)])
@pytest.mark.parametrize(
    "method, mode", [("nearest", "nearest"), ("linear", "bilinear")]
)
def test_upsampling_is_pytorch_s(method, mode, factor):
    theirs = torch.nn.Upsample(scale_factor=factor, mode=mode)
    x = normal(2, 3, 4, 5)
    compare(nn.Upsample(factor, method), theirs, {}, nothing, (x,), channels_last=True)


@pytest.mark.parametrize("factor", [2, 3])
def test_pixel_shuffle_and_its_inverse_are_pytorch_s(factor):
    for ours, theirs, x in (
        (nn.PixelShuffle, torch.nn.PixelShuffle, normal(2, 3 * factor**2, 4, 5)),
        (nn.PixelUnshuffle, torch.nn.PixelUnshuffle, normal(2, 3, 6, 12)),
    ):
        compare(ours(factor), theirs(factor), {}, nothing, (x,), channels_last=True)
