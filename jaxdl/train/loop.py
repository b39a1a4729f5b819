"""The training loop: runs the step, records, evaluates, saves, resumes."""

from collections.abc import Callable, Iterable, Mapping, Sequence
import contextlib
from pathlib import Path
from typing import Any

import jax

from jaxdl.core import tree
from jaxdl.train.checkpoint import Checkpoints
from jaxdl.train.feed import Feed
from jaxdl.train.logs import History, Log
from jaxdl.train.plot import plot_history
from jaxdl.train.preempt import Preemption
from jaxdl.train.record import Recorder, floats
from jaxdl.train.state import TrainState
from jaxdl.train.watch import Watchdog

PyTree = Any


def fit(
    state: TrainState,
    step: Callable[[TrainState, PyTree], tuple[TrainState, dict]],
    data: Callable[[int], PyTree] | Iterable[PyTree],
    *,
    steps: int,
    evaluate: Callable[[TrainState], Mapping[str, Any]] | None = None,
    eval_every: int | None = None,
    checkpoints: Checkpoints | None = None,
    logs: Sequence[Log] = (),
    callbacks: Sequence[Callable[[int, TrainState, dict], Any]] = (),
    log_every: int = 10,
    progress: bool = True,
    plot: str | Path | None = None,
    items: Mapping[str, float] | None = None,
    flops_per_step: float | None = None,
    hang_after: float | None = None,
) -> tuple[TrainState, History]:
    """Trains until `steps` steps are done, and returns the state and the history.

    ```python
    state, history = fit(
        state,
        make_step(loss_fn, optimizer),
        data=lambda step: batches[step % len(batches)],
        steps=1000,
        evaluate=lambda state: {"loss": eval_loss(state.params)},
        eval_every=100,
        checkpoints=Checkpoints("runs/mlp", every=100),
        logs=[JsonLines("runs/mlp/log.jsonl")],
    )
    ```

    state: donated to the step; use the one that is returned.
    step: from `make_step`, or any `(state, batch) -> (state, metrics)`.
    data: a function of the step (counted from 0), or an iterable; see `Feed`.
    steps: in all. A run that resumes at step 300 of 1000 does the other 700.
    evaluate: `(state) -> dict of scalars`, recorded as `eval/...`; called every
      `eval_every` steps (default: never before) and after the last one.
    checkpoints: if the directory has a whole checkpoint, the run goes on from the
      latest one; the state is saved when it is `due` and after the last step.
    logs: see `jaxdl.train.logs`.
    callbacks: `callback(step, state, metrics)` after every step. The values are still
      on the device: reading them waits for the step. The state dies with the next step:
      copy what you keep. Returning True stops the run.
    log_every: how often the metrics of a step are recorded. They are fetched after the
      next step is under way, so that the device does not wait.
    plot: where to draw the history at the end.
    items: what one step goes through, to show its speed: `{"tokens": 8192}`. Default:
      the batch's leading axis, as examples.
    flops_per_step: of the whole program, to show the MFU where the device's peak is
      known. Default: those of the jitted step (`jaxdl.planning.count_flops`).
    hang_after: seconds after which a step that is not done ends the process, with the
      stacks of all threads on stderr and status 1. Compilation, evaluation and saving
      may take longer.

    Metrics come from one step each, not from a mean since the last record: a resumed
    run records the same numbers. Speeds leave out compilation, evaluation and saving;
    `goodput` is the share of the time since `fit` began in which steps ran.

    SIGTERM finishes the step, saves it, waits until it is on disk and raises
    SystemExit(143), so that nothing after `fit` takes a half-trained model for a whole
    one; the same command goes on from there. (Only in the main thread; with several
    processes, through JAX's preemption service, which makes them stop at one step.)

    Raises ValueError for options that do not fit together or data that ends early,
    CheckpointError when a checkpoint cannot be written.
    """
    _check_options(steps, log_every, eval_every, evaluate, checkpoints)
    state, start, saved = _resume(state, checkpoints)
    feed = Feed(data, start, saved)
    layout = state.shardings if isinstance(state, TrainState) else None

    with contextlib.ExitStack() as stack:
        # The signal handler goes last: a SIGTERM must not cut short the last save.
        preemption = stack.enter_context(Preemption())
        recorder = stack.enter_context(
            Recorder(start, steps, logs, progress, items, flops_per_step)
        )
        watchdog = stack.enter_context(Watchdog(hang_after))
        if checkpoints is not None:
            stack.callback(checkpoints.close)

        for index in range(start, steps):
            with recorder.waiting():
                batch = feed.batch(index)
            state, metrics = step(state, batch)
            done = index + 1
            recorder.stepped(step, done, state, batch, metrics)
            watchdog.beat()
            if done == start + 1:
                _check_layout(layout, state)

            stop = _stop_reason(callbacks, done, state, metrics, preemption)
            last = done == steps or stop is not None
            if last or done % log_every == 0:
                recorder.later(done, metrics)

            evaluated: dict[str, float] = {}
            if evaluate is not None and stop != "SIGTERM":
                if last or (eval_every and done % eval_every == 0):
                    watchdog.rest()
                    with recorder.pause(done):
                        evaluated = _evaluation(evaluate, state)
                    recorder.now(done, evaluated)
            if checkpoints is not None and (last or checkpoints.due(done)):
                watchdog.rest()
                with recorder.pause(done):
                    ranked = _ranked(checkpoints, metrics, evaluated)
                    checkpoints.save(done, state, ranked, feed.state())
            if checkpoints is not None and done % log_every == 0:
                checkpoints.check()
            if stop is not None:
                recorder.history.stopped = stop
                break

    if plot is not None and jax.process_index() == 0:
        plot_history(recorder.history, plot)
    if recorder.history.stopped == "SIGTERM":
        preemption.leave(done, checkpoints)
    return state, recorder.history


