import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdl as jd
from jaxdl import losses, models
from jaxdl.testing import check_module
from tests.drawn import drawn

gpt2 = models.DecoderConfig(vocab_size=13, seq_len=8, dim=8, num_layers=2, num_heads=2)
llama = models.DecoderConfig(
    vocab_size=13, seq_len=8, dim=8, num_layers=2, num_heads=4, num_kv_heads=2,
    hidden=12, gated=True, activation=jax.nn.silu, norm="rms", positions="rope",
    bias=False, tie_embeddings=False,
)  # fmt: skip
configs = pytest.mark.parametrize("config", [gpt2, llama], ids=["gpt2", "llama"])
tokens = jax.random.randint(jax.random.key(1), (2, 6), 0, 13)


@functools.cache
def compiled(config):
    """A model's parameters, drawn, and its forward pass as one program."""
    model = models.Decoder(config)
    return drawn(model), jax.jit(model)


def norm(config, p, x):
    if config.norm == "rms":
        return (
            x / jnp.sqrt((x**2).mean(-1, keepdims=True) + config.epsilon) * p["scale"]
        )
    centred = x - x.mean(-1, keepdims=True)
    variance = (centred**2).mean(-1, keepdims=True)
    return centred / jnp.sqrt(variance + config.epsilon) * p["scale"] + p["bias"]


def linear(p, x):
    return x @ p["kernel"] + p.get("bias", 0.0)


def rotated(x, theta):
    """RoPE by complex numbers: [seq, heads, dim]."""
    half = x.shape[-1] // 2
    turns = np.exp(
        1j * np.arange(x.shape[0])[:, None] * theta ** (-np.arange(half) / half)
    )
    pairs = (x[..., :half] + 1j * x[..., half:]) * turns[:, None]
    return jnp.concatenate([pairs.real, pairs.imag], -1)


def attention(config, p, x):
    """One sequence, one head at a time: [seq, dim]."""
    seq, width = x.shape[0], config.dim // config.num_heads
    kv_heads = config.num_kv_heads or config.num_heads
    q, k, v = (
        linear(p[name], x).reshape(seq, heads, width)
        for name, heads in (("q", config.num_heads), ("k", kv_heads), ("v", kv_heads))
    )
    if config.positions == "rope":
        q, k = (rotated(part, config.rope_theta) for part in (q, k))
    outputs = []
    for head in range(config.num_heads):
        shared = head * kv_heads // config.num_heads
        scores = q[:, head] @ k[:, shared].T / width**0.5
        scores = jnp.where(np.tri(seq, dtype=bool), scores, -jnp.inf)
        outputs.append(jax.nn.softmax(scores) @ v[:, shared])
    return linear(p["out"], jnp.concatenate(outputs, -1))


def by_hand(config, params, row):
    """The model on one sequence, layer by layer: int [seq] -> [seq, vocab]."""
    x = params["embed"]["embedding"][row]
    if config.positions == "learned":
        x = x + params["position"]["embedding"][: len(row)]
    for i in range(config.num_layers):
        p = jax.tree.map(lambda leaf, i=i: leaf[i], params["blocks"])
        x = x + attention(config, p["attn"], norm(config, p["attn_norm"], x))
        y = norm(config, p["mlp_norm"], x)
        up = linear(p["mlp"]["up"], y)
        if config.gated:
            up = config.activation(linear(p["mlp"]["gate"], y)) * up
        else:
            up = config.activation(up)
        x = x + linear(p["mlp"]["down"], up)
    x = norm(config, params["norm"], x)
    if config.tie_embeddings:
        return x @ params["embed"]["embedding"].T
    return x @ params["head"]["kernel"]


@configs
def test_it_is_the_model_written_out_with_every_parameter_perturbed(config):
    params, logits = compiled(config)
    by_row = jax.jit(jax.vmap(functools.partial(by_hand, config), (None, 0)))
    expected = by_row(params, tokens)
    np.testing.assert_allclose(logits(params, tokens), expected, rtol=1e-4, atol=1e-4)


@configs
def test_no_logit_depends_on_a_later_token(config):
    params, logits = compiled(config)
    other = tokens.at[:, 3].set((tokens[:, 3] + 1) % 13)
    changed = np.asarray(logits(params, tokens)) != logits(params, other)
    assert not changed[:, :3].any() and changed[:, 3:].any()


@configs
def test_it_keeps_the_contract(config):
    model = models.Decoder(dataclasses.replace(config, dropout=0.2))
    check_module(model, tokens, tolerance=1e-4)


