"""Every family of decoders beside `transformers`, on tiny checkpoints that it makes.

Sizes are chosen so that each feature shows: windows shorter than the sequence, few
key heads, small caps, biases and norms away from where they start.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

import jaxdl as jd
from jaxdl import hub, models, nn
from jaxdl.hub.families.family import family_of
from tests.hub.families.tiny import (
    check_decoder,
    checkpoint,
    round_trip,
    tokens,
    torch,
    transformers,
)

SIZES = {
    "vocab_size": 61, "hidden_size": 32, "intermediate_size": 40,
    "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2,
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 100.0, "factor": 4.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 16,
}  # fmt: skip
DEEPSEEK = {
    "n_routed_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 12,
    "n_group": 4, "topk_group": 2, "first_k_dense_replace": 1, "n_shared_experts": 2,
    "q_lora_rank": 16, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 6,
    "v_head_dim": 10, "num_key_value_heads": 4,
}  # fmt: skip
PAIRS = ["sliding_attention", "full_attention"] * 2
LOCAL = ["sliding_attention"] * 2 + ["full_attention"]

FAMILIES = {
    "gpt2": (
        "GPT2", {"n_embd": 32, "n_head": 4, "n_layer": 3, "n_positions": 32}
    ),
    "llama 2": ("Llama", {"num_key_value_heads": 4}),
    "llama 3.1": ("Llama", {"rope_parameters": LLAMA3, "head_dim": 12}),
    "llama 3.2, tied": ("Llama", {"tie_word_embeddings": True}),
    "llama with biases": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "mistral": ("Mistral", {"sliding_window": 4, "head_dim": 12}),
    "qwen2": ("Qwen2", {"use_sliding_window": False}),
    "qwen2, windows": (
        "Qwen2",
        {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 2},
    ),
    "qwen3": ("Qwen3", {"head_dim": 12}),
    "gemma": ("Gemma", {"head_dim": 12, "num_key_value_heads": 1}),
    "gemma2": (
        "Gemma2",
        {
            "head_dim": 12, "sliding_window": 4, "query_pre_attn_scalar": 20,
            "attn_logit_softcapping": 0.8, "final_logit_softcapping": 1.5,
        },
    ),
    "gemma3": (
        "Gemma3Text",
        {
            "head_dim": 12, "sliding_window": 4, "query_pre_attn_scalar": 20,
            "num_hidden_layers": 8, "layer_types": [*LOCAL, *LOCAL, *LOCAL[:2]],
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
                "full_attention": {
                    "rope_type": "linear", "rope_theta": 500.0, "factor": 4.0
                },
            },
        },
    ),
    "phi3": (
        "Phi3",
        {
            "sliding_window": 4,
            "rope_parameters": {
                "rope_type": "default", "rope_theta": 100.0,
                "partial_rotary_factor": 0.5,
            },
        },
    ),
    "olmo2": ("Olmo2", {}),
    "mixtral": (
        "Mixtral",
        {"num_local_experts": 5, "num_experts_per_tok": 2, "sliding_window": 4},
    ),
    "qwen3_moe": (
        "Qwen3Moe",
        {
            "num_experts": 5, "num_experts_per_tok": 3, "moe_intermediate_size": 12,
            "mlp_only_layers": [1], "norm_topk_prob": False, "head_dim": 12,
        },
    ),
    "qwen3_moe, normalised": (
        "Qwen3Moe",
        {
            "num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 12,
            "norm_topk_prob": True, "decoder_sparse_step": 2,
        },
    ),
    "deepseek_v3": ("DeepseekV3", DEEPSEEK),
    "deepseek_v3, yarn": (
        "DeepseekV3",
        {
            **DEEPSEEK, "q_lora_rank": None,
            "rope_parameters": {
                "rope_type": "yarn", "rope_theta": 100.0, "factor": 4.0,
                "original_max_position_embeddings": 16, "mscale": 1.0,
                "mscale_all_dim": 0.7,
            },
        },
    ),
    "gpt_oss": (
        "GptOss",
        {
            "num_local_experts": 5, "num_experts_per_tok": 2, "head_dim": 12,
            "sliding_window": 4, "layer_types": PAIRS, "swiglu_limit": 0.2,
            "rope_parameters": {
                "rope_type": "yarn", "rope_theta": 100.0, "factor": 4.0,
                "original_max_position_embeddings": 16, "truncate": False,
            },
        },
    ),
    "mamba": (
        "Mamba",
        {"time_step_rank": 5, "state_size": 6, "tie_word_embeddings": True},
    ),
    "smollm3": ("SmolLM3", {"no_rope_layers": [1, 1, 0, 1]}),
}  # fmt: skip


def make(folder, name):
    family, changes = FAMILIES[name]
    sizes = {"tie_word_embeddings": False, **SIZES, **changes}
    if family == "GPT2":
        sizes = {"vocab_size": 61, "bos_token_id": 1, "eos_token_id": 2, **changes}
    config = getattr(transformers, f"{family}Config")(**sizes)
    family = "Gemma3" if family == "Gemma3Text" else family
    ending = "LMHeadModel" if family == "GPT2" else "ForCausalLM"
    return checkpoint(folder, getattr(transformers, family + ending), config)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_decoder_is_that_of_transformers(name, tmp_path):
    theirs = make(tmp_path, name)
    check_decoder(tmp_path, theirs)


@pytest.mark.parametrize(
    "name", ["gpt2", "gemma3", "phi3", "mixtral", "deepseek_v3", "gpt_oss", "mamba"]
)
def test_what_is_saved_is_what_was_read(name, tmp_path):
    make(tmp_path / "theirs", name)
    round_trip(tmp_path / "theirs", tmp_path / "ours")


def without(**changes):
    """The model without some choices of its configuration."""
    return lambda config: dataclasses.replace(config, **changes)


def layers(**changes):
    """The model with every layer changed."""

    def change(config):
        new = [dataclasses.replace(layer, **changes) for layer in config.layers]
        return dataclasses.replace(config, layers=tuple(new))

    return change


def ropes(**changes):
    """The model with every rotation changed."""

    def change(config):
        new = [
            dataclasses.replace(
                layer, rope=layer.rope and dataclasses.replace(layer.rope, **changes)
            )
            for layer in config.layers
        ]
        return dataclasses.replace(config, layers=tuple(new))

    return change


LEFT_OUT = {
    "llama 3.1: its scaling": ropes(scaling=None),
    "mistral: its window": layers(window=None),
    "gemma: scaled embeddings": without(embed_scale=1.0),
    "gemma2: the cap of scores": without(softcap=None),
    "gemma2: the cap of logits": without(final_softcap=None),
    "gemma2: the scale of scores": without(scale=None),
    "gemma2: its window": layers(window=None),
    "gemma3: two thetas": ropes(theta=500.0),
    "gemma3: its scaling": ropes(scaling=None),
    "phi3: partial rotation": ropes(rotary_dim=None),
    "olmo2: its epsilon": without(epsilon=1e-2),
    "gpt_oss: its scaling": ropes(scaling=None),
    "smollm3: layers that do not turn": layers(rope=nn.RoPE(8)),
}


@pytest.mark.parametrize("what", LEFT_OUT)
def test_a_feature_that_is_left_out_shows(what, tmp_path):
    theirs = make(tmp_path, what.split(":")[0])
    opened = hub.load(tmp_path)
    model = models.Decoder(LEFT_OUT[what](opened.model.config))
    # Layers that no longer differ are stacked anew.
    family = family_of(opened.config)
    params = hub.load_params(
        hub.open_tensors(tmp_path), family.rules, jd.abstract(model),
        layers=family.layers(model), ignore=family.ignore,
    )  # fmt: skip
    ids = tokens(61)
    with torch.no_grad():
        expected = theirs(torch.tensor(ids)).logits.numpy()
    spread = np.abs(np.asarray(model(params, jnp.asarray(ids))) - expected).max()
    assert spread > 1e-3  # the tests above allow 1e-4
