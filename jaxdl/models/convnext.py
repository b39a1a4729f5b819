"""ConvNeXt: a convolutional network with the layout of a transformer's block."""

from collections.abc import Callable
from typing import Any

import jax
from jaxtyping import Array, Float

from jaxdl.core import init as initializers
from jaxdl.core.fields import Size
from jaxdl.core.module import Module, fill, part, scoped
from jaxdl.core.naming import expect
from jaxdl.core.tap_primitive import tap
from jaxdl.nn.combine import Repeat
from jaxdl.nn.conv import Conv
from jaxdl.nn.linear import Linear
from jaxdl.nn.norm import LayerNorm
from jaxdl.nn.pool import GlobalAvgPool
from jaxdl.nn.scale import LayerScale

INIT = initializers.truncated_normal(0.02)


class ConvNeXt(Module):
    """Reads images: [batch, height, width, in_features] -> logits or a map of features.

    With num_classes the result is [batch, num_classes], else what the last stage leaves
    of each place, [batch, height', width', widths[-1]]; see `pooled` (Liu et al. 2022,
    arXiv:2201.03545). `depths` counts the blocks of each stage and `widths` their
    features. The stem cuts the image into patches of `patch` pixels a side; each stage
    but the first halves what is left. The defaults are those of the tiny one.

    Taps: `out` of each stage and of its blocks, `features`, what the head reads.
    """

    depths: tuple[Size, ...] = (3, 3, 9, 3)
    widths: tuple[Size, ...] = (96, 192, 384, 768)
    num_classes: int | None = None
    in_features: Size = 3
    patch: Size = 4
    activation: Callable[[jax.Array], jax.Array] = jax.nn.gelu
    layer_scale: float | None = 1e-6
    epsilon: float = 1e-6
    stem: Module = part(default=None)
    stem_norm: Module = part(default=None)
    stages: tuple[Module, ...] | None = part(default=None)
    norm: Module = part(default=None)
    head: Module | None = part(default=None)

    def __post_init__(self):
        if not self.depths or len(self.depths) != len(self.widths):
            raise ValueError(
                "ConvNeXt: expected a width for each depth, got "
                f"depths={self.depths}, widths={self.widths}"
            )
        first, last = self.widths[0], self.widths[-1]
        sides = (self.patch, self.patch)
        before = (None, *self.widths[:-1])
        stages = tuple(
            Stage(width, depth, previous, self.activation, self.layer_scale)
            for width, depth, previous in zip(
                self.widths, self.depths, before, strict=True
            )
        )
        fill(
            self,
            stem=Conv(self.in_features, first, sides, sides, "VALID", kernel_init=INIT),
            stem_norm=LayerNorm(first, 1e-6),
            stages=stages,
            norm=LayerNorm(last, self.epsilon),
        )
        if self.num_classes is not None:
            axes = ("embed", "vocab")
            fill(self, head=Linear(last, self.num_classes, True, axes, INIT))

    def __call__(self, params, images: Float[Array, "batch height width in"]) -> Any:
        x = self.hidden(params, images)
        if self.head is None:
            return x
        return self.head(params["head"], self.pooled(params, x))

    @scoped
    def hidden(
        self, params, images: Float[Array, "batch height width in"]
    ) -> Float[Array, "batch h w features"]:
        """What the last stage leaves of each place: [batch, h, w, widths[-1]]."""
        expect(images.ndim == 4, f"[batch, height, width, {self.in_features}]", images)
        x = self.stem(params["stem"], images)
        x = self.stem_norm(params["stem_norm"], x)
        for index, stage in enumerate(self.stages or ()):
            x = stage(params["stages"][str(index)], x)
        return x

    @scoped
    def pooled(
        self, params, hidden: Float[Array, "batch h w features"]
    ) -> Float[Array, "batch features"]:
        """What stands for each image: the mean over its places, normalised."""
        x = GlobalAvgPool()({}, hidden)
        return tap(self.norm(params["norm"], x), "features")


class Stage(Module):
    """Halves the image unless it is the first, then equal blocks in one scan.

    [batch, height, width, in_features] -> [batch, height / 2, width / 2, features].
    """

    features: Size
    depth: Size
    in_features: Size | None = None
    activation: Callable[[jax.Array], jax.Array] = jax.nn.gelu
    layer_scale: float | None = 1e-6
    down_norm: Module | None = part(default=None)
    down: Module | None = part(default=None)
    blocks: Module = part(default=None)

    def __post_init__(self):
        block = ConvBlock(self.features, self.activation, self.layer_scale)
        fill(self, blocks=Repeat(block, self.depth))
        before = self.in_features
        if before is not None:
            down = Conv(before, self.features, (2, 2), 2, "VALID", kernel_init=INIT)
            fill(self, down_norm=LayerNorm(before, 1e-6), down=down)

    def __call__(self, params, x: Float[Array, "batch h w in"]):
        if self.down_norm is not None and self.down is not None:
            x = self.down(params["down"], self.down_norm(params["down_norm"], x))
        return tap(self.blocks(params["blocks"], x), "out")


class ConvBlock(Module):
    """x + scale(mlp(norm(conv(x)))): [batch, height, width, features] -> the same.

    A depthwise 7x7 convolution, then at each place a feed-forward layer of four times
    the features.
    """

    features: Size
    activation: Callable[[jax.Array], jax.Array] = jax.nn.gelu
    layer_scale: float | None = 1e-6
    conv: Module = part(default=None)
    norm: Module = part(default=None)
    up: Module = part(default=None)
    down: Module = part(default=None)
    scale: Module | None = part(default=None)

    def __post_init__(self):
        n = self.features
        fill(
            self,
            conv=Conv(n, n, (7, 7), padding=3, groups=n, kernel_init=INIT),
            norm=LayerNorm(n, 1e-6),
            up=Linear(n, 4 * n, True, ("embed", "mlp"), INIT),
            down=Linear(4 * n, n, True, ("mlp", "embed"), INIT),
        )
        if self.layer_scale is not None:
            fill(self, scale=LayerScale(n, self.layer_scale))

    def __call__(self, params, x: Float[Array, "batch h w features"]):
        y = self.norm(params["norm"], self.conv(params["conv"], x))
        y = self.down(params["down"], self.activation(self.up(params["up"], y)))
        if self.scale is not None:
            y = self.scale(params["scale"], y)
        return tap(x + y, "out")
