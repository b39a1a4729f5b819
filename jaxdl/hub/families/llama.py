"""Llama and those that kept its names: Mistral, Qwen 2 and 3, SmolLM 2 and 3."""

from collections.abc import Mapping
from typing import Any

from jaxdl.hub.families.common import (
    ATTENTION,
    EMBEDDING,
    FEED_FORWARD,
    IGNORED,
    PRE_NORMS,
    decoder_config,
    layer_table,
)
from jaxdl.hub.families.family import Family
from jaxdl.models.decoder import Decoder


def build(config: Mapping[str, Any]) -> Decoder:
    """A Llama, Mistral, Qwen 2, Qwen 3, SmolLM 2 or SmolLM 3 of this configuration."""
    changes: dict[str, Any] = {}
    match config["model_type"]:
        case "qwen2":
            changes = {"qkv_bias": True, "out_bias": False}
        case "qwen3":
            changes = {"qk_norm": "head"}
    config = {**config, **window_of_qwen(config)}
    return Decoder(decoder_config(config, **changes))


def window_of_qwen(config: Mapping[str, Any]) -> dict[str, Any]:
    """Qwen's window is for the layers from `max_window_layers` on, if it is used."""
    if "use_sliding_window" not in config:
        return {}
    number = config["num_hidden_layers"]
    first = config.get("max_window_layers", number)
    if not config["use_sliding_window"]:
        first = number
    kinds = [
        "full_attention" if i < first else "sliding_attention" for i in range(number)
    ]
    return {"layer_types": config.get("layer_types") or kinds}


LLAMA = Family(
    build=build,
    rules=(*EMBEDDING, *PRE_NORMS, *ATTENTION, *FEED_FORWARD),
    layers=layer_table,
    ignore=IGNORED,
)
FAMILIES = dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "smollm3"), LLAMA)
