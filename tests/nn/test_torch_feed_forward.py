from functools import partial

import jax
import pytest

from jaxdl import nn
from tests.nn.against_torch import compare, linear, normal, torch, weights_of

F = torch.nn.functional
EXACT = partial(jax.nn.gelu, approximate=False)


def check(ours, activation, bias):
    """Compares to the formula; `activation` is PyTorch's."""
    names = [name for name in ("up", "gate", "down") if getattr(ours, name)]
    sizes = {"up": (4, ours.width), "gate": (4, ours.width), "down": (ours.width, 4)}
    maps = torch.nn.ModuleDict(
        {name: torch.nn.Linear(*sizes[name], bias=bias) for name in names}
    )

    def theirs(x):
        if ours.gated:
            return maps["down"](activation(maps["gate"](x)) * maps["up"](x))
        return maps["down"](activation(maps["up"](x)))

    def convert(weights):
        return {"drop": {}, **{name: linear(weights, name) for name in names}}

    compare(ours, theirs, weights_of(maps), convert, (normal(2, 3, 4),))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("gated", [True, False])
def test_gelu_unless_given_is_pytorch_s_tanh_approximation(gated, bias):
    ours = nn.FeedForward(4, 6, bias=bias, gated=gated)
    check(ours, partial(F.gelu, approximate="tanh"), bias)


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [(EXACT, F.gelu), (jax.nn.silu, F.silu), (jax.nn.relu, F.relu)],
)
def test_with_an_activation_it_is_the_formula_with_pytorch_s(ours, theirs, gated):
    check(nn.FeedForward(4, 6, ours, gated=gated), theirs, bias=False)


def test_the_transformer_s_is_the_feed_forward_half_of_pytorch_s_encoder_layer():
    theirs = torch.nn.TransformerEncoderLayer(
        4, 1, 16, dropout=0.0, batch_first=True, norm_first=True
    )
    weights = {n: w for n, w in weights_of(theirs).items() if n.startswith("linear")}

    def convert(weights):
        names = {"up": "linear1", "down": "linear2"}
        return {"drop": {}, **{n: linear(weights, name) for n, name in names.items()}}

    ours = nn.FeedForward(4, activation=jax.nn.relu, bias=True)
    compare(ours, theirs._ff_block, weights, convert, (normal(2, 3, 4),))
