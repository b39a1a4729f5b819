"""Devices to compile for that need not be there: `v5e:4x8`, `h100:8`, `cpu:8`."""

from collections.abc import Iterator
import contextlib
import dataclasses
from functools import lru_cache
import importlib.util
import math
import os
from pathlib import Path
import re
from typing import Any

import jax
from jax.experimental import topologies

from jaxdl.planning.chips import CHIPS, Chip, chip_of


@dataclasses.dataclass(frozen=True)
class Target:
    """What a program is compiled for.

    name: as it was asked for: `v5e:4x8`, with `*2` for two slices.
    platform: as XLA calls it: `tpu`, `cuda` or `cpu`.
    chip: what is known of each device; None for a CPU.
    devices: as a mesh takes them.
    """

    name: str
    platform: str
    chip: Chip | None
    devices: tuple[Any, ...]


@lru_cache
def target(name: str) -> Target:
    """The devices of a name, described and not used.

    `v5e:4x8`: TPU v2, v3, v4, v5e, v5p, v6e or tpu7x, and its topology; `v5e:1x1` is a
    single chip, as in Colab, `v5e:16x16*2` two slices. The compiler is libtpu's, from
    `pip install "jaxdl[plan]"`. Neither a TPU nor its lock is taken.
    `h100:8`: GPUs of one host, `h100:2x8` of two, through JAX's CUDA plugin.
    `cpu`, `cpu:8`: as many of JAX's CPU devices, which do exist.

    Raises ValueError for a name of another form, ImportError where the compiler is not
    installed.
    """
    found = re.fullmatch(r"(\w+)(?::(\d+(?:x\d+)*))?(?:\*(\d+))?", name)
    kind, sides, slices = found.groups() if found else ("", None, None)
    shape = tuple(int(side) for side in sides.split("x")) if sides else ()
    if kind == "cpu" and len(shape) < 2 and slices is None:
        return _cpu(name, *shape)
    if kind in CHIPS and shape and math.prod(shape) and slices != "0":
        if CHIPS[kind].torus:
            return _tpu(name, kind, shape, int(slices or 1))
        if len(shape) < 3 and slices is None:
            return _gpu(name, kind, shape)
    raise ValueError(
        f"target: expected cpu, cpu:8, a TPU as v5e:4x8 (v5e:16x16*2 for two slices) "
        f"or a GPU as h100:8, of {', '.join(CHIPS)}, got {name!r}"
    )


def target_of(devices: tuple[Any, ...]) -> Target:
    """The target that these devices are."""
    platform = devices[0].platform
    platform = "cuda" if platform == "gpu" else platform
    chip = chip_of(devices[0])
    kind = chip.name if chip else devices[0].device_kind
    return Target(f"{len(devices)} x {kind}", platform, chip, devices)


def _cpu(name: str, number: int = 1) -> Target:
    devices = jax.devices("cpu")
    if not 0 < number <= len(devices):
        raise ValueError(
            f"target: expected {len(devices)} CPU devices at most, got {name!r}; more "
            f'before JAX starts: jax.config.update("jax_num_cpu_devices", {number})'
        )
    return Target(name, "cpu", None, tuple(devices[:number]))


def _tpu(name: str, kind: str, shape: tuple[int, ...], slices: int) -> Target:
    if importlib.util.find_spec("libtpu") is None:
        raise ImportError(
            f'{name}: the TPU compiler is in libtpu: pip install "jaxdl[plan]"'
        )
    torus = CHIPS[kind].torus
    if len(shape) < 2 or (len(shape) > torus and set(shape[torus:]) != {1}):
        raise ValueError(f"target: expected {kind} with {torus} sides, got {name!r}")
    options: dict[str, Any] = {"num_slices": slices}
    if math.prod(shape) == 1:
        options["chips_per_host_bounds"] = [1, 1, 1]
    if kind == "v4":  # JAX runs its two cores as one device
        options["chip_config_name"] = "megacore"
    sides = "x".join(map(str, shape))
    try:
        with _libtpu_alone():
            found = topologies.get_topology_desc(f"{kind}:{sides}", "tpu", **options)
    except jax.errors.JaxRuntimeError as error:
        raise ValueError(f"target: libtpu has no {name!r}: {error}") from error
    return Target(name, "tpu", CHIPS[kind], tuple(found.devices))


# libtpu reads these once, when it is loaded. Without the first, it takes a lock that a
# job on this machine's TPU may hold, or want; the others spare it a search for one.
_LIBTPU = {
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
}


@contextlib.contextmanager
def _libtpu_alone() -> Iterator[None]:
    """Sets what is not set of the environment that libtpu reads, for a moment."""
    added = {name: value for name, value in _LIBTPU.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


def _gpu(name: str, kind: str, shape: tuple[int, ...]) -> Target:
    description = Path(__file__).with_name(f"{kind}.txtpb")
    if not description.exists():
        described = sorted(p.stem for p in description.parent.glob("*.txtpb"))
        raise ValueError(
            f"target: expected a GPU that is described, {', '.join(described)}, got "
            f"{name!r}"
        )
    plugins = ("jax_plugins.xla_cuda12", "jax_plugins.xla_cuda13")
    if not any(map(_is_installed, plugins)):
        raise ImportError(
            f"{name}: the GPU compiler is in JAX's CUDA plugin: pip install "
            "jax-cuda12-plugin jax-cuda12-pjrt, of the version of jaxlib; a GPU or "
            "its driver is not needed"
        )
    hosts, each = shape if len(shape) == 2 else (1, *shape)
    found = topologies.get_topology_desc(
        kind,
        "cuda",
        target_config=description.read_text(),
        topology=f"1x{hosts}x{each}",
    )
    return Target(name, "cuda", CHIPS[kind], tuple(found.devices))


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False
