"""Qwen 2 and 3 with a mixture of experts, in all layers or in some."""

from collections.abc import Mapping
import dataclasses
from typing import Any

import jax
from jaxtyping import Array, Float

from jaxdl.core.module import Module
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
    linear,
    with_experts,
)
from jaxdl.hub.families.family import Family
from jaxdl.hub.families.llama import window_of_qwen
from jaxdl.hub.mapping import Rule
from jaxdl.hub.reshaping import transpose
from jaxdl.models.decoder import Decoder
from jaxdl.nn.feed_forward import FeedForward
from jaxdl.nn.linear import Linear
from jaxdl.nn.moe import MoE
from jaxdl.nn.router import Router


class GatedExpert(Module):
    """The expert that every token takes, times a sigmoid: [tokens, dim] -> the same."""

    mlp: FeedForward
    gate: Linear

    def __call__(
        self, params, x: Float[Array, "tokens dim"]
    ) -> Float[Array, "tokens dim"]:
        weight = jax.nn.sigmoid(self.gate(params["gate"], x))
        return weight * self.mlp(params["mlp"], x)


def build(config: Mapping[str, Any]) -> Decoder:
    """A Qwen2-MoE or Qwen3-MoE of this configuration."""
    second = config["model_type"] == "qwen2_moe"
    changes: dict[str, Any] = {"qk_norm": "head"}
    if second:
        changes = {"qkv_bias": config.get("qkv_bias", True), "out_bias": False}
    config = {**config, **window_of_qwen(config)}
    plain = decoder_config(config, **changes)
    step = config.get("decoder_sparse_step", 1)
    dense = {i for i in range(plain.num_layers) if (i + 1) % step}
    dense |= set(config.get("mlp_only_layers") or ())
    mixture = _experts(config, shared=second)
    layers = with_experts(plain.each_layer(), mixture, dense)
    return Decoder(dataclasses.replace(plain, layers=layers))


def _experts(config: Mapping[str, Any], shared: bool) -> MoE:
    dim, top_k = config["hidden_size"], config["num_experts_per_tok"]
    # `num_experts` in published files, `num_local_experts` in some later ones.
    number = config.get("num_experts") or config["num_local_experts"]
    act = activation(config.get("hidden_act", "silu"))
    router = Router(dim, number, top_k, normalize=config.get("norm_topk_prob", False))
    common = None
    if shared:
        hidden = config["shared_expert_intermediate_size"]
        mlp = FeedForward(dim, hidden, act, bias=False, gated=True)
        common = GatedExpert(mlp, Linear(dim, 1, False))
    return MoE(
        dim,
        config["moe_intermediate_size"],
        number,
        top_k,
        activation=act,
        router=router,
        shared=common,
    )


SHARED, OURS = f"{LAYER}.mlp.shared_expert", f"{BLOCK}/mlp/shared"
QWEN_MOE = Family(
    build=build,
    rules=(
        *EMBEDDING,
        *PRE_NORMS,
        *ATTENTION,
        Rule(f"{LAYER}.mlp.gate.weight", f"{BLOCK}/mlp/router/kernel", transpose),
        *experts("mlp", {n: f"{n}_proj" for n in ("gate", "up", "down")}),
        Rule(f"{SHARED}_gate.weight", f"{OURS}/gate/kernel", transpose),
        *linear(f"{SHARED}.gate_proj", f"{OURS}/mlp/gate"),
        *linear(f"{SHARED}.up_proj", f"{OURS}/mlp/up"),
        *linear(f"{SHARED}.down_proj", f"{OURS}/mlp/down"),
        *FEED_FORWARD,
    ),
    layers=layer_table,
    ignore=IGNORED,
)
FAMILIES = dict.fromkeys(("qwen2_moe", "qwen3_moe"), QWEN_MOE)
