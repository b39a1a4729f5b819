import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdl import nn
from jaxdl.nn.conv import conv_numbers
from jaxdl.testing import check_module

rng = np.random.default_rng(0)


def normal(*shape):
    return jnp.asarray(rng.normal(size=shape), jnp.float32)


def gradient_of_conv(layer, kernel, x, out_spatial):
    """The definition: the gradient of a convolution by its input, group by group."""
    dims, groups = kernel.ndim - 2, layer.groups
    ins, outs = layer.in_features // groups, layer.out_features // groups
    parts = []
    for group in range(groups):
        # The convolution goes the other way: from our outputs to our inputs.
        part = kernel[..., group * outs : (group + 1) * outs].swapaxes(-1, -2)

        def conv(y, part=part):
            return jax.lax.conv_general_dilated(
                y, part, (layer.strides,) * dims, [(layer.padding,) * 2] * dims,
                rhs_dilation=(layer.dilation,) * dims,
                dimension_numbers=conv_numbers(dims),
            )  # fmt: skip

        y = jnp.zeros((x.shape[0], *out_spatial, outs))
        (back,) = jax.vjp(conv, y)[1](x[..., group * ins : (group + 1) * ins])
        parts.append(back)
    return jnp.concatenate(parts, -1)


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize(
    ("size", "strides", "padding", "output_padding", "dilation", "groups"),
    [
        (3, 1, 0, 0, 1, 1),
        (3, 2, 1, 1, 1, 1),
        (4, 2, 1, 0, 1, 2),
        (3, 3, 0, 2, 2, 1),
        (2, 2, 0, 0, 1, 4),
    ],
)
def test_it_is_the_gradient_of_a_convolution_by_its_input(
    dims, size, strides, padding, output_padding, dilation, groups
):
    layer = nn.ConvTranspose(
        4, 8, (size,) * dims, strides, padding, output_padding, dilation, groups,
        bias=False,
    )  # fmt: skip
    params = {"kernel": normal(*(size,) * dims, 4 // groups, 8)}
    x = normal(2, *(5, 4, 3)[:dims], 4)
    ours = layer(params, x)
    sizes = [
        (n - 1) * strides - 2 * padding + dilation * (size - 1) + output_padding + 1
        for n in x.shape[1:-1]
    ]
    assert ours.shape == (2, *sizes, 8)
    expected = gradient_of_conv(layer, params["kernel"], x, sizes)
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
@pytest.mark.parametrize(("size", "strides"), [(3, 1), (3, 2), (4, 2), (2, 3), (5, 3)])
def test_same_and_valid_are_those_of_flax(padding, size, strides):
    params = {"kernel": normal(size, size, 4, 6), "bias": normal(6)}
    x = normal(2, 5, 6, 4)
    theirs = flax.linen.ConvTranspose(
        6, (size, size), (strides, strides), padding, transpose_kernel=False
    )
    mirrored = {**params, "kernel": params["kernel"][::-1, ::-1]}
    expected = theirs.apply({"params": mirrored}, x)
    ours = nn.ConvTranspose(4, 6, (size, size), strides, padding)(params, x)
    if padding == "SAME":
        assert ours.shape == (2, 5 * strides, 6 * strides, 6)
        np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-4)
    else:  # Flax pads VALID up to a multiple of the stride; ours is PyTorch's padding 0
        rows, columns = ours.shape[1:3]
        np.testing.assert_allclose(
            ours, expected[:, :rows, :columns], rtol=1e-4, atol=1e-4
        )


def test_it_keeps_the_contract_and_refuses_what_does_not_fit():
    layer = nn.ConvTranspose(4, 6, (3, 3), 2)
    x = normal(2, 3, 3, 4)
    check_module(layer, x, tolerance=1e-4)
    with pytest.raises(ValueError, match=r"expected \[..., spatial, spatial, 4\]"):
        layer(layer.init(jax.random.key(0)), x[..., :3])
    with pytest.raises(ValueError, match="groups=3 to divide"):
        nn.ConvTranspose(4, 6, (3, 3), groups=3)
    with pytest.raises(ValueError, match="padding SAME, VALID or numbers"):
        nn.ConvTranspose(4, 6, (3, 3), padding="HALF")(
            {"kernel": normal(3, 3, 4, 6)}, x
        )
