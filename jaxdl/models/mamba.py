"""Mamba's block: one layer that mixes along time, on a residual stream."""

from typing import Any

from jaxtyping import Array, Float, Int

from jaxdl.core.module import Module
from jaxdl.core.tap_primitive import tap
from jaxdl.models.block import residual


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
    ) -> Any:
        y = self.norm(params["norm"], tap(x, "resid_pre"))
        y = self.mixer(
            params["mixer"],
            y,
            segment_ids=segment_ids,
            positions=positions,
            cache=cache,
        )
        if cache is not None:
            y, cache = y
        x = residual(x + y, "resid_post")
        return x if cache is None else (x, cache)

    def init_cache(self, *sizes: Any, **options: Any) -> Any:
        """The mixer's state before any token; see `nn.Mamba`."""
        return self.mixer.init_cache(*sizes, **options)  # type: ignore[attr-defined]
