"""A schedule as numbers for a program: what to do, and where what arrives is kept."""

from typing import NamedTuple

import numpy as np

from jaxdl.shard.schedules import Schedule, Task

IDLE, FORWARD, BACKWARD, LAST = range(4)


class Plan(NamedTuple):
    """A schedule for a program: numbers for each [tick, stage]."""

    work: np.ndarray  # which of the four things to do
    microbatch: np.ndarray
    chunk: np.ndarray
    read: np.ndarray  # the slot of the input, -1 for a microbatch itself
    read_d: np.ndarray  # the slot of the gradient of the result
    store: np.ndarray  # the slot for what arrives from the stage before
    store_d: np.ndarray  # ... and from the stage after
    slots: int
    slots_d: int


def plan_of(schedule: Schedule) -> Plan:
    """Gives every input, and every gradient, a slot from when it arrives till used."""
    stages, chunks = schedule.stages, schedule.chunks
    when = {
        (task, stage): tick
        for tick, row in enumerate(schedule.table)
        for stage, task in enumerate(row)
        if task is not None
    }
    # [backward][task that needs it, stage] -> tick
    arrivals: dict[bool, dict] = {False: {}, True: {}}
    for (task, stage), tick in when.items():
        place = task.chunk * stages + stage + (-1 if task.backward else 1)
        if 0 <= place < stages * chunks:
            chunk, other = divmod(place, stages)
            there = task._replace(chunk=chunk), other
            arrivals[task.backward][there] = tick + 1
    last = {
        (task, stage): when[task._replace(backward=True), stage]
        for kind in arrivals.values()
        for task, stage in kind
    }
    slots, number = _slots(arrivals[False], last)
    slots_d, number_d = _slots(arrivals[True], last)
    tables = np.zeros((7, len(schedule.table), stages), np.int32)
    plan = Plan(*tables, slots=number, slots_d=number_d)
    plan.store[:], plan.store_d[:] = number, number_d
    for (task, stage), tick in when.items():
        at = tick, stage
        end = task.chunk * stages + stage == stages * chunks - 1
        kinds = (BACKWARD, LAST) if task.backward else (FORWARD, IDLE)
        plan.work[at] = kinds[end]
        plan.microbatch[at], plan.chunk[at] = task.microbatch, task.chunk
        plan.read[at] = slots.get((task._replace(backward=False), stage), -1)
        plan.read_d[at] = slots_d.get((task, stage), 0)
    for there, tick in arrivals[False].items():
        plan.store[tick, there[1]] = slots[there]
    for there, tick in arrivals[True].items():
        plan.store_d[tick, there[1]] = slots_d[there]
    return plan


def _slots(arrivals: dict, last: dict) -> tuple[dict[tuple[Task, int], int], int]:
    """The lowest slot that is free for each, and how many the fullest stage needs."""
    found: dict[tuple[Task, int], int] = {}
    until: dict[tuple[int, int], int] = {}  # stage, slot -> the tick of its last use
    for there, tick in sorted(arrivals.items(), key=lambda item: item[1]):
        stage, slot = there[1], 0
        while until.get((stage, slot), -1) >= tick:
            slot += 1
        found[there], until[stage, slot] = slot, last[there]
    return found, max(found.values(), default=-1) + 1
