"""gpt-oss's experts in four bits: the values of the format, and of `transformers`."""

import json

from hypothesis import given, settings
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from jaxdl import hub
from jaxdl.hub.mxfp4 import unpacked
from tests.hub.families.tiny import checkpoint, compare, tokens, torch, transformers

SIZES = {
    "vocab_size": 61, "hidden_size": 32, "intermediate_size": 64,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 64, "num_local_experts": 3, "num_experts_per_tok": 2,
    "head_dim": 8, "sliding_window": 4, "tie_word_embeddings": False,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


def by_hand(blocks, scales):
    """One number after the other, as the format says: sign, two of exponent, one."""
    rows = []
    for row, row_scales in zip(blocks, scales, strict=True):
        values = []
        for block, scale in zip(row, row_scales, strict=True):
            for byte in block:
                for bits in (int(byte) & 15, int(byte) >> 4):
                    exponent, mantissa = (bits >> 1) & 3, bits & 1
                    value = mantissa / 2 if exponent == 0 else 1 + mantissa / 2
                    value *= 2.0 ** max(exponent - 1, 0)
                    value *= -1 if bits & 8 else 1
                    values.append(value * 2.0 ** (int(scale) - 127))
        rows.append(values)
    return np.array(rows, np.float32)


@given(st.integers(0, 2**32 - 1), st.integers(0, 3))
@settings(max_examples=25)
def test_every_number_is_that_of_the_format(seed, start):
    draw = np.random.default_rng(seed)
    blocks = draw.integers(0, 256, (4, 2, 16), np.uint8)
    scales = draw.integers(1, 252, (4, 2), np.uint8)
    tensors = unpacked(hub.of_arrays({"w_blocks": blocks, "w_scales": scales}))
    expected = by_hand(blocks, scales)
    assert tensors["w"].shape == (4, 64)
    np.testing.assert_array_equal(tensors["w"].read(), expected)
    part = (slice(start, 4, 2), slice(5, 40))
    np.testing.assert_array_equal(tensors["w"].read(part), expected[part])


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """A checkpoint in four bits, and the model of the values that they stand for."""
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    folder = tmp_path_factory.mktemp("packed")
    config = transformers.GptOssConfig(**SIZES)
    theirs = checkpoint(folder, transformers.GptOssForCausalLM, config)
    file = folder / "model.safetensors"
    weights, draw = safetensors.numpy.load_file(file), np.random.default_rng(0)
    state = theirs.state_dict()
    for name in [n for n in weights if n.endswith(("gate_up_proj", "down_proj"))]:
        experts, columns, rows = weights.pop(name).shape
        shape = (experts, rows, columns // 32)
        blocks = draw.integers(0, 256, (*shape, 16), np.uint8)
        scales = draw.integers(121, 124, shape, np.uint8)
        weights |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
        both = torch.tensor(blocks), torch.tensor(scales)
        state[name].copy_(convert_moe_packed_tensors(*both, dtype=torch.float32))
    safetensors.numpy.save_file(weights, file)
    written = json.loads((folder / "config.json").read_text())
    written["quantization_config"] = {"quant_method": "mxfp4"}
    (folder / "config.json").write_text(json.dumps(written))
    return folder, theirs


def test_a_model_in_four_bits_is_that_of_transformers(packed, tmp_path):
    folder, theirs = packed
    model, params, _, config, _ = hub.load(folder)
    for name, value in theirs.state_dict().items():
        if name.endswith("1.mlp.experts.gate_up_proj"):
            experts = params["blocks"]["1"]["mlp"]["experts"]
            up, gate = (experts[part]["kernel"][0] for part in ("up", "gate"))
            np.testing.assert_array_equal(up, value[..., 1::2])
            np.testing.assert_array_equal(gate, value[..., ::2])
    ids = tokens(61)
    with torch.no_grad():
        expected = theirs(torch.tensor(ids)).logits
    compare(jax.jit(model)(params, jnp.asarray(ids)), expected)
    # Saved it is whole again, and says so.
    hub.save(tmp_path / "whole", model, params, config)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "whole")
    for name, value in theirs.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], value, rtol=0, atol=0)


def test_each_device_decodes_its_own_experts(packed):
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:3]), ("expert",))
    sharded = hub.load(packed[0], mesh, {"expert": "expert"})
    kernel = sharded.params["blocks"]["0"]["mlp"]["experts"]["up"]["kernel"]
    assert kernel.addressable_shards[0].data.shape == (1, 1, 32, 64)
    whole = hub.load(packed[0]).params
    jax.tree.map(np.testing.assert_array_equal, sharded.params, whole)


def damaged(**changes):
    arrays = {
        "w_blocks": np.zeros((2, 3, 16), np.uint8),
        "w_scales": np.zeros((2, 3), np.uint8),
    }
    arrays = {n: v for n, v in (arrays | changes).items() if v is not None}
    return unpacked(hub.of_arrays(arrays))


@pytest.mark.parametrize(
    "changes, problem",
    [
        ({"w_scales": None}, "w_blocks.*expected uint8 .* got .* and none"),
        ({"w_scales": np.zeros((2, 4), np.uint8)}, "w_blocks"),
        ({"w_blocks": np.zeros((2, 3, 8), np.uint8)}, r"got \[2, 3, 8\]"),
        ({"w_blocks": np.zeros((16,), np.uint8)}, r"got \[16\]"),
        (
            {"w_blocks": np.zeros(16, np.uint8), "w_scales": np.array(0, np.uint8)},
            r"got \[16\]",
        ),
        ({"w_blocks": np.array(0, np.uint8)}, r"got \[\]"),
        ({"w_blocks": np.zeros((2, 3, 16), np.int8)}, "w_blocks.*uint8, got int8"),
        ({"w_scales": np.zeros((2, 3), np.float32)}, "w_scales.*uint8, got float32"),
    ],
)
def test_halves_that_do_not_fit_are_refused_by_name(changes, problem):
    with pytest.raises(hub.HubError, match=problem):
        damaged(**changes)


def test_scales_alone_stay_what_they_are():
    assert list(damaged(w_blocks=None)) == ["w_scales"]


def test_another_quantisation_is_refused(packed):
    config = json.loads((packed[0] / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq"}
    with pytest.raises(hub.HubError, match="quant_method: expected mxfp4, got 'gptq'"):
        hub.families.family.family_of(config)
