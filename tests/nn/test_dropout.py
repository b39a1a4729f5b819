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
