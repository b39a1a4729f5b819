"""From published tensors to params: each goes straight to its place."""

from collections.abc import Iterator, Mapping, Sequence
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdl.core import tree
from jaxdl.hub.files import HubError, listed
from jaxdl.hub.mapping import Layers, Piece, Rule, plan
from jaxdl.hub.tensors import Tensor


def load_params(
    tensors: Mapping[str, Tensor],
    rules: Sequence[Rule],
    abstract: Any,
    *,
    dtype: Any = None,
    shardings: Any = None,
    layers: Layers | Mapping[str, Layers] | None = None,
    ignore: Sequence[str] = (),
    prefix: str = "",
) -> Any:
    """Fills a model's params from published tensors: arrays as in `abstract`.

    abstract: `jd.abstract(model)`, or any tree of shapes that the rules' paths fit.
    dtype: of every floating array; the declared ones unless given.
    shardings: a tree like abstract or one for all; then each device is given its own
    part, read from as little of the file as the transform permits.
    layers: the table for `{layer}` in our paths, `nn.layers(model.blocks)`; a dict of
    tables by placeholder where a model has several stacks.
    ignore: patterns of published names that we have no use for (`*.inv_freq`).
    prefix: one that published names may have or lack (`transformer.`).

    A stacked array is filled layer by layer, so that the memory needed on the host is
    that of the largest array, whatever the size of the model. Raises HubError listing
    every missing, unexpected and mis-shaped name.
    """
    pieces = plan(rules, abstract, layers)
    names = _published_names(pieces, tensors, prefix)
    _check(pieces, tensors, names, abstract, ignore)
    by_path: dict[str, list[tuple[Piece, Tensor]]] = {}
    for piece in pieces:
        tensor = tensors[names[piece.name]]
        by_path.setdefault(piece.path, []).append((piece, tensor))

    def build(path: str, leaf: Any, sharding: Any) -> jax.Array:
        chosen = leaf.dtype if dtype is None or not _floating(leaf) else dtype
        return _array(leaf.shape, np.dtype(chosen), by_path.get(path, []), sharding)

    if shardings is None or isinstance(shardings, jax.sharding.Sharding):
        return tree.map_with_path(lambda p, leaf: build(p, leaf, shardings), abstract)
    return tree.map_with_path(build, abstract, shardings)


def _array(shape, dtype, pieces: list[tuple[Piece, Tensor]], sharding) -> jax.Array:
    if sharding is None:
        whole = tuple(slice(0, size) for size in shape)
        # Waits, so that no more than one array is there twice at any time.
        return jax.block_until_ready(jax.device_put(_values(whole, dtype, pieces)))
    parts: dict[tuple, np.ndarray] = {}  # several devices may hold the same part

    def part(index) -> np.ndarray:
        slices = tuple(
            slice(*s.indices(n)[:2]) for s, n in zip(index, shape, strict=True)
        )
        key = tuple((s.start, s.stop) for s in slices)
        if key not in parts:
            parts[key] = _values(slices, dtype, pieces)
        return parts[key]

    return jax.make_array_from_callback(shape, sharding, part)


def _values(slices, dtype, pieces: list[tuple[Piece, Tensor]]) -> np.ndarray:
    """Some of the values of one of our arrays, whichever tensors they come from."""
    values = _aligned([s.stop - s.start for s in slices], dtype)
    for piece, tensor in pieces:
        stacked = len(piece.index)
        place = tuple(i - s.start for i, s in zip(piece.index, slices, strict=False))
        if all(0 <= i < n for i, n in zip(place, values.shape, strict=False)):
            ours = values[(*place, ...)]
            for part in _parts(piece, slices[stacked:]):
                own = tuple(
                    slice(p.start - s.start, p.stop - s.start)
                    for p, s in zip(part, slices[stacked:], strict=True)
                )
                # What is too large for the dtype becomes infinite, as in any cast.
                with np.errstate(over="ignore", invalid="ignore"):
                    _copy(ours[(*own, ...)], piece.read(tensor, part))
    return values


