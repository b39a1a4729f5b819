"""A change of low rank, for each kind of layer: two small arrays instead of a kernel.

A form says how the arrays a and b are declared, what change of the output they make of
an input, and what change of the kernel that is.
"""

import dataclasses
import math
import string
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from jaxdl.core import init as initializers
from jaxdl.core.module import Module
from jaxdl.core.param import Param
from jaxdl.finetune.quantized import QuantizedEmbedding
from jaxdl.nn.conv import Conv, for_each
from jaxdl.nn.conv_transpose import ConvTranspose
from jaxdl.nn.experts import ExpertLinear
from jaxdl.nn.linear import Einsum, Embedding


@runtime_checkable
class Multiplies(Protocol):
    """A layer that says its matrix, [..., in_features, out_features]."""

    in_features: int
    out_features: int

    def matrix(self, params) -> jax.Array: ...


KINDS = (Multiplies, Einsum, Embedding, QuantizedEmbedding)


def factors(layer: Module, rank: int) -> "Factors":
    """The form of a layer's change; TypeError for a layer that has none."""
    if not isinstance(layer, KINDS):
        raise TypeError(
            "expected a layer with in_features, out_features and a `matrix` (Linear, "
            "Conv, ExpertLinear, QuantizedLinear), an Einsum or an Embedding, got "
            f"{type(layer).__name__}"
        )
    for kinds, form in _FORMS.items():
        if isinstance(layer, kinds):
            return form(layer, rank)
    return Factors(layer, rank)


@dataclasses.dataclass(frozen=True)
class Factors:
    """Of a matrix: a [in, rank] and b [rank, out]."""

    layer: Any
    rank: int

    droppable = True  # whether what a reads can have dropout
    summed = (-2,)  # the axes of the kernel that one output sums over

    @property
    def columns(self) -> tuple[tuple[int, str | None], ...]:
        """Size and name of the axes of one number for each output."""
        return ((self.layer.out_features, self._axes[1]),)

    def declare(self) -> tuple[Param, Param]:
        layer, (rows, columns) = self.layer, self._axes
        a = Param((layer.in_features, self.rank), _init(), (rows, None))
        shape = (self.rank, layer.out_features)
        return a, Param(shape, initializers.zeros, (None, columns))

    def change(self, a, b, x, given: dict) -> jax.Array:
        """What is added to y; `given` are the keywords of the call."""
        return x.astype(a.dtype) @ a @ b

    def product(self, a, b) -> jax.Array:
        """What is added to the kernel. Leading axes may be those of stacked layers."""
        return a @ b

    def lengths(self, kernel) -> jax.Array:
        """The Euclidean length of what makes each output, in float32; never 0."""
        length = jnp.linalg.norm(
            _flat(kernel.astype(jnp.float32), self.summed), axis=-1
        )
        return jnp.maximum(length, jnp.finfo(jnp.float32).tiny)

    def spread(self, values, given: dict) -> jax.Array:
        """One number for each output, so that it broadcasts against y."""
        return values

    @property
    def _axes(self) -> tuple[str | None, str | None]:
        return getattr(self.layer, "axes", (None, None))


class ConvFactors(Factors):
    """A convolution to `rank` features in each group, and one of size 1 after it.

    a is [*kernel_size, in / groups, rank groups], b [1, ..., rank, out].
    """

    @property
    def summed(self) -> tuple[int, ...]:  # type: ignore[override]
        return tuple(range(-2 - self._dims, -1))

    def declare(self) -> tuple[Param, Param]:
        layer, ones = self.layer, (1,) * self._dims
        a = dataclasses.replace(self._down, kernel_init=_init()).spec()["kernel"]
        shape, names = (*ones, self.rank, layer.out_features), (None,) * len(ones)
        columns = (*names, None, layer.axes[1])
        return a, Param(shape, initializers.zeros, columns)

    def change(self, a, b, x, given: dict) -> jax.Array:
        layer = self.layer
        features, ones = self.rank * layer.groups, (1,) * self._dims
        up = Conv(features, layer.out_features, ones, groups=layer.groups, bias=False)
        return up({"kernel": b}, self._down({"kernel": a}, x))

    def product(self, a, b) -> jax.Array:
        a, b = (_by_group(array, self.layer.groups) for array in (a, b))
        whole = jnp.moveaxis(a @ b, -3, -2)  # [..., in, groups, out]
        return whole.reshape(*whole.shape[:-2], self.layer.out_features)

    @property
    def _dims(self) -> int:
        return len(for_each(self.layer.kernel_size, 1))

    @property
    def _down(self) -> Any:
        layer, features = self.layer, self.rank * self.layer.groups
        axes = (layer.axes[0], None)
        return dataclasses.replace(layer, out_features=features, bias=False, axes=axes)


class EmbeddingFactors(Factors):
    """Of a table: a [num_embeddings, rank] starts at 0, b [rank, features] does not.

    Tokens have no dropout. As PEFT's.
    """

    droppable = False

    @property
    def columns(self) -> tuple[tuple[int, str | None], ...]:
        return ((self.layer.features, self._axes[1]),)

    def declare(self) -> tuple[Param, Param]:
        layer, (rows, columns) = self.layer, self._axes
        shapes = (layer.num_embeddings, self.rank), (self.rank, layer.features)
        a = Param(shapes[0], initializers.zeros, (rows, None), role="embedding")
        return a, Param(shapes[1], initializers.normal(1.0), (None, columns))

    def change(self, a, b, x, given: dict) -> jax.Array:
        table = Embedding(self.layer.num_embeddings, self.rank, (None, None))
        return table({"embedding": a}, x) @ b


