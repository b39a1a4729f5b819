"""CLIP and SigLIP: two towers with the same names, together or each alone."""

from collections.abc import Callable, Mapping
import dataclasses
from typing import Any

from jaxdl.core.module import Module
from jaxdl.hub.families.activations import activation
from jaxdl.hub.families.common import layer_norm, linear
from jaxdl.hub.families.family import Family
from jaxdl.hub.families.heads import published_as
from jaxdl.hub.families.vit import pair
from jaxdl.hub.files import HubError
from jaxdl.hub.mapping import Layers, Rule
from jaxdl.hub.reshaping import Leading, conv, transpose
from jaxdl.models.contrastive import (
    Contrastive,
    ContrastiveConfig,
    ImageTower,
    TextTower,
)
from jaxdl.models.encoder import Encoder, EncoderConfig
from jaxdl.models.transformer import TransformerConfig
from jaxdl.models.vit import ViT, ViTConfig
from jaxdl.nn.combine import layers
from jaxdl.nn.linear import Linear

# What a tower's part of config.json leaves out is as in the smallest published model.
SIZES = {"num_hidden_layers": 12}
CLIP_TEXT = SIZES | {
    "vocab_size": 49408, "hidden_size": 512, "intermediate_size": 2048,
    "num_attention_heads": 8, "max_position_embeddings": 77, "eos_token_id": 49407,
    "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5,
}  # fmt: skip
CLIP_IMAGE = SIZES | {
    "hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12,
    "image_size": 224, "patch_size": 32, "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}  # fmt: skip
SIGLIP_BOTH = SIZES | {
    "hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12,
    "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6,
}  # fmt: skip
SIGLIP_TEXT = SIGLIP_BOTH | {"vocab_size": 32000, "max_position_embeddings": 64}
SIGLIP_IMAGE = SIGLIP_BOTH | {"image_size": 224, "patch_size": 16}


def build_clip(config: Mapping[str, Any]) -> Contrastive:
    """A CLIP of this configuration."""
    text = CLIP_TEXT | (config.get("text_config") or {})
    image = CLIP_IMAGE | (config.get("vision_config") or {})
    return Contrastive(
        ContrastiveConfig(
            _text(text, causal=True),
            _image(image, **OF_CLIP),
            config.get("projection_dim", 512),
            *_end(text),
        )
    )


def build_clip_text(config: Mapping[str, Any]) -> TextTower:
    """The text tower of a CLIP, with its projection where the file has it."""
    config = {**CLIP_TEXT, **config}
    text = Encoder(_text(config, causal=True))
    return TextTower(text, *_end(config), _projection(config))


def build_clip_image(config: Mapping[str, Any]) -> ImageTower:
    """The image tower of a CLIP, with its projection where the file has it."""
    config = {**CLIP_IMAGE, **config}
    return ImageTower(ViT(_image(config, **OF_CLIP)), _projection(config))


def build_siglip(config: Mapping[str, Any]) -> Contrastive:
    """A SigLIP of this configuration."""
    text = SIGLIP_TEXT | (config.get("text_config") or {})
    image = SIGLIP_IMAGE | (config.get("vision_config") or {})
    return Contrastive(
        ContrastiveConfig(
            _text(text, causal=False),
            _image(image, **OF_SIGLIP),
            text.get("projection_size") or text["hidden_size"],
            "last",
            project_image=False,
            bias=True,
        )
    )


def build_siglip_text(config: Mapping[str, Any]) -> TextTower:
    """The text tower of a SigLIP."""
    config = {**SIGLIP_TEXT, **config}
    features = config.get("projection_size") or config["hidden_size"]
    project = Linear(config["hidden_size"], features, True, ("embed", None))
    return TextTower(
        Encoder(_text(config, causal=False)), "last", text_projection=project
    )


def build_siglip_image(config: Mapping[str, Any]) -> ImageTower:
    """The image tower of a SigLIP."""
    config = {**SIGLIP_IMAGE, **config}
    if not config.get("vision_use_head", True):
        raise HubError("vision_use_head: expected True, got False")
    return ImageTower(ViT(_image(config, **OF_SIGLIP)))


OF_CLIP = {"class_token": True, "patch_bias": False, "embed_norm": True}
OF_SIGLIP = {"class_token": False, "pool": "attention"}


def _end(config: Mapping[str, Any]) -> tuple[Any, int]:
    # Older files say 2 for the end, which it is not; it is the highest token there.
    end = config["eos_token_id"]
    return ("highest" if end == 2 else "end"), end


def _projection(config: Mapping[str, Any]) -> Linear | None:
    if not published_as(config, "WithProjection"):
        return None
    features = config.get("projection_dim", 512)
    return Linear(config["hidden_size"], features, False, ("embed", None))


def _text(config: Mapping[str, Any], causal: bool) -> EncoderConfig:
    return EncoderConfig(
        config["vocab_size"],
        _blocks(config, causal=causal),
        config["max_position_embeddings"],
        token_types=0,
        embed_norm=False,
        final_norm=True,
    )


def _image(config: Mapping[str, Any], **changes: Any) -> ViTConfig:
    return ViTConfig(
        pair(config["image_size"]),
        pair(config["patch_size"]),
        config.get("num_channels", 3),
        _blocks(config),
        **changes,
    )


def _blocks(config: Mapping[str, Any], **changes: Any) -> TransformerConfig:
    return TransformerConfig(
        dim=config["hidden_size"],
        num_layers=config["num_hidden_layers"],
        num_heads=config["num_attention_heads"],
        hidden=config["intermediate_size"],
        activation=activation(config["hidden_act"]),
        epsilon=config["layer_norm_eps"],
        **changes,
    )


def layer_tables(model: Any) -> dict[str, Layers]:
    """Where the layers of each tower stand: for `{text}` and `{image}`."""
    towers = {name: getattr(model, name, None) for name in ("text", "image")}
    return {name: layers(t.blocks) for name, t in towers.items() if t is not None}


def tower(published: str, ours: str) -> tuple[Rule, ...]:
    """The rules of the blocks of one tower."""
    layer, block = f"{published}.encoder.layers.{{{ours}}}", f"{ours}/blocks/{{{ours}}}"
    return (
        *layer_norm(f"{layer}.layer_norm1", f"{block}/attn_norm"),
        *linear(f"{layer}.self_attn.q_proj", f"{block}/attn/q"),
        *linear(f"{layer}.self_attn.k_proj", f"{block}/attn/k"),
        *linear(f"{layer}.self_attn.v_proj", f"{block}/attn/v"),
        *linear(f"{layer}.self_attn.out_proj", f"{block}/attn/out"),
        *layer_norm(f"{layer}.layer_norm2", f"{block}/mlp_norm"),
        *linear(f"{layer}.mlp.fc1", f"{block}/mlp/up"),
        *linear(f"{layer}.mlp.fc2", f"{block}/mlp/down"),
    )


V, T = "vision_model.embeddings", "text_model.embeddings"
TOWERS = (
    *tower("text_model", "text"),
    *tower("vision_model", "image"),
    Rule(f"{T}.token_embedding.weight", "text/embed/embedding"),
    Rule(f"{T}.position_embedding.weight", "text/position/embedding"),
    *layer_norm("text_model.final_layer_norm", "text/norm"),
    Rule(f"{V}.patch_embedding.weight", "image/patches/project/kernel", conv),
    Rule(f"{V}.patch_embedding.bias", "image/patches/project/bias"),
    Rule(f"{V}.position_embedding.weight", "image/position"),
    *layer_norm("vision_model.post_layernorm", "image/norm"),
)
CLIP = Family(
    build=build_clip,
    rules=(
        *TOWERS,
        Rule(f"{V}.class_embedding", "image/class_token"),
        *layer_norm("vision_model.pre_layrnorm", "image/embed_norm"),
        *linear("text_projection", "text_projection"),
        *linear("visual_projection", "image_projection"),
        Rule("logit_scale", "logit_scale"),
    ),
    layers=layer_tables,
    ignore=("**.position_ids",),
)

HEAD, PROBE = "vision_model.head", "image/pool/pool"
QKV = {
    kind: tuple(f"{PROBE}/attn/{name}/{kind}" for name in ("q", "k", "v"))
    for kind in ("kernel", "bias")
}
SIGLIP = Family(
    build=build_siglip,
    rules=(
        *TOWERS,
        *linear("text_model.head", "text_projection"),
        Rule(f"{HEAD}.probe", f"{PROBE}/probe", Leading(1)),
        Rule(f"{HEAD}.attention.in_proj_weight", QKV["kernel"], transpose),
        Rule(f"{HEAD}.attention.in_proj_bias", QKV["bias"]),
        *linear(f"{HEAD}.attention.out_proj", f"{PROBE}/attn/out"),
        *layer_norm(f"{HEAD}.layernorm", "image/pool/norm"),
        *linear(f"{HEAD}.mlp.fc1", "image/pool/mlp/up"),
        *linear(f"{HEAD}.mlp.fc2", "image/pool/mlp/down"),
        Rule("logit_scale", "logit_scale", Leading(1)),
        Rule("logit_bias", "logit_bias", Leading(1)),
    ),
    layers=layer_tables,
    ignore=("**.position_ids",),
)


def alone(whole: Family, build: Callable[..., Module], prefix: str) -> Family:
    """The family of one tower, whose names a file may have without the prefix."""
    return dataclasses.replace(whole, build=build, prefix=prefix)


FAMILIES = {
    "clip": CLIP,
    "clip_text_model": alone(CLIP, build_clip_text, "text_model."),
    "clip_vision_model": alone(CLIP, build_clip_image, "vision_model."),
    "siglip": SIGLIP,
    "siglip_text_model": alone(SIGLIP, build_siglip_text, "text_model."),
    "siglip_vision_model": alone(SIGLIP, build_siglip_image, "vision_model."),
}
