import threading

from hypothesis import given
from hypothesis import strategies as st
import numpy as np
import pytest

from jaxdl import data

numbers = [{"x": np.int32(i)} for i in range(10)]


def pipeline(seed=0):
    grain = pytest.importorskip("grain")
    letters = grain.MapDataset.source(numbers).shuffle(seed=seed).repeat()
    others = grain.MapDataset.source([{"x": np.int32(-1)}]).repeat()
    mixed = grain.MapDataset.mix([letters, others], weights=[0.75, 0.25])
    noisy = mixed.seed(seed + 1).random_map(_with_noise)
    return noisy


def _with_noise(record, rng):
    return {**record, "noise": rng.normal(size=3)}


@given(st.integers(0, 10**9))
def test_any_step_of_a_grain_pipeline_is_found_at_once_and_is_the_same(step):
    used, fresh = data.Steps(pipeline(), 4), data.Steps(pipeline(), 4, threads=1)
    used(3)
    np.testing.assert_equal(used(step), fresh(step))


def test_a_mixture_keeps_its_weights_and_an_epoch_has_every_record():
    steps = data.Steps(pipeline(), 40)
    x = steps(0)["x"]
    assert (x == -1).sum() == 10
    assert sorted(x[x >= 0]) == sorted([*range(10)] * 3)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_the_rows_of_all_processes_are_those_of_one(count):
    whole = data.Steps(pipeline(), 8)(5)
    parts = [data.Steps(pipeline(), 8, process=(i, count))(5) for i in range(count)]
    for name, rows in whole.items():
        np.testing.assert_array_equal(np.concatenate([p[name] for p in parts]), rows)


def test_what_cannot_be_batched_is_refused():
    with pytest.raises(ValueError, match="expected a multiple of 3 processes, got 8"):
        data.Steps(numbers, 8, process=(0, 3))
    with pytest.raises(ValueError, match="at least one, got none"):
        data.Steps([], 2)
    with pytest.raises(ValueError, match="record 2: filtered out"):
        data.Steps([1, 2, None], 3)(0)


def test_reading_ahead_gives_the_same_batches_in_any_order():
    steps = data.Steps(numbers, 3)
    read = data.ReadAhead(steps, ahead=2)
    for step in (0, 1, 2, 9, 8, 8, 3, 4):
        np.testing.assert_equal(read(step), steps(step))


def test_the_next_batches_are_read_while_a_step_runs():
    done = [threading.Event() for _ in range(4)]
    read = data.ReadAhead(lambda step: done[step].set(), ahead=2)
    read(0)
    assert done[2].wait(10)  # nobody has asked for it
    assert not done[3].is_set()


def test_an_error_is_raised_when_its_step_is_asked_for():
    def batches(step):
        if step == 2:
            raise ValueError("the disk is gone")
        return step

    read = data.ReadAhead(batches, ahead=2)
    assert [read(0), read(1)] == [0, 1]
    with pytest.raises(ValueError, match="the disk is gone"):
        read(2)
    assert read(3) == 3


def test_batches_are_placed_in_the_thread():
    here = threading.get_ident()
    read = data.ReadAhead(lambda step: step, place=lambda _: threading.get_ident())
    assert read(0) != here


def test_array_records_are_read_in_any_order(tmp_path):
    grain = pytest.importorskip("grain")
    module = pytest.importorskip("array_record.python.array_record_module")
    path = str(tmp_path / "a.array_record")
    writer = module.ArrayRecordWriter(path, "group_size:1")
    for number in range(7):
        writer.write(np.int64(number).tobytes())
    writer.close()
    source = grain.MapDataset.source(grain.sources.ArrayRecordDataSource([path]))
    numbers = source.shuffle(seed=1).repeat().map(lambda raw: np.frombuffer(raw, int))
    read = data.Steps(numbers, 7)(3)
    assert sorted(read[:, 0]) == list(range(7))
