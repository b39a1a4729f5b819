"""Positions beside the code that published models run, `transformers`' and PyTorch."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdl import nn
from tests.nn.against_torch import compare, torch, weights_of

transformers = pytest.importorskip("transformers")
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS  # noqa: E402
from transformers.models.bloom.modeling_bloom import build_alibi_tensor  # noqa: E402
from transformers.models.t5.modeling_t5 import T5Attention  # noqa: E402
from transformers.models.whisper.modeling_whisper import sinusoids  # noqa: E402

rng = np.random.default_rng(0)
HEAD_DIM, SEQ = 16, 6


def normal(*shape):
    return rng.normal(size=shape).astype(np.float32)


SCALINGS = {
    "none": ({"rope_type": "default"}, None),
    "linear": ({"rope_type": "linear", "factor": 4.0}, nn.LinearScaling(4.0)),
    "dynamic": ({"rope_type": "dynamic", "factor": 2.0}, nn.NTKScaling(2.0, 16)),
    "yarn": (
        {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 16},
        nn.YarnScaling(8.0, 16),
    ),
    "yarn, all given": (
        {
            "rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 16,
            "beta_fast": 4.0, "beta_slow": 0.5, "attention_factor": 1.5,
            "truncate": False,
        },
        nn.YarnScaling(8.0, 16, 4.0, 0.5, 1.5, truncate=False),
    ),
    "llama3": (
        {
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 16,
        },
        nn.Llama3Scaling(8.0, 1.0, 4.0, 16),
    ),
}  # fmt: skip


@pytest.mark.parametrize("partial", [1.0, 0.5])
@pytest.mark.parametrize("start", [0, 20])
@pytest.mark.parametrize("name", SCALINGS)
def test_rope_turns_as_that_of_transformers(name, start, partial):
    parameters, scaling = SCALINGS[name]
    config = transformers.LlamaConfig(
        hidden_size=2 * HEAD_DIM, num_attention_heads=2, max_position_embeddings=16,
        rope_parameters={
            "rope_theta": 1000.0, "partial_rotary_factor": partial, **parameters
        },
    )  # fmt: skip
    frequencies, magnitude = hugging_face_frequencies(config, partial, start + SEQ)
    rope = nn.RoPE(HEAD_DIM, 1000.0, int(partial * HEAD_DIM), scaling)
    positions = start + jnp.arange(SEQ)

    def theirs(x):
        angles = torch.outer(torch.arange(start, start + SEQ).float(), frequencies)
        angles = torch.cat([angles, angles], dim=-1)[:, None]
        turning, rest = x[..., : angles.shape[-1]], x[..., angles.shape[-1] :]
        first, second = turning.chunk(2, dim=-1)
        rotated = torch.cat([-second, first], dim=-1)
        turned = turning * (angles.cos() * magnitude)
        turned = turned + rotated * (angles.sin() * magnitude)
        return torch.cat([turned, rest], dim=-1)

    compare(
        lambda params, x: rope({}, x, positions=positions), theirs, {},
        lambda weights: {}, (normal(2, SEQ, 3, HEAD_DIM),),
    )  # fmt: skip


def hugging_face_frequencies(config, partial, length):
    kind = config.rope_parameters["rope_type"]
    if kind == "default":
        width = int(partial * HEAD_DIM)
        return 1 / 1000.0 ** (torch.arange(0, width, 2) / width), 1.0
    return ROPE_INIT_FUNCTIONS[kind](config, "cpu", length)


def test_ntk_scaling_raises_theta():
    stretched = nn.RoPE(HEAD_DIM, 1000.0, scaling=nn.NTKScaling(4.0))
    raised = nn.RoPE(HEAD_DIM, 1000.0 * 4.0 ** (HEAD_DIM / (HEAD_DIM - 2)))
    x, positions = jnp.asarray(normal(1, SEQ, 2, HEAD_DIM)), jnp.arange(SEQ)
    np.testing.assert_allclose(
        stretched({}, x, positions=positions), raised({}, x, positions=positions),
        rtol=1e-5, atol=1e-5,
    )  # fmt: skip


def test_interleaved_rope_is_a_product_of_complex_numbers():
    def theirs(x):
        frequencies = 1 / 10_000.0 ** (torch.arange(0, 8, 2) / 8)
        angles = torch.outer(torch.arange(SEQ).float(), frequencies)
        turns = torch.polar(torch.ones_like(angles), angles)[:, None]
        pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
        return torch.view_as_real(pairs * turns).flatten(-2)

    rope = nn.RoPE(8, interleaved=True)
    compare(
        lambda params, x: rope({}, x, positions=jnp.arange(SEQ)), theirs, {},
        lambda weights: {}, (normal(2, SEQ, 3, 8),),
    )  # fmt: skip


@pytest.mark.parametrize("heads", [1, 2, 6, 8, 12])
def test_alibi_is_bloom_s_up_to_what_softmax_ignores(heads):
    theirs = build_alibi_tensor(torch.ones(1, SEQ), heads, torch.float32)
    # Bloom adds slope * key position; a row's softmax sees only differences.
    theirs = theirs.reshape(heads, 1, SEQ).numpy()
    ours = np.asarray(nn.ALiBi(heads)({}, jnp.arange(SEQ), jnp.arange(SEQ)))
    last = ours[:, -1:]  # the last query: all keys are behind it
    np.testing.assert_allclose(last, theirs - theirs[..., -1:], rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(ours, ours.swapaxes(-1, -2))


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize("buckets, longest", [(32, 128), (8, 20), (6, 50)])
def test_relative_buckets_are_t5_s(bidirectional, buckets, longest):
    offsets = np.arange(-300, 301)
    theirs = T5Attention._relative_position_bucket(
        torch.tensor(offsets), bidirectional, buckets, longest
    )
    bias = nn.RelativeBias(2, buckets, longest, bidirectional)
    np.testing.assert_array_equal(bias.bucket(jnp.asarray(offsets)), theirs)


def test_relative_bias_is_t5_s():
    config = transformers.T5Config(d_model=8, num_heads=2, d_kv=4, is_decoder=False)
    theirs = T5Attention(config, has_relative_attention_bias=True)
    table = theirs.relative_attention_bias
    positions = jnp.arange(40)
    compare(
        lambda params: nn.RelativeBias(2)(params, positions, positions)[None],
        lambda: theirs.compute_bias(40, 40), weights_of(table),
        lambda weights: {"embedding": weights["weight"]}, (),
    )  # fmt: skip


def test_sinusoids_are_whisper_s_and_those_of_the_paper():
    ours = nn.Sinusoidal(12, layout="sin_cos", shift=1.0)({}, jnp.arange(50))
    np.testing.assert_allclose(ours, sinusoids(50, 12), rtol=1e-5, atol=1e-5)
    ours = nn.Sinusoidal(12)({}, jnp.arange(50))
    position, pair = np.arange(50)[:, None], np.arange(6)
    angles = position / 10_000 ** (2 * pair / 12)
    np.testing.assert_allclose(ours[:, ::2], np.sin(angles), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(ours[:, 1::2], np.cos(angles), rtol=1e-4, atol=1e-5)


def test_timestep_embedding_is_that_of_diffusion_transformers():
    theirs = torch.nn.Sequential(
        torch.nn.Linear(16, 12), torch.nn.SiLU(), torch.nn.Linear(12, 12)
    )
    time = np.array([0.0, 3.5, 7.0, 50.0], np.float32)

    def embed(time):
        frequencies = torch.exp(-math.log(10_000) * torch.arange(8) / 8)
        angles = time[:, None] * frequencies
        return theirs(torch.cat([angles.cos(), angles.sin()], dim=-1))

    def convert(weights):
        first = {"kernel": weights["0.weight"].T, "bias": weights["0.bias"]}
        last = {"kernel": weights["2.weight"].T, "bias": weights["2.bias"]}
        return {"waves": {}, "up": first, "out": last}

    ours = nn.TimestepEmbedding(12, 16)
    compare(ours, embed, weights_of(theirs), convert, (time,))


@pytest.mark.parametrize("learned", [True, False])
def test_fourier_features_and_their_gradients(learned):
    frequencies = torch.zeros(3, 5, requires_grad=True)

    def theirs(x):
        turned = 2 * math.pi * (x @ (frequencies if learned else frequencies.detach()))
        used = 0 * frequencies.sum()  # so that autograd knows them: a zero gradient
        return torch.cat([turned.cos(), turned.sin()], dim=-1) + used

    ours = nn.FourierFeatures(3, 5, learned=learned)
    compare(ours, theirs, {"frequencies": frequencies}, dict, (normal(4, 3) / 4,))


def test_learned_and_fixed_positions_are_added():
    table = torch.nn.Embedding(9, 4)
    compare(
        nn.AddPosition(nn.Embedding(9, 4)), lambda x: x + table.weight[:SEQ],
        weights_of(table), lambda weights: {"embedding": weights["weight"]},
        (normal(2, SEQ, 4),),
    )  # fmt: skip
    waves = nn.Sinusoidal(4)({}, jnp.arange(SEQ))
    x = jnp.asarray(normal(2, SEQ, 4))
    np.testing.assert_array_equal(nn.AddPosition(nn.Sinusoidal(4))({}, x), x + waves)
    grads = jax.grad(lambda x: nn.AddPosition(nn.Sinusoidal(4))({}, x).sum())(x)
    np.testing.assert_array_equal(grads, jnp.ones_like(x))