@pytest.mark.parametrize("tied", [True, False])
def test_its_two_halves_give_the_chunked_loss(tied):
    model = models.Decoder(dataclasses.replace(llama, tie_embeddings=tied))
    params = drawn(model)
    targets = jnp.roll(tokens, -1, axis=1)

    def whole(params):
        return losses.cross_entropy(model(params, tokens), targets)

    def chunked(params):
        hidden = model.hidden(params, tokens)
        kernel = model.head_kernel(params)
        return losses.chunked_cross_entropy(hidden, kernel, targets, chunk_size=5)

    both = jax.jit(lambda p: [jax.value_and_grad(f)(p) for f in (chunked, whole)])
    ours, theirs = both(params)
    chex.assert_trees_all_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_packed_sequences_are_as_if_each_stood_alone():
    params, logits = compiled(llama)
    segments = jnp.array([[0, 0, 0, 0, 1, 1]])
    packed = logits(params, tokens[:1], segment_ids=segments)
    alone = logits(params, tokens[:1, 4:])
    np.testing.assert_allclose(packed[:, 4:], alone, rtol=1e-4, atol=1e-4)


def test_remat_and_every_implementation_of_attention_give_the_same():
    policy = jd.save_taps("**/mlp/hidden")
    changes = ({}, {"remat": True}, {"remat": policy}, {"attention": "xla"})
    variants = [models.Decoder(dataclasses.replace(gpt2, **some)) for some in changes]

    @jax.jit
    def gradients(params):
        losses = [lambda p, m=m: jnp.sin(m(p, tokens)).sum() for m in variants]
        return [jax.grad(loss)(params) for loss in losses]

    plain, *others = gradients(compiled(gpt2)[0])
    for other in others:
        chex.assert_trees_all_close(other, plain, rtol=1e-4, atol=1e-4)


def test_its_taps_name_the_residual_stream_and_all_within():
    model = models.Decoder(llama)
    names = list(jd.taps(model, jd.abstract(model), tokens))
    assert names == [
        "embed",
        "blocks/resid_pre",
        *(
            f"blocks/attn/{name}"
            for name in ("q", "k", "v", "scores", "pattern", "heads")
        ),
        "blocks/resid_mid",
        "blocks/mlp/hidden",
        "blocks/resid_post",
        "logits",
    ]
    params, _ = compiled(llama)
    logits, values = jax.jit(jd.capture(model, "**"))(params, tokens)
    pre, post = values["blocks/resid_pre"], values["blocks/resid_post"]
    np.testing.assert_allclose(pre[0], values["embed"], rtol=1e-6)
    np.testing.assert_allclose(pre[1], post[0], rtol=1e-6)
    np.testing.assert_allclose(logits, values["logits"], rtol=1e-6)


def test_weights_start_as_those_of_gpt2():
    model = models.Decoder(dataclasses.replace(gpt2, dim=128, num_layers=8))
    params = jax.jit(model.init)(jax.random.key(0))
    deviation = jax.tree.map(lambda leaf: np.asarray(leaf).std(), params)
    blocks = deviation["blocks"]
    assert deviation["embed"]["embedding"] == pytest.approx(0.02, rel=0.1)
    assert blocks["attn"]["q"]["kernel"] == pytest.approx(0.02, rel=0.05)
    for layer in (blocks["attn"]["out"], blocks["mlp"]["down"]):
        assert layer["kernel"] == pytest.approx(0.02 / 4, rel=0.05)


def test_the_default_is_gpt2_of_124_million_parameters():
    assert jd.count(jd.abstract(models.Decoder(models.DecoderConfig()))) == 124_439_808


def test_what_does_not_fit_is_an_error():
    model = models.Decoder(gpt2)
    params, _ = compiled(gpt2)
    with pytest.raises(ValueError, match="position: expected a sequence of at most 8"):
        model(params, jnp.zeros((1, 9), int))
    with pytest.raises(ValueError, match=r"int \[batch, seq\]"):
        model(params, tokens[0])
    with pytest.raises(ValueError, match="DecoderConfig.norm: expected layer or rms"):
        dataclasses.replace(gpt2, norm="batch")
    with pytest.raises(TypeError, match="needs key"):
        noisy = models.Decoder(dataclasses.replace(gpt2, dropout=0.1))
        noisy(params, tokens)


def test_a_token_out_of_range_gives_nan_not_another_token():
    params, logits = compiled(gpt2)
    out = np.asarray(logits(params, tokens.at[0, 2].set(13)))
    assert np.isnan(out[0, 2:]).all() and np.isfinite(out[1]).all()
