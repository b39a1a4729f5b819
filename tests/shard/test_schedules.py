from hypothesis import given
from hypothesis import strategies as st
import pytest

from jaxdl.shard import schedules
from jaxdl.shard.schedules import Task


@st.composite
def any_schedule(draw):
    stages, rounds = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    make = draw(st.sampled_from(("gpipe", "one_forward_one_backward", "interleaved")))
    if make == "interleaved":
        return schedules.interleaved(stages, stages * rounds, draw(st.integers(2, 3)))
    return getattr(schedules, make)(stages, draw(st.integers(1, 8)))


@given(any_schedule())
def test_every_task_is_done_once_after_what_it_needs(schedule):
    when = {
        (task.microbatch, task.backward, task.chunk * schedule.stages + stage): tick
        for tick, row in enumerate(schedule.table)
        for stage, task in enumerate(row)
        if task is not None
    }
    places = schedule.stages * schedule.chunks
    assert sum(map(len, schedule.table)) * (1 - schedule.bubble) == pytest.approx(
        len(when)
    )
    for microbatch in range(schedule.microbatches):
        passes = [(microbatch, False, place) for place in range(places)]
        passes += [(microbatch, True, place) for place in reversed(range(places))]
        ticks = [when.pop(each) for each in passes]
        assert ticks == sorted(set(ticks))
    assert not when


@given(any_schedule())
def test_the_bubble_is_that_of_the_papers(schedule):
    waiting = schedule.stages - 1
    work = schedule.microbatches * schedule.chunks
    assert schedule.bubble == pytest.approx(waiting / (work + waiting))


@given(st.integers(1, 5), st.integers(1, 9))
def test_1f1b_keeps_no_more_than_the_stages_where_gpipe_keeps_all(stages, microbatches):
    assert schedules.gpipe(stages, microbatches).alive == microbatches
    kept = schedules.one_forward_one_backward(stages, microbatches).alive
    assert kept == min(stages, microbatches)


def test_a_schedule_is_a_value_and_can_be_read():
    schedule = schedules.one_forward_one_backward(2, 2)
    assert schedule == schedules.one_forward_one_backward(2, 2)
    assert schedule.table[2] == (None, Task(0, backward=True))
    assert "1F1B: 33.3% idle, 2 inputs kept" in str(schedule)


def test_interleaving_refuses_microbatches_that_leave_a_stage_without():
    with pytest.raises(ValueError, match="multiple of 4 stages, got 2 and 6"):
        schedules.interleaved(4, 6)
