"""Models in one GGUF file: llama.cpp's names and keys, for families that we have."""

from collections.abc import Callable, Mapping
import dataclasses
from typing import Any

import numpy as np

from jaxdl.hub.families.family import Family, family_of
from jaxdl.hub.families.gguf_metadata import Metadata, read_config, source
from jaxdl.hub.families.gguf_tables import MIXED, TABLES
from jaxdl.hub.files import HubError, short
from jaxdl.hub.mapping import Rule
from jaxdl.hub.reshaping import (
    LogOfNegative,
    PairedRows,
    Plus,
    Reshape,
    Transform,
    chain,
    conv,
    identity,
    transpose,
)
from jaxdl.hub.tensors import Computed, Tensor, Tensors

BLOCK, OURS = "blk.{layer}", "blocks/{layer}"
Config = Mapping[str, Any]


def gguf_family(tensors: Tensors) -> tuple[dict[str, Any], Family]:
    """What config.json would say of a GGUF file, and the family with its names.

    Raises HubError for an architecture that is not among `TABLES`, and for a key of
    its metadata whose meaning is not known: it may change what is computed.
    """
    architecture = tensors.metadata.get("general.architecture")
    known = [name for name in RULES if name != MIXED]
    if architecture not in known:
        raise HubError(
            f"{source(tensors)}: general.architecture: expected one of "
            f"{', '.join(known)}, got {short(architecture)}"
        )
    metadata = Metadata(tensors, architecture)
    mixed = architecture == "llama" and metadata.get("expert_count", int, 0)
    kind = MIXED if mixed else architecture
    config = read_config(TABLES[kind], metadata)
    rules = (*OUTER, *RULES[kind](config))
    family = dataclasses.replace(
        family_of(config), rules=rules, ignore=FACTORS, prefix="", view=heads_joined
    )
    return config, family


# Of positions; they are a part of the configuration.
FACTORS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
OUTER = (
    Rule("token_embd.weight", "embed/embedding"),
    Rule("output.weight", "head/kernel", transpose),
)


def linear(
    published: str, ours: str | tuple[str, ...], rows: Transform = identity
) -> tuple[Rule, Rule]:
    """The rules of a linear layer of a block; its outputs are rows [out, in]."""
    paths = (ours,) if isinstance(ours, str) else ours
    kernels, biases = (
        tuple(f"{OURS}/{path}/{kind}" for path in paths) for kind in ("kernel", "bias")
    )
    return (
        Rule(f"{BLOCK}.{published}.weight", kernels, chain(rows, transpose)),
        Rule(f"{BLOCK}.{published}.bias", biases, rows),
    )


def linears(names: Mapping[str, str | tuple[str, ...]]) -> tuple[Rule, ...]:
    """The rules of several linear layers, by llama.cpp's name of each."""
    return tuple(rule for pair in names.items() for rule in linear(*pair))


def norms(names: Mapping[str, str], scale: Transform = identity) -> tuple[Rule, ...]:
    """The rules of norms in blocks, by llama.cpp's name of each, and of the last."""
    each = {f"{BLOCK}.{name}": f"{OURS}/{ours}" for name, ours in names.items()}
    return tuple(
        rule
        for name, ours in (each | {"output_norm": "norm"}).items()
        for rule in (
            Rule(f"{name}.weight", f"{ours}/scale", scale),
            Rule(f"{name}.bias", f"{ours}/bias"),
        )
    )


PRE = {"attn_norm": "attn_norm", "ffn_norm": "mlp_norm"}
QK = {"attn_q_norm": "attn/q_norm", "attn_k_norm": "attn/k_norm"}
POST = {"post_attention_norm": "attn_post_norm", "post_ffw_norm": "mlp_post_norm"}
OUT = {"attn_output": "attn/out"}
QKV = {"attn_q": "attn/q", "attn_k": "attn/k", "attn_v": "attn/v", **OUT}
FUSED = {"attn_qkv": ("attn/q", "attn/k", "attn/v"), **OUT}
PLAIN_MLP = {"ffn_up": "mlp/up", "ffn_down": "mlp/down"}
MLP = {"ffn_gate": "mlp/gate", **PLAIN_MLP}
EXPERTS = {f"ffn_{n}_exps": f"mlp/experts/{n}" for n in ("gate", "up", "down")}
ROUTER = {"ffn_gate_inp": "mlp/router"}
MOE = {**ROUTER, **EXPERTS}
SHARED = {f"ffn_{n}_shexp": f"mlp/shared/{n}" for n in ("gate", "up", "down")}
# The converter adds the 1 that Gemma's norms add themselves.
MINUS_ONE = Plus(-1.0)


def paired(config: Config) -> tuple[Rule, ...]:
    """Attention whose rows of queries and keys stand in pairs, as Llama's own files."""
    heads = config["num_attention_heads"]
    keys = config["num_key_value_heads"] or heads
    return (
        *linear("attn_q", "attn/q", PairedRows(heads)),
        *linear("attn_k", "attn/k", PairedRows(keys)),
        *linears({"attn_v": "attn/v", **OUT}),
    )


def gemma(names: Mapping[str, str]) -> tuple[Rule, ...]:
    """The rules of a Gemma with these norms."""
    return (*norms(names, MINUS_ONE), *linears(QKV | MLP))


