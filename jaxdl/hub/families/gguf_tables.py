"""llama.cpp's architectures: which keys of a file are which fields of config.json."""

from collections.abc import Callable

from jaxdl.hub.families.gguf_metadata import (
    Config,
    Key,
    Metadata,
    Table,
    rotary,
    scaling,
    windows,
)

SIZES = {
    "hidden_size": Key("embedding_length"),
    "num_hidden_layers": Key("block_count"),
    "max_position_embeddings": Key("context_length"),
    "rms_norm_eps": Key("attention.layer_norm_rms_epsilon", float),
}
ATTENTION = {
    "num_attention_heads": Key("attention.head_count"),
    "num_key_value_heads": Key("attention.head_count_kv", int, None),
    "head_dim": Key("attention.key_length", int, None),
    "rope_theta": Key("rope.freq_base", float, 10_000.0),
}
LLAMA = {**SIZES, **ATTENTION, "intermediate_size": Key("feed_forward_length")}
EXPERTS = {"num_experts_per_tok": Key("expert_used_count")}


def _llama(metadata: Metadata, config: Config) -> Config:
    # No key says so: biases are there or not.
    biases = {
        field: f"blk.0.{name}.bias" in metadata.tensors
        for field, name in {"attention_bias": "attn_q", "mlp_bias": "ffn_up"}.items()
    }
    return rotary(metadata, config | biases)


def _gemma_scale(layers: int) -> Callable[[Config], float]:
    # No key holds it: llama.cpp knows the model of 27 billion by its layers.
    def scalar(config: Config) -> float:
        if config["num_hidden_layers"] == layers:
            return config["hidden_size"] / config["num_attention_heads"]
        return config["head_dim"]

    return scalar


def _gemma2(metadata: Metadata, config: Config) -> Config:
    scalar = _gemma_scale(46)(config)
    config = windows(metadata, rotary(metadata, config), 2)
    return {**config, "query_pre_attn_scalar": scalar}


def _gemma3(metadata: Metadata, config: Config) -> Config:
    scalar = _gemma_scale(62)(config)
    config = windows(metadata, rotary(metadata, config), 6)
    return {**config, "query_pre_attn_scalar": scalar}


def _phi3(metadata: Metadata, config: Config) -> Config:
    # 0 for none, and no longer than the text: llama.cpp has none for any Phi-3.
    config = {**config, "sliding_window": config["sliding_window"] or None}
    metadata.get("rope.scaling.original_context_length", int, None)
    return rotary(metadata, config)


def _gpt_oss(metadata: Metadata, config: Config) -> Config:
    config = windows(metadata, rotary(metadata, config), 2)
    if "rope_scaling" in config:
        config["rope_scaling"]["truncate"] = False
    return config


def _deepseek(metadata: Metadata, config: Config) -> Config:
    turning = config["qk_rope_head_dim"]
    whole = metadata.get("attention.key_length")
    values = metadata.get("attention.value_length")
    # Files whose attention is absorbed have the sizes of the latent there.
    whole = metadata.get("attention.key_length_mla", int, whole)
    values = metadata.get("attention.value_length_mla", int, values)
    config |= {"qk_nope_head_dim": whole - turning, "v_head_dim": values}
    given = scaling(metadata, config)
    if given:
        # The logarithm's factor times 10: llama.cpp knows no `mscale` of its own.
        scale = metadata.get("rope.scaling.yarn_log_multiplier", float, 0.0) * 10
        if scale:
            given |= {"mscale": scale, "mscale_all_dim": scale}
        config["rope_scaling"] = given
    return config


def _mamba(metadata: Metadata, config: Config) -> Config:
    return {**config, "layer_norm_epsilon": config["rms_norm_eps"]}


