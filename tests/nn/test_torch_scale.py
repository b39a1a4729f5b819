import numpy as np
import pytest

from jaxdl import nn
from tests.nn.against_torch import compare, linear, normal, torch, weights_of

SPACE = (4, 3, 2)


def prelu(weights):
    return {"slope": weights["weight"]}


@pytest.mark.parametrize("dims", [1, 2])
@pytest.mark.parametrize("slopes", [1, 3])
def test_prelu_is_pytorch_s_with_one_slope_or_one_for_each_feature(dims, slopes):
    theirs = torch.nn.PReLU(slopes)
    x = normal(2, 3, *SPACE[:dims])
    compare(
        nn.PReLU(slopes), theirs, weights_of(theirs), prelu, (x,), channels_last=True
    )


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_squeeze_excite_is_its_formula_in_pytorch(dims):
    layers = torch.nn.ModuleDict(
        {"down": torch.nn.Linear(6, 2), "up": torch.nn.Linear(2, 6)}
    )

    def theirs(x):
        hidden = layers["down"](x.flatten(2).mean(-1)).relu()
        weighs = layers["up"](hidden).sigmoid()
        return x * weighs.reshape(*weighs.shape, *[1] * dims)

    def convert(weights):
        return {name: linear(weights, name) for name in ("down", "up")}

    compare(
        nn.SqueezeExcite(6, 3), theirs, weights_of(layers), convert,
        (normal(2, 6, *SPACE[:dims]),), channels_last=True,
    )  # fmt: skip


def test_layer_scale_is_a_product_with_one_number_for_each_feature_in_pytorch():
    weights = {"scale": torch.zeros(5, requires_grad=True)}

    def theirs(x):
        return x * weights["scale"]

    compare(nn.LayerScale(5), theirs, weights, dict, (normal(2, 3, 5),))


@pytest.mark.parametrize("dims", [0, 1, 2])
def test_film_is_its_formula_in_pytorch(dims):
    modulation = torch.nn.Linear(4, 2 * 3)

    def theirs(x, condition):
        both = modulation(condition)
        scale, shift = both.reshape(*both.shape, *[1] * dims).chunk(2, 1)
        return x * (1 + scale) + shift

    def convert(weights):
        return {"modulation": linear(weights)}

    compare(
        nn.FiLM(3, 4), theirs, weights_of(modulation), convert,
        (normal(2, 3, *SPACE[:dims]), normal(2, 4)), channels_last=True,
    )  # fmt: skip


def test_prelu_s_gradient_at_zero_is_the_slope_as_in_pytorch():
    theirs = torch.nn.PReLU()
    x = np.maximum(normal(2, 5), 0)
    compare(nn.PReLU(), theirs, weights_of(theirs), prelu, (x,))
