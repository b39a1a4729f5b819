import collections
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdl as jd
from jaxdl import shard

NUMBER, BATCH, DIM, HIDDEN, OUT = 4, 4, 8, 16, 3
RULES = shard.DATA | shard.TENSOR | {"stages": "stage"}
AXES = {"up": ("stages", None, "mlp"), "down": ("stages", "mlp", None)}
SIZES = {"data": 2, "stage": 4}
close = dict(rtol=1e-5, atol=1e-5)


def stage_fn(params, x):
    return x + jnp.tanh(x @ params["up"]) @ params["down"]


def loss_fn(head, y, target):
    return jnp.mean((y @ head - target) ** 2)


def inputs(places, number=NUMBER, batch=BATCH):
    keys = jax.random.split(jax.random.key(0), 5)
    shapes = (
        (places, DIM, HIDDEN), (places, HIDDEN, DIM), (DIM, OUT),
        (number, batch, DIM), (number, batch, OUT),
    )  # fmt: skip
    up, down, *rest = map(jax.random.normal, keys, shapes)
    return {"up": up / 4, "down": down / 4}, *rest


def plain(params, head, x, target):
    """The same without a pipeline, a stage after the other."""
    for place in range(params["up"].shape[0]):
        x = stage_fn(jax.tree.map(lambda p, i=place: p[i], params), x)
    return loss_fn(head, x, target)


def by_schedule(schedule, *arrays):
    return shard.pipeline_loss(stage_fn, loss_fn, *arrays, schedule)


def by_jax(schedule, params, head, x, target):
    return loss_fn(head, shard.pipeline(stage_fn, params, x), target)


def gradients(function):
    return jax.value_and_grad(function, (0, 1, 2))


@functools.cache
def compiled(run, make, **sizes):
    """Loss and gradients on devices: the program, what it is given, the mesh."""
    mesh = jd.mesh(**sizes)
    schedule = make(sizes["stage"], NUMBER)
    params, *rest = inputs(schedule.stages * schedule.chunks)
    split = AXES if schedule.chunks == 1 else {name: (None,) * 3 for name in AXES}
    params = shard.place(params, mesh, RULES, axes=split)
    head = shard.place(rest[0], mesh, RULES, axes=(None, None))
    rows = shard.place(rest[1:], mesh, RULES, axes=(None, "batch"))
    arrays = params, head, *rows
    with shard.use(mesh, RULES):
        lowered = jax.jit(gradients(functools.partial(run, schedule))).lower(*arrays)
    return lowered.compile(), arrays, mesh, schedule


def same(found, wanted):
    for got, want in zip(*map(jax.tree.leaves, (found, wanted)), strict=True):
        np.testing.assert_allclose(got, want, **close)


@pytest.mark.parametrize(
    ("run", "make", "sizes"),
    [
        (by_schedule, shard.one_forward_one_backward, SIZES),
        (by_schedule, shard.gpipe, {"data": 2, "stage": 2, "tensor": 2}),
        (by_schedule, shard.interleaved, {"data": 4, "stage": 2}),
        (by_jax, shard.gpipe, SIZES),
    ],
)
def test_loss_and_gradients_are_those_without_a_pipeline(run, make, sizes):
    program, arrays, *_ = compiled(run, make, **sizes)
    same(program(*arrays), gradients(plain)(*jax.tree.map(np.asarray, arrays)))


def test_stages_send_to_their_neighbours_and_add_up_once():
    run = by_schedule, shard.one_forward_one_backward
    program, _, mesh, schedule = compiled(*run, **SIZES)
    found = collections.Counter()
    for each in shard.collectives(program, mesh):
        found[each.kind, each.axes] += each.count
    assert found.pop(("collective-permute", ("stage",))) == 2 * len(schedule.table)
    assert set(found) == {
        ("all-reduce", ("data",)),
        ("all-reduce", ("stage",)),
        ("all-reduce", ("data", "stage")),
    }
    assert found.total() <= 5  # each array of gradients, and the loss, once


def test_without_a_mesh_the_stages_follow_each_other():
    schedule = shard.interleaved(2, NUMBER)
    arrays = inputs(4)
    run = jax.jit(gradients(functools.partial(by_schedule, schedule)))
    same(run(*arrays), gradients(plain)(*arrays))


@pytest.mark.slow
def test_1f1b_needs_less_memory_than_gpipe(optimized):
    mesh = jd.mesh(**SIZES)

    def temporaries(make):
        arrays = jax.eval_shape(lambda: inputs(4, number=32, batch=512))
        run = functools.partial(by_schedule, make(4, 32))
        with shard.use(mesh, RULES):
            program = jax.jit(gradients(run)).lower(*arrays).compile()
        return program.memory_analysis().temp_size_in_bytes

    row = 512 // 2 * DIM * 4
    saved = temporaries(shard.gpipe) - temporaries(shard.one_forward_one_backward)
    assert saved > 20 * row


def test_sizes_that_do_not_fit_are_refused():
    params, *rest = inputs(4)
    wrong = jax.tree.map(lambda x: x[:3], params)
    good = shard.gpipe(4, NUMBER)
    with shard.use(jd.mesh(**SIZES), RULES):
        with pytest.raises(
            ValueError, match=r"expected arrays \[4, ...\].*got \[3, 16"
        ):
            shard.pipeline(stage_fn, wrong, rest[1])
        with pytest.raises(ValueError, match="expected 8 microbatches.*got 4"):
            by_schedule(shard.gpipe(4, 8), params, *rest)
        with pytest.raises(ValueError, match="a schedule of 4 stages.*got 2"):
            by_schedule(shard.interleaved(2, NUMBER), params, *rest)
        with pytest.raises(ValueError, match="gives what it takes"):
            shard.pipeline_loss(lambda p, x: x @ p["up"], loss_fn, params, *rest, good)
