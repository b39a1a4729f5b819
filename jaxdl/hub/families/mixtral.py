"""Mixtral: a Mistral with a mixture of experts in every layer."""

from collections.abc import Mapping
import dataclasses
from typing import Any

from jaxdl.hub.families.activations import activation
from jaxdl.hub.families.common import (
    ATTENTION,
    BLOCK,
    EMBEDDING,
    IGNORED,
    LAYER,
    PRE_NORMS,
    decoder_config,
    experts,
    layer_table,
    with_experts,
)
from jaxdl.hub.families.family import Family
from jaxdl.hub.mapping import Rule
from jaxdl.hub.reshaping import transpose
from jaxdl.models.decoder import Decoder
from jaxdl.nn.moe import MoE


def build(config: Mapping[str, Any]) -> Decoder:
    """A Mixtral of this configuration."""
    mixture = MoE(
        config["hidden_size"],
        config["intermediate_size"],
        config["num_local_experts"],
        config["num_experts_per_tok"],
        activation=activation(config.get("hidden_act", "silu")),
    )
    plain = decoder_config(config)
    layers = with_experts(plain.each_layer(), mixture)
    return Decoder(dataclasses.replace(plain, layers=layers))


MIXTRAL = Family(
    build=build,
    rules=(
        *EMBEDDING,
        *PRE_NORMS,
        *ATTENTION,
        Rule(
            f"{LAYER}.block_sparse_moe.gate.weight",
            f"{BLOCK}/mlp/router/kernel",
            transpose,
        ),
        *experts("block_sparse_moe", {"gate": "w1", "down": "w2", "up": "w3"}),
    ),
    layers=layer_table,
    ignore=IGNORED,
)
FAMILIES = {"mixtral": MIXTRAL}
