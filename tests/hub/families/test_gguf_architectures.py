"""Tiny checkpoints written as GGUF: ours, and what `transformers` reads of the file."""

import json
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdl import hub
from jaxdl.hub.families.gguf import gguf_family, heads_joined
from tests.hub.converted import write_converted
from tests.hub.families.tiny import (
    EXPERTS,
    SIZES,
    checkpoint,
    compare,
    tokens,
    torch,
    transformers,
)
from tests.hub.published import mutate

LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 100.0, "factor": 4.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 16,
}  # fmt: skip
YARN = {
    "rope_type": "yarn", "rope_theta": 100.0, "factor": 4.0,
    "original_max_position_embeddings": 16,
}  # fmt: skip
LONG = {
    "rope_type": "longrope", "rope_theta": 100.0,
    "short_factor": [1.0, 1.3, 1.6, 2.0], "long_factor": [1.0, 2.0, 5.0, 9.0],
}  # fmt: skip
DEEPSEEK = {
    **EXPERTS, "n_routed_experts": 8, "n_group": 4, "topk_group": 2,
    "first_k_dense_replace": 1, "n_shared_experts": 2, "q_lora_rank": 16,
    "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 6, "v_head_dim": 10,
    "num_key_value_heads": 4, "routed_scaling_factor": 1.7,
}  # fmt: skip
CAPS = {"attn_logit_softcapping": 0.8, "final_logit_softcapping": 1.5}
TIED = {"tie_word_embeddings": True}
LOCAL = ["sliding_attention"] * 5 + ["full_attention"]
MODELS = {
    "llama": ("Llama", {}),
    "llama with biases": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "llama 3.1": ("Llama", {"rope_parameters": LLAMA3, "head_dim": 8}),
    "llama, yarn and tied": (
        "Llama", {"rope_parameters": YARN, **TIED}
    ),
    "mixtral": ("Mixtral", {"num_local_experts": 5, "num_experts_per_tok": 2}),
    "qwen2": ("Qwen2", {}),
    "qwen2_moe": (
        "Qwen2Moe",
        {
            **EXPERTS, "num_experts": 5, "shared_expert_intermediate_size": 20,
            "norm_topk_prob": False,
        },
    ),
    "qwen3": ("Qwen3", {"head_dim": 128}),
    "qwen3_moe": (
        "Qwen3Moe",
        {
            **EXPERTS, "num_experts": 5, "norm_topk_prob": True, "head_dim": 12,
            "moe_intermediate_size": 768,
        },
    ),
    "gemma": ("Gemma", {"head_dim": 12, "num_key_value_heads": 1, **TIED}),
    "gemma2": (
        "Gemma2",
        {
            "head_dim": 12, "sliding_window": 4, "query_pre_attn_scalar": 12, **CAPS,
            **TIED,
        },
    ),
    "gemma2, with published caps": (
        "Gemma2", {"head_dim": 256, "sliding_window": 4, **TIED}
    ),
    "gemma3, with published thetas": (
        "Gemma3Text",
        {"head_dim": 256, "sliding_window": 4, "num_hidden_layers": 7, **TIED},
    ),
    "gemma3": (
        "Gemma3Text",
        {
            "head_dim": 12, "sliding_window": 4, "query_pre_attn_scalar": 12,
            "num_hidden_layers": 7, "layer_types": [*LOCAL, LOCAL[0]],
            **TIED,
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
    "phi3, long": (
        "Phi3", {"rope_parameters": LONG, "original_max_position_embeddings": 8}
    ),
    "olmo2": ("Olmo2", {}),
    "gpt2": ("GPT2", {}),
    "gpt_oss": (
        "GptOss",
        {
            "num_local_experts": 5, "num_experts_per_tok": 2, "head_dim": 8,
            "sliding_window": 4, "rope_parameters": {**YARN, "truncate": False},
        },
    ),
    "deepseek_v3": (
        "DeepseekV3",
        {
            **DEEPSEEK,
            "rope_parameters": {**YARN, "mscale": 0.7, "mscale_all_dim": 0.7},
        },
    ),
    "deepseek_v3, plain queries": (
        "DeepseekV3", {**DEEPSEEK, "q_lora_rank": None, "norm_topk_prob": True}
    ),
    "mamba": (
        "Mamba", {"time_step_rank": 5, "state_size": 6, "tie_word_embeddings": True}
    ),
}  # fmt: skip
# Those whose files `transformers` reads too, and reads as they are: of YaRN, of
# factors and of Gemma 3's linear scaling it takes nothing, nor has it the others.
READ = [
    "llama", "qwen2", "qwen3", "qwen3_moe", "gemma2, with published caps",
    "gemma3, with published thetas", "gpt2", "mamba",
]  # fmt: skip


def make(folder, name):
    family, changes = MODELS[name]
    sizes = {**SIZES, **changes}
    if family == "GPT2":
        sizes = {"vocab_size": 61, "n_embd": 32, "n_head": 4, "n_layer": 2}
        sizes |= {"n_positions": 1024, "bos_token_id": 1, "eos_token_id": 2}
    config = getattr(transformers, f"{family}Config")(**sizes)
    family = "Gemma3" if family == "Gemma3Text" else family
    ending = "LMHeadModel" if family == "GPT2" else "ForCausalLM"
    return checkpoint(folder, getattr(transformers, family + ending), config)


SLOW = {
    "llama with biases", "llama, yarn and tied", "qwen2", "qwen3", "gemma",
    "gemma2, with published caps", "gemma3, with published thetas",
    "deepseek_v3, plain queries",
}  # fmt: skip


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[pytest.mark.slow] * (n in SLOW)) for n in MODELS],
)
def test_a_converted_model_is_that_of_transformers(name, tmp_path):
    theirs = make(tmp_path, name)
    write_converted(tmp_path, tmp_path / "model.gguf")
    opened = hub.load(tmp_path / "model.gguf")
    ids = tokens(61)
    with torch.no_grad():
        expected = theirs(torch.tensor(ids)).logits
    compare(jax.jit(opened.model)(opened.params, jnp.asarray(ids)), expected)
    assert opened.tokenizer is None
    if name in READ:
        theirs = transformers.AutoModelForCausalLM.from_pretrained(
            tmp_path, gguf_file="model.gguf", dtype=torch.float32
        )
        with torch.no_grad():
            compare(expected, theirs(torch.tensor(ids)).logits)


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """Files of three kinds, each written once."""
    folder = tmp_path_factory.mktemp("converted")
    for name in ("gemma2", "gpt_oss", "deepseek_v3"):
        (folder / name).mkdir()
        make(folder / name, name)
        write_converted(folder / name, folder / f"{name}.gguf")
    return folder


