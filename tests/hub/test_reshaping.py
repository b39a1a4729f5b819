"""Transforms: shapes, inverses and parts agree, and PyTorch's layouts become ours."""

import numpy as np
import pytest

from jaxdl.hub import (
    Leading,
    LogOfNegative,
    PairedRows,
    Permute,
    Plus,
    Reshape,
    Transform,
    chain,
    conv,
    identity,
    transpose,
)

CASES = [
    (identity, (3, 4)),
    (identity, ()),
    (transpose, (3, 4)),
    (transpose, (2, 3, 4)),
    (conv, (5, 2, 3)),
    (conv, (5, 4, 2, 3)),
    (Permute((2, 0, 1)), (2, 3, 4)),
    (Reshape((1, -1, 4)), (3, 4)),
    (Reshape((12,)), (3, 4)),
    (Leading(2), (8, 3)),
    (Leading(1), ()),
    (PairedRows(2), (8, 3)),
    (PairedRows(2), (8,)),
    (Plus(1.0), (3,)),
    (LogOfNegative(), (3,)),
    (chain(transpose, Reshape((2, -1))), (3, 4)),
    (chain(PairedRows(2), transpose), (3, 8)),
    (chain(transpose, Permute((1, 0)), identity), (3, 4)),
]


@pytest.mark.parametrize(("transform", "shape"), CASES, ids=str)
def test_there_and_back(transform: Transform, shape):
    ours = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    published = transform.inverse(ours)
    assert published.shape == transform.published_shape(shape)
    np.testing.assert_allclose(transform.forward(published, shape), ours, rtol=1e-6)


@pytest.mark.parametrize(("transform", "shape"), CASES, ids=str)
def test_a_part_of_ours_is_a_part_of_the_published(transform: Transform, shape):
    published = transform.inverse(np.random.default_rng(0).normal(size=shape))
    ours = transform.forward(published, shape)
    slices = tuple(slice(1, size) for size in shape)
    where = transform.published_slices(slices)
    if where is not None:
        part = transform.forward(published[where], shape)
        np.testing.assert_array_equal(part, ours[slices])


def test_a_kernel_of_torch_is_laid_out_as_ours():
    kernel = np.random.default_rng(0).normal(
        size=(7, 3, 2, 5)
    )  # out, in, height, width
    assert conv.forward(kernel, (2, 5, 3, 7))[1, 4, 2, 6] == kernel[6, 2, 1, 4]
    assert transpose.forward(kernel[0, 0], (5, 2)).shape == (5, 2)


def test_paired_rows_are_the_permutation_of_llama_cpp():
    heads, rows = 2, np.arange(16).reshape(16, 1)
    # convert_hf_to_gguf.py, LlamaModel.permute: from Hugging Face to GGUF
    permuted = rows.reshape(heads, 2, 4, 1).swapaxes(1, 2).reshape(16, 1)
    np.testing.assert_array_equal(PairedRows(heads).forward(permuted, (16, 1)), rows)
    np.testing.assert_array_equal(PairedRows(heads).inverse(rows), permuted)


def test_transforms_are_values():
    assert chain(PairedRows(2), transpose) == chain(PairedRows(2), transpose)
    assert hash(chain(PairedRows(2), transpose)) != hash(chain(PairedRows(4), conv))
