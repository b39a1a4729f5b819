"""The peak speed of known accelerators, to say how much of it a step uses."""

from typing import Any

# Dense bfloat16 FLOP/s of one JAX device (a core on TPU v2, v3 and 7x, else a chip),
# from the vendors' data sheets, without sparsity. The first entry that the kind starts
# with counts, so that a more special one stands before its family.
_PEAK = {
    "TPU v2": 22.5e12,
    "TPU v3": 61.5e12,
    "TPU v4 lite": 137e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5p": 459e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "TPU7x": 1153.5e12,
    "NVIDIA A100": 312e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100 NVL": 835e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200 NVL": 835e12,
    "NVIDIA H200": 989e12,
    "NVIDIA GH200": 989e12,
    "NVIDIA B200": 2250e12,
    "NVIDIA GB200": 2500e12,
}


def peak_flops(device: Any) -> float | None:
    """Peak bfloat16 FLOP/s of a device by its `device_kind`; None when unknown.

    >>> import types
    >>> peak_flops(types.SimpleNamespace(device_kind="NVIDIA H100 80GB HBM3"))
    989000000000000.0
    """
    kinds = (kind for kind in _PEAK if device.device_kind.startswith(kind))
    kind = next(kinds, None)
    return None if kind is None else _PEAK[kind]
