"""Published files opened: every format, folder and dtype, values and parts of them."""

import json

import gguf
import numpy as np
import pytest
import safetensors.numpy

from jaxdl.hub import HubError, of_arrays, open_tensors
from tests.hub.published import QUANTISED, arrays, safetensors_bytes, write_gguf


def test_a_safetensors_file_gives_every_dtype_as_it_is(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(safetensors_bytes(arrays()))
    tensors = open_tensors(str(path))
    assert set(tensors) == set(arrays()) and len(tensors) == len(arrays())
    assert tensors.metadata == {"format": "pt"}
    for name, wanted in arrays().items():
        tensor = tensors[name]
        assert (tensor.shape, tensor.dtype) == (wanted.shape, wanted.dtype)
        np.testing.assert_array_equal(tensor.read(), wanted)


def test_reading_a_part_is_reading_the_whole_and_slicing(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(safetensors_bytes(arrays()))
    embed = open_tensors(path)["embed"]
    for index in (slice(1, 3), 2, (slice(0, 2), slice(1, 4)), (slice(None), 1), ()):
        np.testing.assert_array_equal(embed.read(index), arrays()["embed"][index])


def test_values_are_views_of_the_file(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(safetensors_bytes(arrays()))
    values = open_tensors(path)["embed"].read(slice(1, 3))
    assert not values.flags.owndata and not values.flags.writeable


def test_data_need_not_be_aligned(tmp_path):
    path = tmp_path / "model.safetensors"
    tensors = {"flags": arrays()["flags"], **arrays()}
    path.write_bytes(safetensors_bytes(dict(sorted(tensors.items(), reverse=True))))
    for name, tensor in open_tensors(path).items():
        np.testing.assert_array_equal(tensor.read(), arrays()[name])


def test_bools_are_bools_whatever_the_bytes(tmp_path):
    path = tmp_path / "model.safetensors"
    data = safetensors_bytes({"flags": arrays()["flags"]})
    path.write_bytes(data[:-3] + bytes([2, 0, 255]))
    values = open_tensors(path)["flags"].read()
    assert values.tobytes() == bytes([1, 0, 1])


@pytest.mark.parametrize("given", ["folder", "index"])
def test_shards_are_one(tmp_path, given):
    values = arrays()
    places = {name: f"part-{i % 2}.safetensors" for i, name in enumerate(values)}
    for shard in set(places.values()):
        some = {name: values[name] for name in values if places[name] == shard}
        (tmp_path / shard).write_bytes(safetensors_bytes(some))
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"a": 1}, "weight_map": places}))
    tensors = open_tensors(tmp_path if given == "folder" else index)
    assert tensors.metadata == {"a": 1}
    assert list(tensors["embed"].shape) == [6, 4]
    for name, tensor in tensors.items():
        assert tensor.file.endswith(places[name])
        np.testing.assert_array_equal(tensor.read(), values[name])


def test_a_gguf_file_gives_what_its_package_decodes(tmp_path):
    path = tmp_path / "model.gguf"
    values = write_gguf(path)
    tensors = open_tensors(tmp_path)
    assert tensors.keys() == values.keys()
    for name, tensor in tensors.items():
        dtype = {"F16": "float16", "BF16": "bfloat16"}.get(name, "float32")
        assert (tensor.shape, tensor.dtype.name) == ((3, 64), dtype)
        whole = tensor.read()
        np.testing.assert_array_equal(whole.astype(np.float32), values[name])
        for index in (1, slice(1, 3), (slice(0, 2), slice(3, 40)), (2, 5)):
            np.testing.assert_array_equal(tensor.read(index), whole[index])
    metadata = tensors.metadata
    assert metadata["general.architecture"] == "llama"
    assert metadata["llama.block_count"] == 2
    assert metadata["tokenizer.ggml.tokens"] == ["a", "b", "é"]
    assert metadata["tokenizer.ggml.scores"].tolist() == [0.5, -1.0]
    assert metadata["tokenizer.ggml.add_bos_token"] is True


@pytest.mark.parametrize("kind", ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL"])
def test_k_quants_are_decoded(tmp_path, kind):
    kind = gguf.GGMLQuantizationType[kind]
    block, size = gguf.GGML_QUANT_SIZES[kind]
    draw = np.random.default_rng(0)
    rows = draw.integers(0, 60, (2, 512 // block * size)).astype(np.uint8)
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "llama")
    writer.add_tensor("w", rows, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    tensor = open_tensors(tmp_path)["w"]
    assert tensor.shape == (2, 512)
    with np.errstate(all="ignore"):
        wanted = gguf.dequantize(rows, kind)
    np.testing.assert_array_equal(tensor.read(), wanted)
    np.testing.assert_array_equal(tensor.read((1, slice(7, 300))), wanted[1, 7:300])


def test_a_split_gguf_is_one(tmp_path):
    for part, kinds in enumerate((["Q4_0"], ["Q8_0"]), 1):
        write_gguf(tmp_path / f"all-{part:05d}-of-00002.gguf", kinds)
    with pytest.raises(HubError, match="'F32' is in two of its files"):
        open_tensors(tmp_path)
    (tmp_path / "all-00002-of-00002.gguf").unlink()
    with pytest.raises(HubError, match="all-00002-of-00002.gguf is missing"):
        open_tensors(tmp_path / "all-00001-of-00002.gguf")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "weights.pt", "model.ckpt"])
def test_pickled_weights_are_refused_with_a_way_out(tmp_path, name):
    (tmp_path / name).write_bytes(b"\x80\x04.")
    for path in (tmp_path, tmp_path / name):
        with pytest.raises(HubError, match=r"can run any code.*\n?.*save_file"):
            open_tensors(path)


def test_what_holds_no_weights_or_too_many_is_refused(tmp_path):
    with pytest.raises(HubError, match="found none"):
        open_tensors(tmp_path)
    with pytest.raises(HubError, match="there is no such file"):
        open_tensors(tmp_path / "gone")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(HubError, match="expected a .safetensors or .gguf file"):
        open_tensors(tmp_path / "config.json")
    for name in ("a.safetensors", "b.safetensors"):
        (tmp_path / name).write_bytes(safetensors_bytes(arrays()))
    with pytest.raises(HubError, match="a.safetensors, b.safetensors; open the one"):
        open_tensors(tmp_path)
    safetensors.numpy.save_file({}, tmp_path / "model.safetensors")
    assert len(open_tensors(tmp_path)) == 0


def test_an_index_and_its_shards_must_agree(tmp_path):
    (tmp_path / "a.safetensors").write_bytes(safetensors_bytes(arrays()))
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"other": "a.safetensors"}}))
    with pytest.raises(HubError, match="'other' is not in the file it lists"):
        open_tensors(index)
    index.write_text('{"weight_map": {"embed": "a.safetensors", "embed": "b"}}')
    with pytest.raises(HubError, match="the key 'embed' is there twice"):
        open_tensors(index)


def test_names_under_a_prefix():
    tensors = of_arrays({"model.a": np.ones(2), "model.b": np.ones(3), "c": np.ones(1)})
    assert {name: t.shape for name, t in tensors.under("model.").items()} == {
        "a": (2,),
        "b": (3,),
    }


def test_all_quantisations_of_the_tests_can_be_decoded():
    assert {"Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"} <= set(QUANTISED)
