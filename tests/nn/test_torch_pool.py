import numpy as np
import pytest

from jaxdl import nn
from tests.nn.against_torch import compare, normal, torch

SPACE = (7, 6, 5)


def check(ours, theirs, x):
    compare(ours, theirs, {}, lambda weights: {}, (x,), channels_last=True)


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize(
    ("window", "strides", "padding"), [(2, None, 0), (3, 2, 1), (2, 3, 1)]
)
def test_max_pool_is_pytorch_s_and_padding_never_wins(dims, window, strides, padding):
    ours = nn.MaxPool((window,) * dims, strides, padding)
    theirs = getattr(torch.nn, f"MaxPool{dims}d")(window, strides, padding)
    check(ours, theirs, normal(2, 3, *SPACE[:dims]) - 5)


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_among_equals_the_first_gets_the_gradient_of_max_pool_as_in_pytorch(dims):
    ours = nn.MaxPool((3,) * dims, 2, 1)
    theirs = getattr(torch.nn, f"MaxPool{dims}d")(3, 2, 1)
    check(ours, theirs, np.round(normal(2, 3, *SPACE[:dims])))


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize(
    ("window", "strides", "padding", "count"),
    [(2, None, 0, True), (3, 2, 1, True), (3, 1, 1, False), (2, 3, 1, False)],
)
def test_avg_pool_is_pytorch_s_with_padding_counted_or_not(
    dims, window, strides, padding, count
):
    ours = nn.AvgPool((window,) * dims, strides, padding, count)
    theirs = getattr(torch.nn, f"AvgPool{dims}d")(
        window, strides, padding, count_include_pad=count
    )
    check(ours, theirs, normal(2, 3, *SPACE[:dims]))


@pytest.mark.parametrize("kind", ["Avg", "Max"])
def test_each_dimension_has_its_own_window_stride_and_padding_as_in_pytorch(kind):
    settings = ((3, 2), (2, 1), (1, 0))
    ours = getattr(nn, f"{kind}Pool")(*settings)
    theirs = getattr(torch.nn, f"{kind}Pool2d")(*settings)
    check(ours, theirs, normal(2, 3, *SPACE[:2]))


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("kind", ["Avg", "Max"])
def test_global_pools_are_pytorch_s_adaptive_pools_to_one(dims, kind):
    ours = getattr(nn, f"Global{kind}Pool")()
    pool = getattr(torch.nn, f"Adaptive{kind}Pool{dims}d")(1)
    check(ours, lambda x: pool(x).flatten(1), normal(2, 3, *SPACE[:dims]))


def test_equals_share_the_gradient_of_the_global_max_as_in_pytorch_s_amax():
    x = np.round(normal(2, 3, *SPACE[:2]))
    check(nn.GlobalMaxPool(), lambda x: x.amax((2, 3)), x)


def test_flatten_is_pytorch_s_with_the_features_last():
    x = normal(2, 3, 4, 5)
    theirs = torch.nn.Flatten()
    check(nn.Flatten(), lambda x: theirs(x.movedim(1, -1)), x)
