"""Gemma 1, 2 and 3 (text): scaled embeddings, norms that multiply by 1 + scale."""

from collections.abc import Mapping
from typing import Any

from jaxdl.hub.families.activations import activation
from jaxdl.hub.families.common import (
    ATTENTION,
    BLOCK,
    EMBEDDING,
    FEED_FORWARD,
    IGNORED,
    LAYER,
    PRE_NORMS,
    decoder_config,
    layer_table,
)
from jaxdl.hub.families.family import Family
from jaxdl.hub.mapping import Rule
from jaxdl.models.decoder import Decoder


def build(config: Mapping[str, Any]) -> Decoder:
    """A Gemma, Gemma 2 or Gemma 3 of this configuration."""
    config = {"tie_word_embeddings": True, **config}
    kind = config["model_type"]
    changes: dict[str, Any] = {
        "activation": activation(
            config.get("hidden_activation") or "gelu_pytorch_tanh"
        ),
        "embed_scale": config["hidden_size"] ** 0.5,
        "unit_offset": True,
    }
    if kind != "gemma":
        changes |= {
            "norm_place": "both",
            "scale": config["query_pre_attn_scalar"] ** -0.5,
            "softcap": config.get("attn_logit_softcapping"),
            "final_softcap": config.get("final_logit_softcapping"),
        }
        config = _alternating(config, 2 if kind == "gemma2" else 6)
    if kind == "gemma3_text":
        changes["qk_norm"] = "head"
        config = _two_rotations(config)
    return Decoder(decoder_config(config, **changes))


def _alternating(config: Mapping[str, Any], period: int) -> dict[str, Any]:
    """Every `period`th layer sees all, where the file does not say so itself."""
    period = config.get("sliding_window_pattern", period)
    kinds = [
        "sliding_attention" if (i + 1) % period else "full_attention"
        for i in range(config["num_hidden_layers"])
    ]
    return {**config, "layer_types": config.get("layer_types") or kinds}


def _two_rotations(config: dict[str, Any]) -> dict[str, Any]:
    """Gemma 3's older files: one theta for local layers, one for the others."""
    if config.get("rope_parameters"):
        return config
    scaling = config.get("rope_scaling") or {"rope_type": "default"}
    local = {"rope_theta": config.get("rope_local_base_freq", 10_000.0)}
    both = {
        "sliding_attention": {"rope_type": "default", **local},
        "full_attention": {"rope_theta": config.get("rope_theta", 1e6), **scaling},
    }
    return {**config, "rope_parameters": both}


# Gemma 2 and 3 have norms on both sides, so that this name is the one after attention.
SANDWICH = (
    Rule(f"{LAYER}.input_layernorm.weight", f"{BLOCK}/attn_norm/scale"),
    Rule(f"{LAYER}.post_attention_layernorm.weight", f"{BLOCK}/attn_post_norm/scale"),
    Rule(f"{LAYER}.pre_feedforward_layernorm.weight", f"{BLOCK}/mlp_norm/scale"),
    Rule(f"{LAYER}.post_feedforward_layernorm.weight", f"{BLOCK}/mlp_post_norm/scale"),
)
SANDWICHED = Family(
    build=build,
    rules=(*EMBEDDING, *SANDWICH, *ATTENTION, *FEED_FORWARD),
    layers=layer_table,
    ignore=IGNORED,
)
FIRST = Family(
    build=build,
    rules=(*EMBEDDING, *PRE_NORMS, *ATTENTION, *FEED_FORWARD),
    layers=layer_table,
    ignore=IGNORED,
)
FAMILIES = {"gemma": FIRST, "gemma2": SANDWICHED, "gemma3_text": SANDWICHED}
