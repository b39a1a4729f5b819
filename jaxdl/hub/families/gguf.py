"""Models in one GGUF file: llama.cpp's names and keys, for families that we have."""

from collections.abc import Mapping
import dataclasses
from typing import Any

from jaxdl.hub.families.family import Family, family_of
from jaxdl.hub.files import HubError
from jaxdl.hub.mapping import Rule
from jaxdl.hub.reshaping import PairedRows, Transform, chain, identity, transpose

BLOCK, OURS = "blk.{layer}", "blocks/{layer}"
# llama.cpp's name of an architecture -> model_type in config.json.
ARCHITECTURES = {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}


def gguf_family(metadata: Mapping[str, Any]) -> tuple[dict[str, Any], Family]:
    """What config.json would say of a GGUF file, and the family with its names.

    Raises HubError for an architecture that is not among `ARCHITECTURES`, and for a
    scaling of positions: files keep those as tensors of their own.
    """
    architecture = metadata.get("general.architecture")
    if architecture not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise HubError(f"general.architecture: expected {known}, got {architecture!r}")
    config = _config(metadata, architecture)
    family = family_of(config)
    paired = architecture == "llama"
    return config, dataclasses.replace(family, rules=_rules(config, paired), ignore=())


def _config(metadata: Mapping[str, Any], architecture: str) -> dict[str, Any]:
    def value(key: str, default: Any = None) -> Any:
        found = metadata.get(f"{architecture}.{key}", default)
        if found is None:
            raise HubError(f"{architecture}.{key}: missing from the file's metadata")
        return found

    kind = metadata.get(f"{architecture}.rope.scaling.type", "none")
    if kind != "none":
        raise HubError(f"{architecture}.rope.scaling.type: expected none, got {kind!r}")
    heads = int(value("attention.head_count"))
    dim = int(value("embedding_length"))
    tokens = metadata.get("tokenizer.ggml.tokens")
    return {
        "model_type": ARCHITECTURES[architecture],
        "vocab_size": int(value("vocab_size", None if tokens is None else len(tokens))),
        "hidden_size": dim,
        "intermediate_size": int(value("feed_forward_length")),
        "num_hidden_layers": int(value("block_count")),
        "num_attention_heads": heads,
        "num_key_value_heads": int(value("attention.head_count_kv", heads)),
        "head_dim": int(value("attention.key_length", dim // heads)),
        "max_position_embeddings": int(value("context_length")),
        "rms_norm_eps": float(value("attention.layer_norm_rms_epsilon")),
        "rope_theta": float(value("rope.freq_base", 10_000.0)),
        "hidden_act": "silu",
        "tie_word_embeddings": False,
    }


def _rules(config: Mapping[str, Any], paired: bool) -> tuple[Rule, ...]:
    """The table of a file; in Llama's the rows of queries and keys stand in pairs."""
    queries = PairedRows(config["num_attention_heads"])
    keys = PairedRows(config["num_key_value_heads"])
    parts = [
        ("attn_q", "attn/q", queries if paired else None),
        ("attn_k", "attn/k", keys if paired else None),
        ("attn_v", "attn/v", None),
        ("attn_output", "attn/out", None),
        ("ffn_gate", "mlp/gate", None),
        ("ffn_up", "mlp/up", None),
        ("ffn_down", "mlp/down", None),
    ]
    norms = {
        "attn_norm": "attn_norm",
        "ffn_norm": "mlp_norm",
        "attn_q_norm": "attn/q_norm",
        "attn_k_norm": "attn/k_norm",
    }
    return (
        Rule("token_embd.weight", "embed/embedding"),
        Rule("output_norm.weight", "norm/scale"),
        Rule("output.weight", "head/kernel", transpose),
        *(rule for part in parts for rule in _linear(*part)),
        *(
            Rule(f"{BLOCK}.{published}.weight", f"{OURS}/{ours}/scale")
            for published, ours in norms.items()
        ),
    )


def _linear(published: str, ours: str, rows: Transform | None) -> tuple[Rule, Rule]:
    rows = identity if rows is None else rows
    kernel = chain(rows, transpose)
    return (
        Rule(f"{BLOCK}.{published}.weight", f"{OURS}/{ours}/kernel", kernel),
        Rule(f"{BLOCK}.{published}.bias", f"{OURS}/{ours}/bias", rows),
    )
