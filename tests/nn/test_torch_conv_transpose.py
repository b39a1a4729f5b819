import numpy as np
import pytest

from jaxdl import nn
from tests.nn.against_torch import compare, linear, normal, torch, weights_of

SPACE = (5, 4, 3)


def check(ours, dims, *args):
    """Compares on a batch of two; `args` are those of PyTorch's layer."""
    features = (ours.in_features, ours.out_features)
    theirs = getattr(torch.nn, f"ConvTranspose{dims}d")(*features, *args)
    groups = ours.groups

    def convert(weights):
        # [in, out / groups, *size] -> [*size, in / groups, out]
        weight = weights["weight"]
        parts = [np.moveaxis(w, (0, 1), (-2, -1)) for w in np.split(weight, groups)]
        return {**linear(weights), "kernel": np.concatenate(parts, -1)}

    x = normal(2, ours.in_features, *SPACE[:dims])
    compare(ours, theirs, weights_of(theirs), convert, (x,), channels_last=True)


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize(
    ("size", "strides", "padding", "output_padding", "dilation", "groups", "bias"),
    [
        (3, 1, 0, 0, 1, 1, True),
        (3, 2, 1, 1, 1, 1, False),
        (4, 2, 1, 0, 1, 2, True),
        (3, 3, 2, 2, 2, 1, True),
        (2, 2, 0, 0, 1, 4, True),  # depthwise, two outputs for each input
    ],
)
def test_conv_transpose_is_pytorch_s(
    dims, size, strides, padding, output_padding, dilation, groups, bias
):
    ours = nn.ConvTranspose(
        4, 8, (size,) * dims, strides, padding, output_padding, dilation, groups, bias
    )
    check(ours, dims, size, strides, padding, output_padding, groups, bias, dilation)


def test_each_dimension_has_its_own_numbers_as_in_pytorch():
    settings = ((3, 2), (2, 3), (0, 1), (1, 2))
    ours = nn.ConvTranspose(3, 5, *settings, dilation=(1, 2))
    check(ours, 2, *settings, 1, True, (1, 2))


def test_valid_is_pytorch_s_without_padding():
    ours = nn.ConvTranspose(3, 5, (3, 3), 2, "VALID")
    check(ours, 2, 3, 2)


@pytest.mark.parametrize(("size", "strides"), [(3, 1), (4, 2), (5, 3)])
def test_same_is_pytorch_s_where_the_padding_is_the_same_on_both_sides(size, strides):
    ours = nn.ConvTranspose(3, 5, (size, size), strides)
    check(ours, 2, size, strides, (size - strides) // 2)
