import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdl as jd
from jaxdl import nn
from jaxdl.nn.attend import Sight, attend
from jaxdl.nn.splash import attend_splash, refusal

BATCH, HEADS, KV_HEADS, DIM = 4, 4, 2, 16
SEQ = 150  # no whole number of tiles
close = dict(rtol=1e-5, atol=1e-5)
rng = np.random.default_rng(0)
ORDER = np.arange(SEQ)


def normal(*shape):
    return jnp.asarray(rng.normal(size=shape), jnp.float32)


q, d_y = normal(BATCH, SEQ, HEADS, DIM), normal(BATCH, SEQ, HEADS, DIM)
k, v = normal(BATCH, SEQ, KV_HEADS, DIM), normal(BATCH, SEQ, KV_HEADS, DIM)
segments = jnp.asarray(rng.integers(0, 2, (BATCH, SEQ)).cumsum(1) // 20)
real = jnp.asarray(np.arange(SEQ) >= np.array([[40], [0], [0], [149]]))

CASES = [
    ({"causal": True}, {"softcap": 5.0, "sinks": normal(HEADS)}),
    ({"causal": True, "window": 20, "segment_ids": segments}, {}),
    ({"causal": True, "real": real}, {}),
    ({"window": 30, "real": real}, {}),
]


def value_and_gradients(function):
    y, pull = jax.vjp(function, q, k, v)
    return y, pull(d_y)


def check(sight, options):
    def splash(q, k, v):
        return attend_splash(q, k, v, sight, scale=0.25, interpret=True, **options)

    def plain(q, k, v):
        return attend(q, k, v, scale=0.25, visible=sight.visible(), **options)

    assert refusal(q, k, v, sight) == ""
    got, expected = (
        jax.jit(functools.partial(value_and_gradients, each))()
        for each in (splash, plain)
    )
    jax.tree.map(functools.partial(np.testing.assert_allclose, **close), got, expected)


@pytest.mark.slow
@pytest.mark.parametrize(("where", "options"), CASES)
def test_the_kernel_interpreted_is_plain_attention(where, options):
    check(Sight(ORDER, ORDER, **where), options)


@pytest.mark.slow
def test_each_device_runs_the_kernel_for_its_rows_and_heads():
    with jd.shard.use(jd.mesh(data=-1, tensor=2), jd.shard.DATA | jd.shard.TENSOR):
        check(Sight(ORDER, ORDER, causal=True, real=real), {"sinks": normal(HEADS)})


def test_heads_that_are_split_without_their_keys_are_refused():
    sight = Sight(ORDER, ORDER, causal=True)
    with jd.shard.use(jd.mesh(data=-1, tensor=4), jd.shard.TENSOR):
        assert "heads split over ('tensor',)" in refusal(q, k, v, sight)
        assert refusal(q, k[:, :, :1], v[:, :, :1], sight) == ""


@pytest.mark.slow
def test_the_program_of_a_tpu_calls_the_kernel():
    pytest.importorskip("libtpu")
    layer = nn.Attention(64, HEADS, KV_HEADS, causal=True, implementation="auto")
    device = jd.planning.target("v5e:1x1").devices[0]
    there = jax.sharding.SingleDeviceSharding(device)

    def on_it(leaf):
        return jax.ShapeDtypeStruct(leaf.shape, jnp.bfloat16, sharding=there)

    params = jax.tree.map(on_it, jd.abstract(layer))
    x = on_it(jax.ShapeDtypeStruct((1, 256, 64), jnp.bfloat16))
    step = jax.jit(jax.grad(lambda params, x: layer(params, x).sum()))
    lowered = step.trace(params, x).lower(lowering_platforms=("tpu",))
    kernels = lowered.compile().as_text().count('custom_call_target="tpu_custom_call"')
    assert kernels == 3  # forward, and the gradients of q and of k and v
