"""A tiny checkpoint written as GGUF, with the names of the `gguf` package.

What llama.cpp's converter changes on the way (`conversion/` there) is done here by
hand: rows in pairs, norms plus one, experts in one tensor, decays as they are.
"""

import json
import math
from pathlib import Path
import re

import gguf
import numpy as np
import safetensors.numpy

# model_type -> the architecture in files.
ARCHITECTURES = {
    "llama": "llama", "mistral": "llama", "mixtral": "llama", "qwen2_moe": "qwen2moe",
    "qwen3_moe": "qwen3moe", "gemma3_text": "gemma3", "deepseek_v3": "deepseek2",
    "gpt_oss": "gpt-oss",
}  # fmt: skip
# What writes a field of config.json.
WRITERS = {
    "hidden_size": "embedding_length", "n_embd": "embedding_length",
    "num_hidden_layers": "block_count", "n_layer": "block_count",
    "max_position_embeddings": "context_length", "n_positions": "context_length",
    "intermediate_size": "feed_forward_length",
    "num_attention_heads": "head_count", "n_head": "head_count",
    "num_key_value_heads": "head_count_kv",
    "rms_norm_eps": "layer_norm_rms_eps", "layer_norm_epsilon": "layer_norm_eps",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
    "num_local_experts": "expert_count", "num_experts": "expert_count",
    "n_routed_experts": "expert_count", "num_experts_per_tok": "expert_used_count",
    "moe_intermediate_size": "expert_feed_forward_length",
    "shared_expert_intermediate_size": "expert_shared_feed_forward_length",
    "n_shared_experts": "expert_shared_count", "n_group": "expert_group_count",
    "topk_group": "expert_group_used_count", "q_lora_rank": "q_lora_rank",
    "kv_lora_rank": "kv_lora_rank",
    "first_k_dense_replace": "leading_dense_block_count",
    "routed_scaling_factor": "expert_weights_scale", "vocab_size": "vocab_size",
}  # fmt: skip


def write_converted(
    folder: Path, path: Path, quantised: str | None = None, **more
) -> None:
    """The checkpoint in a folder as one .gguf file.

    quantised: the type of matrices, float32 unless given. more: keys of the
    architecture, as values of the metadata.
    """
    config = json.loads((folder / "config.json").read_text())
    weights = safetensors.numpy.load_file(folder / "model.safetensors")
    architecture = ARCHITECTURES.get(config["model_type"], config["model_type"])
    writer = gguf.GGUFWriter(path, architecture)
    _write_config(writer, config)
    # Whose number `transformers` takes where a file does not say it.
    writer.add_token_list([f"<{i}>" for i in range(config["vocab_size"])])
    for key, value in more.items():
        kind = writer.add_bool if isinstance(value, bool) else writer.add_uint32
        kind(f"{architecture}.{key.replace('__', '.')}", value)
    names = _name_map(architecture, len(weights))
    for name, value in _changed(config, weights):
        name = _named(names, name)
        _add(writer, name, np.ascontiguousarray(value), quantised)
    for name, value in _factors(config).items():
        writer.add_tensor(name, np.asarray(value, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add(writer, name, value, quantised) -> None:
    kind = gguf.GGMLQuantizationType[quantised or "F32"]
    if quantised is None or value.ndim < 2 or value.shape[-1] % 32:
        writer.add_tensor(name, value)
    else:
        writer.add_tensor(name, gguf.quantize(value, kind), raw_dtype=kind)


def _name_map(architecture: str, count: int):
    kinds = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}
    return gguf.get_tensor_name_map(kinds[architecture], count)


def _named(names, name: str) -> str:
    for ending in (".weight", ".bias"):
        if name.endswith(ending):
            return names.get_name(name.removesuffix(ending)) + ending
    return names.get_name(name)


def _write_config(writer: gguf.GGUFWriter, config: dict) -> None:
    kind = config["model_type"]
    if kind == "mamba":
        return _mamba(writer, config)
    for field, key in WRITERS.items():
        value = config.get(field)
        if kind == "deepseek_v3" and field == "num_key_value_heads":
            value = 1
        if value is not None:
            getattr(writer, f"add_{key}")(value)
    if config.get("head_dim") and kind != "deepseek_v3":
        writer.add_key_length(config["head_dim"])
        writer.add_value_length(config["head_dim"])
    if kind.startswith(("gemma2", "gemma3", "gpt_oss", "phi3")):
        writer.add_sliding_window(config["sliding_window"] or 0)
    if kind == "gpt2":
        writer.add_feed_forward_length(4 * config["n_embd"])
    if kind == "deepseek_v3":
        _deepseek(writer, config)
    if kind == "phi3":
        _phi3(writer, config)
    if kind == "gpt_oss":
        writer.add_expert_feed_forward_length(config["intermediate_size"])
    given = config.get("rope_parameters") or {}
    both = given.get("full_attention", given)
    if "rope_theta" in both:
        writer.add_rope_freq_base(both["rope_theta"])
    if "sliding_attention" in given:
        writer.add_rope_freq_base_swa(given["sliding_attention"]["rope_theta"])
    if both.get("rope_type") in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(both["rope_type"]))
        writer.add_rope_scaling_factor(both["factor"])
    if both.get("rope_type") == "yarn":
        writer.add_rope_scaling_orig_ctx_len(both["original_max_position_embeddings"])
    if "mscale_all_dim" in both:
        writer.add_rope_scaling_yarn_log_mul(0.1 * both["mscale_all_dim"])


