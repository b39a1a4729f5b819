"""A model whose layers are spread over devices, through which microbatches pass.

Both functions follow the layout in force (`shard.use(mesh, rules)`): stages are along
the mesh axis `stage`, and each microbatch is split by the rule for `batch`. Other axes
stay the compiler's. Without a layout the stages follow each other on one device, so
that the same program runs anywhere.
"""

from collections.abc import Callable
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
import numpy as np

from jaxdl.core import layout
from jaxdl.nn.blocks import put, take
from jaxdl.shard.context import differing
from jaxdl.shard.schedules import Schedule
from jaxdl.shard.slots import plan_of

PyTree = Any
StageFunction = Callable[[PyTree, PyTree], PyTree]
LossFunction = Callable[[PyTree, PyTree, PyTree], jax.Array]


def pipeline(
    stage_fn: StageFunction, stage_params: PyTree, microbatches: PyTree
) -> PyTree:
    """Passes microbatches through all stages, each on devices of its own.

    stage_fn: `stage_fn(params, x)` gives what the next stage takes, shaped as x.
    stage_params: arrays [stages, ...]; split them by `{"stages": "stage"}` or the like.
    microbatches: arrays [microbatches, batch, ...], and the result too.

    It is differentiated as any function is, and then is GPipe: all forward passes, then
    all backward passes. Every microbatch's activations are kept, less with
    `jax.checkpoint(stage_fn)`. `pipeline_loss` keeps those of a few.

    Raises ValueError where stages are not as many as devices along the axis, and for a
    stage that gives another shape than it takes.
    """
    line = _line(stage_fn, stage_params, microbatches)
    if line is None:
        return _in_turn(stage_fn, stage_params, microbatches)
    _expect_stages(line.stages, stage_params, "the devices along the axis stage")
    run = functools.partial(_forward, line, stage_fn)
    specs = PartitionSpec("stage"), line.rows
    return line.manual(run, specs, line.rows)(stage_params, microbatches)


def pipeline_loss(
    stage_fn: StageFunction,
    loss_fn: LossFunction,
    stage_params: PyTree,
    loss_params: PyTree,
    microbatches: PyTree,
    targets: PyTree,
    schedule: Schedule,
) -> jax.Array:
    """The mean loss of microbatches, whose gradients are computed by a schedule.

    loss_fn: `loss_fn(loss_params, y, target)` of what the last stage gives, a mean over
      the batch; the head of a model belongs in it.
    stage_params: arrays [stages x chunks, ...] in the order of the network.
    targets: arrays [microbatches, batch, ...], without gradients.
    schedule: `gpipe`, `one_forward_one_backward` or `interleaved` of these sizes.

    Differentiate it by stage_params, loss_params and microbatches (and so what made
    those, an embedding); the two functions close over nothing that is differentiated.
    Forward and backward passes then run in one sweep, as the schedule says; a stage
    keeps its inputs alone, and the backward pass computes the rest again.

    Raises ValueError where sizes are not those of the schedule.
    """
    number = jax.tree.leaves(microbatches)[0].shape[0]
    if number != schedule.microbatches:
        raise ValueError(
            f"pipeline_loss: expected {schedule.microbatches} microbatches, as in the "
            f"schedule, got {number}"
        )
    places = schedule.stages * schedule.chunks
    _expect_stages(places, stage_params, "the stages x chunks of the schedule")
    line = _line(stage_fn, stage_params, microbatches)
    arrays = stage_params, loss_params, microbatches, targets
    if line is None:
        return _loss_in_turn(stage_fn, loss_fn, *arrays)
    if line.stages != schedule.stages:
        raise ValueError(
            f"pipeline_loss: expected a schedule of {line.stages} stages, the devices "
            f"along the axis stage, got {schedule.stages}"
        )
    return _loss(line, stage_fn, loss_fn, schedule, *arrays)


