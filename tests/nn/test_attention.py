import functools

import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdl as jd
from jaxdl import nn
from jaxdl.testing import check_module
from tests.drawn import drawn

rng = np.random.default_rng(0)
BATCH, SEQ, DIM, HEADS = 2, 6, 8, 4


def normal(*shape):
    return jnp.asarray(rng.normal(size=shape), jnp.float32)


x = normal(BATCH, SEQ, DIM)
segments = jnp.array([[0, 0, 0, 1, 1, 2], [5, 5, 5, 5, 5, 5]])
close = dict(rtol=1e-5, atol=1e-5)


def test_attention_is_that_of_flax():
    layer = nn.Attention(DIM, HEADS, bias=True)
    params = drawn(layer)

    def split(part):
        kernel = params[part]["kernel"].reshape(DIM, HEADS, 2)
        return {"kernel": kernel, "bias": params[part]["bias"].reshape(HEADS, 2)}

    theirs = {"query": split("q"), "key": split("k"), "value": split("v")}
    out = params["out"]["kernel"].reshape(HEADS, 2, DIM)
    theirs["out"] = {"kernel": out, "bias": params["out"]["bias"]}
    flax_layer = flax.linen.MultiHeadDotProductAttention(HEADS)
    mask = flax.linen.make_causal_mask(jnp.ones((BATCH, SEQ)))
    apply = jax.jit(flax_layer.apply)
    expected = apply({"params": theirs}, x, mask=mask)
    causal = nn.Attention(DIM, HEADS, bias=True, causal=True)
    np.testing.assert_allclose(jax.jit(causal)(params, x), expected, **close)
    expected = apply({"params": theirs}, x)
    np.testing.assert_allclose(jax.jit(layer)(params, x), expected, **close)


def test_cross_attention_with_norms_of_queries_and_keys_is_that_of_flax():
    norms = {name: nn.LayerNorm(2, 1e-6, bias=False) for name in ("q_norm", "k_norm")}
    layer, memory = nn.Attention(DIM, HEADS, memory_dim=5, **norms), normal(BATCH, 3, 5)
    params = drawn(layer)

    def split(part):
        return {"kernel": params[part]["kernel"].reshape(-1, HEADS, 2)}

    theirs = {"query": split("q"), "key": split("k"), "value": split("v")}
    theirs["query_ln"], theirs["key_ln"] = params["q_norm"], params["k_norm"]
    theirs["out"] = {"kernel": params["out"]["kernel"].reshape(HEADS, 2, DIM)}
    flax_layer = flax.linen.MultiHeadDotProductAttention(
        HEADS, qkv_features=DIM, out_features=DIM, use_bias=False, normalize_qk=True
    )
    expected = jax.jit(flax_layer.apply)({"params": theirs}, x, memory)
    found = jax.jit(layer)(params, x, memory=memory)
    np.testing.assert_allclose(found, expected, **close)


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("with_segments", [True, False])
def test_every_implementation_gives_the_same_result(kv_heads, causal, with_segments):
    settings = {"num_kv_heads": kv_heads, "causal": causal, "rope": nn.RoPE(2)}
    ours = nn.Attention(DIM, HEADS, **settings)
    fused = nn.Attention(DIM, HEADS, **settings, implementation="xla")
    segment_ids = segments if with_segments else None

    @jax.jit
    def both(params):
        return [layer(params, x, segment_ids=segment_ids) for layer in (ours, fused)]

    np.testing.assert_allclose(*both(drawn(ours)), **close)


def test_grouped_queries_are_attention_with_repeated_keys_and_values():
    grouped, full = nn.Attention(DIM, HEADS, 2), nn.Attention(DIM, HEADS)
    params = drawn(grouped)

    def repeated(part):
        kernel = params[part]["kernel"].reshape(DIM, 2, 2)
        return {"kernel": jnp.repeat(kernel, 2, axis=1).reshape(DIM, DIM)}

    same = {**params, "k": repeated("k"), "v": repeated("v")}
    found = jax.jit(grouped)(params, x)
    np.testing.assert_allclose(found, jax.jit(full)(same, x), **close)


@pytest.mark.parametrize("rope", [None, nn.RoPE(2)])
def test_causal_attention_sees_no_later_token(rope):
    layer = nn.Attention(DIM, HEADS, causal=True, rope=rope)
    params = drawn(layer)
    run = jax.jit(layer)
    changed = np.asarray(run(params, x.at[:, 3].add(1.0))) != run(params, x)
    assert not changed[:, :3].any() and changed[:, 3:].all(axis=(0, 2)).all()


