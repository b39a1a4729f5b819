import jax.numpy as jnp
import numpy as np
import pytest

import jaxdl as jd
from jaxdl import nn
from tests.nn.against_torch import (
    array,
    arrays,
    compare,
    linear,
    normal,
    redraw,
    torch,
    weights_of,
)

BATCH, SEQ, DIM, HEADS = 2, 5, 8, 4
X = normal(BATCH, SEQ, DIM)
LATER = ~np.tril(np.ones((SEQ, SEQ), bool))
PADDING = np.arange(SEQ) >= np.array([[3], [5]])  # True is a place with no token


def convert(weights):
    """Our params of a MultiheadAttention: q, k and v are one matrix if of one width."""
    params = {"drop": {}, "out": linear(weights, "out_proj")}
    if "in_proj_weight" in weights:
        kernels = np.split(weights["in_proj_weight"], 3)
    else:
        kernels = [weights[f"{name}_proj_weight"] for name in "qkv"]
    for name, kernel in zip("qkv", kernels, strict=True):
        params[name] = {"kernel": kernel.T}
    if "in_proj_bias" in weights:
        for name, bias in zip("qkv", np.split(weights["in_proj_bias"], 3), strict=True):
            params[name]["bias"] = bias
    return params


def multihead():
    return torch.nn.MultiheadAttention(DIM, HEADS, batch_first=True)


def call(theirs, x, causal, padded, **options):
    """Runs PyTorch's layer on itself; its masks are True where ours are False."""
    attn_mask = torch.tensor(LATER) if causal else None
    padding = torch.tensor(PADDING) if padded else None
    return theirs(x, x, x, key_padding_mask=padding, attn_mask=attn_mask, **options)


def visible(padded):
    if not padded:
        return None
    return jnp.broadcast_to(~PADDING[:, None, None], (BATCH, 1, SEQ, SEQ))


MASKS = pytest.mark.parametrize(
    ("causal", "padded"),
    [(False, False), (True, False), (False, True), (True, True)],
    ids=["all", "causal", "padded", "causal-padded"],
)


@MASKS
@pytest.mark.parametrize("implementation", [None, "xla"])
def test_attention_is_pytorch_s_multihead_attention(causal, padded, implementation):
    theirs = multihead()
    layer = nn.Attention(
        DIM, HEADS, causal=causal, bias=True, implementation=implementation
    )

    def ours(params, x):
        return layer(params, x, mask=visible(padded))

    def run(x):
        return call(theirs, x, causal, padded, need_weights=False)[0]

    compare(ours, run, weights_of(theirs), convert, (X,))


@pytest.mark.parametrize(("causal", "padded"), [(False, False), (True, True)])
def test_the_tapped_pattern_is_the_weights_that_pytorch_returns(causal, padded):
    theirs = multihead()
    redraw(weights_of(theirs))
    params = convert(arrays(weights_of(theirs)))
    layer = nn.Attention(DIM, HEADS, causal=causal, bias=True)
    _, values = jd.capture(layer, "pattern")(params, X, mask=visible(padded))
    x = torch.tensor(X)
    _, expected = call(theirs, x, causal, padded, average_attn_weights=False)
    np.testing.assert_allclose(values["pattern"], array(expected), rtol=1e-5, atol=1e-5)


def test_a_mask_for_each_head_is_pytorch_s():
    theirs = multihead()
    seen = np.random.default_rng(0).random((BATCH, HEADS, SEQ, SEQ)) < 0.5
    seen |= np.eye(SEQ, dtype=bool)
    layer = nn.Attention(DIM, HEADS, bias=True)

    def ours(params, x):
        return layer(params, x, mask=jnp.asarray(seen))

    def run(x):
        hidden = torch.tensor(~seen.reshape(-1, SEQ, SEQ))
        return theirs(x, x, x, attn_mask=hidden, need_weights=False)[0]

    compare(ours, run, weights_of(theirs), convert, (X,))


