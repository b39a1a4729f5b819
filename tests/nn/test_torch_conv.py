import pytest

from jaxdl import nn
from tests.nn.against_torch import compare, conv, normal, torch, weights_of

SPACE = (6, 4, 3)


def convolution(dims, *args, **options):
    return getattr(torch.nn, f"Conv{dims}d")(*args, **options)


def check(ours, theirs, dims, before=lambda x: x):
    """Compares on a batch of two; `before` is what PyTorch must do first."""
    x = normal(2, ours.in_features, *SPACE[:dims])
    compare(
        ours, lambda x: theirs(before(x)), weights_of(theirs), conv, (x,),
        channels_last=True,
    )  # fmt: skip


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize(
    ("size", "strides", "padding", "dilation", "groups", "bias"),
    [
        (3, 1, 0, 1, 1, True),
        (3, 2, 1, 1, 1, False),
        (2, 1, 2, 2, 2, True),
        (3, 2, 2, 2, 4, True),  # depthwise, two outputs for each input
    ],
)
def test_conv_is_pytorch_s(dims, size, strides, padding, dilation, groups, bias):
    settings = (strides, padding, dilation, groups, bias)
    ours = nn.Conv(4, 8, (size,) * dims, *settings)
    check(ours, convolution(dims, 4, 8, size, *settings), dims)


def test_each_dimension_has_its_own_size_stride_padding_and_dilation_as_in_pytorch():
    settings = ((3, 2), (2, 1), (0, 1), (1, 2))
    check(nn.Conv(3, 5, *settings), convolution(2, 3, 5, *settings), 2)


# PyTorch says that an even kernel costs it a copy.
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize(("size", "dilation"), [(3, 2), (4, 1)])
def test_same_is_pytorch_s_with_the_larger_half_behind(dims, size, dilation):
    ours = nn.Conv(3, 5, (size,) * dims, dilation=dilation)
    check(ours, convolution(dims, 3, 5, size, 1, "same", dilation), dims)


@pytest.mark.parametrize("dims", [1, 2])
@pytest.mark.parametrize(("size", "strides"), [(3, 2), (4, 3), (2, 3)])
def test_same_with_strides_which_pytorch_refuses_pads_no_more_than_it_must(
    dims, size, strides
):
    sides = []
    for width in reversed(SPACE[:dims]):  # PyTorch pads the last dimension first
        total = max((-(-width // strides) - 1) * strides + size - width, 0)
        sides += [total // 2, total - total // 2]
    ours = nn.Conv(3, 5, (size,) * dims, strides)
    theirs = convolution(dims, 3, 5, size, strides)
    check(ours, theirs, dims, lambda x: torch.nn.functional.pad(x, sides))


@pytest.mark.parametrize("dims", [1, 2])
def test_valid_is_pytorch_s(dims):
    ours = nn.Conv(3, 5, (3,) * dims, 2, "VALID")
    check(ours, convolution(dims, 3, 5, 3, 2, "valid"), dims)


@pytest.mark.parametrize(
    ("dims", "strides", "dilation", "groups"),
    [(1, 1, 1, 1), (1, 1, 2, 3), (1, 2, 1, 1), (2, 1, 2, 1)],
)
def test_causal_is_pytorch_s_conv_after_zeros_in_front(dims, strides, dilation, groups):
    ours = nn.Conv(3, 6, (3,) * dims, strides, "CAUSAL", dilation, groups)
    theirs = convolution(dims, 3, 6, 3, strides, 0, dilation, groups)
    sides = (2 * dilation, 0) * dims
    check(ours, theirs, dims, lambda x: torch.nn.functional.pad(x, sides))


@pytest.mark.parametrize("mode", ["circular", "reflect"])
@pytest.mark.parametrize(
    ("dims", "size", "strides", "padding", "dilation"),
    [
        (1, 3, 1, "same", 2),
        (1, 4, 1, "same", 1),
        (1, 5, 2, 2, 1),
        (2, 4, 1, "same", 1),
        (2, 3, 2, 1, 1),
        (3, 3, 1, "same", 1),
    ],
)
def test_circular_and_reflect_are_pytorch_s_padding_modes(
    mode, dims, size, strides, padding, dilation
):
    ours = nn.Conv(3, 5, (size,) * dims, strides, mode.upper(), dilation)
    theirs = convolution(
        dims, 3, 5, size, strides, padding, dilation, padding_mode=mode
    )
    check(ours, theirs, dims)