def _mamba(writer, config) -> None:
    writer.add_feed_forward_length(0)
    writer.add_head_count(0)
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_context_length(2**20)
    writer.add_ssm_conv_kernel(config["conv_kernel"])
    writer.add_ssm_inner_size(config["intermediate_size"])
    writer.add_ssm_state_size(config["state_size"])
    writer.add_ssm_time_step_rank(config["time_step_rank"])
    writer.add_layer_norm_rms_eps(config["layer_norm_epsilon"])
    writer.add_ssm_dt_b_c_rms(False)


def _deepseek(writer, config) -> None:
    turning, rank = config["qk_rope_head_dim"], config["kv_lora_rank"]
    writer.add_key_length(rank + turning)
    writer.add_value_length(rank)
    writer.add_key_length_mla(config["qk_nope_head_dim"] + turning)
    writer.add_value_length_mla(config["v_head_dim"])
    writer.add_rope_dimension_count(turning)
    writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)
    writer.add_expert_weights_norm(config["norm_topk_prob"])


def _phi3(writer, config) -> None:
    head_dim = config["hidden_size"] // config["num_attention_heads"]
    partial = config["rope_parameters"].get("partial_rotary_factor", 1.0)
    original = config["original_max_position_embeddings"]
    writer.add_rope_dimension_count(int(head_dim * partial))
    writer.add_rope_scaling_orig_ctx_len(original)
    if config["rope_parameters"]["rope_type"] == "longrope":
        factor = config["max_position_embeddings"] / original
        longer = math.sqrt(1 + math.log(factor) / math.log(original))
        writer.add_rope_scaling_type(gguf.RopeScalingType.LONGROPE)
        writer.add_rope_scaling_attn_factors(longer)


def _factors(config: dict) -> dict[str, list[float]]:
    given = config.get("rope_parameters") or {}
    if given.get("rope_type") == "longrope":
        return {
            f"rope_factors_{name}.weight": given[f"{name}_factor"]
            for name in ("short", "long")
        }
    if given.get("rope_type") != "llama3":
        return {}
    width = config.get("head_dim") or config["hidden_size"] // config["n_heads"]
    wave = 2 * math.pi * given["rope_theta"] ** (np.arange(0, width, 2) / width)
    length, factor = given["original_max_position_embeddings"], given["factor"]
    low, high = given["low_freq_factor"], given["high_freq_factor"]
    smooth = (length / wave - low) / (high - low)
    between = 1 / ((1 - smooth) / factor + smooth)
    factors = np.where(wave > length / low, factor, between)
    return {"rope_freqs.weight": np.where(wave < length / high, 1.0, factors).tolist()}


def _changed(config: dict, weights: dict):
    """Names and values as the converter has them before it renames them."""
    kind = config["model_type"]
    for name, value in _stacked(weights).items():
        if name == "lm_head.weight" and config.get("tie_word_embeddings"):
            continue
        if kind in ("llama", "mistral", "mixtral") and (
            match := re.search(r"\.([qk])_proj\.", name)
        ):
            queries = config["num_attention_heads"]
            keys = config["num_key_value_heads"]
            heads = queries if match[1] == "q" else keys
            halves = value.reshape(heads, 2, -1, *value.shape[1:])
            value = halves.swapaxes(1, 2).reshape(value.shape)
        if kind.startswith("gemma") and name.endswith("norm.weight"):
            value = value + 1
        if kind == "gpt2" and re.search(r"\.c_(attn|proj|fc)\.weight", name):
            value = value.T
        if name.endswith(".A_log"):
            value = -np.exp(value)
        if name.endswith("conv1d.weight"):
            value = value.squeeze(1)
        if name.endswith("shared_expert_gate.weight"):
            value = value[0]
        if name.endswith("sinks"):
            name += ".weight"
        if name.endswith("e_score_correction_bias"):
            name = name.replace("e_score_correction_bias", "e_score_correction.bias")
        if kind == "gpt_oss" and "experts" in name:
            yield from _turns(name, value)
        elif kind == "deepseek_v3" and name.endswith("kv_b_proj.weight"):
            yield from _halves(config, name, value)
        else:
            yield name, value


def _stacked(weights: dict) -> dict:
    """Experts that are published one by one, in one tensor."""
    found: dict = {}
    for name, value in weights.items():
        match = re.search(r"\.experts\.(\d+)\.", name)
        if match is None:
            found[name] = value
            continue
        whole = name.replace(match[0], ".experts.")
        # As the package knows them: Mixtral's by another name.
        if "block_sparse_moe" in whole:
            whole = whole.removeprefix("model.")
            whole = whole.replace("block_sparse_moe", "feed_forward")
        found.setdefault(whole, {})[int(match[1])] = value
    return {
        name: np.stack([value[i] for i in sorted(value)])
        if isinstance(value, dict)
        else value
        for name, value in found.items()
    }


def _turns(name: str, value: np.ndarray):
    """gpt-oss: gate and up take turns, and kernels are the other way round."""
    bias = name.endswith("_bias")
    stem, ending = name.removesuffix("_bias"), ".bias" if bias else ".weight"
    value = value if bias else value.swapaxes(1, 2)
    if "gate_up" not in name:
        yield stem + ending, value
        return
    for start, part in enumerate(("gate", "up")):
        yield stem.replace("gate_up", part) + ending, value[:, start::2]


def _halves(config: dict, name: str, value: np.ndarray):
    """DeepSeek: the part that makes keys, transposed, and the one for values."""
    heads, still = config["num_attention_heads"], config["qk_nope_head_dim"]
    both = value.reshape(heads, -1, value.shape[-1])
    yield name.replace("kv_b", "k_b"), both[:, :still].swapaxes(1, 2)
    yield name.replace("kv_b", "v_b"), both[:, still:]
