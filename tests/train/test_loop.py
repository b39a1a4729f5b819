"""fit: the steps in order, resumed exactly, never waiting, never losing a record."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdl.planning import count_flops
from jaxdl.train import Checkpoints, JsonLines, TrainState, fit, make_step, progress
from jaxdl.train.record import IN_FLIGHT
from tests.train import job

OPTIMIZER = job.OPTIMIZER
STEP = make_step(job.loss_fn, OPTIMIZER, ema_decay=0.9)


def run(steps, **options):
    options = {"data": job.batch, "progress": False, "log_every": 1} | options
    return fit(job.initial(), options.pop("step", STEP), steps=steps, **options)


@pytest.fixture(scope="module")
def whole():
    return run(8)


def assert_same_params(state, expected):
    for a, b in zip(
        jax.tree.leaves(state.params), jax.tree.leaves(expected.params), strict=True
    ):
        np.testing.assert_array_equal(a, b)


def losses(history):
    return history.series("loss")


def test_it_is_a_for_loop_over_the_step(whole):
    state, expected = job.initial(), []
    for index in range(8):
        state, metrics = STEP(state, job.batch(index))
        expected.append(float(metrics["loss"]))
    assert_same_params(whole[0], state)
    assert losses(whole[1]) == (list(range(1, 9)), expected)


def test_records_are_those_of_every_nth_step_and_the_last(whole):
    _, history = run(8, log_every=3)
    steps, values = losses(whole[1])
    assert losses(history) == ([3, 6, 8], [values[step - 1] for step in (3, 6, 8)])


class Positioned:
    """Batches with a position that can be saved, as grain's iterators have it."""

    def __init__(self, as_bytes=False):
        self.position, self.as_bytes = 0, as_bytes

    def __iter__(self):
        return self

    def __next__(self):
        self.position += 1
        return job.batch(self.position - 1)

    def get_state(self):
        return str(self.position).encode() if self.as_bytes else {"at": self.position}

    def set_state(self, state):
        self.position = int(state) if self.as_bytes else state["at"]


DATA = {
    "function": lambda: job.batch,
    "list": lambda: [job.batch(index) for index in range(8)],
    "generator": lambda: (job.batch(index) for index in range(8)),
    "state": Positioned,
    "bytes": lambda: Positioned(as_bytes=True),
}


@pytest.mark.parametrize("kind", DATA)
def test_a_resumed_run_is_the_run_that_never_stopped(tmp_path, whole, kind):
    log = JsonLines(tmp_path / "log.jsonl")
    checkpoints = Checkpoints(tmp_path / "run", every=2)
    options = {"checkpoints": checkpoints, "logs": [log]}
    run(4, data=DATA[kind](), **options)
    # Steps that were logged and then lost, as by a kill before the next checkpoint.
    log.write({"step": 5, "loss": -1.0})
    log.close()
    state, history = run(8, data=DATA[kind](), **options)
    assert_same_params(state, whole[0])
    assert losses(history) == losses(whole[1])
    assert [record["loss"] for record in log.read()] == losses(whole[1])[1]


def test_a_run_that_is_done_does_nothing_more(tmp_path, whole):
    checkpoints = Checkpoints(tmp_path, every=100)
    run(8, checkpoints=checkpoints)
    assert checkpoints.steps() == [8]
    state, _ = run(8, checkpoints=checkpoints, data=lambda step: pytest.fail("more"))
    assert_same_params(state, whole[0])


def test_data_that_ends_early_is_an_error():
    with pytest.raises(ValueError, match="data: ended before step 3"):
        run(8, data=[job.batch(index) for index in range(3)])
    with pytest.raises(TypeError, match="data: expected a function .* got int"):
        run(8, data=3)


def test_evaluations_come_when_due_and_at_the_end():
    _, history = run(
        5, evaluate=lambda state: {"steps": state.step, "loss": 1.5}, eval_every=2
    )
    assert history.series("eval/steps") == ([2, 4, 5], [2.0, 4.0, 5.0])
    order = [(r["step"], "eval/loss" in r) for r in history.records]
    assert order == sorted(order)


def test_the_best_by_evaluation_is_kept(tmp_path):
    checkpoints = Checkpoints(
        tmp_path, every=1, keep_last=1, keep_best=1, metric="eval/loss"
    )
    scores = iter([3.0, 1.0, 2.0, 5.0])
    run(
        8,
        evaluate=lambda state: {"loss": next(scores)},
        eval_every=2,
        checkpoints=checkpoints,
    )
    assert checkpoints.steps() == [4, 8]


