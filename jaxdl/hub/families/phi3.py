"""Phi-3: a Llama whose projections are published fused."""

from collections.abc import Mapping
from typing import Any

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
from jaxdl.hub.reshaping import transpose
from jaxdl.models.decoder import Decoder


def build(config: Mapping[str, Any]) -> Decoder:
    """A Phi-3 of this configuration."""
    return Decoder(decoder_config(config))


QKV = tuple(f"{BLOCK}/attn/{name}/kernel" for name in ("q", "k", "v"))
GATE_UP = tuple(f"{BLOCK}/mlp/{name}/kernel" for name in ("gate", "up"))
PHI3 = Family(
    build=build,
    rules=(
        *EMBEDDING,
        *PRE_NORMS,
        Rule(f"{LAYER}.self_attn.qkv_proj.weight", QKV, transpose),
        *[rule for rule in ATTENTION if ".o_proj." in rule.published],
        Rule(f"{LAYER}.mlp.gate_up_proj.weight", GATE_UP, transpose),
        *[rule for rule in FEED_FORWARD if ".down_proj." in rule.published],
    ),
    layers=layer_table,
    ignore=IGNORED,
)
FAMILIES = {"phi3": PHI3}
