"""Qwen 3 with a mixture of experts, in all layers or in some."""

from collections.abc import Mapping
import dataclasses
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
    experts,
    layer_table,
    with_experts,
)
from jaxdl.hub.families.family import Family
from jaxdl.hub.families.llama import window_of_qwen
from jaxdl.hub.mapping import Rule
from jaxdl.hub.reshaping import transpose
from jaxdl.models.decoder import Decoder
from jaxdl.nn.moe import MoE
from jaxdl.nn.router import Router


def build(config: Mapping[str, Any]) -> Decoder:
    """A Qwen3-MoE of this configuration."""
    dim, top_k = config["hidden_size"], config["num_experts_per_tok"]
    # `num_experts` in published files, `num_local_experts` in some later ones.
    number = config.get("num_experts") or config["num_local_experts"]
    router = Router(dim, number, top_k, normalize=config.get("norm_topk_prob", False))
    mixture = MoE(
        dim,
        config["moe_intermediate_size"],
        number,
        top_k,
        activation=activation(config.get("hidden_act", "silu")),
        router=router,
    )
    config = {**config, **window_of_qwen(config)}
    plain = decoder_config(config, qk_norm="head")
    step = config.get("decoder_sparse_step", 1)
    dense = {i for i in range(plain.num_layers) if (i + 1) % step}
    dense |= set(config.get("mlp_only_layers") or ())
    layers = with_experts(plain.each_layer(), mixture, dense)
    return Decoder(dataclasses.replace(plain, layers=layers))


QWEN3_MOE = Family(
    build=build,
    rules=(
        *EMBEDDING,
        *PRE_NORMS,
        *ATTENTION,
        Rule(f"{LAYER}.mlp.gate.weight", f"{BLOCK}/mlp/router/kernel", transpose),
        *experts("mlp", {n: f"{n}_proj" for n in ("gate", "up", "down")}),
        *FEED_FORWARD,
    ),
    layers=layer_table,
    ignore=IGNORED,
)
FAMILIES = {"qwen3_moe": QWEN3_MOE}
