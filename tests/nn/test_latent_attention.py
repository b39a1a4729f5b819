import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdl as jd
from jaxdl import nn
from jaxdl.testing import check_module
from tests.drawn import drawn
from tests.nn.against_torch import compare, linear, torch, weights_of

BATCH, SEQ, DIM, HEADS = 2, 6, 8, 3
SIZES = {"kv_rank": 5, "head_dim": 4, "rope_dim": 2, "v_dim": 6}
rng = np.random.default_rng(0)
x = jnp.asarray(rng.normal(size=(BATCH, SEQ, DIM)), jnp.float32)
close = dict(rtol=1e-5, atol=1e-5)


def layer_and_params(**given):
    layer = nn.LatentAttention(DIM, HEADS, **SIZES, rope=nn.RoPE(2), **given)
    return layer, drawn(layer)


@pytest.mark.parametrize("q_rank", [None, 7])
def test_latent_attention_keeps_the_contract(q_rank):
    layer, _ = layer_and_params(q_rank=q_rank, bias=True)
    check_module(layer, x)


def test_without_rotation_it_is_attention_with_keys_made_in_two_steps():
    torch.manual_seed(0)
    parts = {
        "q": torch.nn.Linear(DIM, HEADS * 6, bias=False),
        "kv_down": torch.nn.Linear(DIM, 7, bias=False),
        "kv_up": torch.nn.Linear(5, HEADS * 10, bias=False),
        "out": torch.nn.Linear(HEADS * 6, DIM, bias=False),
    }
    norm = torch.nn.RMSNorm(5, eps=1e-6)

    def theirs(x):
        q = parts["q"](x).unflatten(-1, (HEADS, 6)).transpose(1, 2)
        both = parts["kv_down"](x)
        kv = parts["kv_up"](norm(both[..., :5])).unflatten(-1, (HEADS, 10))
        shared = both[..., None, 5:].expand(-1, -1, HEADS, -1)
        k = torch.cat([kv[..., :4], shared], -1).transpose(1, 2)
        v = kv[..., 4:].transpose(1, 2)
        attend = torch.nn.functional.scaled_dot_product_attention
        y = attend(q, k, v, is_causal=True)
        return parts["out"](y.transpose(1, 2).flatten(2))

    def convert(weights):
        params = {name: linear(weights, name) for name in parts}
        return {**params, "kv_norm": {"scale": weights["norm"]}}

    layer, _ = layer_and_params()
    still = jnp.zeros(SEQ, int)  # everything at one place: nothing turns
    weights = {f"{name}.weight": part.weight for name, part in parts.items()}
    compare(
        lambda params, x: layer(params, x, positions=still), theirs,
        {**weights, "norm": weights_of(norm)["weight"]}, convert, (np.asarray(x),),
    )  # fmt: skip


@pytest.mark.parametrize("sizes", [[1] * SEQ, [4, 2], [SEQ]])
def test_a_cache_of_latents_gives_what_the_whole_row_gives(sizes):
    layer, params = layer_and_params(q_rank=7)
    cache, pieces, start = layer.init_cache(BATCH, SEQ), [], 0
    run = jax.jit(layer)
    for size in sizes:
        y, cache = run(params, x[:, start : start + size], cache=cache)
        pieces.append(y)
        start += size
    np.testing.assert_allclose(np.concatenate(pieces, 1), run(params, x), **close)
    assert cache.k.shape[2:] == (1, 5) and cache.v.shape[2:] == (1, 2)
    lost, _ = run(params, x[:, :1], cache=cache)
    assert np.isnan(lost).all()


def test_packed_and_padded_rows_are_as_if_alone():
    layer, params = layer_and_params()
    positions = jnp.array([[0, 1, 2, 3, 0, 1]] * BATCH)
    segments = jnp.array([[0, 0, 0, 0, 1, 1]] * BATCH)
    run = jax.jit(layer)
    packed = run(params, x, positions=positions, segment_ids=segments)
    np.testing.assert_allclose(packed[:, 4:], run(params, x[:, 4:]), **close)
    padded = run(params, x, positions=jnp.arange(SEQ) - 2)
    np.testing.assert_allclose(padded[:, 2:], run(params, x[:, 2:]), **close)
    mask = jnp.broadcast_to(jnp.arange(SEQ) != 1, (1, 1, SEQ, SEQ))
    _, values = jax.jit(jd.capture(layer, "pattern"))(params, x, mask=mask)
    assert not values["pattern"][..., 1].any()


def test_a_rotation_of_another_width_is_refused():
    with pytest.raises(ValueError, match="rope for rope_dim=2, got one for head_dim=4"):
        nn.LatentAttention(DIM, HEADS, **SIZES, rope=nn.RoPE(4))
