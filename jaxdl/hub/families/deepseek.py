"""DeepSeek-V3: latent attention, experts in groups, and one that all tokens take."""

from collections.abc import Mapping
import math
from typing import Any

from jaxdl.core import init as initializers
from jaxdl.hub.families.activations import activation
from jaxdl.hub.families.common import (
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
from jaxdl.hub.families.rotary import rope
from jaxdl.hub.mapping import Rule
from jaxdl.hub.reshaping import transpose
from jaxdl.models.decoder import Decoder, Layer
from jaxdl.nn.feed_forward import FeedForward
from jaxdl.nn.latent_attention import LatentAttention
from jaxdl.nn.moe import MoE
from jaxdl.nn.router import Router


def build(config: Mapping[str, Any]) -> Decoder:
    """A DeepSeek-V3 of this configuration, without its multi-token prediction."""
    config = {**config, "head_dim": config["qk_rope_head_dim"]}
    number = config["num_hidden_layers"]
    layers = (Layer(attn=_attention(config)),) * number
    dense = range(config.get("first_k_dense_replace", 0))
    layers = with_experts(layers, _experts(config), dense)
    return Decoder(decoder_config(config, layers=layers))


def _attention(config: Mapping[str, Any]) -> LatentAttention:
    turning = config["qk_rope_head_dim"]
    rotation = rope(
        config, turning, interleaved=bool(config.get("rope_interleave", True))
    )
    scale = (config["qk_nope_head_dim"] + turning) ** -0.5
    given = config.get("rope_parameters") or config.get("rope_scaling") or {}
    # YaRN as DeepSeek uses it scales the scores by the square of its magnitude.
    factor, whole = given.get("factor", 1.0), given.get("mscale_all_dim", 0)
    kind = given.get("rope_type", given.get("type", "default"))
    if kind != "default" and whole and factor > 1:
        scale *= (0.1 * whole * math.log(factor) + 1.0) ** 2
    return LatentAttention(
        config["hidden_size"],
        config["num_attention_heads"],
        config["kv_lora_rank"],
        config["qk_nope_head_dim"],
        turning,
        config["v_head_dim"],
        rotation,
        config.get("q_lora_rank"),
        scale,
        bool(config.get("attention_bias", False)),
        kernel_init=initializers.normal(0.02),
    )


def _experts(config: Mapping[str, Any]) -> MoE:
    dim, hidden = config["hidden_size"], config["moe_intermediate_size"]
    number, top_k = config["n_routed_experts"], config["num_experts_per_tok"]
    act = activation(config.get("hidden_act", "silu"))
    shared = config.get("n_shared_experts") or 0
    return MoE(
        dim,
        hidden,
        number,
        top_k,
        activation=act,
        router=Router(
            dim,
            number,
            top_k,
            "sigmoid",
            normalize=config.get("norm_topk_prob", True),
            scale=config.get("routed_scaling_factor", 1.0),
            correction=True,
            groups=config.get("n_group", 1),
            top_groups=config.get("topk_group", 1),
        ),
        shared=FeedForward(dim, hidden * shared, act, gated=True) if shared else None,
    )


SHARED = tuple(
    Rule(
        f"{LAYER}.mlp.shared_experts.{name}_proj.weight",
        f"{BLOCK}/mlp/shared/{name}/kernel",
        transpose,
    )
    for name in ("gate", "up", "down")
)
ROUTER = (
    Rule(f"{LAYER}.mlp.gate.weight", f"{BLOCK}/mlp/router/kernel", transpose),
    Rule(f"{LAYER}.mlp.gate.e_score_correction_bias", f"{BLOCK}/mlp/router/correction"),
)
LATENT = (
    *linear(f"{LAYER}.self_attn.q_a_proj", f"{BLOCK}/attn/q_down"),
    Rule(f"{LAYER}.self_attn.q_a_layernorm.weight", f"{BLOCK}/attn/q_norm/scale"),
    *linear(f"{LAYER}.self_attn.q_b_proj", f"{BLOCK}/attn/q_up"),
    *linear(f"{LAYER}.self_attn.q_proj", f"{BLOCK}/attn/q"),
    *linear(f"{LAYER}.self_attn.kv_a_proj_with_mqa", f"{BLOCK}/attn/kv_down"),
    Rule(f"{LAYER}.self_attn.kv_a_layernorm.weight", f"{BLOCK}/attn/kv_norm/scale"),
    *linear(f"{LAYER}.self_attn.kv_b_proj", f"{BLOCK}/attn/kv_up"),
    *linear(f"{LAYER}.self_attn.o_proj", f"{BLOCK}/attn/out"),
)
DEEPSEEK = Family(
    build=build,
    rules=(
        *EMBEDDING,
        *PRE_NORMS,
        *LATENT,
        *ROUTER,
        *experts("mlp", {n: f"{n}_proj" for n in ("gate", "up", "down")}),
        *SHARED,
        *FEED_FORWARD,
    ),
    layers=layer_table,
    # Layer 61 of the published file predicts a second token; we have no use for it.
    ignore=(*IGNORED, "model.layers.61.*"),
)
FAMILIES = {"deepseek_v3": DEEPSEEK}