def test_packed_segments_are_as_if_each_stood_alone():
    layer = nn.Attention(DIM, HEADS, causal=True, rope=nn.RoPE(2))
    params = drawn(layer)
    positions = jnp.array([[0, 1, 2, 0, 1, 0]])
    run = jax.jit(layer)
    packed = run(params, x[:1], segment_ids=segments[:1], positions=positions)
    for start, stop in ((0, 3), (3, 5), (5, 6)):
        alone = run(params, x[:1, start:stop])
        np.testing.assert_allclose(packed[:, start:stop], alone, **close)


def test_a_mask_says_where_a_query_may_look_and_nowhere_gives_zeros():
    layer = nn.Attention(DIM, HEADS)
    params = drawn(layer)
    seen = jnp.arange(SEQ) < 4
    mask = jnp.broadcast_to(seen, (1, 1, SEQ, SEQ))
    run = jax.jit(layer)
    short = run(params, x[:, :4])
    np.testing.assert_allclose(run(params, x, mask=mask)[:, :4], short, **close)
    nowhere = run(params, x, mask=jnp.zeros((1, 1, SEQ, SEQ), bool))
    np.testing.assert_array_equal(nowhere, jnp.zeros_like(x))


def test_causal_and_mask_and_segments_hold_together():
    layer = nn.Attention(DIM, HEADS, causal=True)
    mask = rng.random((BATCH, HEADS, SEQ, SEQ)) < 0.7
    run = jax.jit(jd.capture(layer, "pattern"))
    _, values = run(drawn(layer), x, mask=mask, segment_ids=segments)
    pattern, ids = np.asarray(values["pattern"]), np.asarray(segments)
    same = ids[:, None, :, None] == ids[:, None, None, :]
    visible = mask & same & np.tri(SEQ, dtype=bool)
    assert not pattern[~visible].any()
    rows = visible.any(-1).astype(np.float32)
    np.testing.assert_allclose(pattern.sum(-1), rows, rtol=1e-5)


def test_taps_show_every_step_of_attention():
    layer = nn.Attention(DIM, HEADS, 2, causal=True)
    params = drawn(layer)
    result, values = jax.jit(jd.capture(layer, "**"))(params, x)
    shapes = {name: value.shape for name, value in values.items()}
    assert shapes == {
        "q": (BATCH, SEQ, 4, 2),
        "k": (BATCH, SEQ, 2, 2),
        "v": (BATCH, SEQ, 2, 2),
        "scores": (BATCH, 4, SEQ, SEQ),
        "pattern": (BATCH, 4, SEQ, SEQ),
        "heads": (BATCH, SEQ, 4, 2),
    }
    heads = values["heads"].reshape(BATCH, SEQ, DIM)
    np.testing.assert_allclose(heads @ params["out"]["kernel"], result, **close)


def test_dropout_of_the_pattern_needs_a_key():
    layer = nn.Attention(DIM, HEADS, dropout=0.5)
    params = drawn(layer)
    with pytest.raises(TypeError, match="drop: dropout with rate 0.5 needs key"):
        layer(params, x)
    calm = nn.Attention(DIM, HEADS)
    silent = jax.jit(functools.partial(layer, key=None))(params, x)
    np.testing.assert_array_equal(silent, jax.jit(calm)(params, x))


@pytest.mark.parametrize(
    "layer",
    [
        nn.Attention(DIM, HEADS),
        nn.Attention(
            DIM,
            HEADS,
            1,
            head_dim=6,
            causal=True,
            rope=nn.RoPE(6),
            bias=True,
            dropout=0.2,
        ),
        nn.Attention(DIM, HEADS, 2, causal=True, implementation="xla"),
    ],
)
def test_attention_keeps_the_contract(layer):
    check_module(layer, x)


def test_attention_refuses_what_does_not_fit():
    layer = nn.Attention(DIM, HEADS)
    params = drawn(layer)
    with pytest.raises(ValueError, match=r"Attention: expected \[batch, seq, 8\]"):
        layer(params, x[0])
    with pytest.raises(ValueError, match="num_kv_heads to divide num_heads=4, got 3"):
        nn.Attention(DIM, HEADS, 3)
    with pytest.raises(ValueError, match="a mask of bools"):
        layer(params, x, mask=jnp.ones((1, 1, SEQ, SEQ)))
    with pytest.raises(ValueError, match=r"a mask \[2 or 1, 4 or 1, 6 or 1, 6\]"):
        layer(params, x, mask=jnp.ones((SEQ, SEQ), bool))
    with pytest.raises(ValueError, match=r"segment_ids \[2, 6\]"):
        layer(params, x, segment_ids=segments[0])
    with pytest.raises(
        ValueError, match="implementation=.xla. cannot do this: dropout"
    ):
        nn.Attention(DIM, HEADS, dropout=0.1, implementation="xla")
