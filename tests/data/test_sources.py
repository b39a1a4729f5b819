import gzip
import struct

from hypothesis import given
from hypothesis import strategies as st
import numpy as np
import pytest

from jaxdl import data

CODES = {"uint8": 8, "int8": 9, "int16": 11, "int32": 12, "float32": 13, "float64": 14}


def idx(array, compress=False):
    """The bytes of an IDX file, written independently of the reader."""
    head = struct.pack(">HBB", 0, CODES[str(array.dtype)], array.ndim)
    head += struct.pack(f">{array.ndim}I", *array.shape)
    body = array.astype(array.dtype.newbyteorder(">")).tobytes()
    return gzip.compress(head + body) if compress else head + body


@pytest.mark.parametrize("compress", [True, False])
@pytest.mark.parametrize("dtype", CODES)
def test_an_idx_file_is_read_as_it_was_written(tmp_path, dtype, compress):
    array = (np.arange(24) - 5).reshape(2, 3, 4).astype(dtype)
    path = tmp_path / "array"
    path.write_bytes(idx(array, compress))
    read = data.read_idx(path)
    np.testing.assert_array_equal(read, array)
    assert read.dtype == array.dtype and read.dtype.isnative


@given(st.integers(0, 200), st.booleans(), st.integers(0, 255))
def test_a_damaged_idx_file_is_an_error_or_the_same_size(
    tmp_path_factory, place, cut, byte
):
    raw = bytearray(idx(np.arange(30, dtype=np.int32).reshape(5, 6)))
    place %= len(raw)
    damaged = raw[:place] if cut else raw[:place] + bytes([byte]) + raw[place + 1 :]
    path = tmp_path_factory.mktemp("idx") / "file"
    path.write_bytes(bytes(damaged))
    try:
        read = data.read_idx(path)
    except ValueError as error:
        assert str(path) in str(error)
    else:
        assert read.nbytes == 120 and not cut


def test_a_header_that_claims_a_huge_array_is_an_error_not_an_allocation(tmp_path):
    path = tmp_path / "huge"
    path.write_bytes(struct.pack(">HBB4I", 0, 8, 4, *[2**32 - 1] * 4))
    with pytest.raises(ValueError, match="damaged or not whole"):
        data.read_idx(path)


def test_a_torn_gzip_file_is_an_error(tmp_path):
    path = tmp_path / "torn.gz"
    path.write_bytes(idx(np.arange(99, dtype=np.uint8), compress=True)[:-9])
    with pytest.raises(ValueError, match="gzip file is damaged"):
        data.read_idx(path)


def test_the_digits_are_the_1797_of_scikit_learn():
    digits = data.digits()
    assert digits["image"].shape == (1797, 8, 8, 1)
    assert digits["image"].min() == 0.0 and digits["image"].max() == 1.0
    assert sorted(set(digits["label"].tolist())) == list(range(10))


def test_fashion_mnist_that_is_not_there_says_where_it_looked_and_how_to_get_it(
    tmp_path,
):
    with pytest.raises(
        FileNotFoundError, match="apt-get install dataset-fashion-mnist"
    ):
        data.fashion_mnist(tmp_path)


def test_fashion_mnist_of_another_size_is_an_error(tmp_path):
    small = np.zeros((3, 28, 28), np.uint8)
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(idx(small, compress=True))
    with pytest.raises(ValueError, match=r"expected uint8\[60000, 28, 28\]"):
        data.fashion_mnist(tmp_path)


def test_fashion_mnist_is_found_in_the_folder_of_the_environment(tmp_path, monkeypatch):
    folder = tmp_path / "fashion-mnist"
    folder.mkdir()
    write_fashion(folder)
    monkeypatch.setenv("JAXDL_DATA", str(tmp_path))
    train, test = data.fashion_mnist()
    assert train["image"].shape == (60_000, 28, 28, 1)
    assert test["label"].tolist() == [i % 10 for i in range(10_000)]


def write_fashion(folder):
    for prefix, size in (("train", 60_000), ("t10k", 10_000)):
        images = np.zeros((size, 28, 28), np.uint8)
        labels = (np.arange(size) % 10).astype(np.uint8)
        (folder / f"{prefix}-images-idx3-ubyte").write_bytes(idx(images))
        (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(idx(labels))
