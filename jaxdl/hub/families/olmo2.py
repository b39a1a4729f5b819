"""OLMo 2: norms after attention and feed-forward, norms of all heads together."""

from collections.abc import Mapping
from typing import Any

from jaxdl.hub.families.common import (
    ATTENTION,
    BLOCK,
    EMBEDDING,
    FEED_FORWARD,
    IGNORED,
    LAYER,
    decoder_config,
    layer_table,
)
from jaxdl.hub.families.family import Family
from jaxdl.hub.mapping import Rule
from jaxdl.models.decoder import Decoder


def build(config: Mapping[str, Any]) -> Decoder:
    """An OLMo 2 of this configuration."""
    return Decoder(decoder_config(config, norm_place="post", qk_norm="all"))


POST_NORMS = (
    Rule(f"{LAYER}.post_attention_layernorm.weight", f"{BLOCK}/attn_post_norm/scale"),
    Rule(f"{LAYER}.post_feedforward_layernorm.weight", f"{BLOCK}/mlp_post_norm/scale"),
)
OLMO2 = Family(
    build=build,
    rules=(*EMBEDDING, *POST_NORMS, *ATTENTION, *FEED_FORWARD),
    layers=layer_table,
    ignore=IGNORED,
)
FAMILIES = {"olmo2": OLMO2}
