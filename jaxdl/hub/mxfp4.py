"""MXFP4: blocks of 32 numbers in four bits, and a power of two for each block."""

from collections.abc import Mapping
import dataclasses
import math
from typing import Any

import ml_dtypes
import numpy as np

from jaxdl.hub.files import HubError, short
from jaxdl.hub.tensors import Tensor, Tensors

BLOCKS, SCALES = "_blocks", "_scales"
BLOCK_BYTES = 16
FOUR_BITS = np.arange(16, dtype=np.uint8).view(ml_dtypes.float4_e2m1fn)
VALUES = FOUR_BITS.astype(np.float32)


def unpacked(tensors: Tensors) -> Tensors:
    """The tensors, with `x_blocks` and `x_scales` as the `x` [..., rows, n] they are.

    (Open Compute Project, "OCP Microscaling Formats", 2023; the order of the numbers
    is gpt-oss's.) Values are decoded when they are read, rows as they are asked for.
    Raises HubError for one without the other, and for shapes that do not fit.
    """
    entries = dict(tensors)
    for name in [name for name in tensors if name.endswith((BLOCKS, SCALES))]:
        stem = name.removesuffix(BLOCKS).removesuffix(SCALES)
        if name.endswith(BLOCKS) and stem not in tensors:
            entries[stem] = _whole(stem, tensors)
            del entries[name], entries[stem + SCALES]
    return Tensors(entries, tensors.metadata)


def _whole(stem: str, tensors: Mapping[str, Tensor]) -> Tensor:
    blocks, scales = tensors[stem + BLOCKS], tensors.get(stem + SCALES)
    rows = blocks.shape[:-1]
    fits = rows and blocks.shape == (*rows, BLOCK_BYTES)
    if not fits or scales is None or scales.shape != rows:
        raise HubError(
            f"{blocks.file}: {short(blocks.name)}: expected uint8 [..., n, "
            f"{BLOCK_BYTES}] and {short(stem + SCALES)} [..., n], got "
            f"{list(blocks.shape)} and {'none' if scales is None else scales.shape}"
        )
    for tensor in (blocks, scales):
        if tensor.dtype != np.uint8:
            where = f"{tensor.file}: {short(tensor.name)}"
            raise HubError(f"{where}: expected uint8, got {tensor.dtype}")
    shape = (*blocks.shape[:-2], blocks.shape[-2] * 2 * BLOCK_BYTES)
    packed = Packed(blocks.stored, scales.stored)
    return Tensor(stem, blocks.file, shape, VALUES.dtype, packed, decode)


@dataclasses.dataclass(frozen=True, eq=False)
class Packed:
    """Blocks [..., n, 16] and scales [..., n] of rows, indexed together."""

    blocks: np.ndarray
    scales: np.ndarray

    def __getitem__(self, index: Any) -> "Packed":
        return Packed(self.blocks[index], self.scales[index])


def decode(packed: Packed) -> np.ndarray:
    """The values of rows as float32 [..., 32 n]; of two in a byte the low one first."""
    blocks = packed.blocks
    values = np.empty((*blocks.shape, 2), np.float32)
    values[..., 0] = VALUES[blocks & 15]
    values[..., 1] = VALUES[blocks >> 4]
    scales = packed.scales.view(ml_dtypes.float8_e8m0fnu).astype(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        values *= scales[..., None, None]
    return values.reshape(*blocks.shape[:-2], math.prod(values.shape[-3:]))