def test_callbacks_see_every_step_and_true_stops_the_run(tmp_path):
    seen = []

    def stop_at_five(step, state, metrics):
        assert state.step == step and metrics["loss"].shape == ()
        seen.append(step)
        return step == 5

    checkpoints = Checkpoints(tmp_path, every=100)
    state, history = run(8, callbacks=[stop_at_five], checkpoints=checkpoints)
    assert seen == [1, 2, 3, 4, 5] and history.stopped == "callback"
    assert state.step == 5 and checkpoints.latest() == 5
    assert losses(history)[0] == seen


def test_metrics_are_fetched_after_later_steps_are_under_way():
    """Numbers that know how many steps had begun when somebody asked for them."""
    begun = 0

    class Watched:
        shape = ()

        def __init__(self, step):
            self.step = step

        def __array__(self, dtype=None, copy=None):
            return np.float32(begun - self.step)

    def step(state, batch):
        nonlocal begun
        begun += 1
        return state, {"ahead": Watched(begun)}

    _, history = run(2 * IN_FLIGHT, step=step, log_every=2)
    assert history.series("ahead")[1] == [1.0] * (IN_FLIGHT - 1) + [0.0]


def test_speed_leaves_out_compilation_evaluation_and_saving(tmp_path, monkeypatch):
    now = 0.0

    def lasting(seconds, result):
        nonlocal now
        now += seconds
        return result

    def step(state, batch):
        return lasting(1.0, (state, {"loss": jnp.float32(0)}))

    class Slow(Checkpoints):
        def save(self, *arguments):
            lasting(100.0, super().save(*arguments))

    clock = SimpleNamespace(perf_counter=lambda: now)
    monkeypatch.setattr("jaxdl.train.progress.time", clock)
    _, history = run(
        12,
        step=step,
        evaluate=lambda state: lasting(100.0, {"x": 0.0}),
        eval_every=4,
        checkpoints=Slow(tmp_path, every=3),
        items={"tokens": 10},
    )
    speeds = history.series("steps_per_second")[1]
    assert len(speeds) >= 6 and set(speeds) == {1.0}
    assert set(history.series("tokens_per_second")[1]) == {10.0}


def test_the_mfu_comes_from_the_flops_of_the_step(monkeypatch):
    monkeypatch.setattr(progress, "peak_flops", lambda device: 1e6)
    _, history = run(3)
    expected = count_flops(STEP, job.initial(), job.batch(0)).model
    speeds = np.array(history.series("steps_per_second")[1])
    np.testing.assert_allclose(history.series("mfu")[1], speeds * expected / 1e6)
    # A function that is not jitted would run once more to be counted.
    _, history = run(3, step=lambda state, batch: STEP(state, batch))
    assert "mfu" not in history.names()


def test_a_step_that_changes_the_layout_is_an_error():
    mesh = jax.make_mesh((8,), ("x",))
    spec = jax.sharding.PartitionSpec
    rows = jax.sharding.NamedSharding(mesh, spec("x"))
    whole = jax.sharding.NamedSharding(mesh, spec())
    params = jax.device_put({"w": jnp.ones(8), "v": jnp.ones(8)}, whole)
    state = TrainState.create(params, optax.sgd(0.1), key=jax.random.key(0))

    def step(state, batch):
        moved = {**state.params, "w": jax.device_put(state.params["w"], rows)}
        return state.replace(params=moved), {"loss": 0.0}

    with pytest.raises(ValueError, match=r"1 arrays, \['params/w'\].*state.shardings"):
        fit(state, step, lambda i: None, steps=2, progress=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"log_every": 0}, "log_every: expected an integer from 1"),
        ({"eval_every": 2}, "nothing to evaluate"),
        ({"steps": -1}, "steps: expected 0 or more"),
    ],
)
def test_options_that_do_not_fit_together_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        run(**{"steps": 1, **options})


def test_ranking_by_an_evaluation_that_never_comes_is_refused(tmp_path):
    checkpoints = Checkpoints(tmp_path, every=1, keep_best=1, metric="eval/loss")
    with pytest.raises(ValueError, match="rank by 'eval/loss', but there is nothing"):
        run(2, checkpoints=checkpoints)


def test_metrics_that_are_no_scalars_are_refused():
    with pytest.raises(ValueError, match=r"confusion: expected a scalar, got .*\(2,\)"):
        run(1, evaluate=lambda state: {"confusion": jnp.ones(2)})