class _Line(NamedTuple):
    """The devices of a pipeline; it is hashable."""

    mesh: Any
    stages: int
    batch: tuple[str, ...]  # the axes that split each microbatch

    @property
    def axes(self) -> tuple[str, ...]:
        return ("stage", *self.batch)

    @property
    def rows(self) -> PartitionSpec:
        """Of [microbatches, batch, ...]."""
        return layout.spec_of(((), self.batch))

    @property
    def parts(self) -> int:
        """Of each microbatch."""
        return math.prod(self.mesh.shape[axis] for axis in self.batch)

    def manual(self, function: Callable, in_specs: Any, out_specs: Any) -> Callable:
        """The function of what one device has, as one of whole arrays."""
        return jax.shard_map(
            function,
            mesh=self.mesh,
            in_specs=in_specs,
            out_specs=out_specs,
            axis_names=set(self.axes),
        )

    def passed(self, x: PyTree, step: int) -> PyTree:
        """What the stage `step` before had."""
        pairs = [(s, (s + step) % self.stages) for s in range(self.stages)]
        return jax.tree.map(lambda x: jax.lax.ppermute(x, "stage", pairs), x)

    def differing(self, x: PyTree, spec: Any = None) -> PyTree:
        """Arrays split by a spec as ones that may differ between all devices."""
        return differing(x, spec or PartitionSpec(), self.axes)


def _line(stage_fn, stage_params, microbatches) -> _Line | None:
    """The devices along which stages are in the layout in force; None if on one."""
    shapes = jax.eval_shape(take, (stage_params, microbatches), 0)
    params, x = shapes
    given, wanted = jax.eval_shape(stage_fn, params, x), x
    facts = [jax.tree.map(lambda x: (x.shape, x.dtype), t) for t in (wanted, given)]
    if facts[0] != facts[1]:
        raise ValueError(
            f"pipeline: expected a stage that gives what it takes, {facts[0]}, got "
            f"{facts[1]}; embeddings and heads are outside of the stages"
        )
    mesh, free = layout.free_axes()
    now = layout.current()
    if mesh is None or now is None or "stage" not in free or mesh.shape["stage"] == 1:
        return None
    specs = [
        now.place(x.shape, ("batch", *(None,) * (x.ndim - 1)), "activation").spec
        for x in jax.tree.leaves(x)
    ]
    batch = [layout.axes_of(spec[0] if spec else None) for spec in specs]
    common = tuple(a for a in batch[0] if a in free and all(a in b for b in batch))
    return _Line(mesh, mesh.shape["stage"], common)


def _expect_stages(number: int, stage_params: PyTree, words: str) -> None:
    for x in jax.tree.leaves(stage_params):
        if x.shape[:1] != (number,):
            raise ValueError(
                f"stage_params: expected arrays [{number}, ...], {words}, got "
                f"{list(x.shape)}"
            )


def _in_turn(stage_fn, stage_params, microbatches):
    """All stages on one device."""

    def through(x):
        return jax.lax.scan(lambda x, p: (stage_fn(p, x), None), x, stage_params)[0]

    return jax.lax.map(through, microbatches)


def _loss_in_turn(stage_fn, loss_fn, stage_params, loss_params, microbatches, targets):
    y = _in_turn(stage_fn, stage_params, microbatches)
    return _mean_loss(loss_fn, loss_params, y, targets)


def _mean_loss(loss_fn, loss_params, y, targets):
    return jax.lax.map(lambda a: loss_fn(loss_params, *a), (y, targets)).mean()


