"""A transformer's block: attention and a feed-forward layer on a residual stream."""

from typing import Any

from jaxtyping import Array, Bool, Float, Int

from jaxdl.core import init as initializers
from jaxdl.core.keys import MISSING, OptionalKey, split
from jaxdl.core.layout import constrain
from jaxdl.core.module import Module
from jaxdl.core.naming import expect
from jaxdl.core.tap_primitive import tap
from jaxdl.nn.attention import Attention
from jaxdl.nn.dropout import Dropout
from jaxdl.nn.feed_forward import FeedForward
from jaxdl.nn.linear import Linear
from jaxdl.nn.norm import LayerNorm, RMSNorm
from jaxdl.nn.routing import run


class Block(Module):
    """x + attn(x), then x + mlp(x), with norms: [batch, seq, dim] -> the same.

    A norm stands before a layer, after it, both, or not at all (None); a sum norm takes
    in the stream itself, once the layer is added to it (Vaswani et al. 2017). With
    `cross` it reads a memory [batch, memory_seq, dim] between the two; `memory_mask`
    [batch, memory_seq] is False where that is padding.

    Given a cache it returns (x, cache). With `cross` that is {"attn": ..., "memory":
    what `Attention.remember` made of the memory}, and it returns the first alone, as
    the second does not change. Where there are n times as many rows of x, each row of
    that memory is read by n of them, one after the other.
    """

    attn_norm: Module | None
    attn: Module
    attn_post_norm: Module | None
    mlp_norm: Module | None
    mlp: Module
    mlp_post_norm: Module | None
    drop: Module
    attn_sum_norm: Module | None = None
    mlp_sum_norm: Module | None = None
    cross_norm: Module | None = None
    cross: Module | None = None

    def __call__(
        self,
        params,
        x: Float[Array, "batch seq dim"],
        *,
        key: OptionalKey = MISSING,
        mask: Bool[Array, "..."] | None = None,
        score_bias: Float[Array, "..."] | None = None,
        segment_ids: Int[Array, "batch seq"] | None = None,
        positions: Int[Array, "..."] | None = None,
        memory: Any = None,
        memory_mask: Bool[Array, "batch memory_seq"] | None = None,
        cache: Any = None,
    ) -> Any:
        attn_key, drop_key, mlp_key = split(key, 3)
        if self.cross is not None and cache is not None:
            memory, cache = cache["memory"], cache["attn"]
        needs = "a memory" if self.cross is not None else "no memory without `cross`"
        expect((memory is None) == (self.cross is None), needs, memory)
        x = tap(x, "resid_pre")
        y = self._normed(params, "attn_norm", x)
        given = {"mask": mask, "score_bias": score_bias, "segment_ids": segment_ids}
        given |= {"positions": positions, "key": attn_key}
        y, new = run(self.attn, params["attn"], y, cache, given)
        y = self._normed(params, "attn_post_norm", y)
        y = self.drop(params["drop"], y, key=drop_key)
        x = residual(self._normed(params, "attn_sum_norm", x + y), "resid_mid")
        if self.cross is not None:
            x = self._read(params, x, memory, memory_mask, drop_key)
        y = self._normed(params, "mlp_norm", x)
        y, _ = run(self.mlp, params["mlp"], y, None, {"key": mlp_key})
        y = self._normed(params, "mlp_post_norm", y)
        x = residual(self._normed(params, "mlp_sum_norm", x + y), "resid_post")
        return x if cache is None else (x, new)

    def init_cache(self, *sizes: Any, **options: Any) -> Any:
        """An empty cache of the attention; see `Attention.init_cache`."""
        return self.attn.init_cache(*sizes, **options)  # type: ignore[attr-defined]

    def _read(self, params, x, memory, memory_mask, key):
        """Adds what the cross-attention finds in the memory."""
        cross_key, drop_key = split(key, 2)
        mask = None if memory_mask is None else memory_mask[:, None, None]
        y = self._normed(params, "cross_norm", x)
        if hasattr(memory, "positions"):
            # A memory has no order: those that read one row of it are its queries.
            rows = memory.positions.shape[0]
            expect(len(y) % rows == 0, f"a multiple of the memory's {rows} rows", y)
            y = y.reshape(rows, -1, y.shape[-1])
        given = {"memory": memory, "mask": mask, "key": cross_key}
        y, _ = run(self.cross, params["cross"], y, None, given)  # type: ignore[arg-type]
        y = y.reshape(x.shape)
        y = self.drop(params["drop"], y, key=drop_key)
        return residual(x + y, "resid_cross")

    def _normed(self, params, name: str, x):
        norm = getattr(self, name)
        return x if norm is None else norm(params[name], x)


