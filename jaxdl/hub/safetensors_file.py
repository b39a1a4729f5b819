"""One .safetensors file, checked and mapped."""

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from jaxdl.hub.files import HubError, map_file, needs, parse_json, short
from jaxdl.hub.tensors import Tensor, Tensors, is_array

# Names of the format for dtypes that fill whole bytes.
DTYPES = {
    "BOOL": np.dtype(np.bool_),
    "U8": np.dtype(np.uint8),
    "I8": np.dtype(np.int8),
    "U16": np.dtype(np.uint16),
    "I16": np.dtype(np.int16),
    "U32": np.dtype(np.uint32),
    "I32": np.dtype(np.int32),
    "U64": np.dtype(np.uint64),
    "I64": np.dtype(np.int64),
    "F16": np.dtype(np.float16),
    "F32": np.dtype(np.float32),
    "F64": np.dtype(np.float64),
    "C64": np.dtype(np.complex64),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "F8_E4M3FNUZ": np.dtype(ml_dtypes.float8_e4m3fnuz),
    "F8_E5M2FNUZ": np.dtype(ml_dtypes.float8_e5m2fnuz),
    "F8_E8M0": np.dtype(ml_dtypes.float8_e8m0fnu),
}


def open_safetensors(path: Path) -> Tensors:
    """The tensors of one file, after the checks of `safetensors` and those it lacks.

    The package holds the header to its length, sizes to dtypes and shapes, and the
    offsets to the file, without a hole or an overlap. It takes keys that come twice,
    shapes too large for any array ([0, 2**63]), and dtypes that numpy does not have.
    """
    data = map_file(path)
    _check(path)
    start = 8 + int(data[:8].view("<u8")[0])
    header = parse_json(data[8:start].tobytes(), path)
    metadata = header.pop("__metadata__", {})
    entries = {name: _tensor(path, name, data[start:], header[name]) for name in header}
    return Tensors(entries, metadata)


def _check(path: Path) -> None:
    safetensors = needs("safetensors", "a .safetensors file")
    try:
        with safetensors.safe_open(path, "np"):
            pass
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        reason = short(str(error), quote=False)
        raise HubError(f"{path}: no whole safetensors file: {reason}") from error


def _tensor(path: Path, name: str, data: np.ndarray, entry: dict[str, Any]) -> Tensor:
    shape = tuple(entry["shape"])
    dtype = DTYPES.get(entry["dtype"])
    if dtype is None:
        raise HubError(
            f"{path}: {short(name)}: expected a dtype that fills whole bytes "
            f"({', '.join(DTYPES)}), got {entry['dtype']}"
        )
    if not is_array(shape):
        raise HubError(f"{path}: {short(name)}: no array has the shape {short(shape)}")
    begin, end = entry["data_offsets"]
    stored = np.ndarray(shape, dtype, buffer=data[begin:end])  # type: ignore[arg-type]
    # Only 0 and 1 are bools to numpy, and a file may hold any byte.
    decode = _is_set if dtype == np.bool_ else None
    stored = stored.view(np.uint8) if decode else stored
    return Tensor(name, str(path), shape, dtype, stored, decode)


def _is_set(stored: np.ndarray) -> np.ndarray:
    return stored != 0
