"""Thousands of damaged files: each opens with the right values, or is a HubError."""

import json
import os
from pathlib import Path
import random
import struct

import gguf
import numpy as np
import pytest
import safetensors

from jaxdl.hub import HubError, Tensors, open_tensors
from tests.hub.published import (
    INTERESTING,
    arrays,
    little_memory,
    mutate,
    mutate_header,
    safetensors_bytes,
    with_header,
    write_gguf,
)

COUNTS = [150, pytest.param(5000, marks=pytest.mark.slow)]


@pytest.mark.parametrize("count", COUNTS)
def test_a_damaged_safetensors_file_is_right_or_refused(tmp_path, count):
    whole = safetensors_bytes(arrays())
    header = 8 + struct.unpack("<Q", whole[:8])[0]
    path, opened = tmp_path / "model.safetensors", 0
    with little_memory():
        for seed in range(count):
            draw = random.Random(seed)
            damaged = mutate(whole, draw, header)
            path.write_bytes(damaged if seed % 2 else mutate_header(whole, draw))
            tensors = attempt(path)
            opened += tensors is not None
            if tensors is not None:
                check_safetensors(tensors, path)
    assert 0 < opened < count / 2


@pytest.mark.parametrize("count", COUNTS)
def test_a_damaged_gguf_file_is_right_or_refused(tmp_path, count):
    path, opened = tmp_path / "model.gguf", 0
    write_gguf(path)
    whole = path.read_bytes()
    with little_memory():
        for seed in range(count):
            path.write_bytes(mutate(whole, random.Random(seed), 700))
            tensors = attempt(path)
            opened += tensors is not None
            if tensors is not None:
                check_gguf(tensors, path)
    assert 0 < opened < count / 2


@pytest.mark.parametrize("count", COUNTS)
def test_a_damaged_index_is_right_or_refused(tmp_path, count):
    path, values = tmp_path / "model.safetensors.index.json", arrays()
    names = list(values)
    places = {name: f"{i % 2}.safetensors" for i, name in enumerate(names)}
    for shard in (0, 1):
        some = {name: values[name] for name in names[shard::2]}
        (tmp_path / f"{shard}.safetensors").write_bytes(safetensors_bytes(some))
    whole = json.dumps({"metadata": {"total_size": 1}, "weight_map": places}).encode()
    with little_memory():
        for seed in range(count):
            path.write_bytes(mutate(whole, random.Random(seed), len(whole)))
            tensors = attempt(path)
            for name in tensors or ():
                np.testing.assert_array_equal(tensors[name].read(), values[name])


def attempt(path: Path) -> Tensors | None:
    """The opened file, all of it read; None where it was refused by name."""
    try:
        tensors = open_tensors(path)
        for name, tensor in tensors.items():
            values = tensor.read()
            assert (values.shape, values.dtype) == (tensor.shape, tensor.dtype), name
    except HubError as error:
        assert str(path.parent) in str(error) and len(str(error)) < 2000
        return None
    return tensors


def check_safetensors(tensors: Tensors, path: Path) -> None:
    wanted = dict(safetensors.deserialize(path.read_bytes()))
    assert set(tensors) == set(wanted)
    for name, tensor in tensors.items():
        assert list(tensor.shape) == wanted[name]["shape"]
        assert tensor.stored.tobytes() == wanted[name]["data"]


def check_gguf(tensors: Tensors, path: Path) -> None:
    reader = gguf.GGUFReader(path)
    assert set(tensors) == {tensor.name for tensor in reader.tensors}
    for wanted in reader.tensors:
        tensor = tensors[wanted.name]
        assert tensor.shape == tuple(wanted.shape[::-1].tolist())
        if 0 in tensor.shape:  # the package decodes no empty tensors
            continue
        with np.errstate(all="ignore"):
            values = gguf.dequantize(wanted.data, wanted.tensor_type)
        np.testing.assert_array_equal(tensor.read().astype(values.dtype), values)
    for name, value in tensors.metadata.items():
        np.testing.assert_array_equal(value, reader.fields[name].contents())


ONE = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def second(**changes) -> str:
    two = {"dtype": "F32", "shape": [2], "data_offsets": [8, 16]} | changes
    return json.dumps({"one": ONE, "two": two})


HOSTILE_HEADERS = {
    "overlapping": second(data_offsets=[4, 12]),
    "a hole": second(data_offsets=[12, 20]),
    "beyond the end": second(data_offsets=[8, 2**40], shape=[2**38]),
    "wrong size": second(shape=[3]),
    "overflowing": second(shape=[2**32, 2**32, 2]),
    "no array": second(shape=[0, 2**63], data_offsets=[8, 8]),
    "many dimensions": second(shape=[1] * 40 + [2]),
    "negative": second(shape=[-2]),
    "unknown dtype": second(dtype="F31"),
    "less than a byte": second(dtype="F4", shape=[16]),
    "no JSON": '{"one": ',
    "no object": "[1, 2]",
    "nested": "[" * 100_000,
    "twice": second(data_offsets=[0, 8]).replace("two", "one"),
    "twice inside": second().replace('"shape"', '"shape": [2], "shape"', 1),
    "missing key": '{"one": {"dtype": "F32", "shape": [2]}}',
    "a number": '{"one": 1}',
    "metadata that is no text": '{"__metadata__": {"a": 1}}',
}