def residual(
    x: Float[Array, "batch seq dim"], name: str
) -> Float[Array, "batch seq dim"]:
    """The residual stream as it is written: named, and where the mesh has it."""
    return tap(constrain(x, "batch", "sequence", "embed"), name)


def scores(
    logits: Float[Array, "... vocab"],
) -> Float[Array, "... vocab"]:
    """The scores of every token, named, and where the mesh has them."""
    if logits.ndim == 3:  # those of single states are small
        logits = constrain(logits, "batch", "sequence", "vocab")
    return tap(logits, "logits")


def block(config: Any, layer: Any) -> Block:
    """One block of a decoder of this configuration (`DecoderConfig`, `Layer`)."""
    before = norm(config, config.dim) if config.norm_place != "post" else None
    after = norm(config, config.dim) if config.norm_place != "pre" else None
    return Block(
        attn_norm=before,
        attn=layer.attn or attention(config, layer),
        attn_post_norm=after,
        mlp_norm=before,
        mlp=layer.mlp or feed_forward(config),
        mlp_post_norm=after,
        drop=Dropout(config.dropout),
    )


def attention(config: Any, layer: Any) -> Attention:
    """The attention of one layer."""
    width, heads = config.width, config.num_heads
    kv_heads = config.num_kv_heads or heads
    qkv_bias = config.bias if config.qkv_bias is None else config.qkv_bias
    out_bias = config.bias if config.out_bias is None else config.out_bias
    q_norm = k_norm = None
    if config.qk_norm is not None:
        every = config.qk_norm == "all"
        q_norm = norm(config, heads * width if every else width, axis=None)
        k_norm = norm(config, kv_heads * width if every else width, axis=None)
    return Attention(
        config.dim,
        heads,
        kv_heads,
        width,
        causal=True,
        window=layer.window,
        rope=layer.rope,
        softcap=config.softcap,
        scale=config.scale,
        bias=qkv_bias,
        sinks=config.sinks,
        dropout=config.dropout,
        kernel_init=initializers.normal(0.02),
        implementation=config.attention,
        q_norm=q_norm,
        k_norm=k_norm,
        out=Linear(
            heads * width, config.dim, out_bias, ("heads", "embed"),
            residual_init(config),
        ),
    )  # fmt: skip


def feed_forward(config: Any) -> FeedForward:
    """The feed-forward layer of a configuration."""
    return FeedForward(
        config.dim,
        config.hidden,
        config.activation,
        config.bias,
        config.dropout,
        config.gated,
        kernel_init=initializers.normal(0.02),
        out_init=residual_init(config),
    )


def norm(config: Any, features: int, axis: str | None = "embed") -> Module:
    """A norm of the configuration's kind."""
    if config.norm == "rms":
        return RMSNorm(features, config.epsilon, axis, config.unit_offset)
    return LayerNorm(features, config.epsilon, bias=config.bias, axis=axis)


def residual_init(config: Any) -> Any:
    """How a kernel starts that writes to the residual stream."""
    return initializers.normal(0.02 / (2 * config.num_layers) ** 0.5)
