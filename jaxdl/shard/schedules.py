"""Schedules of a pipeline as data: what each stage does at each tick.

A tick is the time of one forward or backward pass of one microbatch through one chunk
of layers. What a stage sends at one tick is there at the next.
"""

from collections.abc import Sequence
import dataclasses
from typing import NamedTuple

from rich import box
from rich.table import Table

from jaxdl.core.table import Shown


class Task(NamedTuple):
    """A pass of one microbatch through one of the chunks that a stage has."""

    microbatch: int
    backward: bool = False
    chunk: int = 0

    def __str__(self) -> str:
        letter = "B" if self.backward else "F"
        return f"{letter}{self.microbatch}" + "'" * self.chunk


Row = tuple[Task | None, ...]


@dataclasses.dataclass(frozen=True, repr=False)
class Schedule(Shown):
    """A table of tasks, a row of all stages for each tick; None where one is idle.

    With several chunks stage s has the layers of places s, s + stages, ... of the
    model's stages x chunks places.
    """

    name: str
    stages: int
    microbatches: int
    chunks: int
    table: tuple[Row, ...]

    @property
    def bubble(self) -> float:
        """The fraction of time in which stages are idle."""
        cells = [task for row in self.table for task in row]
        return cells.count(None) / len(cells)

    @property
    def alive(self) -> int:
        """How many inputs of chunks the fullest stage keeps for backward passes."""
        most = 0
        for column in zip(*self.table, strict=True):
            kept = 0
            for task in filter(None, column):
                kept += -1 if task.backward else 1
                most = max(most, kept)
        return most

    def __rich__(self) -> Table:
        title = f"{self.name}: {self.bubble:.1%} idle, {self.alive} inputs kept"
        table = Table("stage", title=title, box=box.SIMPLE, pad_edge=False)
        for tick in range(len(self.table)):
            table.add_column(str(tick))
        for stage, column in enumerate(zip(*self.table, strict=True)):
            table.add_row(str(stage), *("" if t is None else str(t) for t in column))
        return table


def gpipe(stages: int, microbatches: int) -> Schedule:
    """All forward passes, then all backward passes (Huang et al. 2019, GPipe)."""
    _check(stages, microbatches)
    order = [
        Task(microbatch, backward)
        for backward in (False, True)
        for microbatch in range(microbatches)
    ]
    return _schedule("GPipe", microbatches, [order] * stages)


def one_forward_one_backward(stages: int, microbatches: int) -> Schedule:
    """1F1B: a backward pass as early as can be, so that few activations are kept.

    (PipeDream-Flush, Narayanan et al. 2021, arXiv:2006.09503.) The bubble is GPipe's;
    a stage keeps at most as many microbatches as there are stages.
    """
    _check(stages, microbatches)
    forward = [Task(m) for m in range(microbatches)]
    backward = [Task(m, True) for m in range(microbatches)]
    orders = [
        _alternating(forward, backward, stages - stage - 1) for stage in range(stages)
    ]
    return _schedule("1F1B", microbatches, orders)


def interleaved(stages: int, microbatches: int, chunks: int = 2) -> Schedule:
    """1F1B where each stage has several chunks: a bubble as many times smaller.

    (Narayanan et al. 2021, arXiv:2104.04473, section 2.2.) More is sent, and more
    inputs are kept.

    Raises ValueError unless the stages divide the microbatches.
    """
    _check(stages, microbatches)
    if chunks < 2 or microbatches % stages:
        raise ValueError(
            "interleaved: expected 2 chunks or more, and microbatches that are a "
            f"multiple of {stages} stages, got {chunks} and {microbatches}"
        )
    turns = [
        (first + place, chunk)
        for first in range(0, microbatches, stages)
        for chunk in range(chunks)
        for place in range(stages)
    ]
    forward = [Task(microbatch, False, chunk) for microbatch, chunk in turns]
    backward = [Task(m, True, chunks - chunk - 1) for m, chunk in turns]
    orders = [
        _alternating(forward, backward, 2 * (stages - s - 1) + (chunks - 1) * stages)
        for s in range(stages)
    ]
    return _schedule("interleaved 1F1B", microbatches, orders, chunks)


def _check(stages: int, microbatches: int) -> None:
    if stages < 1 or microbatches < 1:
        raise ValueError(
            "schedule: expected a stage and a microbatch at least, got "
            f"{stages} and {microbatches}"
        )


def _alternating(forward: list[Task], backward: list[Task], ahead: int) -> list[Task]:
    """Some forward tasks, then one of each in turn, then the backward ones left."""
    ahead = min(ahead, len(forward))
    pairs = zip(forward[ahead:], backward, strict=False)
    middle = [task for pair in pairs for task in pair]
    return [*forward[:ahead], *middle, *backward[len(forward) - ahead :]]


def _schedule(
    name: str, microbatches: int, orders: Sequence[list[Task]], chunks: int = 1
) -> Schedule:
    """Each stage does its tasks in order, each as soon as what it needs is there."""
    stages = len(orders)
    waiting = [list(order) for order in orders]
    done: set[tuple[int, Task]] = set()
    table: list[Row] = []
    while any(waiting):
        row = tuple(
            tasks[0]
            if tasks and all(n in done for n in _needs(s, tasks[0], stages, chunks))
            else None
            for s, tasks in enumerate(waiting)
        )
        assert any(row), "tasks wait for each other"
        for stage, task in enumerate(row):
            if task is not None:
                done.add((stage, task))
                waiting[stage].pop(0)
        table.append(row)
    return Schedule(name, stages, microbatches, chunks, tuple(table))


def _needs(stage: int, task: Task, stages: int, chunks: int) -> list[tuple[int, Task]]:
    """The tasks of stages that must have been done at an earlier tick."""
    place = task.chunk * stages + stage
    before = place + 1 if task.backward else place - 1
    needed = [(stage, task._replace(backward=False))] if task.backward else []
    if 0 <= before < stages * chunks:
        chunk, other = divmod(before, stages)
        needed.append((other, task._replace(chunk=chunk)))
    return needed
