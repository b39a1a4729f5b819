from hypothesis import given
from hypothesis import strategies as st
import numpy as np
import pytest

from jaxdl import data

sizes = st.integers(1, 30)


@given(sizes, st.integers(1, 12), st.integers(0, 5))
def test_every_epoch_has_every_row_once(size, batch_size, seed):
    batches = data.Batches(np.arange(size), batch_size, seed)
    epochs = 3
    steps = -(-epochs * size // batch_size)
    rows = np.concatenate([batches(step) for step in range(steps)])[: epochs * size]
    for epoch in rows.reshape(epochs, size):
        assert sorted(epoch) == list(range(size))


@given(sizes, st.integers(1, 12), st.integers(0, 100))
def test_a_batch_is_a_function_of_seed_and_step_alone(size, batch_size, step):
    fresh = data.Batches(np.arange(size), batch_size, seed=3)
    used = data.Batches(np.arange(size), batch_size, seed=3)
    for earlier in (7, 2, 11):
        used(earlier)
    np.testing.assert_array_equal(fresh(step), used(step))
    assert len(fresh(step)) == batch_size


def test_epochs_and_seeds_have_orders_of_their_own():
    first = data.Batches(np.arange(50), 50, seed=0)
    assert list(first(0)) != list(first(1))
    assert list(first(0)) != list(data.Batches(np.arange(50), 50, seed=1)(0))
    in_order = data.Batches(np.arange(50), 20, shuffle=False)
    assert list(in_order(2)) == [*range(40, 50), *range(10)]


@given(sizes, st.integers(1, 12))
def test_an_epoch_for_evaluation_counts_every_row_once(size, batch_size):
    batches = data.Batches({"x": np.arange(size)}, batch_size)
    counted = np.zeros(size)
    for batch, weights in batches.epoch():
        assert len(batch["x"]) == batch_size
        np.add.at(counted, batch["x"], weights)
    assert (counted == 1).all()


@given(st.integers(5, 60), st.integers(0, 5))
def test_a_split_parts_the_rows(size, seed):
    rest, held_out = data.split(np.arange(size), 0.2, seed)
    assert sorted([*rest, *held_out]) == list(range(size))
    assert len(held_out) == round(0.2 * size)


def test_a_stratified_split_gives_each_class_its_share():
    labels = np.repeat([0, 1, 2], [100, 50, 10])
    rest, held_out = data.split(labels, 0.2, seed=4, stratify=labels)
    assert np.bincount(held_out).tolist() == [20, 10, 2]
    assert np.bincount(rest).tolist() == [80, 40, 8]


def test_what_does_not_fit_is_an_error():
    with pytest.raises(ValueError, match="arrays of one leading size"):
        data.Batches({"x": np.ones(3), "y": np.ones(4)}, 2)
    with pytest.raises(ValueError, match="batch_size: expected 1 or more, got 0"):
        data.Batches(np.ones(3), 0)
    with pytest.raises(ValueError, match="at least one row"):
        data.Batches(np.ones(0), 1)
    with pytest.raises(ValueError, match="step: expected 0 or more"):
        data.Batches(np.ones(3), 1)(-1)
    with pytest.raises(ValueError, match="leaves one part empty"):
        data.split(np.ones(3), 0.01)