LATENT = {
    "attn_q": "attn/q", "attn_q_a": "attn/q_down", "attn_q_b": "attn/q_up",
    "attn_kv_a_mqa": "attn/kv_down", "attn_kv_b": "attn/kv_up", **OUT,
}  # fmt: skip
LATENT_NORMS = {"attn_q_a_norm": "attn/q_norm", "attn_kv_a_norm": "attn/kv_norm"}


def mamba(config: Config) -> tuple[Rule, ...]:
    """The rules of a Mamba: its convolution lacks an axis, its decay is itself."""
    mixer, size = f"{OURS}/mixer", config["conv_kernel"]
    kernel = chain(Reshape((-1, size)), conv)
    names = {"in": "project", "x": "select", "dt": "step", "out": "out"}
    return (
        *norms({"attn_norm": "norm"}),
        *linears({f"ssm_{name}": f"mixer/{ours}" for name, ours in names.items()}),
        Rule(f"{BLOCK}.ssm_conv1d.weight", f"{mixer}/conv/kernel", kernel),
        Rule(f"{BLOCK}.ssm_conv1d.bias", f"{mixer}/conv/bias"),
        Rule(f"{BLOCK}.ssm_a", f"{mixer}/log_decay", LogOfNegative()),
        Rule(f"{BLOCK}.ssm_d", f"{mixer}/skip"),
    )


def always(*parts: tuple[Rule, ...]) -> Callable[[Config], tuple[Rule, ...]]:
    """A table that is the same for every configuration."""
    whole = tuple(rule for part in parts for rule in part)
    return lambda config: whole


# llama.cpp's name of an architecture -> its names of tensors.
RULES: dict[str, Callable[[Config], tuple[Rule, ...]]] = {
    "llama": lambda config: (*norms(PRE), *paired(config), *linears(MLP)),
    MIXED: lambda config: (*norms(PRE), *paired(config), *linears(MOE)),
    "qwen2": always(norms(PRE), linears(QKV | MLP)),
    "qwen3": always(norms(PRE | QK), linears(QKV | MLP)),
    "qwen2moe": always(
        norms(PRE),
        linears(QKV | MOE),
        linears({n: p.replace("shared", "shared/mlp") for n, p in SHARED.items()}),
        # [dim], where ours is a layer with one output.
        (
            Rule(
                f"{BLOCK}.ffn_gate_inp_shexp.weight",
                f"{OURS}/mlp/shared/gate/kernel",
                Reshape((-1,)),
            ),
        ),
    ),
    "qwen3moe": always(norms(PRE | QK), linears(QKV | MOE)),
    "gemma": always(gemma(PRE)),
    "gemma2": always(gemma(PRE | POST)),
    "gemma3": always(gemma(PRE | POST | QK)),
    "phi3": always(
        norms(PRE),
        linears(
            FUSED | {"ffn_up": ("mlp/gate", "mlp/up"), "ffn_down": "mlp/down"},
        ),
    ),
    "olmo2": always(norms(POST | QK), linears(QKV | MLP)),
    "gpt2": always(
        norms(PRE),
        linears(FUSED | PLAIN_MLP),
        (Rule("position_embd.weight", "position/embedding"),),
    ),
    "gpt-oss": always(
        norms({"attn_norm": "attn_norm", "post_attention_norm": "mlp_norm"}),
        linears(QKV | MOE),
        (Rule(f"{BLOCK}.attn_sinks.weight", f"{OURS}/attn/sinks"),),
    ),
    "deepseek2": always(
        norms(PRE | LATENT_NORMS),
        linears(LATENT | MLP | MOE | SHARED),
        (Rule(f"{BLOCK}.exp_probs_b.bias", f"{OURS}/mlp/router/correction"),),
    ),
    "mamba": mamba,
}


def heads_joined(tensors: Tensors) -> Tensors:
    """The tensors, with DeepSeek's two halves of `attn_kv_b` as the one they were.

    Newer files have them apart, of keys [head, rank, dim] and of values [head, dim,
    rank], so that either can be absorbed into its neighbour.
    """
    entries = dict(tensors)
    for name in [name for name in tensors if name.endswith(".attn_k_b.weight")]:
        stem = name.removesuffix("k_b.weight")
        if (values := entries.pop(f"{stem}v_b.weight", None)) is not None:
            whole = f"{stem}kv_b.weight"
            entries[whole] = _joined(whole, entries.pop(name), values)
    return Tensors(entries, tensors.metadata)


def _joined(name: str, keys: Tensor, values: Tensor) -> Tensor:
    shapes = keys.shape, values.shape
    if not all(len(shape) == 3 for shape in shapes) or (
        shapes[0][:2] != (shapes[1][0], shapes[1][2])
    ):
        raise HubError(
            f"{keys.file}: {keys.name}: expected [head, rank, dim] beside "
            f"[head, dim, rank], got {list(keys.shape)} and {list(values.shape)}"
        )
    heads, rank = keys.shape[:2]
    rows = heads * (keys.shape[2] + values.shape[1])

    def make() -> np.ndarray:
        both = [keys.read().swapaxes(1, 2), values.read()]
        return np.concatenate(both, axis=1).reshape(rows, rank)

    dtype = np.result_type(keys.dtype, values.dtype)
    return Tensor(name, keys.file, (rows, rank), dtype, Computed(make))
