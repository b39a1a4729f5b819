"""ViT and DINOv2, with registers too: published backbones, classifiers of images."""

from collections.abc import Mapping
from typing import Any

import jax

from jaxdl.hub.families.activations import activation
from jaxdl.hub.families.common import BLOCK, layer_norm, layer_table, linear
from jaxdl.hub.families.family import Family
from jaxdl.hub.families.heads import num_classes, published_as
from jaxdl.hub.mapping import Rule
from jaxdl.hub.reshaping import Leading, conv, transpose
from jaxdl.models.transformer import TransformerConfig
from jaxdl.models.vit import ViT, ViTConfig


def build(config: Mapping[str, Any]) -> ViT:
    """A ViT or DINOv2 of this configuration, without its dropout."""
    vit = config["model_type"] == "vit"
    sizes = vit_sizes(config) if vit else dinov2_sizes(config)
    inner = TransformerConfig(
        dim=config["hidden_size"],
        num_layers=config["num_hidden_layers"],
        num_heads=config["num_attention_heads"],
        qkv_bias=config.get("qkv_bias", True),
        **sizes,
    )
    registers = config["model_type"] == "dinov2_with_registers"
    classifies = published_as(config, "ForImageClassification")
    return ViT(
        ViTConfig(
            image_size=pair(config["image_size"]),
            patch=pair(config["patch_size"]),
            in_features=config.get("num_channels", 3),
            blocks=inner,
            pool="class" if vit or not classifies else "class_mean",
            pooler=vit and published_as(config, "ViTModel"),
            num_classes=num_classes(config) if classifies else None,
            registers=config.get("num_register_tokens", 4) if registers else 0,
            # Those of ViT are for training alone, and in few files.
            mask_token=not vit and bool(config.get("use_mask_token", True)),
            antialias=registers,
        )
    )


def vit_sizes(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a ViT says of its blocks in its own way."""
    return {
        "hidden": config["intermediate_size"],
        "activation": activation(config.get("hidden_act", "gelu")),
        "epsilon": config.get("layer_norm_eps", 1e-12),
    }


def dinov2_sizes(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a DINOv2 says of its blocks in its own way."""
    gated = config.get("use_swiglu_ffn", False)
    hidden = int(config["hidden_size"] * config.get("mlp_ratio", 4))
    if gated:
        hidden = (int(hidden * 2 / 3) + 7) // 8 * 8
    act = activation(config.get("hidden_act", "gelu"))
    return {
        "hidden": hidden,
        "gated": gated,
        "activation": jax.nn.silu if gated else act,
        "epsilon": config.get("layer_norm_eps", 1e-6),
        "layer_scale": config.get("layerscale_value", 1.0),
    }


def pair(size: Any) -> tuple[int, int]:
    """Height and width, from one number for both or from two."""
    return (size, size) if isinstance(size, int) else tuple(size)


def embeddings(name: str) -> tuple[Rule, ...]:
    """The rules of the patches, the class token, the positions and the last norm."""
    patches = f"{name}.embeddings.patch_embeddings.projection"
    return (
        Rule(f"{name}.embeddings.cls_token", "class_token", Leading(2)),
        Rule(f"{name}.embeddings.position_embeddings", "position", Leading(1)),
        Rule(f"{patches}.weight", "patches/project/kernel", conv),
        Rule(f"{patches}.bias", "patches/project/bias"),
        *layer_norm(f"{name}.layernorm", "norm"),
        *linear("classifier", "head"),
    )


def attention(layer: str) -> tuple[Rule, ...]:
    """The rules of the attention of a layer."""
    return (
        *linear(f"{layer}.attention.attention.query", f"{BLOCK}/attn/q"),
        *linear(f"{layer}.attention.attention.key", f"{BLOCK}/attn/k"),
        *linear(f"{layer}.attention.attention.value", f"{BLOCK}/attn/v"),
        *linear(f"{layer}.attention.output.dense", f"{BLOCK}/attn/out"),
    )


V = "vit.encoder.layer.{layer}"
VIT = Family(
    build=build,
    rules=(
        *embeddings("vit"),
        *attention(V),
        *layer_norm(f"{V}.layernorm_before", f"{BLOCK}/attn_norm"),
        *layer_norm(f"{V}.layernorm_after", f"{BLOCK}/mlp_norm"),
        *linear(f"{V}.intermediate.dense", f"{BLOCK}/mlp/up"),
        *linear(f"{V}.output.dense", f"{BLOCK}/mlp/down"),
        *linear("vit.pooler.dense", "pooler"),
    ),
    layers=layer_table,
    ignore=("**.mask_token", "vit.pooler.dense.*"),
    prefix="vit.",
)


def feed_forward(layer: str, gated: bool) -> tuple[Rule, ...]:
    """The rules of DINOv2's feed-forward layers: those of the giant are gated."""
    if not gated:
        return (
            *linear(f"{layer}.mlp.fc1", f"{BLOCK}/mlp/up"),
            *linear(f"{layer}.mlp.fc2", f"{BLOCK}/mlp/down"),
        )
    kernels, biases = (
        tuple(f"{BLOCK}/mlp/{part}/{kind}" for part in ("gate", "up"))
        for kind in ("kernel", "bias")
    )
    return (
        Rule(f"{layer}.mlp.weights_in.weight", kernels, transpose),
        Rule(f"{layer}.mlp.weights_in.bias", biases),
        *linear(f"{layer}.mlp.weights_out", f"{BLOCK}/mlp/down"),
    )


def dinov2(config: Mapping[str, Any]) -> Family:
    """The family of a DINOv2, which is named as its `model_type`."""
    name = config["model_type"]
    layer = f"{name}.encoder.layer.{{layer}}"
    return Family(
        build=build,
        rules=(
            *embeddings(name),
            Rule(f"{name}.embeddings.mask_token", "mask_token", Leading(1)),
            Rule(f"{name}.embeddings.register_tokens", "registers", Leading(1)),
            *attention(layer),
            *layer_norm(f"{layer}.norm1", f"{BLOCK}/attn_norm"),
            *layer_norm(f"{layer}.norm2", f"{BLOCK}/mlp_norm"),
            Rule(f"{layer}.layer_scale1.lambda1", f"{BLOCK}/attn_post_norm/scale"),
            Rule(f"{layer}.layer_scale2.lambda1", f"{BLOCK}/mlp_post_norm/scale"),
            *feed_forward(layer, config.get("use_swiglu_ffn", False)),
        ),
        layers=layer_table,
        prefix=f"{name}.",
    )


FAMILIES = {"vit": VIT, "dinov2": dinov2, "dinov2_with_registers": dinov2}
