"""IDX files, the format of MNIST and its relatives (Yann LeCun's page on MNIST)."""

import gzip
from pathlib import Path
import zlib

import numpy as np

# The third byte names the type; numbers are big-endian.
DTYPES = {8: ">u1", 9: ">i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}


def read_idx(path: str | Path) -> np.ndarray:
    """Reads an array from an IDX file, raw or gzipped, in the machine's byte order.

    Raises ValueError when the file is not IDX, is truncated or holds more than it says.
    """
    raw = _read(Path(path))
    if len(raw) < 4 or raw[:2] != b"\0\0" or raw[2] not in DTYPES:
        raise ValueError(
            f"{path}: expected an IDX file (two zero bytes, a type of {list(DTYPES)}, "
            f"the number of dimensions), got {raw[:4]!r}"
        )
    dtype, dims = np.dtype(DTYPES[raw[2]]), raw[3]
    start = 4 + 4 * dims
    if len(raw) < start:
        raise ValueError(f"{path}: ends within its header of {start} bytes")
    shape = tuple(int(size) for size in np.frombuffer(raw, ">u4", dims, offset=4))
    # Python's integers: the product of sizes out of a broken header may be anything.
    expected = dtype.itemsize
    for size in shape:
        expected *= size
    if len(raw) - start != expected:
        raise ValueError(
            f"{path}: expected {expected} bytes for {dtype.name}{list(shape)}, got "
            f"{len(raw) - start}: the file is damaged or not whole"
        )
    array = np.frombuffer(raw, dtype, offset=start).reshape(shape)
    return array.astype(dtype.newbyteorder("="))


def _read(path: Path) -> bytes:
    raw = path.read_bytes()
    if raw[:2] != b"\x1f\x8b":
        return raw
    try:
        return gzip.decompress(raw)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path}: the gzip file is damaged or not whole") from error
