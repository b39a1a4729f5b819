"""What is published about accelerators: speed, memory, links between them."""

import dataclasses
from typing import Any

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One JAX device: a core of TPU v2, v3 and 7x, else a whole chip.

    peak: dense bfloat16 FLOP/s, without sparsity.
    memory: bytes that programs may use; of TPUs what their compiler allows.
    bandwidth: bytes/s to and from that memory.
    link: bytes/s of one link to a neighbour, in one direction (ICI, NVLink); a GPU's is
      all of its NVLinks together, for they reach every other GPU through a switch.
    network: bytes/s of the network between slices or hosts (DCN), in one direction.
    torus: the number of axes in which links lead both ways; 0 for a switch.
    """

    name: str
    peak: float
    memory: float
    bandwidth: float
    link: float
    network: float
    torus: int = 0


# TPU: https://cloud.google.com/tpu/docs; links and network: Austin et al. 2025, "How to
# Scale Your Model", chapter 2; v2 and v3: Jouppi et al. 2020, CACM 63(7). Memory is
# what the compiler of libtpu 0.0.42 calls available.
# GPU: NVIDIA's data sheets; the network is one adapter of 400 Gbit/s for each (A100:
# 200). JAX takes three quarters of a GPU's memory unless told otherwise.
CHIPS = {
    "v2": Chip("TPU v2", 22.5e12, 7.48 * GIB, 300e9, 62e9, 3.125e9, 2),
    "v3": Chip("TPU v3", 61.5e12, 15.48 * GIB, 450e9, 82e9, 3.125e9, 2),
    "v4": Chip("TPU v4", 275e12, 30.75 * GIB, 1228e9, 45e9, 6.25e9, 3),
    "v5e": Chip("TPU v5e", 197e12, 15.75 * GIB, 819e9, 45e9, 3.125e9, 2),
    "v5p": Chip("TPU v5p", 459e12, 95.74 * GIB, 2765e9, 90e9, 6.25e9, 3),
    "v6e": Chip("TPU v6e", 918e12, 31.25 * GIB, 1638e9, 90e9, 12.5e9, 2),
    "tpu7x": Chip("TPU7x", 1153.5e12, 94.75 * GIB, 3690e9, 100e9, 12.5e9, 3),
    "a100": Chip("NVIDIA A100", 312e12, 60e9, 2039e9, 300e9, 25e9),
    "h100": Chip("NVIDIA H100", 989e12, 63.7e9, 3352e9, 450e9, 50e9),
    "h200": Chip("NVIDIA H200", 989e12, 105.7e9, 4800e9, 450e9, 50e9),
    "b200": Chip("NVIDIA B200", 2250e12, 135e9, 8000e9, 900e9, 50e9),
}

# How `device_kind` starts, and which chip it is, or its peak alone. The first that fits
# counts, so that a more special one stands before its family.
_KINDS: dict[str, str | float] = {
    "TPU v2": "v2",
    "TPU v3": "v3",
    "TPU v4 lite": 137e12,
    "TPU v4": "v4",
    "TPU v5 lite": "v5e",
    "TPU v5e": "v5e",
    "TPU v5": "v5p",
    "TPU v6": "v6e",
    "TPU7x": "tpu7x",
    "NVIDIA A100": "a100",
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100 NVL": 835e12,
    "NVIDIA H100": "h100",
    "NVIDIA H200 NVL": 835e12,
    "NVIDIA H200": "h200",
    "NVIDIA GH200": 989e12,
    "NVIDIA B200": "b200",
    "NVIDIA GB200": 2500e12,
}


def chip_of(device: Any) -> Chip | None:
    """What is known of a device, by its `device_kind`; None if little is."""
    known = _find(device)
    return CHIPS[known] if isinstance(known, str) else None


def peak_flops(device: Any) -> float | None:
    """Peak bfloat16 FLOP/s of a device by its `device_kind`; None when unknown.

    >>> import types
    >>> peak_flops(types.SimpleNamespace(device_kind="NVIDIA H100 80GB HBM3"))
    989000000000000.0
    """
    known = _find(device)
    return CHIPS[known].peak if isinstance(known, str) else known


def _find(device: Any) -> str | float | None:
    kinds = (kind for kind in _KINDS if device.device_kind.startswith(kind))
    return _KINDS.get(next(kinds, ""))
