import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdl as jd
from jaxdl import models, nn, optim


def decoder(dim, **options):
    config = models.DecoderConfig(
        vocab_size=32, seq_len=8, dim=dim, num_layers=2, num_heads=2,
        tie_embeddings=False, **options,
    )  # fmt: skip
    return models.Decoder(config)


def test_factors_are_those_of_the_paper():
    """Table 3 of arXiv:2203.03466, for a decoder four times as wide."""
    mu = optim.mup(decoder(32), decoder(8))
    everything = set(jd.paths(decoder(32)))
    kernels = set(jd.paths(decoder(32), role="weight"))
    assert mu.adam == dict.fromkeys(kernels, 0.25)
    assert mu.sgd == {
        path: 0.25 if path == "head/kernel" else 4.0
        for path in everything - kernels | {"head/kernel"}
    }
    hidden = kernels - {"head/kernel"}
    assert mu.initial == {**dict.fromkeys(hidden, 0.5), "head/kernel": 0.25}
    assert mu.tied_multiplier == 0.25


INITIALISERS = [
    jd.init.he_uniform(),
    jd.init.glorot_normal(),
    jd.init.normal(0.1),
    jd.init.uniform(-0.1, 0.1),
    jd.init.orthogonal(),
    jd.init.variance_scaling(2.0, "fan_out", "normal"),
]


@pytest.mark.parametrize("init", INITIALISERS, ids=lambda init: str(init)[:40])
def test_initial_sizes_are_those_of_the_paper_whatever_the_initialiser(init):
    def model(width):
        return models.mlp([64, width, width, 64], kernel_init=init)

    def size(model, path):
        param = jd.declarations(model)[path]
        return param.sample(jax.random.key(0), path).std()

    wide, narrow = model(256), model(64)
    initial = optim.mup(wide, narrow).initial
    for path, factor in {"2/kernel": 0.5, "4/kernel": 0.25}.items():
        ratio = initial.get(path, 1.0) * size(wide, path) / size(narrow, path)
        # 4,096 numbers know their standard deviation to 1/64 / sqrt(2).
        np.testing.assert_allclose(ratio, factor, rtol=0.06)


def test_convolutions_count_channels_and_depthwise_ones_none():
    def model(width):
        return nn.Sequential(
            [
                nn.Conv(3, width, (3, 3)),
                nn.Conv(width, width, (3, 3)),
                nn.Conv(width, width, (3, 3), groups=width),
            ]
        )

    mu = optim.mup(model(16), model(8))
    assert mu.adam == {"1/kernel": 0.5}
    assert mu.initial == {"1/kernel": pytest.approx(1.0)} or not mu.initial


def test_experts_and_stacks_are_no_width():
    def model(dim):
        return nn.Repeat(nn.MoE(dim, 2 * dim, num_experts=4), 3)

    mu = optim.mup(model(16), model(8))
    kernels = {f"experts/{name}/kernel" for name in ("up", "gate", "down")} & set(
        jd.paths(model(8))
    )
    assert mu.adam == dict.fromkeys([*kernels, "router/kernel"], 0.5)
    assert mu.sgd == {"router/kernel": 0.5}


def test_the_base_itself_is_left_as_it_is():
    model = models.mlp([4, 8, 8, 2])
    mu = optim.mup(model, model)
    assert (mu.initial, mu.adam, mu.sgd, mu.tied_multiplier) == ({}, {}, {}, 1.0)
    assert mu.model == model
    drawn, plain = mu.init(jax.random.key(0)), model.init(jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, drawn, plain)


def test_attention_is_scaled_by_the_width_of_its_heads():
    mu = optim.mup(decoder(32), decoder(8))
    narrow, wide = (m.blocks.block.attn for m in (decoder(8), mu.model))
    assert wide.width == 4 * narrow.width
    assert wide.scale == narrow.scale / 4
    more_heads = models.Decoder(dataclasses.replace(decoder(32).config, num_heads=8))
    assert optim.mup(more_heads, decoder(8)).model == more_heads


def test_initial_values_are_born_sharded():
    mesh = jd.mesh(fsdp=8)
    mu = optim.mup(*(nn.Linear(8, n, axes=("embed", "mlp")) for n in (16, 4)))
    axes = jd.axes(mu.model)
    split = jd.shard.init(mu.init, jax.random.key(0), mesh, jd.shard.FSDP, axes=axes)
    whole = jax.jit(mu.init)(jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, split, whole)
    assert not split["kernel"].sharding.is_fully_replicated


def test_what_does_not_compare_is_an_error():
    with pytest.raises(ValueError, match=r"expected the base .* got \['2/bias'"):
        optim.mup(models.mlp([2, 4, 2]), models.mlp([2, 2]))
    deep, flat = nn.Repeat(nn.Linear(4, 4), 3), nn.Repeat(nn.Linear(2, 2), 2)
    with pytest.raises(ValueError, match="bias: expected a base of the same role and"):
        optim.mup(deep, flat)
    odd = models.mlp([2, 4, 2], kernel_init=lambda key, shape, dtype: jnp.ones(shape))
    with pytest.raises(ValueError, match="0/kernel: expected an initialiser of jd.ini"):
        optim.mup(odd, models.mlp([2, 2, 2]))
