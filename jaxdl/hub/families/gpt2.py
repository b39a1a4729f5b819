"""GPT-2: its kernels are published [in, out], queries, keys and values in one."""

from collections.abc import Mapping
from typing import Any

from jaxdl.hub.families.activations import activation
from jaxdl.hub.families.common import BLOCK, IGNORED, layer_table
from jaxdl.hub.families.family import Family
from jaxdl.hub.mapping import Rule
from jaxdl.hub.reshaping import transpose
from jaxdl.models.decoder import Decoder, DecoderConfig


def build(config: Mapping[str, Any]) -> Decoder:
    """A GPT-2 of this configuration, without its dropout."""
    return Decoder(
        DecoderConfig(
            vocab_size=config["vocab_size"],
            seq_len=config["n_positions"],
            dim=config["n_embd"],
            num_layers=config["n_layer"],
            num_heads=config["n_head"],
            hidden=config.get("n_inner"),
            activation=activation(config.get("activation_function", "gelu_new")),
            epsilon=config.get("layer_norm_epsilon", 1e-5),
            tie_embeddings=config.get("tie_word_embeddings", True),
        )
    )


def _both(published: str, ours: str | tuple[str, ...], weight: str) -> tuple[Rule, ...]:
    """The rules of a weight and its bias."""
    ours = (ours,) if isinstance(ours, str) else ours
    return (
        Rule(
            f"{published}.weight", tuple(f"{path}/{weight}" for path in ours), axis=-1
        ),
        Rule(f"{published}.bias", tuple(f"{path}/bias" for path in ours)),
    )


H = "transformer.h.{layer}"
QKV = tuple(f"{BLOCK}/attn/{name}" for name in ("q", "k", "v"))
GPT2 = Family(
    build=build,
    rules=(
        Rule("transformer.wte.weight", "embed/embedding"),
        Rule("transformer.wpe.weight", "position/embedding"),
        *_both(f"{H}.ln_1", f"{BLOCK}/attn_norm", "scale"),
        *_both(f"{H}.attn.c_attn", QKV, "kernel"),
        *_both(f"{H}.attn.c_proj", f"{BLOCK}/attn/out", "kernel"),
        *_both(f"{H}.ln_2", f"{BLOCK}/mlp_norm", "scale"),
        *_both(f"{H}.mlp.c_fc", f"{BLOCK}/mlp/up", "kernel"),
        *_both(f"{H}.mlp.c_proj", f"{BLOCK}/mlp/down", "kernel"),
        *_both("transformer.ln_f", "norm", "scale"),
        Rule("lm_head.weight", "head/kernel", transpose),
    ),
    layers=layer_table,
    ignore=IGNORED,
    prefix="transformer.",
)
FAMILIES = {"gpt2": GPT2}