def _resume(state: PyTree, checkpoints: Checkpoints | None) -> tuple[PyTree, int, Any]:
    latest = None if checkpoints is None else checkpoints.latest()
    if checkpoints is None or latest is None:
        return state, int(state.step), None
    return checkpoints.restore(state, latest), latest, checkpoints.read_data(latest)


def _stop_reason(callbacks, done, state, metrics, preemption) -> str | None:
    # Every callback sees every step, whichever of them stops the run.
    answers = [callback(done, state, metrics) for callback in callbacks]
    if preemption.requested(done):
        return "SIGTERM"
    return "callback" if any(answer is True for answer in answers) else None


def _evaluation(evaluate: Callable, state: PyTree) -> dict[str, float]:
    return {f"eval/{name}": value for name, value in floats(evaluate(state)).items()}


def _ranked(checkpoints: Checkpoints, metrics: dict, evaluated: dict) -> dict | None:
    """The metrics to rank a checkpoint by; None, if this step has no say in it."""
    if checkpoints.metric is None:
        return None
    known = floats(metrics) | evaluated
    return known if evaluated or checkpoints.metric in known else None


def _check_layout(layout: PyTree, state: PyTree) -> None:
    """Once a run: a state that comes back laid out differently compiles twice."""
    if layout is None or layout == state.shardings:
        return
    old, new = tree.flatten(layout), tree.flatten(state)
    moved = [
        p for p in old if not old[p].is_equivalent_to(new[p].sharding, new[p].ndim)
    ]
    spread = [p for p in moved if len(new[p].sharding.device_set) > 1]
    if spread and any(len(old[p].device_set) > 1 for p in old):
        raise ValueError(
            f"the step changed the sharding of {len(spread)} arrays, "
            f"{spread[:5]}...: pass shardings=state.shardings to make_step"
        )


def _check_options(steps, log_every, eval_every, evaluate, checkpoints) -> None:
    for name, value in {"log_every": log_every, "eval_every": eval_every}.items():
        if value is not None and value < 1:
            raise ValueError(f"{name}: expected an integer from 1, got {value!r}")
    if steps < 0:
        raise ValueError(f"steps: expected 0 or more, got {steps!r}")
    if eval_every is not None and evaluate is None:
        raise ValueError("eval_every is given, but there is nothing to evaluate")
    metric = None if checkpoints is None else checkpoints.metric
    if metric is not None and metric.startswith("eval/") and evaluate is None:
        raise ValueError(
            f"checkpoints rank by {metric!r}, but there is nothing to evaluate"
        )
