"""Which parameters are matrices, and along which axes: for SOAP and Muon.

`optax.contrib.MuonDimensionNumbers` says it of one array: the axes that a product sums
over, those of its result, and all others count separate matrices.
"""

from collections.abc import Callable, Mapping
import math
from typing import Any

from jaxtyping import Array, Float
from optax.contrib import MuonDimensionNumbers

from jaxdl.core import tree
from jaxdl.core.derive import declarations
from jaxdl.core.module import Module
from jaxdl.core.param import Param
from jaxdl.optim.by_path import fitting

PyTree = Any
Matrices = Module | Mapping[str, MuonDimensionNumbers] | None


def dimension_numbers(
    matrices: Matrices,
    params: PyTree,
    wanted: Callable[[Param], bool] = lambda param: True,
) -> dict[str, MuonDimensionNumbers]:
    """The dimension numbers of the parameters that are matrices, by path.

    matrices: a Module, whose declared weights and embeddings are matrices: those that
      are `wanted`, see `declared_numbers`; or a mapping from path patterns to dimension
      numbers, of which the first that fits counts; or None, for which the parameters of
      two dimensions are.

    Raises ValueError for a parameter that the Module does not declare, or declares with
    another shape, and for a pattern that fits nothing.
    """
    leaves = tree.flatten(params)
    if isinstance(matrices, Module):
        return _of_declared(declarations(matrices), leaves, wanted)
    if matrices is None:
        plain = MuonDimensionNumbers(0, 1)
        return {path: plain for path, leaf in leaves.items() if leaf.ndim == 2}
    found: dict[str, MuonDimensionNumbers] = {}
    for pattern, numbers in matrices.items():
        for path in fitting([pattern], params):
            found.setdefault(path, numbers)
    return {path: found[path] for path in leaves if path in found}


def declared_numbers(param: Param) -> MuonDimensionNumbers | None:
    """The dimension numbers of a declaration, or None for what is not a matrix.

    Weights and embeddings of two dimensions and more are, the stacked ones not counted.
    Columns are the initialiser's `out_axis`, by default the last axis; stacked axes,
    its `batch_axis` and the axis "expert" count matrices; the rest are rows.
    """
    dims = len(param.shape)
    if param.role not in ("weight", "embedding") or dims - param.stacked < 2:
        return None
    given = dict(getattr(param.init, "arguments", ()))
    columns = _places(given.get("out_axis", -1), param)
    experts = {i for i, name in enumerate(param.axes or ()) if name == "expert"}
    batch = {*range(param.stacked), *_places(given.get("batch_axis", ()), param)}
    rows = set(range(dims)) - batch - experts - set(columns)
    if not rows:
        return None
    return MuonDimensionNumbers(tuple(sorted(rows)), columns)


def as_matrices(
    x: Array, numbers: MuonDimensionNumbers
) -> Float[Array, "*batch rows columns"]:
    """The matrices of an array, the axes that count them in front."""
    order = sum(axes(x.ndim, numbers), ())
    return x.transpose(order).reshape(matrix_shape(x.shape, numbers))


def from_matrices(
    matrices: Float[Array, "*batch rows columns"],
    shape: tuple[int, ...],
    numbers: MuonDimensionNumbers,
) -> Array:
    """The inverse of `as_matrices`, for an array of this shape."""
    order = sum(axes(len(shape), numbers), ())
    back = sorted(range(len(shape)), key=order.__getitem__)
    return matrices.reshape([shape[i] for i in order]).transpose(back)


def matrix_shape(
    shape: tuple[int, ...], numbers: MuonDimensionNumbers
) -> tuple[int, ...]:
    """The shape [*batch, rows, columns] that `as_matrices` gives."""
    batch, rows, columns = axes(len(shape), numbers)
    sides = (math.prod(shape[i] for i in part) for part in (rows, columns))
    return (*(shape[i] for i in batch), *sides)


def axes(ndim: int, numbers: MuonDimensionNumbers) -> tuple[tuple[int, ...], ...]:
    """The axes of an array that count matrices, that are rows, and that are columns."""
    rows, columns = (
        tuple(i % ndim for i in ((part,) if isinstance(part, int) else part))
        for part in numbers
    )
    batch = tuple(i for i in range(ndim) if i not in (*rows, *columns))
    return batch, rows, columns


def _of_declared(declared, leaves, wanted) -> dict[str, MuonDimensionNumbers]:
    found = {}
    for path, leaf in leaves.items():
        param = declared.get(path)
        if not isinstance(param, Param) or param.shape != leaf.shape:
            expected = "nothing of this path" if param is None else list(param.shape)
            raise ValueError(
                f"{path}: the model declares {expected}, got {list(leaf.shape)}: give "
                "the optimiser the model that these params belong to"
            )
        numbers = declared_numbers(param)
        if numbers is not None and wanted(param):
            found[path] = numbers
    return found


def _places(given: int | tuple[int, ...], param: Param) -> tuple[int, ...]:
    """An initialiser's axes, which do not count the stacked ones, as the array's."""
    dims = len(param.shape) - param.stacked
    several = (given,) if isinstance(given, int) else given
    return tuple(param.stacked + i % dims for i in several)
