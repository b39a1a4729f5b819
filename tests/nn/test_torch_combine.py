import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdl import nn
from tests.nn.against_torch import (
    compare,
    conv,
    linear,
    norm,
    normal,
    torch,
    weights_of,
)

X = normal(3, 4)


def block(name=""):
    """Params of LayerNorm, Linear in a row, of PyTorch's in a row of this name."""
    lead = f"{name}." if name else ""

    def convert(weights):
        return {"0": norm(weights, f"{lead}0"), "1": linear(weights, f"{lead}1")}

    return convert


def ours_in_a_row():
    return nn.Sequential([nn.LayerNorm(4), nn.Linear(4, 4), jnp.tanh])


def theirs_in_a_row():
    layers = [torch.nn.LayerNorm(4), torch.nn.Linear(4, 4), torch.nn.Tanh()]
    return torch.nn.Sequential(*layers)


def test_sequential_is_pytorch_s():
    theirs = theirs_in_a_row()
    compare(ours_in_a_row(), theirs, weights_of(theirs), block(), (X,))


def test_residual_adds_as_pytorch_does():
    theirs, ours = theirs_in_a_row(), nn.Residual(ours_in_a_row())
    compare(ours, lambda x: x + theirs(x), weights_of(theirs), block(), (X,))


def test_parallel_gives_every_branch_the_same_input_as_written_out_in_pytorch():
    theirs = torch.nn.ModuleList([torch.nn.Linear(4, 3), torch.nn.Linear(4, 3)])
    ours = nn.Parallel([nn.Linear(4, 3), nn.Linear(4, 3)], jnp.multiply)

    def convert(weights):
        return {name: linear(weights, name) for name in ("0", "1")}

    def product(x):
        return theirs[0](x) * theirs[1](x)

    compare(ours, product, weights_of(theirs), convert, (X,))


@pytest.mark.parametrize("remat", [False, True])
def test_a_repeated_block_is_pytorch_s_blocks_in_a_row(remat):
    theirs = torch.nn.Sequential(*[theirs_in_a_row() for _ in range(3)])
    ours = nn.Repeat(ours_in_a_row(), 3, remat)

    def stacked(weights):
        blocks = [block(str(index))(weights) for index in range(3)]
        return jax.tree.map(lambda *leaves: np.stack(leaves), *blocks)

    compare(ours, theirs, weights_of(theirs), stacked, (X,))


def test_an_image_classifier_is_pytorch_s_and_its_flat_features_lie_pixel_by_pixel():
    theirs = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3, padding=1),
        torch.nn.BatchNorm2d(4),
        torch.nn.ReLU(),
        torch.nn.MaxPool2d(2),
        torch.nn.Flatten(),
        torch.nn.Linear(4 * 3 * 2, 5),
    )
    layer = nn.Sequential(
        [
            nn.Conv(3, 4, (3, 3)),
            nn.BatchNorm(4),
            jax.nn.relu,
            nn.MaxPool((2, 2)),
            nn.Flatten(),
            nn.Linear(3 * 2 * 4, 5),
        ]
    )

    def convert(weights):
        head = linear(weights, "5")
        # PyTorch's flat features are [4, 3, 2], ours [3, 2, 4].
        image = head["kernel"].reshape(4, 3, 2, 5)
        head["kernel"] = np.moveaxis(image, 0, 2).reshape(-1, 5)
        empty = {"3": {}, "4": {}}
        return {"0": conv(weights, "0"), "1": norm(weights, "1"), **empty, "5": head}

    state = layer.init_state()

    def ours(params, x):
        return layer(params, x, state, train=True)[0]

    x = normal(2, 3, 6, 4)
    compare(ours, theirs, weights_of(theirs), convert, (x,), channels_last=True)
