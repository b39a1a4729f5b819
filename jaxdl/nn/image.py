"""Images to tokens and back, larger and smaller: channels last."""

from typing import Literal

import jax
from jaxtyping import Array, Float

from jaxdl.core.fields import Size
from jaxdl.core.module import Module, fill, part
from jaxdl.core.naming import expect
from jaxdl.nn.checks import floating
from jaxdl.nn.conv import Conv, for_each


class PatchEmbedding(Module):
    """Cuts an image into patches: [batch, *spatial, in] -> [batch, patches, features].

    A convolution whose stride is its kernel (Dosovitskiy et al. 2020,
    arXiv:2010.11929); patches stand in rows. Every side of the image must be a multiple
    of its patch.
    """

    patch: tuple[Size, ...]
    in_features: Size
    features: Size
    bias: bool = True
    project: Module = part(default=None)

    def __post_init__(self):
        fill(
            self,
            project=Conv(
                self.in_features, self.features, self.patch, self.patch, "VALID",
                bias=self.bias, axes=(None, "embed"),
            ),
        )  # fmt: skip

    def __call__(self, params, x: Float[Array, "batch ... in"]):
        dims = len(self.patch)
        spatial = x.shape[1:-1]
        fits = x.ndim == dims + 2 and not any(
            size % patch for size, patch in zip(spatial, self.patch, strict=True)
        )
        sides = ", ".join(f"multiple of {patch}" for patch in self.patch)
        expect(fits, f"[batch, {sides}, {self.in_features}]", x)
        y = self.project(params["project"], x)
        return y.reshape(x.shape[0], -1, y.shape[-1])


class Upsample(Module):
    """Enlarges an image: [batch, *spatial, features] -> [batch, *spatial', features].

    Each side by `factor`, one number or one a dimension, through `jax.image.resize`.
    "nearest" and "linear" are PyTorch's `Upsample` with mode nearest and bilinear
    (`align_corners=False`); "cubic" is Keys' kernel with a = -0.5, where PyTorch's
    bicubic has a = -0.75.
    """

    factor: Size | tuple[Size, ...]
    method: Literal["nearest", "linear", "cubic"] = "nearest"

    def __call__(self, params, x: Float[Array, "batch ... features"]):
        expect(x.ndim >= 3, "[batch, *spatial, features]", x)
        factors = for_each(self.factor, x.ndim - 2)
        expect(
            len(factors) == x.ndim - 2, f"[batch, {len(factors)} sides, features]", x
        )
        sides = zip(x.shape[1:-1], factors, strict=True)
        x = x if self.method == "nearest" else floating(x)
        shape = (x.shape[0], *(size * factor for size, factor in sides), x.shape[-1])
        return jax.image.resize(x, shape, self.method, antialias=False)


class PixelShuffle(Module):
    """Turns features into space: [batch, *spatial, features factor^n] -> larger.

    [batch, h, w, c r r] -> [batch, h r, w r, c], the features of c slowest (Shi et al.
    2016, arXiv:1609.05158; PyTorch's `PixelShuffle`). The inverse is `PixelUnshuffle`.
    """

    factor: Size

    def __call__(self, params, x: Float[Array, "batch ... features"]):
        dims = x.ndim - 2
        block = self.factor**dims
        fits = dims > 0 and x.shape[-1] % block == 0
        expect(fits, f"[batch, *spatial, multiple of {block}]", x)
        spatial = x.shape[1:-1]
        x = x.reshape(x.shape[0], *spatial, -1, *(self.factor,) * dims)
        # [batch, h, w, c, r, r] -> [batch, h, r, w, r, c]
        pairs = [axis for i in range(dims) for axis in (1 + i, 2 + dims + i)]
        x = x.transpose(0, *pairs, 1 + dims)
        return x.reshape(x.shape[0], *(side * self.factor for side in spatial), -1)


class PixelUnshuffle(Module):
    """Turns space into features: [batch, *spatial, features] -> smaller, deeper.

    [batch, h r, w r, c] -> [batch, h, w, c r r] (PyTorch's `PixelUnshuffle`).
    """

    factor: Size

    def __call__(self, params, x: Float[Array, "batch ... features"]):
        dims, factor = x.ndim - 2, self.factor
        fits = dims > 0 and not any(size % factor for size in x.shape[1:-1])
        expect(fits, f"[batch, *spatial in multiples of {factor}, features]", x)
        spatial, features = [size // factor for size in x.shape[1:-1]], x.shape[-1]
        blocks = [size for side in spatial for size in (side, factor)]
        x = x.reshape(x.shape[0], *blocks, features)
        # [batch, h, r, w, r, c] -> [batch, h, w, c, r, r]
        sides = range(1, 2 * dims, 2)
        x = x.transpose(0, *sides, 2 * dims + 1, *(side + 1 for side in sides))
        return x.reshape(x.shape[0], *spatial, -1)