# What files call "llama" too: Mixtral.
MIXED = "llama with experts"
# llama.cpp's name of an architecture -> how it is read.
TABLES = {
    "llama": Table("llama", LLAMA, expected={"expert_count": 0}, finish=_llama),
    MIXED: Table(
        "mixtral",
        {**LLAMA, **EXPERTS, "num_local_experts": Key("expert_count")},
        finish=rotary,
    ),
    "qwen2": Table("qwen2", LLAMA, finish=rotary),
    "qwen3": Table("qwen3", LLAMA, finish=rotary),
    "qwen2moe": Table(
        "qwen2_moe",
        {
            **LLAMA, **EXPERTS,
            "num_experts": Key("expert_count"),
            "moe_intermediate_size": Key("expert_feed_forward_length"),
            "shared_expert_intermediate_size": Key("expert_shared_feed_forward_length"),
        },
        {"norm_topk_prob": False},
        finish=rotary,
    ),
    "qwen3moe": Table(
        "qwen3_moe",
        {
            **LLAMA, **EXPERTS,
            "num_experts": Key("expert_count"),
            "moe_intermediate_size": Key("expert_feed_forward_length"),
        },
        {"norm_topk_prob": True},
        finish=rotary,
    ),
    "gemma": Table(
        "gemma", {**LLAMA, "head_dim": Key("attention.key_length")}, finish=rotary
    ),
    "gemma2": Table(
        "gemma2",
        {
            **LLAMA,
            "head_dim": Key("attention.key_length"),
            "sliding_window": Key("attention.sliding_window", int, 4096),
            "attn_logit_softcapping": Key("attn_logit_softcapping", float, 50.0),
            "final_logit_softcapping": Key("final_logit_softcapping", float, 30.0),
        },
        finish=_gemma2,
    ),
    "gemma3": Table(
        "gemma3_text",
        {
            **LLAMA,
            "head_dim": Key("attention.key_length"),
            "rope_theta": Key("rope.freq_base", float, 1e6),
            "rope_local_base_freq": Key("rope.freq_base_swa", float, 10_000.0),
            "sliding_window": Key("attention.sliding_window", int, None),
            "final_logit_softcapping": Key("final_logit_softcapping", float, None),
        },
        finish=_gemma3,
    ),
    "phi3": Table(
        "phi3",
        {**LLAMA, "sliding_window": Key("attention.sliding_window", int, 0)},
        finish=_phi3,
    ),
    "olmo2": Table("olmo2", LLAMA, finish=rotary),
    "gpt2": Table(
        "gpt2",
        {
            "n_embd": Key("embedding_length"),
            "n_layer": Key("block_count"),
            "n_head": Key("attention.head_count"),
            "n_positions": Key("context_length"),
            "n_inner": Key("feed_forward_length"),
            "layer_norm_epsilon": Key("attention.layer_norm_epsilon", float),
        },
        unused=("attention.head_count_kv",),
    ),
    "gpt-oss": Table(
        "gpt_oss",
        {
            **SIZES, **ATTENTION, **EXPERTS,
            "num_local_experts": Key("expert_count"),
            "intermediate_size": Key("expert_feed_forward_length"),
            "sliding_window": Key("attention.sliding_window"),
        },
        {"attention_bias": True},
        unused=("feed_forward_length",),
        finish=_gpt_oss,
    ),
    "deepseek2": Table(
        "deepseek_v3",
        {
            **LLAMA, **EXPERTS,
            "head_dim": Key("rope.dimension_count"),
            "qk_rope_head_dim": Key("rope.dimension_count"),
            "q_lora_rank": Key("attention.q_lora_rank", int, None),
            "kv_lora_rank": Key("attention.kv_lora_rank"),
            "first_k_dense_replace": Key("leading_dense_block_count"),
            "n_routed_experts": Key("expert_count"),
            "n_shared_experts": Key("expert_shared_count"),
            "moe_intermediate_size": Key("expert_feed_forward_length"),
            "n_group": Key("expert_group_count"),
            "topk_group": Key("expert_group_used_count"),
            "norm_topk_prob": Key("expert_weights_norm", bool, False),
            "routed_scaling_factor": Key("expert_weights_scale", float, 1.0),
            # 2 is the sigmoid of DeepSeek-V3; without the key it is V2's softmax.
            "expert_gating_func": Key("expert_gating_func"),
        },
        expected={"expert_gating_func": 2, "nextn_predict_layers": 0},
        finish=_deepseek,
    ),
    "mamba": Table(
        "mamba",
        {
            **SIZES,
            "state_size": Key("ssm.state_size"),
            "conv_kernel": Key("ssm.conv_kernel"),
            "intermediate_size": Key("ssm.inner_size"),
            "time_step_rank": Key("ssm.time_step_rank"),
        },
        expected={"ssm.dt_b_c_rms": False},
        unused=("feed_forward_length", "attention.head_count"),
        finish=_mamba,
    ),
}  # fmt: skip
