"""What most families of decoders share: names, and the fields of their config.json."""

from collections.abc import Container, Mapping
import dataclasses
from typing import Any

from jaxdl.core.module import Module
from jaxdl.hub.families.activations import activation
from jaxdl.hub.families.rotary import rope
from jaxdl.hub.mapping import Layers, Rule
from jaxdl.hub.reshaping import transpose
from jaxdl.models.decoder import Decoder, DecoderConfig, Layer
from jaxdl.nn.combine import layers


def linear(published: str, ours: str) -> tuple[Rule, Rule]:
    """The rules of PyTorch's Linear: weight [out, in], and bias where there is one."""
    return (
        Rule(f"{published}.weight", f"{ours}/kernel", transpose),
        Rule(f"{published}.bias", f"{ours}/bias"),
    )


def layer_norm(published: str, ours: str) -> tuple[Rule, Rule]:
    """The rules of PyTorch's LayerNorm: weight, and bias where there is one."""
    return (
        Rule(f"{published}.weight", f"{ours}/scale"),
        Rule(f"{published}.bias", f"{ours}/bias"),
    )


LAYER = "model.layers.{layer}"
BLOCK = "blocks/{layer}"

# Llama's names, which its descendants kept. Biases and norms are there where the model
# has them.
EMBEDDING = (
    Rule("model.embed_tokens.weight", "embed/embedding"),
    Rule("model.norm.weight", "norm/scale"),
    Rule("lm_head.weight", "head/kernel", transpose),
)
ATTENTION = (
    *linear(f"{LAYER}.self_attn.q_proj", f"{BLOCK}/attn/q"),
    *linear(f"{LAYER}.self_attn.k_proj", f"{BLOCK}/attn/k"),
    *linear(f"{LAYER}.self_attn.v_proj", f"{BLOCK}/attn/v"),
    *linear(f"{LAYER}.self_attn.o_proj", f"{BLOCK}/attn/out"),
    Rule(f"{LAYER}.self_attn.q_norm.weight", f"{BLOCK}/attn/q_norm/scale"),
    Rule(f"{LAYER}.self_attn.k_norm.weight", f"{BLOCK}/attn/k_norm/scale"),
)
FEED_FORWARD = (
    *linear(f"{LAYER}.mlp.gate_proj", f"{BLOCK}/mlp/gate"),
    *linear(f"{LAYER}.mlp.up_proj", f"{BLOCK}/mlp/up"),
    *linear(f"{LAYER}.mlp.down_proj", f"{BLOCK}/mlp/down"),
)
PRE_NORMS = (
    Rule(f"{LAYER}.input_layernorm.weight", f"{BLOCK}/attn_norm/scale"),
    Rule(f"{LAYER}.post_attention_layernorm.weight", f"{BLOCK}/mlp_norm/scale"),
)
IGNORED = ("*.rotary_emb.inv_freq", "*.attn.bias", "*.attn.masked_bias")


def experts(block: str, names: Mapping[str, str]) -> tuple[Rule, ...]:
    """The rules of experts that are published one by one, by our name of each part."""
    return tuple(
        Rule(
            f"{LAYER}.{block}.experts.{{expert}}.{published}.weight",
            f"{BLOCK}/mlp/experts/{ours}/kernel",
            transpose,
        )
        for ours, published in names.items()
    )


def with_experts(
    layers: tuple[Layer, ...], experts: Module, dense: Container[int] = ()
) -> tuple[Layer, ...]:
    """The layers with experts in place of the feed-forward part, but for some."""
    return tuple(
        layer if i in dense else dataclasses.replace(layer, mlp=experts)
        for i, layer in enumerate(layers)
    )


def decoder_config(config: Mapping[str, Any], **changes: Any) -> DecoderConfig:
    """A decoder's configuration from Llama's fields; `changes` are the family's."""
    heads, dim = config["num_attention_heads"], config["hidden_size"]
    head_dim = config.get("head_dim") or dim // heads
    fields = {
        "vocab_size": config["vocab_size"],
        "seq_len": config["max_position_embeddings"],
        "dim": dim,
        "num_layers": config["num_hidden_layers"],
        "num_heads": heads,
        "num_kv_heads": config.get("num_key_value_heads") or heads,
        "head_dim": head_dim,
        "hidden": config["intermediate_size"],
        "gated": True,
        "activation": activation(config.get("hidden_act", "silu")),
        "norm": "rms",
        "epsilon": config.get("rms_norm_eps", 1e-6),
        "positions": "rope",
        "layers": each_layer(config, head_dim),
        "bias": bool(config.get("mlp_bias", False)),
        "qkv_bias": bool(config.get("attention_bias", False)),
        "out_bias": bool(config.get("attention_bias", False)),
        "tie_embeddings": bool(config.get("tie_word_embeddings", False)),
    }
    return DecoderConfig(**{**fields, **changes})


def each_layer(config: Mapping[str, Any], head_dim: int) -> tuple[Layer, ...]:
    """One `Layer` for each: its window, and its rotation where those differ."""
    number = config["num_hidden_layers"]
    window = config.get("sliding_window")
    kinds = config.get("layer_types")
    if kinds is None:
        kinds = ["sliding_attention" if window else "full_attention"] * number
    turning = config.get("no_rope_layers") or [1] * number
    return tuple(
        Layer(
            rope(config, head_dim, kind=kind) if turns else None,
            window if kind == "sliding_attention" else None,
        )
        for kind, turns in zip(kinds, turning, strict=True)
    )


def layer_table(model: Decoder) -> Layers:
    """Where each layer's weights stand among the stacked ones."""
    return layers(model.blocks)