def _forward(line: _Line, stage_fn, params, microbatches):
    """What one device does of `pipeline`: microbatch t - stage at each tick t."""
    here = jax.lax.axis_index("stage")
    params = line.differing(take(params, 0), PartitionSpec("stage"))
    microbatches = line.differing(microbatches, line.rows)
    number = jax.tree.leaves(microbatches)[0].shape[0]

    def tick(arrived, now):
        turn = now - here
        mine = take(microbatches, jnp.clip(turn, 0, number - 1))
        x = jax.tree.map(lambda a, b: jnp.where(here == 0, a, b), mine, arrived)
        busy = (turn >= 0) & (turn < number)
        y = jax.lax.cond(busy, lambda x: stage_fn(params, x), lambda x: x, x)
        return line.passed(y, 1), y

    start = jax.tree.map(jnp.zeros_like, take(microbatches, 0))
    ticks = jnp.arange(number + line.stages - 1)
    _, y = jax.lax.scan(tick, start, ticks)
    last = here == line.stages - 1
    y = jax.tree.map(lambda y: jnp.where(last, y[line.stages - 1 :], 0), y)
    return jax.lax.psum(y, "stage")


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2, 3))
def _loss(line: _Line, stage_fn, loss_fn, schedule: Schedule, *arrays):
    """Without gradients: each chunk of all stages in turn."""
    stage_params, loss_params, y, targets = arrays
    for chunk in range(schedule.chunks):
        y = pipeline(stage_fn, take(_cut(schedule, stage_params), chunk), y)
    return _mean_loss(loss_fn, loss_params, y, targets)


def _loss_forward(line, stage_fn, loss_fn, schedule, *arrays):
    return _swept(line, stage_fn, loss_fn, schedule, *arrays)


def _loss_backward(line, stage_fn, loss_fn, schedule, gradients, d_loss):
    d = jax.tree.map(lambda x: (x * d_loss).astype(x.dtype), gradients)
    return (*d, None)


_loss.defvjp(_loss_forward, _loss_backward)


def _cut(schedule: Schedule, stage_params) -> PyTree:
    """[stages x chunks, ...] -> [chunks, stages, ...]."""
    shape = schedule.chunks, schedule.stages
    return jax.tree.map(lambda x: x.reshape(*shape, *x.shape[1:]), stage_params)


def _swept(line, stage_fn, loss_fn, schedule, *arrays):
    """The loss and the gradients of all but the targets, by the schedule."""
    stage_params, loss_params, microbatches, targets = arrays
    cut = _cut(schedule, stage_params)
    run = functools.partial(_sweep, line, stage_fn, loss_fn, schedule)
    staged, whole = PartitionSpec(None, "stage"), PartitionSpec()
    loss, (d_cut, *rest) = line.manual(
        run,
        (staged, whole, line.rows, line.rows),
        (whole, (staged, whole, line.rows)),
    )(cut, loss_params, microbatches, targets)
    d_params = jax.tree.map(lambda d, x: d.reshape(x.shape), d_cut, stage_params)
    return loss, (d_params, *rest)


class _Totals(NamedTuple):
    """What adds up over the ticks."""

    loss: jax.Array
    params: PyTree
    loss_params: PyTree
    microbatches: PyTree  # [microbatches + 1, ...], the last for what nobody wants


