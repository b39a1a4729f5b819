"""Muon: momentum made orthogonal, the work of it spread over the devices of a mesh."""

from collections.abc import Callable, Iterable
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float
import optax
from optax.contrib import MuonDimensionNumbers

from jaxdl.core import tree
from jaxdl.core.param import Param
from jaxdl.optim.by_path import fitting
from jaxdl.optim.matrices import (
    Matrices,
    as_matrices,
    dimension_numbers,
    from_matrices,
    matrix_shape,
)

PyTree = Any


def muon(
    learning_rate: optax.ScalarOrSchedule,
    matrices: Matrices = None,
    *,
    mesh: Mesh | None = None,
    rest: optax.GradientTransformation | None = None,
    exclude: str | Iterable[str] = (),
    beta: float = 0.95,
    nesterov: bool = True,
    mu_dtype: Any = None,
    weight_decay: float = 0.0,
    consistent_rms: float | None = 0.2,
    **newton_schulz: Any,
) -> optax.GradientTransformationExtraArgs:
    """Muon (Jordan 2024) for a model's weights, AdamW for everything else.

    The updates are those of `optax.contrib.muon`.

    matrices: the model, whose weights are taken, but for those with an axis "vocab":
      heads; or see `optim.matrices.dimension_numbers`. Stacked layers and experts are
      made orthogonal each on its own.
    mesh: over whose devices the matrices are spread; see `scale_by_muon`.
    rest: for what Muon does not take; unless given, AdamW with this learning rate,
      b2 = 0.95 and no decay.
    exclude: patterns of weights that go to the rest too, heads without names of axes.
    consistent_rms: the size of an update's numbers, about Adam's, so that one learning
      rate serves both (Liu et al. 2025, arXiv:2502.16982); None multiplies by
      sqrt(max(1, columns / rows)) instead.
    newton_schulz: `ns_coeffs`, `ns_steps`, `eps`, `preconditioning` of
      `optax.contrib.scale_by_muon`.

    Raises ValueError, at init, for a pattern that fits nothing.
    """
    patterns = (exclude,) if isinstance(exclude, str) else tuple(exclude)
    rest = (
        optax.adamw(learning_rate, b2=0.95, weight_decay=0.0) if rest is None else rest
    )

    def labels(params: PyTree) -> PyTree:
        taken = dimension_numbers(matrices, params, _hidden).keys()
        taken -= fitting(patterns, params)
        return tree.map_with_path(
            lambda path, _: "muon" if path in taken else "rest", params
        )

    orthogonal = optax.chain(
        scale_by_muon(
            matrices,
            mesh=mesh,
            beta=beta,
            nesterov=nesterov,
            mu_dtype=mu_dtype,
            **newton_schulz,
        ),
        _scale_by_shape(matrices, consistent_rms),
        optax.add_decayed_weights(weight_decay),
        optax.scale_by_learning_rate(learning_rate),
    )
    return optax.partition({"muon": orthogonal, "rest": rest}, labels)


def scale_by_muon(
    matrices: Matrices = None,
    *,
    mesh: Mesh | None = None,
    beta: float = 0.95,
    nesterov: bool = True,
    mu_dtype: Any = None,
    **newton_schulz: Any,
) -> optax.GradientTransformation:
    """`optax.contrib.scale_by_muon` for params that are all matrices, over a mesh.

    With a mesh (of axes of type Auto) matrices of one size are put in one row, the long
    side last, and each device iterates on its part of the row alone: sharded matrices
    travel twice, by all-to-all, instead of in every product of every iteration. Only a
    matrix without a second of its size is split by columns and multiplied together.
    The state is that without a mesh.
    """

    def tree_of_numbers(params: PyTree) -> PyTree:
        numbers = dimension_numbers(matrices, params)
        return tree.map_with_path(lambda path, _: numbers[path], params)

    # Without iterations what optax computes is the momentum, each matrix divided by its
    # norm, which is what the first iteration does too.
    momentum = optax.contrib.scale_by_muon(
        ns_steps=0,
        beta=beta,
        nesterov=nesterov,
        mu_dtype=mu_dtype,
        weight_dimension_numbers=tree_of_numbers,
    )

    iterate = _newton_schulz(newton_schulz)

    def orthogonal(updates: PyTree, params: PyTree = None) -> PyTree:
        del params
        numbers = dimension_numbers(matrices, updates)
        found = {
            path: as_matrices(leaf, numbers[path])
            for path, leaf in tree.flatten(updates).items()
        }
        if mesh is None:
            found = {path: iterate(x) for path, x in found.items()}
        else:
            found = _spread(iterate, found, mesh)
        return tree.map_with_path(
            lambda path, leaf: from_matrices(found[path], leaf.shape, numbers[path]),
            updates,
        )

    return optax.chain(momentum, optax.stateless(orthogonal))