class ExpertFactors(Factors):
    """An adapter for each expert: a [expert, in, rank] and b [expert, rank, out]."""

    @property
    def columns(self) -> tuple[tuple[int, str | None], ...]:
        return ((self.layer.num_experts, "expert"), *super().columns)

    def declare(self) -> tuple[Param, Param]:
        down, up = self._both
        return down.spec()["kernel"], up.spec()["kernel"]

    def change(self, a, b, x, given: dict) -> jax.Array:
        down, up = self._both
        return up({"kernel": b}, down({"kernel": a}, x, **given), **given)

    def spread(self, values, given: dict) -> jax.Array:
        stretches = given.get("stretches")
        return values[:, None] if stretches is None else values[stretches.owners]

    @property
    def _both(self) -> tuple[ExpertLinear, ExpertLinear]:
        layer, (rows, columns) = self.layer, self._axes
        sizes = layer.num_experts, layer.in_features, self.rank, layer.out_features
        init, zeros = _init(batch_axis=0), initializers.zeros
        down = ExpertLinear(*sizes[:3], False, (rows, None), init)
        up = ExpertLinear(sizes[0], *sizes[2:], False, (None, columns), zeros)
        return down, up


class EinsumFactors(Factors):
    """Two sums in a row. Of the kernel's letters a has those that x has, b the rest.

    Letters that x, kernel and y share are in both: each of them has its own adapter.
    """

    @property
    def summed(self) -> tuple[int, ...]:  # type: ignore[override]
        x, kernel, y = self.layer.terms()
        return tuple(
            i - len(kernel) for i, n in enumerate(kernel) if n in x and n not in y
        )

    @property
    def columns(self) -> tuple[tuple[int, str | None], ...]:
        _, kernel, _ = self.layer.terms()
        return tuple(self._named()[n] for n in kernel if n not in self._letters[1])

    def declare(self) -> tuple[Param, Param]:
        shared, summed, own, _ = self._letters
        named = {**self._named(), "rank": (self.rank, None)}
        places = range(len(shared)), range(len(shared), len(shared) + len(summed))
        batch, fan_in = map(tuple, places)
        init = _init(batch_axis=batch, in_axis=fan_in, out_axis=-1)
        a = [named[n] for n in (*shared, *summed, "rank")]
        b = [named[n] for n in (*shared, "rank", *own)]
        return (
            Param(tuple(s for s, _ in a), init, tuple(n for _, n in a)),
            Param(tuple(s for s, _ in b), initializers.zeros, tuple(n for _, n in b)),
        )

    def change(self, a, b, x, given: dict) -> jax.Array:
        of_x, _, of_y = self.layer.terms()
        of_a, of_b, rank = self._small
        between = "".join(n for n in of_x if n not in self._letters[1]) + rank
        low = jnp.einsum(f"{of_x},{of_a}->{between}", x.astype(a.dtype), a)
        return jnp.einsum(f"{between},{of_b}->{of_y}", low, b)

    def product(self, a, b) -> jax.Array:
        _, kernel, _ = self.layer.terms()
        of_a, of_b, _ = self._small
        return jnp.einsum(f"...{of_a},...{of_b}->...{kernel}", a, b)

    def spread(self, values, given: dict) -> jax.Array:
        _, kernel, y = self.layer.terms()
        kept = [n for n in kernel if n not in self._letters[1]]
        if values.ndim < len(kept):  # a bias, which has the last letters of y
            return values
        values = values.transpose([kept.index(n) for n in y if n in kept])
        return values.reshape([self._named()[n][0] if n in kept else 1 for n in y])

    @property
    def _letters(self) -> tuple[str, str, str, str]:
        """The kernel's letters: shared, summed, own; and one that is not in use."""
        x, kernel, y = self.layer.terms()
        shared = "".join(n for n in kernel if n in x and n in y)
        summed = "".join(n for n in kernel if n in x and n not in y)
        own = "".join(n for n in kernel if n not in x)
        free = next(n for n in string.ascii_letters if n not in x + kernel + y)
        return shared, summed, own, free

    @property
    def _small(self) -> tuple[str, str, str]:
        shared, summed, own, rank = self._letters
        return shared + summed + rank, shared + rank + own, rank

    def _named(self) -> dict[str, tuple[int, str | None]]:
        _, kernel, _ = self.layer.terms()
        axes = self.layer.axes or (None,) * len(kernel)
        return dict(zip(kernel, zip(self.layer.shape, axes, strict=True), strict=True))


_FORMS: dict[Any, type[Factors]] = {
    (Conv, ConvTranspose): ConvFactors,
    (Embedding, QuantizedEmbedding): EmbeddingFactors,
    ExpertLinear: ExpertFactors,
    Einsum: EinsumFactors,
}


def _init(**axes: Any) -> initializers.Initializer:
    """Variance 1 / (3 fan_in): uniform within fan_in ** -0.5, as PEFT's."""
    return initializers.variance_scaling(1 / 3, "fan_in", "uniform", **axes)


def _flat(kernel: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """The given axes as one, the last."""
    last = tuple(range(-len(axes), 0))
    moved = jnp.moveaxis(kernel, axes, last)
    kept = moved.shape[: moved.ndim - len(axes)]
    return moved.reshape(*kept, math.prod(moved.shape[len(kept) :]))


def _by_group(array: jax.Array, groups: int) -> jax.Array:
    """[..., rows, groups columns] -> [..., groups, rows, columns]."""
    split = array.reshape(*array.shape[:-1], groups, array.shape[-1] // groups)
    return jnp.moveaxis(split, -2, -3)
