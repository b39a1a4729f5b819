from hypothesis import given
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdl as jd
from jaxdl import nn

rng = np.random.default_rng(0)
KINDS = [nn.Linear(3, 3), nn.Linear(3, 3, bias=False), nn.Residual(nn.Linear(3, 3))]
x = jnp.asarray(rng.normal(size=(2, 3)), jnp.float32)


def unstacked(model, params):
    """The params of each layer by itself, in order, by what `layers` says."""
    for path, index in nn.layers(model):
        node = params
        for name in path.split("/") if path else []:
            node = node[name]
        yield jax.tree.map(lambda leaf, i=index: leaf[i], node)


@given(kinds=st.lists(st.integers(0, 2), min_size=1, max_size=12))
def test_a_stack_is_its_blocks_one_after_the_other(kinds):
    blocks = [KINDS[kind] for kind in kinds]
    model = nn.stack(blocks)
    assert len(nn.layers(model)) == len(blocks)
    abstract = jd.abstract(model)
    for block, (path, _) in zip(blocks, nn.layers(model), strict=True):
        own = jd.tree.flatten(abstract)
        names = {f"{path}/{name}".strip("/") for name in jd.paths(block)}
        assert names <= set(own)
    total = sum(jd.count(jd.abstract(block)) for block in blocks)
    assert jd.count(abstract) == total


@pytest.mark.parametrize(
    "kinds", [[0] * 5, [0, 1] * 3, [0, 0, 1] * 2 + [0, 0], [0, 1, 1, 1, 2]]
)
def test_the_result_is_that_of_a_loop(kinds):
    blocks = [KINDS[kind] for kind in kinds]
    model = nn.stack(blocks)
    params, expected = model.init(jax.random.key(0)), x
    for block, own in zip(blocks, unstacked(model, params), strict=True):
        expected = block(own, expected)
    np.testing.assert_allclose(model(params, x), expected, rtol=1e-5, atol=1e-6)


def test_paths_are_short_where_layers_are_alike():
    def paths(kinds):
        return jd.paths(nn.stack([KINDS[kind] for kind in kinds]))

    assert paths([1] * 4) == ("kernel",)
    assert paths([1, 0] * 2) == ("0/kernel", "1/bias", "1/kernel")
    assert paths([1, 1, 0]) == ("0/kernel", "1/bias", "1/kernel")


def test_caches_go_through_every_combinator():
    local = nn.Attention(8, 2, causal=True, window=2)
    whole = nn.Attention(8, 2, causal=True)
    blocks = [nn.Residual(local), nn.Residual(whole)] * 2 + [nn.Residual(local)]
    model = nn.Sequential([nn.Linear(8, 8), nn.stack(blocks), nn.RMSNorm(8)])
    params = model.init(jax.random.key(0))
    tokens = jnp.asarray(rng.normal(size=(2, 6, 8)), jnp.float32)
    cache = model.init_cache(2, 6, chunk=1)
    slots = {leaf.shape[2] for leaf in jax.tree.leaves(cache) if leaf.ndim == 5}
    assert slots == {2, 6}  # a window of 2 needs no more
    step = jax.jit(lambda cache, x: model(params, x, cache=cache))
    pieces = []
    for i in range(6):
        y, cache = step(cache, tokens[:, i : i + 1])
        pieces.append(y)
    whole_row = model(params, tokens)
    np.testing.assert_allclose(jnp.concatenate(pieces, 1), whole_row, 1e-4, 1e-5)


def test_state_and_a_cache_together_are_refused():
    model = nn.Sequential([nn.BatchNorm(8), nn.Attention(8, 2, causal=True)])
    params, state = model.init(jax.random.key(0)), model.init_state()
    cache = model.init_cache(2, 4)
    with pytest.raises(TypeError, match="expected state or a cache, got both"):
        model(params, jnp.ones((2, 4, 8)), state, cache=cache, train=False)
    with pytest.raises(TypeError, match=r"expected what nn.stack returns, got Linear"):
        nn.layers(nn.Linear(3, 3))
