import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdl import nn
from tests.nn.against_torch import compare, torch, weights_of

parametrizations = torch.nn.utils.parametrizations
rng = np.random.default_rng(0)


def normal(*shape):
    return rng.normal(size=shape).astype(np.float32)


def last(weight):
    """[out, in, *spatial] as [*spatial, in, out]."""
    return np.moveaxis(weight, (0, 1), (-1, -2))


@pytest.mark.parametrize("groups", [1, 2])
def test_weight_norm_is_pytorch_s(groups):
    conv = torch.nn.Conv2d(4, 6, 3, padding=1, groups=groups)
    theirs = parametrizations.weight_norm(conv)
    ours = nn.WeightNorm(nn.Conv(4, 6, (3, 3), padding=1, groups=groups))

    def convert(weights):
        return {
            "length": weights["parametrizations.weight.original0"].ravel(),
            "kernel": last(weights["parametrizations.weight.original1"]),
            "bias": weights["bias"],
        }

    x = normal(2, 4, 5, 6)
    compare(ours, theirs, weights_of(theirs), convert, (x,), channels_last=True)


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("iterations", [1, 3])
def test_spectral_norm_is_pytorch_s(train, iterations):
    theirs = parametrizations.spectral_norm(
        torch.nn.Conv1d(4, 6, 3), n_power_iterations=iterations
    ).train(train)
    norm = theirs.parametrizations.weight[0]
    layer = nn.SpectralNorm(nn.Conv(4, 6, (3,), padding=0), iterations)
    start = normal(6)
    state = {"u": jnp.asarray(start / np.linalg.norm(start))}
    weights = weights_of(theirs)

    def run(x):
        # PyTorch keeps v beside u; here it always follows from u and the kernel.
        matrix = weights["parametrizations.weight.original"].detach().flatten(1)
        norm._u = torch.tensor(np.asarray(state["u"]))
        norm._v = torch.nn.functional.normalize(matrix.T @ norm._u, dim=0)
        return theirs(x)

    def convert(weights):
        kernel = last(weights["parametrizations.weight.original"])
        return {"kernel": kernel, "bias": weights["bias"]}

    compare(
        lambda params, x: layer(params, x, state, train=train)[0], run, weights,
        convert, (normal(2, 4, 8),), channels_last=True,
    )  # fmt: skip
    params = jax.tree.map(
        lambda w: jnp.asarray(w.detach().numpy()),
        {"kernel": weights["parametrizations.weight.original"]},
    )
    params = {"kernel": last(params["kernel"]), "bias": jnp.zeros(6)}
    _, new = layer(params, jnp.ones((1, 8, 4)), state, train=train)
    np.testing.assert_allclose(new["u"], norm._u, rtol=1e-5, atol=1e-6)


def test_weight_standardised_convolution_is_the_published_one():
    conv = torch.nn.Conv2d(4, 6, 3, padding=1)
    ours = nn.WeightStandardized(nn.Conv(4, 6, (3, 3), padding=1), 1e-4)

    def theirs(x):
        weight = conv.weight
        mean = weight.mean((1, 2, 3), keepdim=True)
        variance = weight.var((1, 2, 3), keepdim=True, correction=0)
        weight = (weight - mean) / torch.sqrt(variance + 1e-4)
        return torch.nn.functional.conv2d(x, weight, conv.bias, padding=1)

    def convert(weights):
        return {"kernel": last(weights["weight"]), "bias": weights["bias"]}

    x = normal(2, 4, 5, 6)
    compare(ours, theirs, weights_of(conv), convert, (x,), channels_last=True)
