import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdl import nn

BATCH, DIM, LAYERS, WINDOW, SLOTS = 2, 8, 3, 4, 6
rng = np.random.default_rng(0)
x = jnp.asarray(rng.normal(size=(BATCH, 9, DIM)), jnp.float32)
BLOCK = nn.Attention(DIM, 2, causal=True, rope=nn.RoPE(4), window=WINDOW)
MODEL = nn.Repeat(BLOCK, LAYERS)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.int8])
def test_layers_in_one_cache_write_what_each_would_in_its_own(dtype):
    params = MODEL.init(jax.random.key(0))
    alone = jax.jit(lambda p, x, c: BLOCK(p, x, cache=c))
    stacked = MODEL.init_cache(BATCH, SLOTS, dtype)
    caches = [BLOCK.init_cache(BATCH, SLOTS, dtype) for _ in range(LAYERS)]
    together = jax.jit(lambda p, x, c: MODEL(p, x, cache=c))
    start = 0
    for size in (3, 1, 3, 1, 1):  # past the last slot
        piece = x[:, start : start + size]
        y, stacked = together(params, piece, stacked)
        for index in range(LAYERS):
            own = MODEL.layer_params(params, index)
            piece, caches[index] = alone(own, piece, caches[index])
        np.testing.assert_allclose(y, piece, rtol=1e-5, atol=1e-5)
        start += size
    expected = jax.tree.map(lambda *leaves: jnp.stack(leaves), *caches)
    chex.assert_trees_all_close(stacked, expected, rtol=1e-4, atol=1e-4)


def test_a_scan_over_layers_carries_the_cache_and_so_does_not_copy_it():
    params, cache = MODEL.init(jax.random.key(0)), MODEL.init_cache(BATCH, SLOTS)
    jaxpr = jax.make_jaxpr(lambda p, x, c: MODEL(p, x, cache=c))(
        params, x[:, :1], cache
    )
    (scan,) = [eqn for eqn in jaxpr.eqns if eqn.primitive.name == "scan"]
    outs = [v.aval.shape for v in scan.outvars]
    body = [v.aval.shape for v in scan.params["jaxpr"].jaxpr.outvars]
    assert outs == body  # nothing is stacked by the scan: all of it is carried
    assert cache.k.shape in outs