Iterate = Callable[[Float[Array, "*batch rows columns"]], Array]


def _hidden(param: Param) -> bool:
    return param.role == "weight" and "vocab" not in (param.axes or ())


def _newton_schulz(options: dict[str, Any]) -> Iterate:
    """Makes matrices orthogonal: what optax's Muon does without momentum."""
    muon = optax.contrib.scale_by_muon(
        beta=0.0,
        nesterov=False,
        weight_dimension_numbers=_last_two,
        **options,
    )

    def iterate(x: Array) -> Any:
        return muon.update(x, muon.init(x))[0]

    return iterate


def _last_two(x: Any) -> MuonDimensionNumbers:
    return MuonDimensionNumbers(x.ndim - 2, x.ndim - 1)


def _spread(iterate: Iterate, found: dict[str, Array], mesh: Mesh) -> dict[str, Array]:
    """Iterates on all matrices of one size together, each device on some of them."""
    sizes: dict[tuple, list[str]] = {}
    for path, x in found.items():
        sizes.setdefault((*sorted(x.shape[-2:]), x.dtype), []).append(path)
    results = {}
    for (short, long, _), paths in sizes.items():
        wide = [_wide(found[path]).reshape(-1, short, long) for path in paths]
        joined = _on_devices(iterate, jnp.concatenate(wide), mesh)
        ends = [sum(map(len, wide[: i + 1])) for i in range(len(wide) - 1)]
        for path, y in zip(paths, jnp.split(joined, ends), strict=True):
            like = _wide(found[path])
            y = y.reshape(like.shape)
            results[path] = y if like.shape == found[path].shape else y.mT
    return results


def _wide(x: Array) -> Array:
    return x if x.shape[-2] <= x.shape[-1] else x.mT


def _on_devices(
    iterate: Iterate, x: Float[Array, "n rows columns"], mesh: Mesh
) -> Float[Array, "n rows columns"]:
    axes = tuple(name for name, size in mesh.shape.items() if size > 1)
    number = math.prod(mesh.shape[name] for name in axes)

    def split(x, *spec):
        spec = NamedSharding(mesh, PartitionSpec(*spec))
        return jax.lax.with_sharding_constraint(x, spec)

    if len(x) == 1:
        divides = x.shape[-1] % number == 0
        return iterate(split(x, None, None, axes) if divides else x)
    free = PartitionSpec.UNCONSTRAINED
    padded = jnp.pad(x, ((0, -len(x) % number), (0, 0), (0, 0)))
    # One axis of the mesh after the other: XLA moves each by an all-to-all, but would
    # gather everything everywhere to move two at once.
    for several in range(1, len(axes)):
        padded = split(padded, axes[:several], free, free)
    y = split(iterate(split(padded, axes)), axes)
    for several in reversed(range(1, len(axes))):
        y = split(y, axes[:several], free, free)
    return y[: len(x)]


def _scale_by_shape(
    matrices: Matrices, consistent_rms: float | None
) -> optax.GradientTransformation:
    def scaled(updates: PyTree, params: PyTree = None) -> PyTree:
        del params
        numbers = dimension_numbers(matrices, updates)

        def scale(path, leaf):
            *_, rows, columns = matrix_shape(leaf.shape, numbers[path])
            if consistent_rms is None:
                return leaf * max(1.0, columns / rows) ** 0.5
            return leaf * (consistent_rms * max(rows, columns) ** 0.5)

        return tree.map_with_path(scale, updates)

    return optax.stateless(scaled)
