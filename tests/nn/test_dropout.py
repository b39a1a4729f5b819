import jax.numpy as jnp
import numpy as np
import pytest

from jaxdl import nn
from jaxdl.testing import check_module

ones = jnp.ones((200, 200))


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_dropout_drops_at_its_rate_and_keeps_the_mean(rate, key):
    y = nn.Dropout(rate)({}, ones, key=key)
    dropped = float((y == 0).mean())
    assert abs(dropped - rate) < 4 * np.sqrt(rate * (1 - rate) / ones.size)
    np.testing.assert_allclose(y[y != 0], 1 / (1 - rate), rtol=1e-6)


def test_no_key_is_an_error_and_none_turns_it_off():
    assert nn.Dropout(0.5)({}, ones, key=None) is ones
    with pytest.raises(TypeError, match="Dropout: dropout with rate 0.5 needs key"):
        nn.Dropout(0.5)({}, ones)


def test_rate_zero_asks_for_nothing(key):
    assert nn.Dropout(0.0)({}, ones) is ones
    assert nn.Dropout(0.0)({}, ones, key=key) is ones


@pytest.mark.parametrize("rate", [-0.1, 1.0, 2.0])
def test_a_rate_outside_zero_to_one_is_refused(rate):
    with pytest.raises(ValueError, match=r"a rate in \[0, 1\)"):
        nn.Dropout(rate)


def test_dropout_keeps_the_contract():
    check_module(nn.Dropout(0.5), ones[:8, :8])


def test_one_decision_holds_along_the_broadcast_axes(key):
    images = jnp.ones((4, 5, 6, 50))
    y = nn.Dropout(0.5, broadcast_axes=(1, -2))({}, images, key=key)
    assert (y == y[:, :1, :1]).all()
    assert 0.3 < float((y == 0).mean()) < 0.7


def test_drop_path_drops_whole_examples_and_keeps_the_mean(key):
    batch = jnp.ones((2000, 3))
    y = nn.DropPath(0.25)({}, batch, key=key)
    assert (y == y[:, :1]).all()
    assert abs(float((y[:, 0] == 0).mean()) - 0.25) < 0.04
    np.testing.assert_allclose(y[y != 0], 1 / 0.75, rtol=1e-6)
    check_module(nn.DropPath(0.5), ones[:8, :8])
    with pytest.raises(TypeError, match="needs key"):
        nn.DropPath(0.25)({}, batch)
    with pytest.raises(ValueError, match=r"a rate in \[0, 1\)"):
        nn.DropPath(1.0)
