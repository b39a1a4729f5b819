"""gpt-oss: sinks, windows in every other layer, experts with bounded activations."""

from collections.abc import Mapping
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxdl.hub.families.common import (
    ATTENTION,
    BLOCK,
    EMBEDDING,
    IGNORED,
    LAYER,
    PRE_NORMS,
    decoder_config,
    layer_table,
    linear,
    with_experts,
)
from jaxdl.hub.families.family import Family
from jaxdl.hub.files import HubError
from jaxdl.hub.mapping import Rule
from jaxdl.hub.mxfp4 import unpacked
from jaxdl.hub.reshaping import identity, transpose
from jaxdl.models.decoder import Decoder
from jaxdl.nn.moe import MoE
from jaxdl.nn.router import Router


@dataclasses.dataclass(frozen=True)
class BoundedGLU:
    """gate sigmoid(alpha gate) (up + 1), gate below the limit, up within it."""

    alpha: float = 1.702
    limit: float = 7.0

    def __call__(self, gate: jax.Array, up: jax.Array) -> jax.Array:
        gate = jnp.minimum(gate, self.limit)
        up = jnp.clip(up, -self.limit, self.limit)
        return gate * jax.nn.sigmoid(self.alpha * gate) * (up + 1)


def build(config: Mapping[str, Any]) -> Decoder:
    """A gpt-oss of this configuration."""
    kinds = ["full_attention" if i % 2 else "sliding_attention"
             for i in range(config["num_hidden_layers"])]  # fmt: skip
    config = {"layer_types": kinds, "attention_bias": True, **config}
    dim, number = config["hidden_size"], config["num_local_experts"]
    top_k = config["num_experts_per_tok"]
    glu = BoundedGLU(config.get("swiglu_alpha", 1.702), config.get("swiglu_limit", 7.0))
    mixture = MoE(
        dim,
        config["intermediate_size"],
        number,
        top_k,
        glu=glu,
        bias=True,
        router=Router(dim, number, top_k, "top_k", bias=True),
    )
    plain = decoder_config(config, sinks=True)
    layers = with_experts(plain.each_layer(), mixture)
    return Decoder(dataclasses.replace(plain, layers=layers))


EXPERTS = f"{LAYER}.mlp.experts"
GATE_UP = {
    kind: tuple(f"{BLOCK}/mlp/experts/{name}/{kind}" for name in ("gate", "up"))
    for kind in ("kernel", "bias")
}


def gpt_oss(config: Mapping[str, Any]) -> Family:
    """The family of a gpt-oss: experts in MXFP4 are published as rows [out, in]."""
    method = (config.get("quantization_config") or {}).get("quant_method", "mxfp4")
    if method != "mxfp4":
        raise HubError(f"quant_method: expected mxfp4, got {method!r}")
    four_bits = bool(config.get("quantization_config"))
    kernel, axis = (transpose, -2) if four_bits else (identity, -1)
    return Family(
        build=build,
        rules=(
            *EMBEDDING,
            *PRE_NORMS,
            *ATTENTION,
            Rule(f"{LAYER}.self_attn.sinks", f"{BLOCK}/attn/sinks"),
            *linear(f"{LAYER}.mlp.router", f"{BLOCK}/mlp/router"),
            # Columns of gate and up take turns.
            Rule(f"{EXPERTS}.gate_up_proj", GATE_UP["kernel"], kernel, axis, -1),
            Rule(f"{EXPERTS}.gate_up_proj_bias", GATE_UP["bias"], axis=-1, groups=-1),
            Rule(f"{EXPERTS}.down_proj", f"{BLOCK}/mlp/experts/down/kernel", kernel),
            Rule(f"{EXPERTS}.down_proj_bias", f"{BLOCK}/mlp/experts/down/bias"),
        ),
        layers=layer_table,
        ignore=IGNORED,
        view=unpacked if four_bits else lambda tensors: tensors,
    )


FAMILIES = {"gpt_oss": gpt_oss}