@pytest.mark.parametrize("name", ["gemma2", "gpt_oss", "deepseek_v3"])
def test_what_a_file_holds_is_saved_in_the_published_layout(name, converted, tmp_path):
    opened = hub.load(converted / f"{name}.gguf")
    hub.save(tmp_path / "saved", opened.model, opened.params, opened.config)
    before, after = (
        hub.open_tensors(p) for p in (converted / name, tmp_path / "saved")
    )
    copies = {"lm_head.weight"} if name == "gemma2" else set()
    assert set(before) - copies == set(after)
    for each in after:
        close = {"rtol": 1e-6, "atol": 1e-6}  # the one that Gemma's norms got and lost
        np.testing.assert_allclose(after[each].read(), before[each].read(), **close)
    again = hub.load(tmp_path / "saved")
    assert again.model == opened.model


def test_experts_in_four_bits_are_those_that_the_file_decodes_to(converted, tmp_path):
    path = tmp_path / "four.gguf"
    write_converted(converted / "gpt_oss", path, "MXFP4")
    tensors = hub.open_tensors(path)
    experts = hub.load(path).params["blocks"]["0"]["mlp"]["experts"]
    for part in ("gate", "up"):
        decoded = tensors[f"blk.0.ffn_{part}_exps.weight"].read()
        kernel = experts[part]["kernel"][0]
        np.testing.assert_array_equal(kernel, decoded.swapaxes(1, 2))


def described(path, **changes):
    """The family that a file describes, once its metadata says something else."""
    tensors = hub.open_tensors(path)
    metadata = {**tensors.metadata, **{f"gemma2.{n}": v for n, v in changes.items()}}
    kept = {name: value for name, value in metadata.items() if value is not None}
    return gguf_family(hub.Tensors(tensors.entries, kept))


