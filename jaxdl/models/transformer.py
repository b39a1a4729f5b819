"""A stack of transformer blocks by configuration: of encoders, towers and decoders."""

from collections.abc import Callable
import dataclasses
from typing import Any, ClassVar, Literal

import jax
from jaxtyping import Array, Bool, Float

from jaxdl.core import init as initializers
from jaxdl.core.module import Module
from jaxdl.core.naming import expect
from jaxdl.models.block import Block, attention, feed_forward, norm
from jaxdl.models.decoder import Layer
from jaxdl.nn.attention import Attention
from jaxdl.nn.cache import KVCache
from jaxdl.nn.combine import Repeat, stack
from jaxdl.nn.dropout import Dropout
from jaxdl.nn.linear import Linear
from jaxdl.nn.scale import LayerScale


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """The sizes and choices of equal or similar blocks; the defaults are ViT-B's.

    hidden: features inside the feed-forward layer; 4 dim unless given.
    gated: a gated feed-forward layer; see `nn.FeedForward`.
    norm_place: before each layer, or "sum": of the stream after each (BERT).
    skip_first_norm: the first block's attention reads the stream as it is (ModernBERT).
    bias: of projections and norms; also of attention unless these say else:
    qkv_bias, out_bias: of the projections into attention and out of it.
    k_bias: False leaves out that of the keys alone (Whisper).
    scale: of the scores; see `nn.Attention`.
    causal: a token sees only those before it.
    cross: each block reads a memory too.
    layer_scale: where the learned scale of each layer's result starts; see
    `nn.LayerScale`.
    layers: one `Layer` for each of num_layers, where they rotate or have windows.
    dropout: of the attention pattern and the result of each layer.
    remat, attention: see `nn.Repeat` and the implementation of `nn.Attention`.

    Raises ValueError for a norm_place of another name, or another number of layers.
    """

    dim: int = 768
    num_layers: int = 12
    num_heads: int = 12
    head_dim: int | None = None
    hidden: int | None = None
    gated: bool = False
    activation: Callable[[jax.Array], jax.Array] = jax.nn.gelu
    norm: Literal["layer", "rms"] = "layer"
    norm_place: Literal["pre", "sum"] = "pre"
    skip_first_norm: bool = False
    epsilon: float = 1e-6
    bias: bool = True
    qkv_bias: bool | None = None
    out_bias: bool | None = None
    k_bias: bool = True
    scale: float | None = None
    causal: bool = False
    cross: bool = False
    layer_scale: float | None = None
    layers: tuple[Layer, ...] | None = None
    dropout: float = 0.0
    remat: bool | Callable[..., Any] = False
    attention: str | None = None

    # What `models.block` asks of a configuration and only decoders choose.
    num_kv_heads: ClassVar[None] = None
    qk_norm: ClassVar[None] = None
    softcap: ClassVar[None] = None
    sinks: ClassVar[bool] = False
    unit_offset: ClassVar[bool] = False

    def __post_init__(self):
        if self.norm_place not in ("pre", "sum"):
            raise ValueError(
                "TransformerConfig.norm_place: expected pre or sum, got "
                f"{self.norm_place!r}"
            )
        if self.layers is not None and len(self.layers) != self.num_layers:
            raise ValueError(
                f"TransformerConfig.layers: expected {self.num_layers} of them, got "
                f"{len(self.layers)}"
            )

    @property
    def width(self) -> int:
        """Features of each head."""
        return self.head_dim or self.dim // self.num_heads


def blocks(config: TransformerConfig) -> Module:
    """The blocks of a configuration, equal ones in one scan; see `nn.stack`."""
    layers = config.layers or (Layer(),) * config.num_layers
    each = [_block(config, layer) for layer in layers]
    if config.skip_first_norm:
        each[0] = dataclasses.replace(each[0], attn_norm=None)
    return stack(each, config.remat)


def _block(config: TransformerConfig, layer: Layer) -> Block:
    own = norm(config, config.dim)
    before, total = (own, None) if config.norm_place == "pre" else (None, own)
    scaled = None
    if config.layer_scale is not None:
        scaled = LayerScale(config.dim, config.layer_scale)
    return Block(
        attn_norm=before,
        attn=layer.attn or _attention(config, layer, config.causal),
        attn_post_norm=scaled,
        mlp_norm=before,
        mlp=layer.mlp or feed_forward(config),
        mlp_post_norm=scaled,
        drop=Dropout(config.dropout),
        attn_sum_norm=total,
        mlp_sum_norm=total,
        cross_norm=before if config.cross else None,
        cross=_attention(config, Layer(), False) if config.cross else None,
    )


def _attention(config: TransformerConfig, layer: Layer, causal: bool) -> Attention:
    attn = dataclasses.replace(attention(config, layer), causal=causal)
    if config.k_bias:
        return attn
    features, axes = config.num_heads * config.width, ("embed", "kv_heads")
    k = Linear(config.dim, features, False, axes, initializers.normal(0.02))
    return dataclasses.replace(attn, k=k)


def remember(
    blocks: Module,
    params: Any,
    memory: Float[Array, "batch memory_seq dim"],
    mask: Bool[Array, "batch memory_seq"] | None = None,
) -> KVCache:
    """The memory's keys and values, of all layers; `Attention.remember` for each.

    `blocks` are equal ones, as a `Repeat`; `mask` is False where the memory is padding.
    """
    assert isinstance(blocks, Repeat) and isinstance(blocks.block, Block)
    cross: Any = blocks.block.cross

    def one(layer_params):
        return cross.remember(layer_params, memory, mask=mask, key=None)

    return jax.vmap(one)(params["cross"])


def reading(memory: Any, cache: Any) -> dict[str, Any]:
    """The keywords of blocks that read a memory; with a cache what `remember` made."""
    if cache is None:
        expect(not isinstance(memory, KVCache), "a memory of states, no cache", memory)
        return {"memory": memory}
    expect(isinstance(memory, KVCache), "a remembered memory with a cache", memory)
    return {"cache": {"attn": cache, "memory": memory}}
