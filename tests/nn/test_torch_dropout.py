import jax.numpy as jnp
import numpy as np
import pytest

from jaxdl import nn
from tests.nn.against_torch import array, compare, normal, torch

# Ours drop whole features along the axes of space, which PyTorch's know by themselves.
LAYERS = pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (nn.Dropout(0.4), torch.nn.Dropout(0.4)),
        (nn.Dropout(0.4, (1,)), torch.nn.Dropout1d(0.4)),
        (nn.Dropout(0.4, (1, 2)), torch.nn.Dropout2d(0.4)),
        (nn.Dropout(0.4, (1, 2, 3)), torch.nn.Dropout3d(0.4)),
    ],
)


def inputs(layer):
    return normal(2, 16, *(5, 4, 3)[: max(len(layer.broadcast_axes), 1)])


@LAYERS
def test_without_a_key_it_is_pytorch_s_in_eval_mode(ours, theirs):
    theirs.eval()
    compare(
        lambda params, x: ours(params, x, key=None), theirs, {}, lambda weights: {},
        (inputs(ours),), channels_last=True,
    )  # fmt: skip


@LAYERS
def test_what_both_keep_is_scaled_alike_and_what_drops_together_does_so_in_both(
    ours, theirs, key
):
    x = inputs(ours)
    torch.manual_seed(0)
    expected = np.moveaxis(array(theirs.train()(torch.tensor(x))), 1, -1)
    y = np.asarray(ours({}, jnp.moveaxis(x, 1, -1), key=key))
    kept = (y != 0) & (expected != 0)
    assert kept.any() and (y == 0).any() and (expected == 0).any()
    np.testing.assert_allclose(y[kept], expected[kept], rtol=1e-5)
    if ours.broadcast_axes:
        for result in (y, expected):
            dropped = (result == 0).all(ours.broadcast_axes)
            assert (dropped | (result != 0).all(ours.broadcast_axes)).all()