def _sweep(line: _Line, stage_fn, loss_fn, schedule: Schedule, *arrays):
    """What one device does of a schedule."""
    plan = plan_of(schedule)
    params, loss_params, microbatches, targets = arrays
    params = line.differing(
        jax.tree.map(lambda x: x[:, 0], params), PartitionSpec("stage")
    )
    loss_params = line.differing(loss_params)
    microbatches, targets = line.differing((microbatches, targets), line.rows)
    work = functools.partial(_work, stage_fn, loss_fn, params, loss_params)

    def tick(state, now):
        arrived, arrived_d, inputs, gradients, totals = state
        inputs = put(inputs, arrived, now["store"])
        gradients = put(gradients, arrived_d, now["store_d"])
        mine = take(microbatches, now["microbatch"])
        kept = take(inputs, jnp.maximum(now["read"], 0))
        x = jax.tree.map(lambda a, b: jnp.where(now["read"] < 0, a, b), mine, kept)
        d_y, target = take(gradients, now["read_d"]), take(targets, now["microbatch"])
        y, d_x, totals = work(now, x, d_y, target, totals)
        sent = line.passed(y, 1), line.passed(d_x, -1)
        return (*sent, inputs, gradients, totals), None

    row, number = take(microbatches, 0), schedule.microbatches
    totals = _Totals(
        _empty(line, jnp.zeros(()), jnp.float32),
        _empty(line, params, jnp.float32),
        _empty(line, loss_params, jnp.float32),
        _empty(line, row, None, number + 1),
    )
    nothing = _empty(line, row)
    kept = (_empty(line, row, None, n + 1) for n in (plan.slots, plan.slots_d))
    here = jax.lax.axis_index("stage")
    columns = {
        name: jnp.asarray(table)[:, here]
        for name, table in plan._asdict().items()
        if isinstance(table, np.ndarray)
    }
    state = nothing, nothing, *kept, totals
    (*_, totals), _ = jax.lax.scan(tick, state, columns)
    loss, d = _summed(line, totals, number * line.parts)
    return loss, jax.tree.map(lambda d, x: d.astype(x.dtype), d, arrays[:3])


def _empty(line: _Line, tree: PyTree, dtype: Any = None, *leading: int) -> PyTree:
    """Zeros of these shapes, with leading dimensions more."""

    def zeros(x):
        return jnp.zeros((*leading, *x.shape), dtype or x.dtype)

    return line.differing(jax.tree.map(zeros, tree))


def _summed(line: _Line, totals: _Totals, share: int):
    """The loss, and gradients of its mean, of all devices."""
    totals = totals._replace(
        params=jax.tree.map(lambda x: x[:, None], totals.params),
        microbatches=jax.tree.map(lambda x: x[:-1], totals.microbatches),
    )
    loss, params, loss_params, microbatches = jax.tree.map(lambda x: x / share, totals)
    if line.batch:
        params = jax.lax.psum(params, line.batch)
    loss, loss_params = jax.lax.psum((loss, loss_params), line.axes)
    return loss, (params, loss_params, jax.lax.psum(microbatches, "stage"))


def _work(stage_fn, loss_fn, params, loss_params, now, x, d_y, target, totals: _Totals):
    """One tick: what goes to the next stage, to the one before, and the totals."""
    nothing = jax.tree.map(jnp.zeros_like, x)

    def idle(totals):
        return nothing, nothing, totals

    def forward(totals):
        return stage_fn(take(params, now["chunk"]), x), nothing, totals

    def backward(totals):
        _, pull = jax.vjp(stage_fn, take(params, now["chunk"]), x)
        return nothing, *_added(totals, now, *pull(d_y))

    def last(totals):
        def whole(params, loss_params, x):
            return loss_fn(loss_params, stage_fn(params, x), target)

        given = take(params, now["chunk"]), loss_params, x
        loss, d = jax.value_and_grad(whole, (0, 1, 2))(*given)
        d_loss_params = jax.tree.map(jnp.add, totals.loss_params, d[1])
        totals = totals._replace(
            loss=totals.loss + loss.astype(totals.loss.dtype), loss_params=d_loss_params
        )
        return nothing, *_added(totals, now, d[0], d[2])

    return jax.lax.switch(now["work"], [idle, forward, backward, last], totals)


def _added(totals: _Totals, now, d_params, d_x) -> tuple[PyTree, _Totals]:
    """The gradient for the stage before, and the totals with this tick's."""
    before = take(totals.params, now["chunk"])
    params = put(totals.params, jax.tree.map(jnp.add, before, d_params), now["chunk"])
    row = jnp.where(now["read"] < 0, now["microbatch"], -1)
    number = jax.tree.leaves(totals.microbatches)[0].shape[0]
    first = put(totals.microbatches, d_x, row % number)
    return d_x, totals._replace(params=params, microbatches=first)