def test_packed_segments_are_pytorch_s_with_a_mask_of_blocks():
    theirs = multihead()
    segments = np.array([[0, 0, 1, 1, 1], [0, 1, 1, 2, 2]])
    apart = segments[:, :, None] != segments[:, None, :]
    layer = nn.Attention(DIM, HEADS, causal=True, bias=True)

    def ours(params, x):
        return layer(params, x, segment_ids=jnp.asarray(segments))

    def run(x):
        hidden = torch.tensor(np.repeat(apart | LATER, HEADS, axis=0))
        return theirs(x, x, x, attn_mask=hidden, need_weights=False)[0]

    compare(ours, run, weights_of(theirs), convert, (X,))


def projections(layer):
    """PyTorch's q, k, v and out beside one of our layers, and how they convert."""
    queries, keys = HEADS * layer.width, layer.kv_heads * layer.width
    sizes = {"q": (DIM, queries), "k": (DIM, keys), "v": (DIM, keys)}
    maps = torch.nn.ModuleDict(
        {
            name: torch.nn.Linear(*size, bias=False)
            for name, size in {**sizes, "out": (queries, DIM)}.items()
        }
    )

    def converted(weights):
        return {"drop": {}, **{name: linear(weights, name) for name in maps}}

    return maps, converted


def attend(maps, x, width, **options):
    """Attention written with PyTorch's scaled_dot_product_attention."""
    q, k, v = (maps[n](x).unflatten(-1, (-1, width)).transpose(1, 2) for n in "qkv")
    heads = torch.nn.functional.scaled_dot_product_attention(q, k, v, **options)
    return maps["out"](heads.transpose(1, 2).flatten(2))


@pytest.mark.parametrize(
    ("kv_heads", "head_dim", "causal", "implementation"),
    [(1, None, True, None), (2, None, True, None), (2, 3, False, None)]
    + [(1, 3, False, "xla"), (2, None, True, "xla")],
)
def test_shared_key_and_value_heads_are_pytorch_s_enable_gqa(
    kv_heads, head_dim, causal, implementation
):
    ours = nn.Attention(
        DIM, HEADS, kv_heads, head_dim, causal, implementation=implementation
    )
    maps, converted = projections(ours)

    def theirs(x):
        return attend(maps, x, ours.width, is_causal=causal, enable_gqa=True)

    compare(ours, theirs, weights_of(maps), converted, (X,))


@pytest.mark.parametrize("implementation", [None, "xla"])
@pytest.mark.parametrize("causal", [True, False])
def test_a_query_that_may_look_nowhere_gives_zeros_as_in_pytorch(
    causal, implementation
):
    seen = np.ones((BATCH, 1, SEQ, SEQ), bool)
    seen[0, 0, 2] = False
    seen[1, 0, :, :3] = False  # padding in front: early causal queries see nothing
    layer = nn.Attention(DIM, HEADS, causal=causal, implementation=implementation)
    maps, converted = projections(layer)

    def ours(params, x):
        return layer(params, x, mask=jnp.asarray(seen))

    def theirs(x):
        mask = torch.tensor(seen & ~LATER if causal else seen)
        return attend(maps, x, layer.width, attn_mask=mask)

    compare(ours, theirs, weights_of(maps), converted, (X,))


def test_cross_attention_to_a_memory_of_another_width_is_pytorch_s_kdim_and_vdim():
    theirs = torch.nn.MultiheadAttention(DIM, HEADS, kdim=6, vdim=6, batch_first=True)
    layer = nn.Attention(DIM, HEADS, memory_dim=6, bias=True)

    def ours(params, x, memory):
        mask = jnp.asarray(~PADDING)[:, None, None]
        return layer(params, x, memory=memory, mask=mask)

    def run(x, memory):
        padding = torch.tensor(PADDING)
        return theirs(x, memory, memory, key_padding_mask=padding, need_weights=False)[
            0
        ]

    compare(ours, run, weights_of(theirs), convert, (X[:, :3], normal(BATCH, SEQ, 6)))


def test_without_a_key_dropout_of_the_pattern_is_pytorch_s_in_eval_mode():
    theirs = torch.nn.MultiheadAttention(DIM, HEADS, 0.4, batch_first=True).eval()
    layer = nn.Attention(DIM, HEADS, bias=True, dropout=0.4)

    def ours(params, x):
        return layer(params, x, key=None)

    def run(x):
        return call(theirs, x, False, False, need_weights=False)[0]

    compare(ours, run, weights_of(theirs), convert, (X,))
