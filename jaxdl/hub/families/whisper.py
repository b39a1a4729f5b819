"""Whisper: speech to text."""

from collections.abc import Mapping
from typing import Any

from jaxdl.hub.families.activations import activation
from jaxdl.hub.families.common import layer_norm, linear
from jaxdl.hub.families.family import Family
from jaxdl.hub.families.t5 import layer_tables
from jaxdl.hub.files import HubError
from jaxdl.hub.mapping import Rule
from jaxdl.hub.reshaping import conv
from jaxdl.models.transformer import TransformerConfig
from jaxdl.models.whisper import Whisper, WhisperConfig


def build(config: Mapping[str, Any]) -> Whisper:
    """A Whisper of this configuration, without its dropout."""
    if config.get("scale_embedding", False):
        raise HubError("scale_embedding: expected False, got True")
    return Whisper(
        WhisperConfig(
            vocab_size=config["vocab_size"],
            encoder=_blocks(config, "encoder"),
            decoder=_blocks(config, "decoder", causal=True, cross=True),
            mel_bins=config["num_mel_bins"],
            source_len=config["max_source_positions"],
            target_len=config["max_target_positions"],
        )
    )


def _blocks(config: Mapping[str, Any], half: str, **changes: Any) -> TransformerConfig:
    return TransformerConfig(
        dim=config["d_model"],
        num_layers=config[f"{half}_layers"],
        num_heads=config[f"{half}_attention_heads"],
        hidden=config[f"{half}_ffn_dim"],
        activation=activation(config.get("activation_function", "gelu")),
        epsilon=1e-5,
        k_bias=False,
        **changes,
    )


def attention(published: str, ours: str) -> tuple[Rule, ...]:
    """The rules of one attention, its norm with it."""
    names = {"q_proj": "q", "k_proj": "k", "v_proj": "v", "out_proj": "out"}
    return (
        *[
            rule
            for theirs, name in names.items()
            for rule in linear(f"{published}.{theirs}", f"{ours}/{name}")
        ],
        *layer_norm(f"{published}_layer_norm", f"{ours}_norm"),
    )


def half(name: str) -> tuple[Rule, ...]:
    """The rules of the blocks, positions and norm of the encoder or the decoder."""
    layer, block = f"model.{name}.layers.{{{name}}}", f"{name}/blocks/{{{name}}}"
    return (
        Rule(f"model.{name}.embed_positions.weight", f"{name}/position/embedding"),
        *layer_norm(f"model.{name}.layer_norm", f"{name}/norm"),
        *attention(f"{layer}.self_attn", f"{block}/attn"),
        *attention(f"{layer}.encoder_attn", f"{block}/cross"),
        *layer_norm(f"{layer}.final_layer_norm", f"{block}/mlp_norm"),
        *linear(f"{layer}.fc1", f"{block}/mlp/up"),
        *linear(f"{layer}.fc2", f"{block}/mlp/down"),
    )


def convolution(name: str) -> tuple[Rule, Rule]:
    """The rules of one of the two convolutions."""
    return (
        Rule(f"model.encoder.{name}.weight", f"encoder/{name}/kernel", conv),
        Rule(f"model.encoder.{name}.bias", f"encoder/{name}/bias"),
    )


WHISPER = Family(
    build=build,
    rules=(
        *convolution("conv1"),
        *convolution("conv2"),
        *half("encoder"),
        *half("decoder"),
        Rule("model.decoder.embed_tokens.weight", "decoder/embed/embedding"),
    ),
    layers=layer_tables,
    # The output layer is the embedding.
    ignore=("proj_out.weight",),
    prefix="model.",
)
FAMILIES = {"whisper": WHISPER}
