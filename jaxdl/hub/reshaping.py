"""How a published tensor becomes ours and back: small values, each with its inverse.

`forward` takes a published array to ours and `inverse` takes it back; both see one
layer (one expert), never the stack. They make views where numpy can, so that of a
tensor in a file only what is kept is read.
"""

import dataclasses
import math
from typing import Any

import numpy as np

Shape = tuple[int, ...]
# One slice, with start and stop, for each dimension.
Slices = tuple[slice, ...]


@dataclasses.dataclass(frozen=True)
class Transform:
    """The same array on both sides; the others say where they differ from it.

    `shape` is always ours; of the published tensor it is `published_shape(shape)`.
    """

    def forward(self, array: np.ndarray, shape: Shape) -> np.ndarray:
        return array

    def inverse(self, array: np.ndarray) -> np.ndarray:
        return array

    def published_shape(self, shape: Shape) -> Shape:
        return shape

    def published_slices(self, slices: Slices) -> Slices | None:
        """Where a part of ours is in the published tensor; None if all over it."""
        return slices


@dataclasses.dataclass(frozen=True)
class Transpose(Transform):
    """A matrix of PyTorch's Linear [..., out, in] <-> a kernel [..., in, out]."""

    def forward(self, array, shape):
        return array.swapaxes(-1, -2)

    def inverse(self, array):
        return array.swapaxes(-1, -2)

    def published_shape(self, shape):
        return (*shape[:-2], shape[-1], shape[-2])

    def published_slices(self, slices):
        return (*slices[:-2], slices[-1], slices[-2])


@dataclasses.dataclass(frozen=True)
class Conv(Transform):
    """PyTorch's Conv [out, in, *size] <-> ours [*size, in, out], of any dimension."""

    def forward(self, array, shape):
        return np.moveaxis(array, (1, 0), (-2, -1))

    def inverse(self, array):
        return np.moveaxis(array, (-2, -1), (1, 0))

    def published_shape(self, shape):
        return (shape[-1], shape[-2], *shape[:-2])

    def published_slices(self, slices):
        return (slices[-1], slices[-2], *slices[:-2])


@dataclasses.dataclass(frozen=True)
class Permute(Transform):
    """Our dimension i is the published dimension `axes[i]`."""

    axes: tuple[int, ...]

    def forward(self, array, shape):
        return array.transpose(self.axes)

    def inverse(self, array):
        return array.transpose(self._back())

    def published_shape(self, shape):
        return tuple(shape[i] for i in self._back())

    def published_slices(self, slices):
        return tuple(slices[i] for i in self._back())

    def _back(self) -> tuple[int, ...]:
        return tuple(self.axes.index(i) for i in range(len(self.axes)))


@dataclasses.dataclass(frozen=True)
class Reshape(Transform):
    """The same values in another shape; one published size may be -1.

    `Reshape((1, -1, 768))` takes positions [1, 512, 768] to [512, 768].
    """

    published: tuple[int, ...]

    def forward(self, array, shape):
        return array.reshape(shape)

    def inverse(self, array):
        return array.reshape(self.published_shape(array.shape))

    def published_shape(self, shape):
        known = math.prod(size for size in self.published if size != -1)
        rest = math.prod(shape) // known if known else 0
        return tuple(rest if size == -1 else size for size in self.published)

    def published_slices(self, slices):
        return None


@dataclasses.dataclass(frozen=True)
class Leading(Transform):
    """The published tensor has this many axes of size 1 in front of ours."""

    axes: int

    def forward(self, array, shape):
        return array.reshape(array.shape[self.axes :])

    def inverse(self, array):
        return array.reshape(self.published_shape(array.shape))

    def published_shape(self, shape):
        return (*(1,) * self.axes, *shape)

    def published_slices(self, slices):
        return (*(slice(0, 1),) * self.axes, *slices)


@dataclasses.dataclass(frozen=True)
class PairedRows(Transform):
    """Rows of heads that rotate in neighbouring pairs <-> in halves: [rows, ...].

    Meta's own files and GGUF's of the Llama family hold queries and keys so; RoPE here,
    as in Hugging Face, pairs feature i with i + head_dim / 2.
    """

    heads: int

    def forward(self, array, shape):
        paired = array.reshape(self.heads, -1, 2, *array.shape[1:])
        return paired.swapaxes(1, 2).reshape(array.shape)

    def inverse(self, array):
        halves = array.reshape(self.heads, 2, -1, *array.shape[1:])
        return halves.swapaxes(1, 2).reshape(array.shape)

    def published_slices(self, slices):
        return None


@dataclasses.dataclass(frozen=True)
class Plus(Transform):
    """Ours is the published value plus an amount, computed in float32."""

    amount: float

    def forward(self, array, shape):
        return array.astype(np.float32) + np.float32(self.amount)

    def inverse(self, array):
        return (array.astype(np.float32) - np.float32(self.amount)).astype(array.dtype)


@dataclasses.dataclass(frozen=True)
class LogOfNegative(Transform):
    """Ours is the logarithm of the published value's negative, in float32."""

    def forward(self, array, shape):
        # What is not negative has no logarithm: it is NaN, and so is the model.
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.log(-array.astype(np.float32))

    def inverse(self, array):
        return (-np.exp(array.astype(np.float32))).astype(array.dtype)


@dataclasses.dataclass(frozen=True)
class Chain(Transform):
    """One transform after the other, from the published side to ours."""

    first: Transform
    then: Transform

    def forward(self, array, shape):
        between = self.then.published_shape(shape)
        return self.then.forward(self.first.forward(array, between), shape)

    def inverse(self, array):
        return self.first.inverse(self.then.inverse(array))

    def published_shape(self, shape):
        return self.first.published_shape(self.then.published_shape(shape))

    def published_slices(self, slices):
        between = self.then.published_slices(slices)
        return None if between is None else self.first.published_slices(between)


identity = Transform()
transpose = Transpose()
conv = Conv()


def chain(*transforms: Transform) -> Transform:
    """Several transforms in a row, the one nearest to the published tensor first."""
    result: Any = transforms[0]
    for transform in transforms[1:]:
        result = Chain(result, transform)
    return result
