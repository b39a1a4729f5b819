"""Params written as published: the same bytes, and files that others read."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors

import jaxdl as jd
from jaxdl.hub import (
    HubError,
    Rule,
    load_params,
    of_arrays,
    open_tensors,
    save_params,
    transpose,
)
from tests.hub.published import arrays, safetensors_bytes
from tests.hub.test_read import MODEL, RULES, published


@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16, jnp.float8_e4m3fn])
@pytest.mark.parametrize("limit", [10**9, 300, 1])
def test_what_was_loaded_is_written_byte_for_byte(tmp_path, dtype, limit):
    tensors = {name: array.astype(dtype) for name, array in published().items()}
    params = load_params(of_arrays(tensors), RULES, jd.abstract(MODEL), dtype=dtype)
    save_params(params, RULES, tmp_path, max_shard_bytes=limit)
    written = open_tensors(tmp_path)
    assert set(written) == set(tensors)
    for name, array in tensors.items():
        assert written[name].dtype == array.dtype
        assert written[name].read().tobytes() == array.tobytes()
    shards = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    for shard in shards:
        data = dict(safetensors.deserialize((tmp_path / shard).read_bytes()))
        assert len(data) == 1 or sum(len(t["data"]) for t in data.values()) <= limit
    if limit == 10**9:
        assert shards == ["model.safetensors"]
    else:
        index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
        size = sum(array.nbytes for array in tensors.values())
        assert index["metadata"]["total_size"] == size
        assert sorted(set(index["weight_map"].values())) == shards
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_fused_tensors_are_put_together_again(tmp_path, axis, groups):
    rule = Rule("h.{layer}.qkv", ("q", "k", "v"), transpose, axis=axis, groups=groups)
    sizes = {"q": 8, "k": 4, "v": 4}
    draw = np.random.default_rng(0).normal
    shape = (6, 16) if axis == 0 else (16, 6)
    ours = {
        name: jnp.asarray(draw(size=(2, *(n if s == 16 else s for s in shape))))
        for name, n in sizes.items()
    }
    save_params(ours, [rule], tmp_path, metadata={"made by": "a test"})
    tensors = open_tensors(tmp_path)
    assert tensors.metadata == {"format": "pt", "made by": "a test"}
    assert tensors["h.0.qkv"].shape == shape[::-1]
    again = load_params(tensors, [rule], jax.eval_shape(lambda: ours))
    jax.tree.map(np.testing.assert_array_equal, ours, again)


def test_a_folder_with_weights_is_not_written_into(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(safetensors_bytes(arrays()))
    with pytest.raises(HubError, match="has weights already"):
        save_params({"w": jnp.ones(2)}, [Rule("w", "w")], tmp_path)


def test_a_dtype_that_the_format_lacks_is_refused(tmp_path):
    params = {"w": jnp.ones(2, jnp.int4)}
    with pytest.raises(HubError, match="w: safetensors has no dtype int4"):
        save_params(params, [Rule("w", "w")], tmp_path)
    assert not list(tmp_path.iterdir())


def test_transformers_reads_what_was_written(tmp_path):
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    config = transformers.Phi3Config(
        hidden_size=16,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=24,
        num_hidden_layers=3,
        vocab_size=50,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=2,
    )
    model = transformers.AutoModelForCausalLM.from_config(config)
    before, after = tmp_path / "before", tmp_path / "after"
    model.save_pretrained(before)
    layer, block = "model.layers.{layer}", "blocks"
    rules = (
        Rule("model.embed_tokens.weight", "embed/embedding"),
        Rule(
            f"{layer}.self_attn.qkv_proj.weight",
            (f"{block}/q", f"{block}/k", f"{block}/v"),
            transpose,
        ),
        Rule(f"{layer}.self_attn.o_proj.weight", f"{block}/out", transpose),
        Rule(
            f"{layer}.mlp.gate_up_proj.weight",
            (f"{block}/gate", f"{block}/up"),
            transpose,
        ),
        Rule(f"{layer}.mlp.down_proj.weight", f"{block}/down", transpose),
        Rule(f"{layer}.input_layernorm.weight", f"{block}/attn_norm"),
        Rule(f"{layer}.post_attention_layernorm.weight", f"{block}/mlp_norm"),
        Rule("model.norm.weight", "norm"),
        Rule("lm_head.weight", "head", transpose),
    )

    def leaf(*shape):
        return jax.ShapeDtypeStruct(shape, np.float32)

    abstract = {
        "embed": {"embedding": leaf(50, 16)},
        "blocks": {
            "q": leaf(3, 16, 16),
            "k": leaf(3, 16, 8),
            "v": leaf(3, 16, 8),
            "out": leaf(3, 16, 16),
            "gate": leaf(3, 16, 24),
            "up": leaf(3, 16, 24),
            "down": leaf(3, 24, 16),
            "attn_norm": leaf(3, 16),
            "mlp_norm": leaf(3, 16),
        },
        "norm": leaf(16),
        "head": leaf(16, 50),
    }
    params = load_params(open_tensors(before), rules, abstract)
    state = model.state_dict()
    fused = state["model.layers.1.self_attn.qkv_proj.weight"].numpy()
    np.testing.assert_array_equal(params["blocks"]["k"][1], fused[16:24].T)
    save_params(params, rules, after, max_shard_bytes=5000)
    config.save_pretrained(after)
    again = transformers.AutoModelForCausalLM.from_pretrained(after).state_dict()
    assert all(torch.equal(state[name], again[name]) for name in state)
