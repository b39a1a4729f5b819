"""Edits: what `patch` does to a tapped value, and how it follows a scan over layers."""

from collections.abc import Callable
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxdl.core.naming import describe


@dataclasses.dataclass(frozen=True)
class Edit:
    """A change of a tapped value: `function(value, *arrays)`.

    Each array has a leading axis for every scan around the tap, and each iteration gets
    its own slice. `mask`, where set, says whether the change happens.
    """

    function: Callable[..., Any]
    arrays: tuple[Any, ...] = ()
    mask: Any = None

    def enter(self, name: str, length: int) -> tuple[Any, Callable[[Any], "Edit"]]:
        """What a scan of this length slices, and the edit made of a slice."""
        for array in self.arrays:
            if not array.ndim or array.shape[0] != length:
                raise ValueError(
                    f"{name}: expected an edit with a leading axis of {length}, one "
                    f"for each layer of the scan, got {describe(array)}; to change one "
                    "layer use jd.at(layer, edit)"
                )
        return self.arrays, lambda arrays: dataclasses.replace(self, arrays=arrays)

    def apply(self, name: str, value: jax.Array) -> jax.Array:
        """The changed value, of the same shape and dtype; else raises ValueError."""
        new = jnp.asarray(self.function(value, *self.arrays))
        fits = jnp.can_cast(new.dtype, value.dtype, "same_kind")
        try:
            new = jnp.broadcast_to(new, value.shape)
        except ValueError:
            fits = False
        if not fits:
            raise ValueError(
                f"{name}: expected {describe(value)}, edit gave {describe(new)}"
            )
        new = new.astype(value.dtype)
        return new if self.mask is None else jnp.where(self.mask, new, value)


@dataclasses.dataclass(frozen=True)
class At:
    """An edit of one iteration of the scan around a tap; see `at`."""

    index: Any
    edit: Any

    def enter(self, name: str, length: int) -> tuple[Any, Callable[[Any], Any]]:
        if isinstance(self.index, int) and not -length <= self.index < length:
            raise ValueError(
                f"{name}: expected a layer below {length}, got {self.index}"
            )
        chosen = jnp.arange(length) == jnp.asarray(self.index) % length
        return chosen, lambda mask: _masked(as_edit(self.edit), mask)

    def apply(self, name: str, value: jax.Array) -> jax.Array:
        raise ValueError(
            f"{name}: at({self.index}, ...) needs a tap inside a scan (nn.Repeat); "
            "this one is not, so give the edit itself"
        )


def at(layer: Any, edit: Any) -> At:
    """Edits one layer of a tap inside `nn.Repeat` or any `jax.lax.scan`.

    `layer` may be traced: `jax.vmap` over it patches each layer in turn, in one
    program. For a scan within a scan, nest: `at(outer, at(inner, edit))`.
    """
    return At(layer, edit)


def by_layer(function: Callable[..., Any], *arrays: Any) -> Edit:
    """Edits each layer with its own slice: `function(value, *slices)`.

    Each array has a leading axis of layers: `by_layer(lambda value, delta: value +
    delta, deltas)`.
    """
    return Edit(function, tuple(jnp.asarray(array) for array in arrays))


def as_edit(edit: Any) -> Any:
    """A function stays one, an array replaces the value."""
    if isinstance(edit, Edit | At):
        return edit
    if callable(edit):
        return Edit(edit)
    array = jnp.asarray(edit)
    if array.ndim == 0:
        return Edit(lambda value: array)
    return Edit(lambda value, new: new, (array,))


def _masked(edit: Any, mask: Any) -> Any:
    if isinstance(edit, At):
        return _MaskedAt(edit, mask)
    both = mask if edit.mask is None else mask & edit.mask
    return dataclasses.replace(edit, mask=both)


@dataclasses.dataclass(frozen=True)
class _MaskedAt:
    """An `at` within an `at`: the outer scan is entered, the inner one is not."""

    inner: At
    mask: Any

    def enter(self, name: str, length: int) -> tuple[Any, Callable[[Any], Any]]:
        slices, rebuild = self.inner.enter(name, length)
        return slices, lambda part: _masked(rebuild(part), self.mask)

    def apply(self, name: str, value: jax.Array) -> jax.Array:
        return self.inner.apply(name, value)
