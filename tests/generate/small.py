"""Tiny decoders with every weight off its initial value, and prompts for them."""

import functools

import jax
import numpy as np

from jaxdl import models

VOCAB = 13
LONGEST = 24
PROMPTS = [[1, 2, 3], [4, 5, 6, 7, 8, 3, 9], [9]]


def config(**changes):
    sizes = dict(
        vocab_size=VOCAB, seq_len=64, dim=8, num_layers=2, num_heads=4, num_kv_heads=2,
        hidden=12, gated=True, activation=jax.nn.silu, norm="rms", positions="rope",
        bias=False, tie_embeddings=False,
    )  # fmt: skip
    return models.DecoderConfig(**{**sizes, **changes})


def decoder(seed=0, scale=0.4, **changes):
    """A model and params that say something else after every prompt."""
    model = models.Decoder(config(**changes))
    rng = np.random.default_rng(seed)
    params = jax.tree.map(
        lambda leaf: leaf + scale * rng.normal(size=leaf.shape).astype(np.float32),
        model.init(jax.random.key(seed)),
    )
    return model, params


@functools.partial(jax.jit, static_argnums=0)
def run(model, params, tokens):
    return model(params, tokens)


def step_by_step(model, params, prompt, max_new, eos=()):
    """The oracle: all of the row again for every token, without a cache."""
    row, log_probs = list(prompt), []
    for _ in range(max_new):
        padded = np.zeros((1, LONGEST), np.int32)
        padded[0, : len(row)] = row
        logits = run(model, params, padded)[0, len(row) - 1]
        token = int(logits.argmax())
        log_probs.append(float(jax.nn.log_softmax(logits)[token]))
        row.append(token)
        if token in eos:
            break
    return row[len(prompt) :], log_probs
