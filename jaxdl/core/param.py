"""Declarations: what a module says of one array before any array exists."""

from collections.abc import Callable
import dataclasses
from functools import partial
import operator
from typing import Any, Literal, get_args
import zlib

import jax
import jax.numpy as jnp
import numpy as np

from jaxdl.core import init as initializers

Role = Literal["weight", "bias", "scale", "embedding"]


@dataclasses.dataclass(frozen=True)
class Declaration:
    """One array: shape, initialiser, logical axis names and dtype.

    `axes` names each dimension ("embed", "mlp", "heads", "vocab", "layers", ...) or
    None; sharding rules map those names to mesh axes. `stacked` counts the leading
    dimensions that a combinator such as `Repeat` put in front: fan-in, masks and
    optimisers that look at the number of dimensions must leave those out.
    """

    shape: tuple[int, ...]
    init: Callable[..., jax.Array] = initializers.zeros
    axes: tuple[str | None, ...] | None = None
    dtype: Any = jnp.float32
    stacked: int = 0

    def __post_init__(self):
        try:
            shape = tuple(map(operator.index, self.shape))
        except TypeError:
            raise TypeError(
                f"expected whole numbers as sizes, got shape {self.shape!r}"
            ) from None
        axes = (None,) * len(shape) if self.axes is None else tuple(self.axes)
        if any(size < 0 for size in shape):
            raise ValueError(f"expected sizes of 0 or more, got shape {shape}")
        if len(axes) != len(shape):
            raise ValueError(
                f"expected one axis name for each of the {len(shape)} dimensions of "
                f"{shape}, got axes {axes}"
            )
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "axes", axes)
        object.__setattr__(self, "dtype", np.dtype(self.dtype))

    @property
    def abstract(self) -> jax.ShapeDtypeStruct:
        """The array's shape and dtype, without the array."""
        return jax.ShapeDtypeStruct(self.shape, self.dtype)

    def stack(self, size: int, axis: str | None = "layers"):
        """Declares `size` of these in one array, along a new leading dimension."""
        return dataclasses.replace(
            self,
            shape=(size, *self.shape),
            axes=(axis, *(self.axes or ())),
            stacked=self.stacked + 1,
        )

    def sample(self, key: jax.Array, path: str) -> jax.Array:
        """Draws the initial value, which depends on the key and the path alone.

        Layer i of a stacked array is drawn with a key of its own, so that it has the
        same bits in a stack of 4 layers and in one of 40.
        """
        fold = np.uint32(zlib.crc32(path.encode()))
        value = _sample(key, fold, self.init, self.shape, self.dtype, self.stacked)
        if value.shape != self.shape or value.dtype != self.dtype:
            raise ValueError(
                f"{path}: expected the initialiser to return {self.dtype.name}"
                f"{list(self.shape)}, got {value.dtype.name}{list(value.shape)}"
            )
        return value


@dataclasses.dataclass(frozen=True)
class Param(Declaration):
    """Declares one trained array; see `Declaration`.

    `role` is weight, bias, scale or embedding: weight decay, precision and optimisers
    choose by it.

    >>> Param((256, 512), axes=("embed", "mlp")).abstract
    ShapeDtypeStruct(shape=(256, 512), dtype=float32)
    """

    init: Callable[..., jax.Array] = initializers.lecun_normal()
    role: Role = "weight"

    def __post_init__(self):
        super().__post_init__()
        if self.role not in get_args(Role):
            raise ValueError(f"expected a role of {get_args(Role)}, got {self.role!r}")


@dataclasses.dataclass(frozen=True)
class State(Declaration):
    """Declares one array that a forward pass updates and gradients do not.

    Running statistics and codebooks are state: they come in as an argument and go out
    as a result.
    """


@partial(jax.jit, static_argnums=(2, 3, 4, 5))
def _sample(key, fold, init, shape, dtype, stacked):
    def draw(key):
        return init(key, shape[stacked:], dtype)

    for size in reversed(shape[:stacked]):
        draw = _one_for_each(draw, size)
    return draw(jax.random.fold_in(key, fold))


def _one_for_each(draw, size):
    def draw_all(key):
        keys = jax.vmap(partial(jax.random.fold_in, key))(jnp.arange(size))
        return jax.vmap(draw)(keys)

    return draw_all