@pytest.mark.parametrize("header", HOSTILE_HEADERS.values(), ids=HOSTILE_HEADERS)
def test_a_header_that_lies_is_refused(tmp_path, header):
    path = tmp_path / "model.safetensors"
    path.write_bytes(with_header(header, bytes(16)))
    with little_memory(), pytest.raises(HubError, match="model.safetensors"):
        open_tensors(path)


@pytest.mark.parametrize("length", INTERESTING)
def test_a_header_of_the_wrong_length_is_refused(tmp_path, length):
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", length) + b'{"one":1}')
    with little_memory(), pytest.raises(HubError, match="model.safetensors"):
        open_tensors(path)


def gguf_bytes(
    keys: bytes = b"", tensors: bytes = b"", counts=(0, 0), data=64
) -> bytes:
    start = b"GGUF" + struct.pack("<IQQ", 3, *counts) + keys + tensors
    return start + bytes(-len(start) % 32 + data)


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def tensor(name="one", shape=(8,), kind=0, offset=0) -> bytes:
    sizes = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    return text(name) + sizes + struct.pack("<IQ", kind, offset)


HOSTILE_GGUF = {
    "many tensors": gguf_bytes(counts=(2**63, 0)),
    "many keys": gguf_bytes(counts=(0, 2**64 - 1)),
    "long key": gguf_bytes(struct.pack("<Q", 2**62), counts=(0, 1)),
    "long array": gguf_bytes(
        text("a") + struct.pack("<IIQ", 9, 4, 2**61), counts=(0, 1)
    ),
    "long array of text": gguf_bytes(
        text("a") + struct.pack("<IIQ", 9, 8, 2**61), counts=(0, 1)
    ),
    "nested arrays": gguf_bytes(
        text("a") + struct.pack("<II", 9, 9) * 5000, counts=(0, 1)
    ),
    "unknown value": gguf_bytes(text("a") + struct.pack("<II", 99, 0), counts=(0, 1)),
    "key twice": gguf_bytes(2 * (text("a") + struct.pack("<II", 4, 0)), counts=(0, 2)),
    "no alignment": gguf_bytes(
        text("general.alignment") + struct.pack("<II", 4, 3), counts=(0, 1)
    ),
    "tensor twice": gguf_bytes(b"", 2 * tensor(), (2, 0)),
    "unknown type": gguf_bytes(b"", tensor(kind=9999), (1, 0)),
    "half a block": gguf_bytes(b"", tensor(kind=2, shape=(48,)), (1, 0)),
    "overflowing": gguf_bytes(b"", tensor(shape=(2**32, 2**32)), (1, 0)),
    "larger than any array": gguf_bytes(b"", tensor(shape=(0, 2**63)), (1, 0)),
    "larger than the file": gguf_bytes(b"", tensor(shape=(1000,)), (1, 0)),
    "many dimensions": gguf_bytes(b"", tensor(shape=(1,) * 40), (1, 0)),
    "far away": gguf_bytes(b"", tensor(offset=2**63), (1, 0)),
    "overlapping": gguf_bytes(b"", tensor() + tensor("two"), (2, 0)),
    "a hole": gguf_bytes(b"", tensor() + tensor("two", offset=96), (2, 0), 256),
    "old": b"GGUF" + struct.pack("<IQQ", 1, 0, 0),
    "big-endian": b"GGUF" + struct.pack(">IQQ", 3, 0, 0),
    "something else": b"PK\3\4" + bytes(100),
    "short": b"GGUF\3\0",
}


@pytest.mark.parametrize("data", HOSTILE_GGUF.values(), ids=HOSTILE_GGUF)
def test_a_gguf_file_that_lies_is_refused(tmp_path, data):
    path = tmp_path / "model.gguf"
    path.write_bytes(data)
    with little_memory(), pytest.raises(HubError, match="model.gguf"):
        open_tensors(path)


@pytest.mark.parametrize(
    "shard",
    [
        "../../etc/passwd.safetensors",
        "/etc/passwd.safetensors",
        "..\\x.safetensors",
        "sub/../../x.safetensors",
        "link.safetensors",
        "folder/x.safetensors",
        "nul\0.safetensors",
        "gone.safetensors",
        "pipe.safetensors",
        "pytorch_model.bin",
        "",
        None,
        3,
        ["model.safetensors"],
        "\ud800.safetensors",
        "x" * 5000 + ".safetensors",
    ],
)
def test_an_index_names_only_what_lies_beside_it(tmp_path, shard):
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "x.safetensors").write_bytes(safetensors_bytes(arrays()))
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "link.safetensors").symlink_to(secret / "x.safetensors")
    (folder / "folder").symlink_to(secret)
    os.mkfifo(folder / "pipe.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"embed": shard}}))
    with pytest.raises(HubError, match="model") as caught:
        open_tensors(folder)
    assert len(str(caught.value)) < 1000


def test_links_into_the_cache_of_the_hub_are_followed(tmp_path):
    blob = tmp_path / "models--a--b" / "blobs" / "0123"
    snapshot = tmp_path / "models--a--b" / "snapshots" / "main"
    blob.parent.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    blob.write_bytes(safetensors_bytes(arrays()))
    (snapshot / "model.safetensors").symlink_to("../../blobs/0123")
    assert set(open_tensors(snapshot)) == set(arrays())
