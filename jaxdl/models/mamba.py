"""Mamba's block: one layer that mixes along time, on a residual stream."""

from typing import Any

from jaxtyping import Array, Float, Int

from jaxdl.core.keys import MISSING, OptionalKey
from jaxdl.core.module import Module
from jaxdl.core.tap_primitive import tap
from jaxdl.models.block import residual
from jaxdl.nn.routing import run


class MambaBlock(Module):
    """x + mixer(norm(x)): [batch, seq, dim] -> the same; a `Layer.block` of a decoder.

    Given a cache it returns (x, cache).
    """

    norm: Module
    mixer: Module

    def __call__(
        self,
        params,
        x: Float[Array, "batch seq dim"],
        *,
        segment_ids: Int[Array, "batch seq"] | None = None,
        positions: Int[Array, "..."] | None = None,
        cache: Any = None,
        key: OptionalKey = MISSING,
    ) -> Any:
        y = self.norm(params["norm"], tap(x, "resid_pre"))
        given = {"segment_ids": segment_ids, "positions": positions, "key": key}
        y, new = run(self.mixer, params["mixer"], y, cache, given)
        x = residual(x + y, "resid_post")
        return x if cache is None else (x, new)

    def init_cache(self, *sizes: Any, **options: Any) -> Any:
        """The mixer's state before any token; see `nn.Mamba`."""
        return self.mixer.init_cache(*sizes, **options)  # type: ignore[attr-defined]
