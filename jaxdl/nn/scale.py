"""Small learned changes of what passes through: scales, slopes, conditions."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdl.core import init as initializers
from jaxdl.core.fields import Size
from jaxdl.core.module import Module, fill, part
from jaxdl.core.naming import expect
from jaxdl.core.param import Param
from jaxdl.nn.checks import floating
from jaxdl.nn.linear import Linear


class PReLU(Module):
    """max(x, 0) + slope min(x, 0) with a learned slope: [..., features] -> the same.

    `features` slopes, or 1 for all (He et al. 2015, arXiv:1502.01852).
    """

    features: Size = 1
    slope: float = 0.25

    def spec(self):
        init = initializers.constant(self.slope)
        return {"slope": Param((self.features,), init, role="scale")}

    def __call__(self, params, x: Float[Array, "... features"]):
        fits = self.features == 1 or x.shape[-1:] == (self.features,)
        expect(fits, f"[..., {self.features}]", x)
        x = floating(x)
        slope = params["slope"].astype(x.dtype)
        # At 0 the gradient is the slope, as in PyTorch.
        return jnp.where(x > 0, x, slope * x)


class LayerScale(Module):
    """Multiplies each feature by a learned number that starts small: [..., features].

    At the end of a residual branch it starts the block near the identity (Touvron et
    al. 2021, arXiv:2103.17239).
    """

    features: Size
    scale: float = 1e-5

    def spec(self):
        init = initializers.constant(self.scale)
        return {"scale": Param((self.features,), init, ("embed",), role="scale")}

    def __call__(self, params, x: Float[Array, "... features"]):
        expect(x.shape[-1:] == (self.features,), f"[..., {self.features}]", x)
        return floating(x) * params["scale"].astype(x.dtype)


class SqueezeExcite(Module):
    """Weighs features by what the whole image says: [batch, *spatial, features].

    sigmoid(up(relu(down(mean over space)))), with `features // reduction` between (Hu
    et al. 2017, arXiv:1709.01507).
    """

    features: Size
    reduction: Size = 16
    down: Module = part(default=None)
    up: Module = part(default=None)

    def __post_init__(self):
        hidden = max(1, self.features // self.reduction)
        fill(self, down=Linear(self.features, hidden), up=Linear(hidden, self.features))

    def __call__(self, params, x: Float[Array, "batch ... features"]):
        fits = x.ndim >= 3 and x.shape[-1] == self.features
        expect(fits, f"[batch, *spatial, {self.features}]", x)
        squeezed = floating(x).mean(tuple(range(1, x.ndim - 1)), keepdims=True)
        hidden = jax.nn.relu(self.down(params["down"], squeezed))
        return x * jax.nn.sigmoid(self.up(params["up"], hidden))


class FiLM(Module):
    """Scales and shifts features by a condition: x (1 + scale) + shift.

    x [batch, ..., features] with condition [batch, condition_features]; scale and shift
    are linear in the condition (Perez et al. 2017, arXiv:1709.07871). With `zero_init`
    it starts as the identity, as the adaptive layer norm of diffusion transformers does
    (AdaLN-Zero, Peebles and Xie 2022, arXiv:2212.09748): put a
    `LayerNorm(features, scale=False, bias=False)` before it.
    """

    features: Size
    condition_features: Size
    zero_init: bool = True
    modulation: Module = part(default=None)

    def __post_init__(self):
        init: Any = (
            initializers.zeros if self.zero_init else initializers.lecun_normal()
        )
        width = 2 * self.features
        fill(self, modulation=Linear(self.condition_features, width, kernel_init=init))

    def __call__(
        self,
        params,
        x: Float[Array, "batch ... features"],
        condition: Float[Array, "batch condition"],
    ):
        expect(x.shape[-1:] == (self.features,), f"[batch, ..., {self.features}]", x)
        expect(
            condition.ndim == 2 and condition.shape[0] == x.shape[0],
            f"a condition [{x.shape[0]}, {self.condition_features}]",
            condition,
        )
        both = self.modulation(params["modulation"], condition)
        both = both.reshape(x.shape[0], *(1,) * (x.ndim - 2), -1)
        scale, shift = jnp.split(both, 2, axis=-1)
        return floating(x) * (1 + scale) + shift
