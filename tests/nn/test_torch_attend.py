"""Attention's further forms, beside the same written with PyTorch's own functions."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxdl import nn
from tests.nn.against_torch import compare, linear, torch, weights_of

BATCH, SEQ, DIM, HEADS, KV_HEADS, HEAD_DIM = 2, 7, 8, 4, 2, 6
rng = np.random.default_rng(0)
functional = torch.nn.functional


def normal(*shape):
    return rng.normal(size=shape).astype(np.float32)


class Attention(torch.nn.Module):
    """Projections and scaled_dot_product_attention, as their users write it."""

    def __init__(self, memory_dim=DIM, qk_norm=None, softcap=None):
        super().__init__()
        self.q = torch.nn.Linear(DIM, HEADS * HEAD_DIM)
        self.k = torch.nn.Linear(memory_dim, KV_HEADS * HEAD_DIM)
        self.v = torch.nn.Linear(memory_dim, KV_HEADS * HEAD_DIM)
        self.out = torch.nn.Linear(HEADS * HEAD_DIM, DIM)
        self.softcap, self.qk_norm = softcap, qk_norm
        if qk_norm == "head":
            self.q_norm = torch.nn.RMSNorm(HEAD_DIM, eps=1e-6)
            self.k_norm = torch.nn.RMSNorm(HEAD_DIM, eps=1e-6)
        elif qk_norm == "all":
            self.q_norm = torch.nn.LayerNorm(HEADS * HEAD_DIM)
            self.k_norm = torch.nn.LayerNorm(KV_HEADS * HEAD_DIM)

    def forward(self, x, memory=None, bias=None):
        memory = x if memory is None else memory
        q, k, v = self.q(x), self.k(memory), self.v(memory)
        if self.qk_norm == "all":
            q, k = self.q_norm(q), self.k_norm(k)
        q, k, v = (y.unflatten(-1, (-1, HEAD_DIM)).transpose(1, 2) for y in (q, k, v))
        if self.qk_norm == "head":
            q, k = self.q_norm(q), self.k_norm(k)
        if self.softcap is None:
            y = functional.scaled_dot_product_attention(
                q, k, v, attn_mask=bias, enable_gqa=True
            )
        else:
            k, v = (y.repeat_interleave(HEADS // KV_HEADS, 1) for y in (k, v))
            scores = q @ k.transpose(-1, -2) / HEAD_DIM**0.5
            scores = self.softcap * torch.tanh(scores / self.softcap)
            scores = scores if bias is None else scores + bias
            y = scores.softmax(-1) @ v
        return self.out(y.transpose(1, 2).flatten(2))


def convert(weights):
    params = {name: linear(weights, name) for name in ("q", "k", "v", "out")}
    for name in ("q_norm", "k_norm"):
        if f"{name}.weight" in weights:
            params[name] = {"scale": weights[f"{name}.weight"]}
        if f"{name}.bias" in weights:
            params[name]["bias"] = weights[f"{name}.bias"]
    return {**params, "drop": {}}


def ours(**settings):
    return nn.Attention(DIM, HEADS, KV_HEADS, HEAD_DIM, bias=True, **settings)


def hidden(visible):
    """A bias that hides: PyTorch takes one where we take a window or a mask."""
    return torch.where(torch.tensor(visible), 0.0, -torch.inf)


@pytest.mark.parametrize("implementation", [None, "xla"])
@pytest.mark.parametrize("window", [1, 3])
@pytest.mark.parametrize("causal", [True, False])
def test_sliding_windows_hide_what_a_bias_hides(causal, window, implementation):
    theirs = Attention()
    layer = ours(causal=causal, window=window, implementation=implementation)
    distance = np.arange(SEQ)[:, None] - np.arange(SEQ)
    visible = np.abs(distance) < window
    if causal:
        visible &= distance >= 0
    compare(
        layer, lambda x: theirs(x, bias=hidden(visible)), weights_of(theirs), convert,
        (normal(BATCH, SEQ, DIM),),
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["head", "all"])
def test_norms_of_queries_and_keys_by_head_and_over_all_heads(kind):
    theirs = Attention(qk_norm=kind)
    norms = {"q_norm": nn.RMSNorm(HEAD_DIM), "k_norm": nn.RMSNorm(HEAD_DIM)}
    if kind == "all":
        norms = {
            "q_norm": nn.LayerNorm(HEADS * HEAD_DIM),
            "k_norm": nn.LayerNorm(KV_HEADS * HEAD_DIM),
        }
    x = normal(BATCH, SEQ, DIM)
    compare(ours(**norms), theirs, weights_of(theirs), convert, (x,))


def test_a_soft_cap_bends_the_scores_before_the_bias():
    theirs, bias = Attention(softcap=0.5), normal(1, HEADS, SEQ, SEQ)
    layer = ours(softcap=0.5)
    compare(
        lambda params, x, bias: layer(params, x, score_bias=bias),
        lambda x, bias: theirs(x, bias=bias),
        weights_of(theirs), convert, (normal(BATCH, SEQ, DIM), bias),
    )  # fmt: skip


def test_a_sink_is_one_more_score_whose_value_is_nothing():
    theirs, sinks = Attention(), torch.zeros(HEADS, requires_grad=True)

    def attend(x):
        q, k, v = (part(x).unflatten(-1, (-1, HEAD_DIM)).transpose(1, 2)
                   for part in (theirs.q, theirs.k, theirs.v))  # fmt: skip
        k, v = (y.repeat_interleave(HEADS // KV_HEADS, 1) for y in (k, v))
        scores = q @ k.transpose(-1, -2) / HEAD_DIM**0.5
        sink = sinks[:, None, None].expand(BATCH, -1, SEQ, 1)
        pattern = torch.cat([scores, sink], -1).softmax(-1)[..., :-1]
        return theirs.out((pattern @ v).transpose(1, 2).flatten(2))

    compare(
        ours(sinks=True), attend, {**weights_of(theirs), "sinks": sinks},
        lambda weights: {**convert(weights), "sinks": weights["sinks"]},
        (normal(BATCH, SEQ, DIM),),
    )  # fmt: skip


@pytest.mark.parametrize("implementation", [None, "xla"])
@pytest.mark.parametrize("remembered", [True, False])
def test_cross_attention_reads_a_memory(remembered, implementation):
    theirs = Attention(memory_dim=5)
    layer = ours(memory_dim=5, implementation=implementation)
    mask = np.array([[1, 1, 1, 1, 0], [1, 1, 0, 0, 0]], bool)

    def attend(params, x, memory):
        if remembered:
            kept = layer.remember(params, memory, mask=jnp.asarray(mask))
            return layer(params, x, memory=kept)
        return layer(params, x, memory=memory, mask=jnp.asarray(mask)[:, None, None])

    compare(
        attend,
        lambda x, memory: theirs(x, memory, hidden(mask)[:, None, None]),
        weights_of(theirs), convert, (normal(BATCH, SEQ, DIM), normal(BATCH, 5, 5)),
    )  # fmt: skip


def test_a_scale_of_the_scores_replaces_that_by_head_dim():
    theirs = Attention()
    sharper = ours(scale=HEAD_DIM**-0.5 * 3.0)

    def attend(params, x):
        q = {name: leaf / 3.0 for name, leaf in params["q"].items()}
        return sharper({**params, "q": q}, x)

    compare(attend, theirs, weights_of(theirs), convert, (normal(BATCH, SEQ, DIM),))