@pytest.mark.parametrize(
    "key, value, problem",
    [
        ("block_count", 2**31, "num_hidden_layers: expected at most 65536"),
        ("block_count", True, "expected a int, got True"),
        ("block_count", 2.0, "expected a int, got 2.0"),
        ("block_count", None, "expected a int, got None"),
        ("attention.head_count", np.array([4, 4]), "expected a int"),
        ("attention.layer_norm_rms_epsilon", "small", "expected a float"),
        ("attention.value_length", 13, "value_length: expected 12, got 13"),
        ("attention.causal", False, "expected True, got False"),
        ("rope.scaling.type", "mystery", "expected none, linear, yarn or longrope"),
        ("rope.scaling.type", "yarn", "rope.scaling.factor: expected a float"),
        ("attention.sliding_window_pattern", np.array([True]), "expected 2 flags"),
        ("attention.clamp_kqv", 8.0, "not known here: 'gemma2.attention.clamp_kqv'"),
    ],
)
def test_metadata_that_lies_is_refused_by_key(key, value, problem, converted):
    path = converted / "gemma2.gguf"
    with pytest.raises(hub.HubError, match=problem) as refused:
        described(path, **{key: value})
    if "num_hidden" not in problem:
        assert str(path) in str(refused.value)


@pytest.mark.parametrize("architecture", ["rwkv6", None, 3, [], "llama with experts"])
def test_an_architecture_that_is_not_ours_is_refused(architecture, converted):
    tensors = hub.open_tensors(converted / "gemma2.gguf")
    metadata = {**tensors.metadata, "general.architecture": architecture}
    with pytest.raises(hub.HubError, match="general.architecture: expected one of"):
        gguf_family(hub.Tensors(tensors.entries, metadata))


def test_a_softmax_router_is_not_taken_for_deepseek_v3(converted, tmp_path):
    path = tmp_path / "softmax.gguf"
    write_converted(converted / "deepseek_v3", path, expert_gating_func=1)
    with pytest.raises(hub.HubError, match="expert_gating_func: expected 2, got 1"):
        hub.load(path)


def test_keys_and_values_in_one_tensor_are_read_too(converted):
    """As older files of DeepSeek have them."""
    tensors = hub.open_tensors(converted / "deepseek_v3.gguf")
    _, family = gguf_family(tensors)
    whole = family.view(tensors)
    halves = (".attn_k_b.weight", ".attn_v_b.weight")
    assert not [name for name in whole if name.endswith(halves)]
    published = hub.open_tensors(converted / "deepseek_v3")
    for layer in range(2):
        ours = whole[f"blk.{layer}.attn_kv_b.weight"]
        theirs = published[f"model.layers.{layer}.self_attn.kv_b_proj.weight"].read()
        np.testing.assert_array_equal(ours.read(), theirs)
        part = (slice(3, 9), slice(0, 5))
        np.testing.assert_array_equal(ours.read(part), theirs[part])
    assert dict(family.view(whole)) == dict(whole)


def test_halves_that_do_not_belong_together_are_refused():
    arrays = {"blk.0.attn_k_b.weight": np.ones((4, 8, 6))}
    arrays["blk.0.attn_v_b.weight"] = np.ones((4, 10, 7))
    with pytest.raises(hub.HubError, match=r"attn_k_b.weight: expected \[head, rank"):
        heads_joined(hub.of_arrays(arrays))


@pytest.mark.parametrize("count", [40, pytest.param(1500, marks=pytest.mark.slow)])
def test_damaged_models_load_or_are_refused(count, converted, tmp_path):
    whole = [path.read_bytes() for path in sorted(converted.glob("*.gguf"))]
    path = tmp_path / "damaged.gguf"
    for seed in range(count):
        draw = random.Random(seed)
        path.write_bytes(mutate(draw.choice(whole), draw, 2000))
        try:
            hub.load(path)
        except hub.HubError as error:
            assert str(path) in str(error) and len(str(error)) < 4000


@pytest.mark.parametrize("count", [40, pytest.param(1500, marks=pytest.mark.slow)])
def test_configurations_that_lie_load_or_are_refused(count, converted, tmp_path):
    whole = json.loads((converted / "gpt_oss" / "config.json").read_text())
    weights = converted / "gpt_oss" / "model.safetensors"
    (tmp_path / weights.name).write_bytes(weights.read_bytes())
    lies = [None, -1, 0, 1, 3, 2.5, 2**40, "x", [], [1], {}, {"a": 1}, True]
    for seed in range(count):
        draw = random.Random(seed)
        config = dict(whole)
        for name in draw.sample(sorted(config), draw.randint(1, 2)):
            config[name] = draw.choice(lies)
        if draw.random() < 0.5:
            del config[draw.choice(sorted(config))]
        (tmp_path / "config.json").write_text(json.dumps(config))
        try:
            hub.load(tmp_path)
        except hub.HubError as error:
            assert str(tmp_path) in str(error) and len(str(error)) < 4000
