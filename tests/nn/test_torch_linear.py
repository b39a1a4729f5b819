import numpy as np
import pytest

from jaxdl import nn
from tests.nn.against_torch import compare, linear, normal, torch, weights_of


@pytest.mark.parametrize("bias", [True, False])
def test_linear_is_pytorch_s(bias):
    theirs = torch.nn.Linear(5, 7, bias=bias)
    ours = nn.Linear(5, 7, bias=bias)
    compare(ours, theirs, weights_of(theirs), linear, (normal(2, 3, 5),))


@pytest.mark.parametrize("bias", [True, False])
def test_bilinear_is_pytorch_s_with_the_outputs_last_in_its_kernel(bias):
    theirs = torch.nn.Bilinear(3, 4, 5, bias=bias)
    ours = nn.Bilinear(3, 4, 5, bias=bias)

    def convert(weights):
        return {**linear(weights), "kernel": np.moveaxis(weights["weight"], 0, -1)}

    inputs = (normal(2, 6, 3), normal(2, 6, 4))
    compare(ours, theirs, weights_of(theirs), convert, inputs)


@pytest.mark.parametrize(
    ("equation", "x", "kernel", "bias"),
    [
        ("btd,dhk->bthk", (2, 3, 4), (4, 2, 5), True),
        ("bthk,hkd->btd", (2, 3, 2, 5), (2, 5, 4), True),
        ("bti,hio->btho", (2, 3, 4), (2, 4, 5), False),
        ("bgi,gio->bgo", (3, 2, 4), (2, 4, 5), True),
    ],
)
def test_einsum_is_pytorch_s_einsum_and_a_bias_on_the_last_axes(
    equation, x, kernel, bias
):
    ours = nn.Einsum(equation, kernel, bias)
    shapes = {name: param.shape for name, param in ours.spec().items()}
    weights = {n: torch.zeros(s, requires_grad=True) for n, s in shapes.items()}

    def theirs(x):
        return torch.einsum(equation, x, weights["kernel"]) + weights.get("bias", 0)

    compare(ours, theirs, weights, dict, (normal(*x),))


TOKENS = np.array([[1, 6, 1], [0, 3, 1]])


def embedding(weights):
    return {"embedding": weights["weight"]}


def test_embedding_is_pytorch_s_and_repeated_tokens_add_up_in_the_table_s_gradient():
    theirs = torch.nn.Embedding(7, 5)
    compare(nn.Embedding(7, 5), theirs, weights_of(theirs), embedding, (TOKENS,))


def test_a_table_tied_to_the_output_gets_both_gradients_as_in_pytorch():
    theirs = torch.nn.Embedding(7, 5)
    layer = nn.Embedding(7, 5)

    def ours(params, tokens, x):
        return layer.logits(params, layer(params, tokens) * x)

    def tied(tokens, x):
        return torch.nn.functional.linear(theirs(tokens) * x, theirs.weight)

    inputs = (TOKENS, normal(2, 3, 5))
    compare(ours, tied, weights_of(theirs), embedding, inputs)
