"""Devices arranged as a mesh with named axes."""

from collections.abc import Mapping, Sequence
import math
from typing import Any

import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh
import numpy as np

from jaxdl.core import tree
from jaxdl.core.layout import MESH_AXES


def mesh(
    *,
    data: int = 1,
    stage: int = 1,
    fsdp: int = 1,
    expert: int = 1,
    sequence: int = 1,
    tensor: int = 1,
    devices: Sequence[Any] | None = None,
    slices: int | Mapping[str, int] | None = None,
    allow_split_physical_axes: bool = False,
) -> Mesh:
    """Arranges devices as a mesh that has all six axes, in this order.

    Sizes multiply to the number of devices; one may be -1 and fills the rest. Axes that
    talk most stand last, where neighbours are. Axes are of JAX's type Auto: the
    compiler propagates shardings.

    devices: `jax.devices()` unless given; those of a
      `jax.experimental.topologies` description too, to plan for what is not there.
    slices: into how many slices (TPU pods, or processes) that are connected by a slower
      network each axis is cut, `{"data": 2}`; a number is of `data`. Unless given, the
      slices that devices tell of are cut from `data`. Sizes include the slices.
    allow_split_physical_axes: lets an axis take a part of a side of the TPU's torus.

    Raises ValueError where sizes do not fit the devices or slices.

    >>> dict(mesh(fsdp=-1, tensor=2, devices=jax.devices()[:4]).shape)["fsdp"]
    2
    """
    devices = list(jax.devices() if devices is None else devices)
    given = (data, stage, fsdp, expert, sequence, tensor)
    sizes = _filled(dict(zip(MESH_AXES, given, strict=True)), len(devices))
    granules = _granules(slices, devices, sizes)
    split: dict[str, Any] = {"allow_split_physical_axes": allow_split_physical_axes}
    if math.prod(granules.values()) == 1:
        shape = tuple(sizes.values())
        arranged = mesh_utils.create_device_mesh(shape, devices, **split)
    else:
        inner = [sizes[axis] // granules[axis] for axis in MESH_AXES]
        arranged = mesh_utils.create_hybrid_device_mesh(
            inner, list(granules.values()), devices,
            process_is_granule=_slices(devices) == 1, **split,
        )  # fmt: skip
    return Mesh(arranged, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def _filled(sizes: dict[str, int], number: int) -> dict[str, int]:
    """The sizes with a -1 filled in; their product is the number of devices."""
    for axis, size in sizes.items():
        whole = isinstance(size, int | np.integer) and not isinstance(size, bool)
        if not whole or (size < 1 and size != -1):
            raise ValueError(f"mesh: expected {axis} from 1, or -1, got {size!r}")
    free = [axis for axis, size in sizes.items() if size == -1]
    if len(free) > 1:
        raise ValueError(f"mesh: expected one -1 at most, got {' and '.join(free)}")
    rest = math.prod(size for size in sizes.values() if size != -1)
    if number % rest or (not free and rest != number):
        written = ", ".join(f"{a}={s}" for a, s in sizes.items() if s != 1) or "none"
        raise ValueError(
            f"mesh: expected sizes for {number} devices, got {written}; give -1 for "
            "the axis that takes what is left, or other `devices`"
        )
    return {a: number // rest if s == -1 else int(s) for a, s in sizes.items()}


def _granules(slices, devices, sizes: dict[str, int]) -> dict[str, int]:
    """Into how many slices each axis is cut."""
    number = _slices(devices)
    if slices is None:
        slices = number
    asked = dict(slices) if isinstance(slices, Mapping) else {"data": slices}
    for axis, count in asked.items():
        if axis not in sizes:
            raise ValueError(f"slices: {axis!r}: {tree.suggestion(axis, sizes)}")
        if count < 1 or sizes[axis] % count:
            raise ValueError(
                f"slices: expected a divisor of {axis}={sizes[axis]}, got {count}; the "
                f"devices are of {number}: say which axis is cut, slices={{axis: n}}"
            )
    there = number if number > 1 else len({d.process_index for d in devices})
    total = math.prod(asked.values())
    if total not in (1, there) or (total == 1 and number > 1):
        raise ValueError(f"slices: expected {there}, as devices have, got {total}")
    return {axis: asked.get(axis, 1) for axis in sizes}


def _slices(devices: Sequence[Any]) -> int:
    return len({getattr(device, "slice_index", 0) for device in devices})