def _parts(piece: Piece, slices) -> Iterator[tuple[slice, ...]]:
    """A large piece in several, along its longest axis: decoded values take memory."""
    sizes = [s.stop - s.start for s in slices]
    number = math.prod(sizes) // 2**22  # of some 16 MB as float32
    if number < 2 or not piece.splits(slices):
        yield slices
        return
    axis = _outer(piece, sizes)
    step = -(-sizes[axis] // number)
    for start in range(slices[axis].start, slices[axis].stop, step):
        part = slice(start, min(start + step, slices[axis].stop))
        yield (*slices[:axis], part, *slices[axis + 1 :])


def _outer(piece: Piece, sizes: Sequence[int]) -> int:
    """The longest axis but that of the published rows: they are decoded whole."""
    marked = tuple(slice(axis, axis + 1) for axis in range(len(sizes)))
    published = piece.rule.transform.published_slices(marked)
    inner = published[-1].start if published else -1
    return max(range(len(sizes)), key=lambda axis: (axis != inner, sizes[axis]))


def _copy(ours: np.ndarray, published: np.ndarray) -> None:
    """Fills a part of ours; a transposed matrix in strips, four times as fast.

    numpy writes ours row by row, and a row of ours is a column of the file: strips of
    16 columns use all of each cache line that they read.
    """
    widened = published.dtype == jnp.bfloat16 and ours.dtype == np.float32
    if widened:  # the upper half of each float32; casting by number takes twice as long
        ours, published = ours.view(np.uint32), published.view(np.uint16)
    across = published.ndim > 1 and published.strides[-1] > published.itemsize
    step = 16 if across and published.size > 2**16 else max(1, ours.size)
    for start in range(0, ours.shape[-1] if ours.ndim else 1, step):
        strip = (..., slice(start, start + step)) if ours.ndim else ()
        ours[strip] = published[strip]
    if widened:
        ours <<= 16


def _aligned(shape: Sequence[int], dtype: np.dtype) -> np.ndarray:
    """Memory that JAX can take as it is, without a copy: aligned to 64 bytes."""
    size = math.prod(shape) * dtype.itemsize
    memory = np.empty(size + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + size].view(dtype).reshape(shape)


def _published_names(
    pieces: list[Piece], tensors: Mapping[str, Tensor], prefix: str
) -> dict[str, str]:
    """The name in the file for each that the rules give, if it is there."""
    names = {}
    for piece in pieces:
        name = piece.name
        known = [name, prefix + name, name.removeprefix(prefix)]
        names[name] = next((n for n in known if n in tensors), name)
    return names


def _check(pieces, tensors, names: dict[str, str], abstract, ignore) -> None:
    """Raises HubError that lists all names which do not fit."""
    leaves = tree.flatten(abstract)
    missing, wrong = {}, {}
    for piece in pieces:
        tensor = tensors.get(names[piece.name])
        if tensor is None:
            missing.setdefault(piece.name, f"for {piece.path}")
        elif tensor.shape != piece.published_shape:
            expected = list(piece.published_shape)
            wrong[piece.name] = f"expected {expected}, got {list(tensor.shape)}"
        elif _floating(leaves[piece.path]) and not _floating(tensor):
            wrong[piece.name] = f"expected floating values, got {tensor.dtype.name}"
    used = set(names.values())
    unexpected = [
        name
        for name in tensors
        if name not in used and not any(tree.matches(p, name) for p in ignore)
    ]
    lines = [f"missing: {line}" for line in listed(missing, missing)]
    lines += [f"wrong: {line}" for line in listed(wrong, wrong)]
    lines += [f"unexpected: {line}" for line in listed(unexpected)]
    if lines:
        file = next((t.file for t in tensors.values()), "the file")
        advice = "; `ignore` takes patterns of names to leave out" if unexpected else ""
        problem = f"{file}: tensors do not fit the model{advice}:"
        raise HubError("\n  ".join([problem, *lines]))


def _floating(array: Any) -> bool:
    return jnp.issubdtype(array.dtype, jnp.floating)
