"""What jaxdl adds to a computation: nothing."""

import re

import jax
from jax.extend.core import Literal
import jax.numpy as jnp
import pytest

import jaxdl as jd
from jaxdl import nn
from jaxdl.core.mark_primitive import mark_p
from jaxdl.core.tap_primitive import tap_p

mlp = nn.Sequential([nn.Linear(2, 8), jnp.tanh, nn.Linear(8, 1)])


def mlp_by_hand(params, x):
    x = jnp.tanh(x @ params["0"]["kernel"] + params["0"]["bias"])
    return x @ params["2"]["kernel"] + params["2"]["bias"]


class Block(jd.Module):
    """A pre-norm transformer block."""

    norm: nn.RMSNorm
    attn: nn.Attention
    mlp_norm: nn.RMSNorm
    up: nn.Linear
    down: nn.Linear

    def __call__(self, params, x):
        x = x + self.attn(params["attn"], self.norm(params["norm"], x))
        hidden = jax.nn.gelu(
            self.up(params["up"], self.mlp_norm(params["mlp_norm"], x))
        )
        return x + self.down(params["down"], jd.tap(hidden, "hidden"))


attention = nn.Attention(8, 4, 2, causal=True)
block = Block(
    nn.RMSNorm(8), attention, nn.RMSNorm(8), nn.Linear(8, 16), nn.Linear(16, 8)
)


def norm_by_hand(params, x):
    square = jnp.square(x).mean(-1, keepdims=True)
    return x * jax.lax.rsqrt(square + 1e-6) * params["scale"]


def block_by_hand(params, x):
    batch, seq, _ = x.shape
    y = norm_by_hand(params["norm"], x)
    q = (y @ params["attn"]["q"]["kernel"]).reshape(batch, seq, 4, 2)
    k = (y @ params["attn"]["k"]["kernel"]).reshape(batch, seq, 2, 2)
    v = (y @ params["attn"]["v"]["kernel"]).reshape(batch, seq, 2, 2)
    order = jnp.arange(seq)
    causal = (order[:, None] >= order[None, :])[None, None]
    q = q.reshape(batch, seq, 2, 2, 2) * 2**-0.5
    scores = jnp.einsum("btkgd,bskd->bkgts", q, k, preferred_element_type=jnp.float32)
    scores = scores.reshape(batch, 4, seq, seq)
    scores = jnp.where(causal, scores, jnp.finfo(jnp.float32).min)
    pattern = jax.nn.softmax(scores, axis=-1).reshape(batch, 2, 2, seq, seq)
    heads = jnp.einsum("bkgts,bskd->btkgd", pattern, v).reshape(batch, seq, 4, 2)
    x = x + heads.reshape(batch, seq, 8) @ params["attn"]["out"]["kernel"]
    y = norm_by_hand(params["mlp_norm"], x)
    hidden = jax.nn.gelu(y @ params["up"]["kernel"] + params["up"]["bias"])
    return x + (hidden @ params["down"]["kernel"] + params["down"]["bias"])


cases = [
    pytest.param(mlp, mlp_by_hand, (5, 2), id="mlp"),
    pytest.param(block, block_by_hand, (2, 5, 8), id="block"),
]


def program(function, shape, model):
    """The equations of a jaxpr but taps and marks, variables numbered in order."""
    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    closed = jax.make_jaxpr(lambda params, x: function(params, x))(
        jd.abstract(model), x
    )
    return canonical(closed.jaxpr)


def canonical(jaxpr):
    names = {}

    def name(atom):
        if isinstance(atom, Literal):
            return f"{atom.aval}={atom.val}"
        number = names.setdefault(atom, len(set(names.values())))
        return f"{atom.aval}#{number}"

    lines = [" ".join(map(name, jaxpr.invars))]
    for eqn in jaxpr.eqns:
        if eqn.primitive in (tap_p, mark_p):
            names[eqn.outvars[0]] = names[eqn.invars[0]]
            continue
        inputs, outputs = map(name, eqn.invars), [name(var) for var in eqn.outvars]
        parameters = re.sub(
            r"0x[0-9a-f]+", "", str(sorted(eqn.params.items(), key=str))
        )
        lines.append(f"{outputs} = {eqn.primitive} {list(inputs)} {parameters}")
    return [*lines, " ".join(map(name, jaxpr.outvars))]


@pytest.mark.parametrize(("model", "by_hand", "shape"), cases)
def test_the_jaxpr_is_that_of_the_computation_written_by_hand(model, by_hand, shape):
    ours, theirs = program(model, shape, model), program(by_hand, shape, model)
    assert len(ours) > 5
    assert ours == theirs


@pytest.mark.parametrize(("model", "by_hand", "shape"), cases)
def test_the_compiled_program_is_the_one_without_taps(model, by_hand, shape, optimized):
    def compiled(function):
        args = (jd.abstract(model), jax.ShapeDtypeStruct(shape, jnp.float32))
        text = jax.jit(lambda p, x: function(p, x)).lower(*args).compile().as_text()
        return without_sources(text)

    assert compiled(model) == compiled(by_hand)


@pytest.mark.parametrize(("model", "by_hand", "shape"), cases)
def test_the_gradient_is_that_of_the_computation_written_by_hand(model, by_hand, shape):
    def lowered(function):
        args = (jd.abstract(model), jax.ShapeDtypeStruct(shape, jnp.float32))
        grad = jax.grad(lambda p, x: function(p, x).sum())
        return jax.jit(grad).lower(*args).as_text()

    assert lowered(model) == lowered(by_hand)


def without_sources(text):
    """HLO without what names its source: metadata, tables of files and frames."""
    first = re.search(r"^(%|ENTRY)", text, re.MULTILINE)
    assert first is not None
    return re.sub(r", metadata=\{[^}]*\}", "", text[first.start() :])


def test_a_tap_outside_a_model_costs_nothing_either():
    def tapped(x):
        return jd.tap(jnp.sin(jd.tap(x, "in")), "out")

    ours = jax.jit(tapped).lower(1.0).as_text().replace("tapped", "sin")
    assert ours == jax.jit(lambda x: jnp.sin(x)).lower(1.0).as_text().replace(
        "_lambda", "sin"
    )
