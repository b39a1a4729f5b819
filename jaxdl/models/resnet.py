"""Residual networks, in torchvision's layout and in a form for small images.

Names, padding and initial values are torchvision's: `layer1/0/conv1/kernel` is its
`layer1.0.conv1.weight`, so that its weights are a matter of renaming. The stride of a
bottleneck is on its 3x3 convolution ("v1.5").
"""

from typing import Any

import jax
from jaxtyping import Array, Float

from jaxdl.core import init as initializers
from jaxdl.core.module import Module, fill, part
from jaxdl.core.naming import expect
from jaxdl.core.tap_primitive import tap
from jaxdl.nn.combine import Sequential
from jaxdl.nn.conv import Conv
from jaxdl.nn.linear import Linear
from jaxdl.nn.norm import BatchNorm
from jaxdl.nn.pool import GlobalAvgPool, MaxPool


def resnet18(**options: Any) -> "ResNet":
    """ResNet-18: 11,689,512 parameters; options are the fields of `ResNet`."""
    return ResNet((2, 2, 2, 2), **options)


def resnet34(**options: Any) -> "ResNet":
    """ResNet-34: 21,797,672 parameters; options are the fields of `ResNet`."""
    return ResNet((3, 4, 6, 3), **options)


def resnet50(**options: Any) -> "ResNet":
    """ResNet-50: 25,557,032 parameters; options are the fields of `ResNet`."""
    return ResNet((3, 4, 6, 3), bottleneck=True, **options)


class ResNet(Module):
    """Classifies images: [batch, height, width, in_features] -> [batch, num_classes].

    Called `(params, x, state, train=...)`, returns `(logits, state)` (He et al. 2015,
    arXiv:1512.03385). `depths` counts the blocks of each of at most four stages and
    `widths` their features (4 times as many come out of a bottleneck); every stage but
    the first halves the image. `small_images` is the form for images of some 32 pixels:
    the stem is a 3x3 convolution without stride or pooling (section 4.2). `zero_init`
    starts each block as the identity: the last scale is 0 (Goyal et al. 2017,
    arXiv:1706.02677).

    Taps: `out` of each block and `features`, what the last layer reads.
    """

    depths: tuple[int, ...]
    widths: tuple[int, ...] = (64, 128, 256, 512)
    bottleneck: bool = False
    num_classes: int = 1000
    in_features: int = 3
    small_images: bool = False
    zero_init: bool = False
    conv1: Module = part(default=None)
    bn1: Module = part(default=None)
    layer1: Module | None = part(default=None)
    layer2: Module | None = part(default=None)
    layer3: Module | None = part(default=None)
    layer4: Module | None = part(default=None)
    fc: Module = part(default=None)

    def __post_init__(self):
        if not 1 <= len(self.depths) <= min(4, len(self.widths)):
            raise ValueError(
                "ResNet: expected the depths of one to four stages and a width for "
                f"each, got depths={self.depths}, widths={self.widths}"
            )
        features = self.widths[0]
        kernel, stride = (3, 1) if self.small_images else (7, 2)
        stem = _conv(self.in_features, features, kernel, stride)
        fill(self, conv1=stem, bn1=BatchNorm(features))
        for stage, (depth, width) in enumerate(
            zip(self.depths, self.widths, strict=False)
        ):
            blocks, features = self._stage(features, width, depth, 2 if stage else 1)
            fill(self, **{f"layer{stage + 1}": blocks})
        bound = features**-0.5
        init = initializers.uniform(-bound, bound)
        fill(
            self,
            fc=Linear(features, self.num_classes, kernel_init=init, bias_init=init),
        )

    def _stage(self, features: int, width: int, depth: int, stride: int):
        blocks = []
        for index in range(depth):
            first = stride if index == 0 else 1
            block = Block(features, width, first, self.bottleneck, self.zero_init)
            blocks.append(block)
            features = block.out_features
        return Sequential(blocks), features

    def __call__(
        self,
        params,
        x: Float[Array, "batch height width in"],
        state: Any,
        *,
        train: bool,
    ) -> tuple[Float[Array, "batch classes"], Any]:
        expect(x.ndim == 4, f"[batch, height, width, {self.in_features}]", x)
        new = {}
        x = self.conv1(params["conv1"], x)
        x, new["bn1"] = self.bn1(params["bn1"], x, state["bn1"], train=train)
        x = jax.nn.relu(x)
        if not self.small_images:
            x = MaxPool((3, 3), 2, padding=1)({}, x)
        for name in ("layer1", "layer2", "layer3", "layer4"):
            stage = getattr(self, name)
            if stage is not None:
                x, new[name] = stage(params[name], x, state[name], train=train)
        x = tap(GlobalAvgPool()({}, x), "features")
        return self.fc(params["fc"], x), new


class Block(Module):
    """relu(x + f(x)), f two 3x3 convolutions or a bottleneck of 1x1, 3x3, 1x1.

    [batch, height, width, in_features] -> [batch, height / stride, width / stride,
    out_features]. Where the shape changes, `downsample` projects x.
    """

    in_features: int
    width: int
    stride: int = 1
    bottleneck: bool = False
    zero_init: bool = False
    conv1: Module = part(default=None)
    bn1: Module = part(default=None)
    conv2: Module = part(default=None)
    bn2: Module = part(default=None)
    conv3: Module | None = part(default=None)
    bn3: Module | None = part(default=None)
    downsample: Module | None = part(default=None)

    def __post_init__(self):
        width, out = self.width, self.out_features
        convs = [(3, self.stride, width), (3, 1, out)]
        if self.bottleneck:
            convs = [(1, 1, width), (3, self.stride, width), (1, 1, out)]
        before = self.in_features
        for number, (kernel, stride, features) in enumerate(convs, start=1):
            conv = _conv(before, features, kernel, stride)
            last_init = initializers.zeros if self.zero_init else initializers.ones
            init = last_init if number == len(convs) else initializers.ones
            norm = BatchNorm(features, scale_init=init)
            fill(self, **{f"conv{number}": conv, f"bn{number}": norm})
            before = features
        if self.stride != 1 or self.in_features != out:
            project = _conv(self.in_features, out, 1, self.stride)
            fill(self, downsample=Sequential([project, BatchNorm(out)]))

    @property
    def out_features(self) -> int:
        return 4 * self.width if self.bottleneck else self.width

    def __call__(
        self, params, x: Float[Array, "batch h w in"], state: Any, *, train: bool
    ):
        new = {}
        shortcut, y = x, x
        for number in (1, 2, 3) if self.bottleneck else (1, 2):
            conv, norm = f"conv{number}", f"bn{number}"
            y = jax.nn.relu(y) if number > 1 else y
            y = getattr(self, conv)(params[conv], y)
            y, new[norm] = getattr(self, norm)(
                params[norm], y, state[norm], train=train
            )
        if self.downsample is not None:
            shortcut, new["downsample"] = self.downsample(
                params["downsample"], x, state["downsample"], train=train
            )
        return tap(jax.nn.relu(shortcut + y), "out"), new


def _conv(before: int, after: int, kernel: int, stride: int) -> Conv:
    init = initializers.variance_scaling(2.0, "fan_out", "normal")
    return Conv(
        before,
        after,
        (kernel, kernel),
        stride,
        padding=kernel // 2,
        bias=False,
        kernel_init=init,
    )
