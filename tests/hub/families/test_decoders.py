"""Every family of decoders beside `transformers`, on tiny checkpoints that it makes.

Sizes are chosen so that each feature shows: windows shorter than the sequence, few
key heads, small caps, biases and norms away from where they start.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdl as jd
from jaxdl import generate, hub, models, nn
from jaxdl.hub.families.family import family_of
from tests.hub.families.tiny import (
    SEQ,
    Case,
    Difference,
    check_round_trip,
    compare,
    compare_states,
    published,
    states_of,
    tokens,
    torch,
)

SIZES = {
    "vocab_size": 61, "hidden_size": 32, "intermediate_size": 40,
    "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2, "tie_word_embeddings": False,
}  # fmt: skip
GPT2 = {"vocab_size": 61, "bos_token_id": 1, "eos_token_id": 2}
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

FEATURES = {
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
    "olmo2": ("Olmo2", {}, "norms after each layer, of queries and of keys"),
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


def case_of(family, changes, says=""):
    if family == "GPT2":
        return Case("GPT2LMHeadModel", GPT2, changes, spread=0.08)
    kind = f"{family.removesuffix('Text')}ForCausalLM"
    return Case(kind, SIZES, changes, says, spread=0.08)


CASES = {name: case_of(*features) for name, features in FEATURES.items()}
NEW, PAD = 8, 3


def check(case):
    """Holds ours to theirs: plain, left-padded and packed rows, and greedy tokens."""
    _, theirs, (model, params, *_) = published(case)
    ids = tokens(theirs.config.vocab_size)
    padded = np.pad(ids[:, :-PAD], ((0, 0), (PAD, 0)))
    packed = np.concatenate([ids[:1, :6], ids[1:, :5]], axis=1)
    rows = np.concatenate([ids, padded, packed])
    positions = np.tile(np.arange(SEQ), (5, 1))
    positions[2:4] = np.maximum(positions[2:4] - PAD, -1)
    positions[4, 6:] -= 6
    segments = np.zeros((5, SEQ), int)
    segments[4, 6:] = 1
    logits, states = states_of(
        model, params, rows, positions=positions, segment_ids=segments
    )
    real = positions[:4] >= 0
    with torch.no_grad():
        expected = theirs(
            torch.tensor(rows[:4]), attention_mask=torch.tensor(real.astype(int)),
            position_ids=torch.tensor(np.maximum(positions[:4], 0)),
            output_hidden_states=True,
        )  # fmt: skip
    result = compare(logits[:4][real], expected.logits.numpy()[real])
    # Two texts in one row are each as if alone.
    compare(logits[4, :6], logits[0, :6])
    compare(logits[4, 6:], logits[1, :5])
    check_greedy(model, params, theirs, [ids[0, :6], ids[1, :4]])
    others, normed = expected.hidden_states, True
    if theirs.config.model_type == "mamba":  # its embedding is not among them
        others, normed = (None, *others[:-1]), False
    states = [state[:4] for state in states]
    return Difference(result, compare_states(states, others, real, normed))


def check_greedy(model, params, theirs, prompts):
    """Prompts of two lengths are continued by the tokens that theirs chooses."""
    given = generate.left_padded(prompts)
    theirs.generation_config.eos_token_id = None  # so that neither stops
    with torch.no_grad():
        expected = theirs.generate(
            torch.tensor(given.tokens).long(), max_new_tokens=NEW, do_sample=False,
            attention_mask=torch.tensor(given.positions >= 0).long(),
            eos_token_id=None, pad_token_id=0,
        )  # fmt: skip
    got = generate.generate(model, params, prompts, max_new=NEW).tokens
    np.testing.assert_array_equal(got, expected[:, -NEW:].numpy())


@pytest.mark.parametrize("name", CASES)
def test_a_decoder_is_that_of_transformers(name):
    check(CASES[name])


@pytest.mark.parametrize(
    "name", ["gpt2", "gemma3", "phi3", "mixtral", "deepseek_v3", "gpt_oss", "mamba"]
)
def test_what_is_saved_is_what_was_read(name, tmp_path):
    check_round_trip(CASES[name], tmp_path)


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
def test_a_feature_that_is_left_out_shows(what):
    folder, theirs, opened = published(CASES[what.split(":")[0]])
    model = models.Decoder(LEFT_OUT[what](opened.model.config))
    # Layers that no longer differ are stacked anew.
    family = family_of(opened.config)
    params = hub.load_params(
        hub.open_tensors(folder), family.rules, jd.abstract(model),
        layers=family.layers(model), ignore=family.ignore,
    )  # fmt: skip
    ids = tokens(61)
    with torch.no_grad():
        expected = theirs(torch.tensor(ids)).logits.numpy()
    logits = jax.jit(model)(params, jnp.asarray(ids))
    assert np.abs(logits - expected).max() > 1e-3  # the tests above allow 1e-4
