import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdl.core import jaxprs
from jaxdl.nn.attend import Sight, attend
from jaxdl.nn.blockwise import (
    attend_blockwise,
    attend_gradients,
    attend_with_lse,
    merge,
)

BATCH, SEQ, HEADS, KV_HEADS, DIM, V_DIM, BLOCK = 2, 13, 4, 2, 8, 6, 4
SCALE = 0.5
ORDER = np.arange(SEQ)
close = dict(rtol=1e-5, atol=1e-5)


def normal(*shape, seed=0, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def inputs(seed=0, seq=SEQ, dtype=jnp.float32):
    q = normal(BATCH, seq, HEADS, DIM, seed=seed, dtype=dtype)
    k = normal(BATCH, seq, KV_HEADS, DIM, seed=seed + 1, dtype=dtype)
    return q, k, normal(BATCH, seq, KV_HEADS, V_DIM, seed=seed + 2, dtype=dtype)


def places(names, seed):
    """Random arrays of a sight, of the same shapes for every seed."""
    rng = np.random.default_rng(seed)
    every = {
        "segment_ids": jnp.asarray(rng.integers(0, 2, (BATCH, SEQ)).cumsum(1) // 3),
        "real": jnp.asarray(rng.random((BATCH, SEQ)) > 0.3),
        "mask": jnp.asarray(rng.random((BATCH, 1, SEQ, SEQ)) > 0.2),
        "head_mask": jnp.asarray(rng.random((1, HEADS, SEQ, SEQ)) > 0.2),
        "key_mask": jnp.asarray(rng.random((1, 1, 1, SEQ)) > 0.2),
        "queries": jnp.asarray(rng.integers(0, SEQ, (BATCH, SEQ))),
        "keys": jnp.asarray(rng.integers(0, SEQ, SEQ)),
    }
    return {name.split("_mask")[-1] or "mask": every[name] for name in names}


def extras(names, seed):
    """Further inputs that have gradients."""
    every = {
        "sinks": normal(HEADS, seed=seed),
        "score_bias": normal(BATCH, 1, SEQ, SEQ, seed=seed),
        "head_bias": normal(1, HEADS, 1, SEQ, seed=seed),
    }
    return {"sinks" if name == "sinks" else "score_bias": every[name] for name in names}


def value_and_gradients(function):
    """The result, and gradients of q, k, v and the extras for a given cotangent."""

    def run(d_y, arrays, extra, where):
        y, pull = jax.vjp(lambda a, e: function(*a, where, **e), arrays, extra)
        return y, pull(d_y)

    return jax.jit(run)


SETTINGS = [
    ({}, {}, [], []),
    ({"causal": True}, {"softcap": 2.0}, [], ["sinks"]),
    ({"causal": True, "window": 5}, {}, ["segment_ids"], ["sinks"]),
    ({"window": 3}, {"softcap": 2.0}, ["real"], ["score_bias"]),
    ({"causal": True}, {}, ["mask", "segment_ids", "real"], ["head_bias"]),
    ({"causal": True, "window": 4}, {}, ["queries", "keys", "real"], ["sinks"]),
    ({"causal": True}, {"softcap": 2.0}, ["head_mask"], ["score_bias", "sinks"]),
]


@pytest.mark.parametrize(("static", "options", "where", "extra"), SETTINGS)
def test_values_and_gradients_are_those_of_plain_attention(
    static, options, where, extra
):
    def sight(given):
        return Sight(**{"queries": ORDER, "keys": ORDER, **static, **given})

    ours = value_and_gradients(
        lambda q, k, v, given, **more: attend_blockwise(
            q, k, v, sight(given), scale=SCALE, block=BLOCK, **options, **more
        )
    )
    theirs = value_and_gradients(
        lambda q, k, v, given, **more: attend(
            q, k, v, scale=SCALE, visible=sight(given).visible(), **options, **more
        )
    )
    for seed in range(3):
        d_y = normal(BATCH, SEQ, HEADS, V_DIM, seed=9)
        given = d_y, inputs(seed), extras(extra, seed), places(where, seed)
        jax.tree.map(
            functools.partial(np.testing.assert_allclose, **close),
            ours(*given),
            theirs(*given),
        )


def pairs_of(sight, queries=64, keys=64, block=8):
    """How many pairs of blocks the program computes."""
    q, k = jnp.zeros((1, queries, 1, 4)), jnp.zeros((1, keys, 1, 4))
    call = functools.partial(attend_with_lse, scale=1.0, block=block)
    traced = jax.make_jaxpr(lambda q, k: call(q, k, k, sight))(q, k)

    def lengths(jaxpr):
        for eqn in jaxpr.eqns:
            if eqn.primitive.name == jaxprs.SCAN:
                yield eqn.params["length"]
            else:
                for inner in jaxprs.sub_jaxprs(eqn):
                    yield from lengths(inner)

    (length,) = lengths(traced.jaxpr)
    return length


def test_blocks_that_nobody_sees_are_left_out_of_the_program():
    order = np.arange(64)
    assert pairs_of(Sight(order, order)) == 8 * 8
    assert pairs_of(Sight(order, order, causal=True)) == 8 * 9 // 2
    assert pairs_of(Sight(order, order, causal=True, window=9)) == 8 + 7
    assert pairs_of(Sight(order, order, causal=True, window=10)) == 8 + 7 + 6
    assert pairs_of(Sight(order, order, window=9)) == 8 + 7 + 7
    assert pairs_of(Sight(order[:16] + 32, order, causal=True), queries=16) == 5 + 6
    assert pairs_of(Sight(order, order + 64, causal=True)) == 0


def test_blocks_that_nobody_sees_are_passed_over_while_it_runs():
    q, k, v = inputs(seq=16)
    segment_ids = jnp.repeat(jnp.arange(2), 8)[None].repeat(BATCH, 0)
    order = np.arange(16)

    @jax.jit
    def first(v):
        sight = Sight(order, order, segment_ids=segment_ids)
        y = attend_blockwise(q, k, v, sight, scale=SCALE, block=8)
        return y[:, :8].sum()

    value, d_v = jax.value_and_grad(first)(v.at[:, 8:].set(jnp.nan))
    assert jnp.isfinite(value)
    assert (d_v[:, 8:] == 0).all() and jnp.isfinite(d_v).all()


def test_parts_of_the_keys_merge_to_attention_to_all_of_them():
    arrays = inputs()
    options = dict(scale=SCALE, softcap=2.0, block=BLOCK)
    d_y = normal(BATCH, SEQ, HEADS, V_DIM, seed=9)
    cuts = [slice(0, 5), slice(5, SEQ)]

    def part(q, k, v, cut):
        sight = Sight(ORDER, ORDER[cut], causal=True)
        return attend_with_lse(q, k[:, cut], v[:, cut], sight, **options)

    def parts(q, k, v):
        return merge(*part(q, k, v, cuts[0]), *part(q, k, v, cuts[1]))

    @jax.jit
    def by_autodiff(q, k, v):
        (y, lse), pull = jax.vjp(parts, q, k, v)
        return y, lse, pull((d_y, jnp.ones_like(lse)))

    @jax.jit
    def by_parts(q, k, v, y, lse):
        def gradients(cut):
            sight = Sight(ORDER, ORDER[cut], causal=True)
            some = q, k[:, cut], v[:, cut]
            return attend_gradients(*some, sight, y, lse, d_y, **options)

        (d_q, *first), (more_d_q, *second) = map(gradients, cuts)
        both = [jnp.concatenate(pair, 1) for pair in zip(first, second, strict=True)]
        return d_q + more_d_q, *both

    def plain(q, k, v):
        visible = Sight(ORDER, ORDER, causal=True).visible()
        y = attend(q, k, v, scale=SCALE, softcap=2.0, visible=visible)
        return y, log_sum_exp(q, k)

    def log_sum_exp(q, k):
        scores = jnp.einsum("btkgd,bskd->btkgs", q.reshape(BATCH, SEQ, 2, 2, DIM), k)
        scores = 2.0 * jnp.tanh(SCALE * scores / 2.0)
        scores = jnp.where(jnp.tri(SEQ, dtype=bool)[:, None, None], scores, -jnp.inf)
        return jax.nn.logsumexp(scores, -1).reshape(BATCH, SEQ, HEADS)

    y, lse, d = by_autodiff(*arrays)
    expected, pull = jax.vjp(jax.jit(plain), *arrays)
    np.testing.assert_allclose(y, expected[0], **close)
    np.testing.assert_allclose(lse, expected[1], **close)
    ones = jnp.ones_like(lse)
    for got, wanted in zip(d, pull((d_y, ones)), strict=True):
        np.testing.assert_allclose(got, wanted, **close)
    without = pull((d_y, jnp.zeros_like(lse)))
    for got, wanted in zip(by_parts(*arrays, y, lse), without, strict=True):
        np.testing.assert_allclose(got, wanted, **close)


def test_a_query_that_sees_nothing_gives_zeros_and_finite_gradients():
    q, k, v = inputs()
    sight = Sight(ORDER, ORDER, causal=True, real=jnp.zeros((BATCH, SEQ), bool))

    @jax.jit
    def blind(q, k, v):
        return attend_with_lse(q, k, v, sight, scale=SCALE, block=BLOCK)

    (y, lse), pull = jax.vjp(blind, q, k, v)
    assert (y == 0).all() and (lse < -1e38).all()
    both, _ = merge(y, lse, normal(*y.shape), jnp.zeros_like(lse))
    np.testing.assert_array_equal(both, normal(*y.shape))
    assert all((d == 0).all() for d in pull((jnp.ones_like(y), jnp.zeros_like(lse))))


def test_low_precision_is_summed_in_float32():
    seq = 512
    low = inputs(seq=seq, dtype=jnp.bfloat16)
    high = [x.astype(jnp.float32) for x in low]
    sight = Sight(np.arange(seq), np.arange(seq))
    call = functools.partial(attend_with_lse, scale=SCALE, block=64)
    y, lse = jax.jit(lambda *a: call(*a, sight))(*low)
    expected, expected_lse = jax.jit(lambda *a: call(*a, sight))(*high)
    assert y.dtype == jnp.bfloat16 and lse.dtype == jnp.float32
    np.testing.assert_allclose(lse, expected_lse, **close)
    # The weights and the result are rounded once each, to 8 bits.
    np.testing.assert_allclose(y.astype(jnp.float32), expected, rtol=2**-7, atol=2**-9)


def test_memory_is_linear_in_the_sequence(optimized):
    def temporary(function, seq):
        q = jax.ShapeDtypeStruct((1, seq, 4, 16), jnp.float32)
        loss = jax.grad(lambda q: function(q, np.arange(seq)).sum())
        compiled = jax.jit(loss).lower(q).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    def blocks(q, order):
        sight = Sight(order, order, causal=True)
        return attend_blockwise(q, q, q, sight, scale=1.0, block=64)

    def plain(q, order):
        visible = Sight(order, order, causal=True).visible()
        return attend(q, q, q, scale=1.0, visible=visible)

    assert temporary(blocks, 2048) < 2.1 * temporary(blocks, 1024)
    assert temporary(blocks, 2048) < temporary(plain, 2048) / 20


def test_it_runs_where_devices_are_told_apart_by_hand():
    q, k, v = inputs()
    mesh = jax.make_mesh(
        (2,),
        ("data",),
        axis_types=(jax.sharding.AxisType.Auto,),
        devices=jax.devices()[:2],
    )
    sight = Sight(ORDER, ORDER, causal=True)

    def loss(q, k, v):
        return jnp.square(attend_blockwise(q, k, v, sight, scale=SCALE, block=BLOCK))

    spec = jax.P("data")
    mapped = jax.shard_map(loss, mesh=mesh, in_specs=(spec, spec, spec), out_specs=spec)
    ours = jax.jit(jax.value_and_grad(lambda *a: mapped(*a).sum(), (0, 1, 2)))(q, k, v)
    whole = jax.jit(jax.value_and_grad(lambda *a: loss(*a).sum(), (0, 1, 2)))(q, k, v)
    jax.tree.map(functools.partial(np.testing.assert_allclose, **close), ours, whole)
