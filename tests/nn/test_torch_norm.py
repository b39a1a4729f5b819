import jax
import numpy as np
import pytest

from jaxdl import nn
from tests.nn.against_torch import (
    array,
    arrays,
    compare,
    norm,
    normal,
    redraw,
    torch,
    weights_of,
)

SPACE = (5, 4, 3)


def shifted(*shape, seed=0):
    """Numbers whose mean and deviation a norm has to find out."""
    return 1.5 * normal(*shape, seed=seed) + 0.5


@pytest.mark.parametrize(("scale", "bias"), [(True, True), (True, False), (False,) * 2])
def test_layer_norm_is_pytorch_s(scale, bias):
    ours = nn.LayerNorm(6, 1e-3, scale, bias)
    theirs = torch.nn.LayerNorm(6, 1e-3, scale, bias)
    compare(ours, theirs, weights_of(theirs), norm, (shifted(2, 3, 6),))


def test_rms_norm_is_pytorch_s():
    theirs = torch.nn.RMSNorm(6, 1e-3)
    ours = nn.RMSNorm(6, 1e-3)
    compare(ours, theirs, weights_of(theirs), norm, (shifted(2, 3, 6),))


def test_rms_norm_s_epsilon_is_1e_6_where_pytorch_s_is_the_smallest_step_from_one():
    theirs = torch.nn.RMSNorm(6, eps=1e-6)
    compare(nn.RMSNorm(6), theirs, weights_of(theirs), norm, (normal(2, 3, 6),))
    assert torch.nn.RMSNorm(6).eps is None


@pytest.mark.parametrize("dims", [0, 1, 2])
@pytest.mark.parametrize(("groups", "affine"), [(1, True), (2, True), (3, False)])
def test_group_norm_is_pytorch_s(dims, groups, affine):
    ours = nn.GroupNorm(groups, 6, 1e-3, affine, affine)
    theirs = torch.nn.GroupNorm(groups, 6, 1e-3, affine)
    x = shifted(2, 6, *SPACE[:dims])
    compare(ours, theirs, weights_of(theirs), norm, (x,), channels_last=True)


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("affine", [True, False])
def test_instance_norm_is_pytorch_s(dims, affine):
    ours = nn.InstanceNorm(3, 1e-3, affine, affine)
    theirs = getattr(torch.nn, f"InstanceNorm{dims}d")(3, 1e-3, affine=affine)
    x = shifted(2, 3, *SPACE[:dims])
    compare(ours, theirs, weights_of(theirs), norm, (x,), channels_last=True)


# dims 0 is [batch, features].
BATCHES = pytest.mark.parametrize("dims", [0, 1, 2, 3])


def batch_norms(dims, affine=True):
    """Both layers: ours keeps of the old value what PyTorch's momentum leaves."""
    kind = getattr(torch.nn, f"BatchNorm{max(dims, 1)}d")
    ours = nn.BatchNorm(3, 0.7, 1e-3, affine, affine)
    return ours, kind(3, 1e-3, momentum=0.3, affine=affine)


def statistics(theirs):
    return {"mean": array(theirs.running_mean), "var": array(theirs.running_var)}


@BATCHES
@pytest.mark.parametrize(
    ("affine", "train"), [(True, True), (True, False), (False, True)]
)
def test_batch_norm_is_pytorch_s_in_training_and_outside(dims, affine, train):
    layer, theirs = batch_norms(dims, affine)
    theirs.train(train)
    with torch.no_grad():
        theirs.running_mean.copy_(torch.tensor([0.5, -0.3, 0.1]))
        theirs.running_var.copy_(torch.tensor([0.7, 1.8, 1.2]))
    state = jax.tree.map(np.copy, statistics(theirs))

    def ours(params, x):
        return layer(params, x, state, train=train)[0]

    x = shifted(4, 3, *SPACE[:dims])
    compare(ours, theirs, weights_of(theirs), norm, (x,), channels_last=True)


@BATCHES
def test_running_statistics_after_several_steps_and_what_they_give_are_pytorch_s(dims):
    layer, theirs = batch_norms(dims)
    redraw(weights_of(theirs))
    params, state = norm(arrays(weights_of(theirs))), layer.init_state()
    for step in range(4):
        x = shifted(4, 3, *SPACE[:dims], seed=step)
        theirs(torch.tensor(x))
        _, state = layer(params, np.moveaxis(x, 1, -1), state, train=True)
    close = {"rtol": 1e-5, "atol": 1e-5}
    for name, expected in statistics(theirs).items():
        np.testing.assert_allclose(state[name], expected, **close)
    expected = array(theirs.eval()(torch.tensor(x)))
    y, _ = layer(params, np.moveaxis(x, 1, -1), state, train=False)
    np.testing.assert_allclose(y, np.moveaxis(expected, 1, -1), **close)
