import numpy as np
import pytest

from jaxdl import nn
from tests.nn.against_torch import compare, linear, torch, weights_of

rng = np.random.default_rng(0)


def normal(*shape):
    return rng.normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("bias", [True, False])
def test_linear_is_pytorch_s(bias):
    theirs = torch.nn.Linear(5, 7, bias=bias)
    ours = nn.Linear(5, 7, bias=bias)
    compare(ours, theirs, weights_of(theirs), linear, (normal(2, 3, 5),))
